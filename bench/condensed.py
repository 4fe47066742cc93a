"""From rows to the tables that ship with the package and choose kernels: of GPUs fused_rnn/evidence.py has the rule, of
processors fused_rnn/choices.py."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from fused_rnn import choices, evidence

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
    on_gpus = (machine for machine in machines if machine.on_gpu)
    return _table(evidence.COLUMNS, chain.from_iterable(map(measurements, on_gpus)))


def choices_text(machines: Iterable[Recorded]) -> str:
    """The table of all kinds of processors. Of two machines of one kind, the later measurement counts.

    A gain that is too small to hold on another machine is left out: the kernels decide there.
    """
    found: dict[tuple[str, ...], Row] = {}
    measured = (row for machine in machines for row in machine.tuned if not 1 < float(row["gain"]) < evidence.MARGIN)
    for row in sorted(measured, key=lambda row: row["day"]):
        kind = {name: row[name] for name in choices.COLUMNS} | {"device": choices.processor_kind(row["device"])}
        found[tuple(kind[name] for name in choices.Kind._fields)] = kind
    return _table(choices.COLUMNS, found.values())


def _table(columns: Sequence[str], rows: Iterable[Row]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def write(machines: Sequence[Recorded], folder: Path) -> list[Path]:
    """Write both tables; what was written."""
    tables = {evidence.PATH.name: text(machines), choices.SHIPPED.name: choices_text(machines)}
    for name, written in tables.items():
        (folder / name).write_text(written)
    return [folder / name for name in tables]
