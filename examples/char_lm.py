"""Train a character language model twice, with torch.nn and with fused_rnn: the same curve, in less time.

    pip install -r examples/requirements.txt
    python examples/char_lm.py                  # both cells; well under a minute and a half on two CPU cores
    python examples/char_lm.py --cell gru --hidden 512 --device cuda
    python examples/char_lm.py --help

The text is the manual that every Python brings along (`pydoc_data.topics`, close to half a million characters). Two
copies of one model, a two-layer nn.LSTM or nn.GRU, start from the same seed and read the same batches; in one of them
`fused_rnn.convert` has replaced the recurrent layers, and that line is the only difference. They train in turns of ten
steps, and the ratio of their times is the median over the turns: what else the machine does moves it little.

Expect a loss that falls from 4.6 to about 1.6 (LSTM) or 1.5 (GRU), two curves that agree to five digits or more, a
sample of pseudo-English, and a table with both times. The exit code is not zero if the curves differ by 1e-3 or more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pydoc_data.topics import topics
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import fused_rnn

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
LARGEST_DIFFERENCE = 1e-3
WARM_UP = 5  # steps before the clock starts
TURN = 10  # steps of one model before the other's turn
TEMPERATURE = 0.7  # of the sample; lower is more careful


def manual() -> str:
    """Python's own manual: the text that the models read."""
    return "".join(topics[name] for name in sorted(topics))


class Vocabulary:
    """The characters of a text, and the way from characters to numbers and back."""

    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        self._ids = {character: i for i, character in enumerate(self.characters)}

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self._ids[character] for character in text])

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i] for i in ids)


class CharLM(nn.Module):
    def __init__(self, cell: str, characters: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden)
        self.rnn = CELLS[cell](hidden, hidden, num_layers=2)
        self.head = nn.Linear(hidden, characters)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [T, B, characters] of what follows each character of x [T, B], and the state after x."""
        output, state = self.rnn(self.embedding(x), state)
        return self.head(output), state


class Trainer:
    """A model in training: its optimizer, its state between batches, its losses, the seconds of each turn."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Not Adam: it divides by the gradient's size and can blow a difference in the last bit up to 1e-2 within 200
        # steps. Under SGD the curves of this run stay together, and it learns no slower here.
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        self.state: Any = None
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def train(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        start = time.perf_counter()
        losses = [self._step(x, target) for x, target in batches]
        self.losses += torch.stack(losses).tolist()  # waits for the device, so the clock sees all the work
        self.seconds.append(time.perf_counter() - start)

    def _step(self, x: Tensor, target: Tensor) -> Tensor:
        logits, state = self.model(x, self.state)
        self.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()


class Result(NamedTuple):
    cell: str
    stock_seconds: float
    fused_seconds: float
    ratio: float
    difference: float
    loss: float


def batches_of(ids: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless pairs x, target, each [length, batch]. Each batch goes on where the one before it stopped."""
    streams = ids[: len(ids) // batch * batch].view(batch, -1).t().contiguous()
    while True:
        for start in range(0, len(streams) - length, length):
            yield streams[start : start + length], streams[start + 1 : start + length + 1]


def train_in_turns(
    trainers: Sequence[Trainer], batches: Iterator[tuple[Tensor, Tensor]], steps: int, name: str
) -> None:
    warm_up = list(islice(batches, WARM_UP))
    for trainer in trainers:
        trainer.train(warm_up)
        trainer.seconds.clear()
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=steps, desc=name, unit="step", mininterval=interval) as progress:
        for start in range(0, steps, TURN):
            turn = list(islice(batches, min(TURN, steps - start)))
            for trainer in trainers:
                trainer.train(turn)
            progress.set_postfix(loss=f"{trainers[-1].losses[-1]:.3f}", refresh=False)
            progress.update(len(turn))


@torch.inference_mode()
def write(model: nn.Module, vocabulary: Vocabulary, start: str, length: int) -> str:
    """`start` and `length` characters more, one at a time: the model sees only the last one and carries its state."""
    device = next(model.parameters()).device
    logits, state = model(vocabulary.encode(start).to(device)[:, None])
    ids: list[int] = []
    for _ in range(length):
        probabilities = (logits[-1, 0] / TEMPERATURE).softmax(-1)
        character = torch.multinomial(probabilities, 1)
        ids.append(int(character))
        logits, state = model(character[:, None], state)
    return start + vocabulary.decode(ids)


def print_curves(stock: Sequence[float], fused: Sequence[float], rows: int = 8) -> None:
    print(f"{'step':>8}{'torch.nn':>12}{'fused_rnn':>12}{'difference':>12}")
    last = len(stock) - 1
    for step in sorted({last * row // (rows - 1) for row in range(rows)}):
        a, b = stock[step], fused[step]
        print(f"{step:8}{a:12.5f}{b:12.5f}{abs(a - b):12.1e}")


def compare(cell: str, vocabulary: Vocabulary, ids: Tensor, args: argparse.Namespace) -> Result:
    """Train the model with torch.nn and with fused_rnn, print both curves and a sample of the latter's writing."""

    def new_model() -> nn.Module:
        torch.manual_seed(args.seed)
        return CharLM(cell, len(vocabulary.characters), args.hidden).to(args.device)

    stock, fused = Trainer(new_model()), Trainer(fused_rnn.convert(new_model()))
    batches = batches_of(ids, args.batch, args.length)
    print(
        f"{cell.upper()}: 2 layers of {args.hidden}, {args.batch} x {args.length} characters a step, {args.device}",
        flush=True,
    )
    train_in_turns((stock, fused), batches, args.steps, cell.upper())

    print_curves(stock.losses, fused.losses)
    difference = (torch.tensor(stock.losses) - torch.tensor(fused.losses)).abs().max().item()
    print(f"largest difference of all {len(stock.losses)} steps: {difference:.1e}")
    if args.sample > 0:
        print(f"\n{write(fused.model, vocabulary, 'The ', args.sample)}")
    print(flush=True)
    last = fused.losses[-TURN:]
    ratio = median(a / b for a, b in zip(stock.seconds, fused.seconds, strict=True))
    return Result(cell, sum(stock.seconds), sum(fused.seconds), ratio, difference, mean(last))


def print_table(results: Sequence[Result]) -> None:
    print("cell    torch.nn   fused_rnn   ratio   largest loss difference   final loss")
    for r in results:
        print(
            f"{r.cell.upper():4}{r.stock_seconds:10.2f} s{r.fused_seconds:10.2f} s{r.ratio:8.2f}"
            f"{r.difference:26.1e}{r.loss:13.3f}"
        )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def usable_device(name: str) -> torch.device:
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without that device
        raise argparse.ArgumentTypeError(f"PyTorch cannot use {name!r} here: {error}") from None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a character language model with torch.nn and with fused_rnn, and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--cell", choices=(*CELLS, "both"), default="both", help="which recurrent layer")
    parser.add_argument(
        "--steps", type=positive, default=400, help=f"training steps, after {WARM_UP} that are not timed"
    )
    parser.add_argument("--hidden", type=positive, default=128, help="units in each layer")
    parser.add_argument("--batch", type=positive, default=32, help="sequences in a batch")
    parser.add_argument("--length", type=positive, default=32, help="characters of each sequence in a step")
    parser.add_argument("--device", type=usable_device, default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the sample")
    parser.add_argument("--sample", type=int, default=400, help="characters to write after training")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    text = manual()
    if len(text) // args.batch <= args.length:
        sys.exit(f"The text's {len(text)} characters are too few for --batch {args.batch} --length {args.length}.")
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text).to(args.device)

    # TF32 keeps 10 bits of a product's factors: too few to tell two programs apart by their curves.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        cells = CELLS if args.cell == "both" else (args.cell,)
        results = [compare(cell, vocabulary, ids, args) for cell in cells]
    print_table(results)

    for result in results:
        if not result.difference < LARGEST_DIFFERENCE:  # a NaN fails, too
            sys.exit(
                f"{result.cell.upper()}: the losses of torch.nn and fused_rnn differ by {result.difference:.1e}; they "
                f"must stay below {LARGEST_DIFFERENCE:.0e}. In the default run this is an error of fused_rnn; in a "
                "much longer one, or with another seed, rounding alone can do it."
            )


if __name__ == "__main__":
    main()
