"""What has been measured, machine by machine: the rows under ``bench/results/<device>/``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from . import app, kernels, resets, tuned
from .machine import slug
from .rows import FIELDS, KEY, Results, Row, precision


class Recorded:
    """The rows of one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layers = list(Results(folder / "layers.csv", FIELDS, KEY))
        self.kernels = list(Results(folder / "kernels.csv", kernels.FIELDS, kernels.KEY))
        self.app = list(Results(folder / "app.csv", app.FIELDS, app.KEY))
        self.tuned = list(Results(folder / "tuned.csv", tuned.FIELDS, tuned.KEY))
        self.resets = list(Results(folder / "resets.csv", resets.FIELDS, resets.KEY))
        self.name = next((row["device"] for row in (*self.layers, *self.kernels, *self.app)), folder.name)
        self.on_gpu = any(not row["threads"] for row in self.layers)

    def __bool__(self) -> bool:
        return bool(self.layers or self.kernels or self.app or self.tuned or self.resets)

    def threads(self) -> list[str]:
        found = {row["threads"] for row in (*self.layers, *self.tuned, *self.resets)}
        return sorted(found, key=lambda threads: int(threads or 0))

    def precisions(self) -> list[tuple[str, str]]:
        """dtype and whether TF32, as they were measured."""
        return list(dict.fromkeys((row["dtype"], row["tf32"]) for row in self.layers))

    def called(self, dtype: str, tf32: str) -> str:
        """The name of a precision on this machine."""
        return "reduced float32" if tf32 == "1" and not self.on_gpu else precision(dtype, tf32)

    def of(self, system: str, **wanted: str) -> dict[tuple[str, str, str], Row]:
        """Rows of a system by case, cell and work."""
        return {
            (row["case"], row["cell"], row["work"]): row
            for row in self.layers
            if row["system"] == system and all(row[name] == value for name, value in wanted.items())
        }


def all_recorded(results: Path) -> list[Recorded]:
    """Every machine that has rows, by the names of their folders."""
    found = [Recorded(folder) for folder in sorted(results.iterdir()) if folder.is_dir()] if results.is_dir() else []
    return [machine for machine in found if machine]


def take_over(source: Path, results: Path) -> None:
    """Merge the rows of another run, the ``layers.csv`` under ``source``, into ``results/<device>``.

    Raises:
        ValueError: there are none.
    """
    found = {path: list(Results(path, FIELDS, KEY)) for path in sorted(source.rglob("layers.csv"))}
    if not any(found.values()):
        raise ValueError(f"there is no layers.csv with rows under {source}")
    for rows in found.values():
        for device in dict.fromkeys(row["device"] for row in rows):
            target = Results(results / slug(device) / "layers.csv", FIELDS, KEY)
            target.put(row for row in rows if row["device"] == device)


def digest(rows: Sequence[Row]) -> str:
    """What tells whether a picture was drawn from these rows."""
    return hashlib.sha256(repr([sorted(row.items()) for row in rows]).encode()).hexdigest()[:16]
