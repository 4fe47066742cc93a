"""The process in which :mod:`bench.memory` watches one training step: it prints the bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch

from . import memory, systems
from .cases import CELL_OF, WARM_UP, Task, known_cases, tasks
from .layers import inputs, work_of

if __name__ == "__main__":
    name, system_name, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    task = next(task for task in tasks(known_cases("cpu"), "cpu", tuple(CELL_OF)) if str(task) == name)
    (system,) = (system for system in (systems.OURS, systems.TORCH) if system.name == system_name)

    def step_of(task: Task) -> Callable[[], object]:
        rnn, x, lengths = inputs(task, torch.device("cpu"))
        return work_of(task, system.build(task, rnn, x, lengths), x)

    step_of(replace(task, case=WARM_UP))()  # what is loaded once, whatever the sizes, is no memory of the step
    print(memory.resident_peak(step_of(task)))
