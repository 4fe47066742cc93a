"""Measurements as rows of a CSV file: one row for each, with everything that its figure depends on."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Row = dict[str, str]

KEY = ("case", "cell", "work", "dtype", "tf32", "threads", "system")
FIELDS = (
    *KEY,
    *("T", "B", "I", "H", "layers", "bidirectional", "ragged"),
    # us_per_step: median over the rounds, with percentiles. ratio: this system's time by fused_rnn's in the same round,
    # median: above 1 fused_rnn is faster. error: relative distance from float64.
    *("us_per_step", "p10", "p90", "rounds", "ratio", "error", "peak_bytes"),
    # Of the machine, in this run: float32 multiply-adds on a CPU, products in this precision and copies on a GPU.
    *("peak_gflops", "copy_gbs"),
    *("path", "note", "version", "torch", "device", "date", "commit"),
)


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def task(row: Row) -> tuple[str, ...]:
    """The part of a key that is the same for all systems and numbers of threads."""
    return tuple(row[name] for name in ("case", "cell", "work", "dtype", "tf32"))


def precision(dtype: str, tf32: str) -> str:
    """The name of a precision: the dtype, or tf32."""
    return "tf32" if tf32 == "1" else dtype


class Results:
    """The rows of one file. Every change is written at once: a run that is stopped has lost none.

    Raises:
        ValueError: the file has other columns.
    """

    def __init__(self, path: Path, fields: Sequence[str] = FIELDS, keys: Sequence[str] = KEY) -> None:
        self.path, self._fields, self._keys = path, fields, keys
        self._rows: dict[tuple[str, ...], Row] = {}
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != tuple(fields):
                    raise ValueError(f"{path} has other columns than this version writes: move it away")
                self._rows = {self._key(row): row for row in reader}

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in self._keys)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._rows

    def put(self, rows: Iterable[Row]) -> None:
        """Add rows; one with the same key is replaced."""
        for row in rows:
            self._rows[self._key(row)] = {name: row.get(name, "") for name in self._fields}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".part")
        with written.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._fields, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows.values())
        written.replace(self.path)
