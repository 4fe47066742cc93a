"""The time of layers with ``resets``, next to the same calls without them and to PyTorch's ways to reset a state."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn
from fused_rnn.cases import BATCHED, Case
from fused_rnn.timing import in_turns, ratios, spread

from . import compare, layers, machine, torch_systems
from .cases import Task
from .rows import Row
from .system import Layer

# rate: resets a step. plain, packed, loop: the time of the same call without resets, of torch.nn's layer on the
# sequences, cut out and packed, and of a loop over torch.nn's cell, by ours with resets.
FIELDS = (
    *("case", "cell", "work", "dtype", "rate", "threads", "T", "B", "I", "H"),
    *("us_per_step", "rounds", "plain", "packed", "loop", "version", "torch", "device", "date", "commit"),
)
KEY = ("case", "cell", "work", "dtype", "rate", "threads")
RATES = (0.02, 0.5)  # one in 50 steps, as in the episodes of a simple task; as many as not
CASES = (
    Case("resets-rl", 128, 64, 128, 128),
    Case("resets-one", 128, 1, 128, 128),
    Case("resets-tiny", 128, 64, 16, 32),
    Case("resets-large", 64, 32, 512, 512),
)


def tasks(cases: Sequence[Case], cells: Sequence[str]) -> Iterator[tuple[Task, float]]:
    """All that is done with those cases, each at every rate."""
    for case, cell, work, dtype, rate in product(cases, cells, BATCHED, ("float32", "bfloat16"), RATES):
        yield Task(case, cell, work, dtype), rate


def key(task: Task, rate: float, threads: int) -> tuple[str, ...]:
    """The key of the row that :func:`measure` makes."""
    return (task.case.name, task.cell, task.work, task.dtype, str(rate), str(threads))


def measure(task: Task, rate: float, threads: int, seconds: float) -> Iterator[Row]:
    """The row of a task on the CPU.

    Raises:
        ValueError: our results are wrong.
    """
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    rnn, x, _ = layers.inputs(task, device)
    resets = torch.rand(x.shape[:2]) < rate
    truth = compare.results(_packed(copy.deepcopy(rnn).double(), resets), x.double(), task.work)
    packed, ours = _packed(copy.deepcopy(rnn), resets), _ours(rnn, resets)
    plain = compare.results(packed, x, task.work)
    _, wrong = compare.judge(compare.results(ours, x, task.work), plain, truth, compare.OUR_SHARE, task)
    if wrong:
        raise ValueError(f"{task}: {wrong}")
    each = [ours, _ours(rnn, None), packed, _loop(rnn, resets)]
    times = in_turns([layers.work_of(task, layer, x) for layer in each], device, seconds)
    others = [f"{spread(ratios(other, times[0]))[0]:.3f}" for other in times[1:]]
    case, about = task.case, machine.about(device)
    yield {
        **dict(zip(KEY, key(task, rate, threads), strict=True)),
        **{name: str(getattr(case, name)) for name in ("T", "B", "I", "H")},
        **{"us_per_step": f"{spread(times[0])[0] / case.T:.4g}", "rounds": str(len(times[0]))},
        **dict(zip(("plain", "packed", "loop"), others, strict=True)),
        **{"version": fused_rnn.__version__, **about},
    }


def _ours(rnn: nn.RNNBase, resets: Tensor | None) -> Layer:
    ours: Any = fused_rnn.convert(copy.deepcopy(rnn))
    return Layer(lambda x, states: ours(x, states, resets=resets), dict(ours.named_parameters()))


def _packed(rnn: nn.RNNBase, resets: Tensor) -> Layer:
    """torch.nn's layer on the sequences, cut out and packed: our backend for that does it with few operations."""
    ours = _ours(rnn, resets)

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        with fused_rnn.use_backend("segments"):
            return ours.run(x, states)

    return Layer(run, ours.leaves)


def _loop(rnn: nn.RNNBase, resets: Tensor) -> Layer:
    """torch.nn's cell, a step at a time, with its states set to zero where a sequence begins."""
    cell = torch_systems.cell_of(rnn)
    keeps = (~resets).unsqueeze(-1)

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        outputs = []
        for t in range(x.size(0)):
            if states is not None:
                keep = keeps[t]
                states = tuple(s * keep for s in states) if isinstance(states, tuple) else states * keep
            states = cell(x[t], states)
            outputs.append(states[0] if isinstance(states, tuple) else states)
        return torch.stack(outputs), states

    return Layer(run, {f"{name}_l0": value for name, value in cell.named_parameters()})
