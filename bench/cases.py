"""Benchmark tasks: the sizes of a :class:`Case` with a cell, a dtype and a kind of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from fused_rnn.cases import CHECK_GRID, CPU_GRID, CPU_QUICK, PROJECTIONS, STEP_GRID, USES, Case
from fused_rnn.cell import GRU, LSTM, RNN_TANH

CELL_OF = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN_TANH}  # of torch.nn's class
CELLS = ("LSTM", "GRU")  # measured unless told


@dataclass(frozen=True)
class Task:
    """A case, and what is done with it."""

    case: Case
    cell: str  # a key of CELL_OF
    work: str  # of BATCHED, SINGLE or ONE_STEP
    dtype: str = "float32"
    tf32: bool = False  # float32 products may round their factors: to TF32 on a GPU, to bfloat16 on a CPU
    device: str = "cpu"  # or cuda

    def __str__(self) -> str:
        return f"{self.case.name} {self.cell} {self.work} {self.dtype}{' tf32' * self.tf32}"

    @property
    def is_cell(self) -> bool:
        return self.work.startswith("cell")

    @property
    def is_training(self) -> bool:
        return self.work.endswith("training")

    def flops(self) -> float:
        """Of the products of one time step, all layers and directions; training is a forward and twice as much more."""
        case, gates, directions = self.case, CELL_OF[self.cell].gates, 1 + self.case.bidirectional
        P = case.proj_size or case.H
        inputs = [case.I, *[directions * P] * (case.layers - 1)]
        weights = sum(gates * case.H * (size + P) + case.H * case.proj_size for size in inputs)
        forward = 2 * weights * case.B * directions
        return forward * (3 if self.is_training else 1)


# The usual batch first, so that a run that is cut off has every size of it.
GPU_GRID = tuple(
    Case(f"h{H}-b{B}", 512, B, H, H) for B, H in product((16, 1, 64, 256, 4), (256, 1024, 64, 128, 512, 2048))
)
CHECK_CPU = (Case("check-cpu", 8, 2, 8, 16),)  # to see that it works
GPU_QUICK = ("h256-b16", "h1024-b16", "h128-b1", "voice-activity", "separation")
WARM_UP = Case("warm-up", 4, 2, 8, 16)


def cases_for(device_type: str) -> tuple[Case, ...]:
    return (*GPU_GRID, *USES) if device_type == "cuda" else (*CPU_GRID, *STEP_GRID, *PROJECTIONS, *USES)


def quick_cases(device_type: str) -> tuple[Case, ...]:
    """A few of each kind; on a CPU the long ones are cut to 64 steps, with names of their own."""
    names = GPU_QUICK if device_type == "cuda" else CPU_QUICK
    chosen = [case for case in cases_for(device_type) if case.name in names]
    if device_type == "cuda":
        return tuple(chosen)
    return tuple(case if case.T <= 64 else replace(case, T=64, name=f"{case.name}-t64") for case in chosen)


def known_cases(device_type: str) -> tuple[Case, ...]:
    """All that may have rows, each once."""
    checked = CHECK_GRID if device_type == "cuda" else CHECK_CPU
    return tuple(dict.fromkeys((*cases_for(device_type), *quick_cases(device_type), *checked)))


def check_tasks(device_type: str) -> Iterator[Task]:
    """The tasks of the grid that decides, LSTM in bfloat16 before everything else, so that a run cut off has those."""
    if device_type != "cuda":
        yield from (Task(case, cell, work) for case in CHECK_CPU for cell, work in product(CELLS, case.works()))
        return
    precisions = (("bfloat16", False), ("float32", True))
    kinds = [*product(("LSTM", "GRU"), precisions), ("LSTM", ("float16", False))]
    for cell, (dtype, tf32) in kinds:
        for case in CHECK_GRID:
            if case.name.startswith("check-h") or dtype != "float16":
                yield from (Task(case, cell, work, dtype, tf32, device_type) for work in case.works())


def tasks(
    cases: Sequence[Case], device_type: str, cells: Sequence[str] = CELLS, reduced: bool = False
) -> Iterator[Task]:
    """All that is done with those cases: the grid in each precision, the uses in the one that is usual there.

    Args:
        reduced: a CPU has float32 in reduced precision.
    """
    precisions = [("bfloat16", False), ("float16", False), ("float32", True), ("float32", False)]
    if device_type != "cuda":
        precisions = [("float32", False), ("bfloat16", False)]
        precisions += [("float32", True)] * reduced
    for case in cases:
        for (dtype, tf32), cell, work in product(precisions[:1] if case.source else precisions, cells, case.works()):
            if cell == "LSTM" or not case.proj_size:
                yield Task(case, cell, work, dtype, tf32, device_type)
