#!/usr/bin/env python3
"""Our layer against torch.nn's, in one process, in turns.

    python bench/speed.py --out speed.csv          # the grid: H 64 to 1024, B 1 to 256
    python bench/speed.py --device cpu --tiny      # only to see that it works

One row per layer and pass: microseconds per step of ours and of torch.nn with the 10th and 90th percentile; ``ratio``,
the median over the rounds of theirs by ours, above 1 where ours is faster; and what ran it. A layer's times are
measured only after its results were compared: outputs and all gradients may be 1.5 times as far from float64 as
torch.nn's are, plus one rounding. ``error`` and ``torch_error`` are those distances, relative, for the result that uses
most of its budget. float32 has TF32 as PyTorch has it switched for RNNs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from timing import Row, first_sentence, in_turns, machine, spread, write_csv
from torch import Tensor, nn

import fused_rnn

COLUMNS = (
    *("cell", "pass", "dtype", "T", "B", "I", "H", "us_per_step", "p10", "p90"),
    *("torch_us_per_step", "torch_p10", "torch_p90", "ratio", "error", "torch_error", "backend", "plan", "note"),
)
CHECKED_STEPS = 16  # of the comparison with float64
TF32_ROUNDING = 2.0**-10


@dataclass(frozen=True)
class Case:
    """A layer of H units with an input of [T, B, H]."""

    cell: str
    dtype: str
    T: int
    B: int
    H: int


def cases(tiny: bool) -> Iterator[Case]:
    """The usual batch first, so that a run that is cut off has every size of it."""
    T, batches, sizes = (4, [2], [16]) if tiny else (256, [16, 1, 64, 256], [64, 128, 256, 512, 1024])
    for B, H, cell, dtype in product(batches, sizes, ("LSTM", "GRU"), ("bfloat16", "float16", "float32")):
        yield Case(cell, dtype, T, B, H)


def rows(device: torch.device, tiny: bool = False, seconds: float = 0.15) -> Iterator[Row]:
    """Compare, then measure, ``cases``; a layer without a time has the reason as its note.

    Args:
        seconds: about how long to measure each pass of a layer.
    """
    for case in cases(tiny):
        about: Row = {**asdict(case), "I": case.H}
        try:
            yield from ({**about, **row} for row in _compared_and_measured(case, device, seconds))
        except (RuntimeError, ValueError) as error:
            yield {**about, "note": first_sentence(error)}


def _compared_and_measured(case: Case, device: torch.device, seconds: float) -> Iterator[Row]:
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    theirs = getattr(nn, case.cell)(case.H, case.H).to(device, dtype)
    ours = fused_rnn.convert(copy.deepcopy(theirs))
    theirs.flatten_parameters()
    x = torch.randn(case.T, case.B, case.H, device=device, dtype=dtype)
    errors, reason = compare(ours, theirs, x[:CHECKED_STEPS])
    passes: Sequence[tuple[str, Callable[[nn.Module], Callable[[], object]]]] = (
        ("inference", lambda rnn: _inference(rnn, x)),
        ("training", lambda rnn: _training(rnn, x)),
    )
    for name, step in passes:
        with torch.set_grad_enabled(name == "training"):
            choice = fused_rnn.explain(ours, x).choices[0]
        row: Row = {"pass": name, **errors, "backend": choice.backend, "plan": choice.plan, "note": reason}
        if not reason:
            row |= _measured([step(ours), step(theirs)], case.T, device, seconds)
        yield row


def _inference(rnn: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return rnn(x)

    return run


def _training(rnn: nn.Module, x: Tensor) -> Callable[[], object]:
    leaves = [x.clone().requires_grad_(), *rnn.parameters()]
    grad_output = torch.randn_like(x)
    return lambda: torch.autograd.grad(rnn(leaves[0])[0], leaves, grad_output)


def _measured(calls: Sequence[Callable[[], object]], T: int, device: torch.device, seconds: float) -> Row:
    ours, theirs = in_turns(calls, device, seconds)
    names = ("us_per_step", "p10", "p90", "torch_us_per_step", "torch_p10", "torch_p90")
    figures = (f"{value / T:.4f}" for value in (*spread(ours), *spread(theirs)))
    ratio = spread([b / a for a, b in zip(ours, theirs, strict=True)])[0]
    return {**dict(zip(names, figures, strict=True)), "ratio": f"{ratio:.3f}"}


def compare(ours: nn.Module, theirs: nn.Module, x: Tensor) -> tuple[Row, str]:
    """The relative distances of both from float64, and why ours is too far away, or an empty string."""
    truth, plain = results(copy.deepcopy(theirs).double(), x.double()), results(theirs, x)
    worst, reason = (0.0, 0.0, 0.0), ""
    for name, got in results(ours, x).items():
        scale = max(truth[name].norm().item(), torch.finfo(torch.float64).tiny)
        error, torch_error = ((y[name].double() - truth[name]).norm().item() / scale for y in ({name: got}, plain))
        share = error / (1.5 * torch_error + _rounding(x))
        if not share <= worst[0]:  # a NaN too
            worst = (share, error, torch_error)
        if not share <= 1:
            reason = reason or f"{name} is off by {error:.2e}, torch.nn by {torch_error:.2e}: not timed"
    return {"error": f"{worst[1]:.2e}", "torch_error": f"{worst[2]:.2e}"}, reason


def _rounding(x: Tensor) -> float:
    """One rounding of what is multiplied: cuDNN may leave TF32 alone where it is allowed, and we may use it."""
    tf32 = x.dtype == torch.float32 and x.is_cuda and torch.backends.cudnn.allow_tf32
    return TF32_ROUNDING if tf32 else torch.finfo(x.dtype).eps


def results(rnn: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, final states and every gradient, by name."""
    x = x.clone().requires_grad_()
    output, states = rnn(x)
    final = dict(zip(("h_n", "c_n"), states if isinstance(states, tuple) else (states,), strict=False))
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in (output, *final.values())]
    leaves = {"x": x, **dict(rnn.named_parameters())}
    found = torch.autograd.grad((output, *final.values()), list(leaves.values()), grads)
    named = {f"grad_{name}": grad for name, grad in zip(leaves, found, strict=True)}
    return {"output": output.detach(), **{name: state.detach() for name, state in final.items()}, **named}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a CSV file; else the screen")
    parser.add_argument("--tiny", action="store_true", help="a few tiny layers: only to see that it works")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    args = parser.parse_args()
    write_csv(rows(args.device, args.tiny), COLUMNS, machine(args.device), args.out)


if __name__ == "__main__":
    main()
