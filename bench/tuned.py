"""Which route is the fastest for each task: what ``fused_rnn.tune`` chooses on this machine, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from fused_rnn import cases, choices, tuning

from . import layers, machine
from .cases import CELL_OF, Task
from .rows import Row

# gain: the time without a choice by the time of the choice. times: of all routes, in microseconds.
FIELDS = ("case", *choices.COLUMNS, "gain", "times", "torch", "commit")
KEY = ("case", "threads", "cell", "dtype", "math", "training", "step")


def key(task: Task, threads: int) -> tuple[str, ...]:
    """The key of the row that :func:`measure` makes."""
    math = "bfloat16" if task.tf32 else task.dtype
    flags = str(int(task.is_training)), str(int(task.is_cell))
    return (task.case.name, str(threads), CELL_OF[task.cell].name, task.dtype, math, *flags)


def measure(task: Task, threads: int, seconds: float) -> Iterator[Row]:
    """The row of a task on the CPU, of no more steps than choices tell apart."""
    torch.set_num_threads(threads)
    case, device = replace(task.case, T=min(task.case.T, choices.LONGEST)), torch.device("cpu")
    with layers.reduced(task):
        module, inputs = cases.layer(case, task.cell, task.work, device, getattr(torch, task.dtype))
        for posed in tuning.calls_of(module, inputs, task.is_training):
            found = tuning.measure(posed, seconds)
            kind = choices.kind_of(posed.problem)
            (row,) = choices.rows({kind: found.chosen})
            about = machine.about(device)
            times = ", ".join(f"{name} {us:.4g}" for name, us in found.microseconds.items())
            more = {"case": case.name, "gain": f"{found.gain:.3f}", "times": times}
            yield {name: str(value) for name, value in row.items()} | more | {n: about[n] for n in ("torch", "commit")}
