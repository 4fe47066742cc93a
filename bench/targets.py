"""What our CPU kernels are to reach on the grid of 14 sizes and with projections, and whether they do.

The figures are how many times as long another system takes as fused_rnn: geometric means over the grid, and the least
of all points. ``streaming`` points are those of a single step.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fused_rnn.cases import CPU_GRID, PROJECTIONS

from .rows import Row


@dataclass(frozen=True)
class Target:
    system: str
    works: tuple[str, ...]
    dtype: str
    cell: str
    mean: float
    least: float
    mean_of_batches: float | None = None  # without the streaming points
    projects: bool = False  # over the cases with proj_size

    def __str__(self) -> str:
        return f"{self.system} {self.dtype} {self.works[0]}"

    def layer(self) -> str:
        """The name of the measured layer."""
        return self.cell + ", proj_size" * self.projects


FORWARD = ("inference", "streaming")
TARGETS = (
    Target("torch.nn", FORWARD, "float32", "LSTM", 2.3, 1.0, 1.5),
    Target("torch.nn", FORWARD, "float32", "GRU", 4.2, 2.0, 4.6),
    Target("torch.nn", ("training",), "float32", "LSTM", 1.5, 1.0),
    Target("torch.nn", ("training",), "float32", "GRU", 6.5, 2.2),
    Target("torch.nn", FORWARD, "bfloat16", "LSTM", 2.2, 1.0, 1.5),
    Target("torch.nn", FORWARD, "bfloat16", "GRU", 6.0, 1.3, 6.0),
    Target("torch.nn", ("training",), "bfloat16", "LSTM", 1.3, 1.0),
    Target("torch.nn", ("training",), "bfloat16", "GRU", 5.0, 1.5),
    *(Target("torch.nn", FORWARD, dtype, "LSTM", 1.3, 1.0, projects=True) for dtype in ("float32", "bfloat16")),
    *(Target("torch.nn", ("training",), dtype, "LSTM", 1.0, 1.0, projects=True) for dtype in ("float32", "bfloat16")),
    Target("onnxruntime", FORWARD, "float32", "LSTM", 1.45, 1.0, 1.5),
    Target("onnxruntime", FORWARD, "float32", "GRU", 1.65, 1.0, 1.75),
    Target("openvino", FORWARD, "float32", "LSTM", 1.4, 0.97),
    Target("openvino", FORWARD, "float32", "GRU", 1.55, 0.97),
)


@dataclass(frozen=True)
class Outcome:
    """The figures beside a target's; ``points`` of the grid have been measured, ``wrong`` of ours were not timed."""

    target: Target
    points: int
    wrong: int
    mean: float
    mean_of_batches: float
    least: float
    worst: str  # the case of the least

    def reached(self) -> bool:
        target = self.target
        batches = target.mean_of_batches is None or self.mean_of_batches >= target.mean_of_batches
        return not self.wrong and self.mean >= target.mean and self.least >= target.least and batches


def outcomes(rows: Sequence[Row], threads: str) -> list[Outcome]:
    """Of every target that has rows, in that many threads."""
    found = []
    for target in TARGETS:
        grid = {case.name for case in (PROJECTIONS if target.projects else CPU_GRID)}
        own = [
            row
            for row in rows
            if row["case"] in grid
            and row["threads"] == threads
            and (row["dtype"], row["tf32"], row["cell"]) == (target.dtype, "0", target.cell)
            and row["work"] in target.works
        ]
        wrong = sum(1 for row in own if row["system"] == "fused_rnn" and row["note"])
        ratios = {row["case"]: float(row["ratio"]) for row in own if row["system"] == target.system and row["ratio"]}
        if not ratios:
            continue
        batches = [value for name, value in ratios.items() if "stream" not in name]
        worst = min(ratios, key=lambda name: ratios[name])
        mean_of_batches = statistics.geometric_mean(batches) if batches else float("nan")
        mean = statistics.geometric_mean(ratios.values())
        found.append(Outcome(target, len(ratios), wrong, mean, mean_of_batches, ratios[worst], worst))
    return found
