"""From the rows of GPUs to the table that ships with the package and chooses kernels there (fused_rnn/evidence.py)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from fused_rnn.evidence import COLUMNS

from .cases import CELL_OF
from .recorded import Recorded
from .rows import Row, precision, task

BACKENDS = {"fused_rnn-cuda": "cuda", "fused_rnn-triton": "triton"}  # the systems that force a backend of ours


def measurements(machine: Recorded) -> Iterator[Row]:
    """Speed-ups of our backends over torch.nn on one GPU, from rows where both were timed.

    Ragged batches are left out: there torch.nn packs, and ours has lengths, which PyTorch's kernels cannot run anyway.
    """
    theirs = {task(row): float(row["us_per_step"]) for row in machine.layers if _is_timed(row, "torch.nn")}
    for row in machine.layers:
        if row["system"] in BACKENDS and _is_timed(row, row["system"]) and row["ragged"] == "0" and task(row) in theirs:
            yield {
                "gpu": row["device"],
                "backend": BACKENDS[row["system"]],
                "cell": CELL_OF[row["cell"]].name,
                "math": precision(row["dtype"], row["tf32"]),
                "training": str(int(row["work"] == "training")),
                "layers": row["layers"],
                "directions": str(1 + int(row["bidirectional"])),
                "packed": "0",
                **{name: row[name] for name in ("T", "B", "H")},
                "speedup": f"{theirs[task(row)] / float(row['us_per_step']):.3f}",
            }


def _is_timed(row: Row, system: str) -> bool:
    return row["system"] == system and row["work"] in ("inference", "training") and bool(row["us_per_step"])


def text(machines: Iterable[Recorded]) -> str:
    """The table of all GPUs."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for machine in machines:
        if machine.on_gpu:
            writer.writerows(measurements(machine))
    return table.getvalue()


def write(machines: Iterable[Recorded], path: Path) -> list[Path]:
    """Write the table; what was written."""
    path.write_text(text(machines))
    return [path]
