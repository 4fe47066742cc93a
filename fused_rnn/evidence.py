"""Which of our GPU kernels were measured to be faster than PyTorch's, on which GPU and for which shapes.

``measured.csv`` is condensed from the rows under ``bench/results`` by ``python -m bench report``. A kernel comes before
PyTorch's where those rows say that it is faster, by the rule of :func:`speedup`, and nowhere else.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from .call import Call, Problem
from .native import constant, math_of

MARGIN = 1.05  # the least speed-up that is worth another kernel
SHORTEST = 4  # what was measured over T steps holds for sequences of T / SHORTEST steps and more
PATH = Path(__file__).with_name("measured.csv")


class Work(NamedTuple):
    """What was measured, whatever its sizes."""

    backend: str
    cell: str
    math: str  # float32, tf32, bfloat16, float16
    training: bool
    layers: int
    directions: int
    packed: bool  # sequences of different lengths, packed for PyTorch


class Shape(NamedTuple):
    """A measured size of some work, and PyTorch's time by ours: above 1 ours is faster."""

    T: int
    B: int
    H: int
    speedup: float


COLUMNS = ("gpu", *Work._fields, *Shape._fields)


def parsed(row: dict[str, str]) -> tuple[str, Work, Shape]:
    """A row of the file: PyTorch's name of the GPU, and the measurement. Raises ValueError for other columns."""
    if tuple(row) != COLUMNS:
        raise ValueError(f"the columns must be {', '.join(COLUMNS)}, got {', '.join(row)}")
    flags, numbers = ("training", "packed"), ("layers", "directions", "T", "B", "H")
    of = {name: bool(int(row[name])) for name in flags} | {name: int(row[name]) for name in numbers}
    work = Work(*(of.get(name, row[name]) for name in Work._fields))  # type: ignore[arg-type]
    return row["gpu"], work, Shape(of["T"], of["B"], of["H"], float(row["speedup"]))


@functools.cache
def measurements() -> tuple[tuple[str, Work, Shape], ...]:
    """All rows of ``measured.csv``."""
    with PATH.open(newline="") as file:
        return tuple(parsed(row) for row in csv.DictReader(file))


@constant
def measured_shapes(gpu: str, *work: str | bool | int) -> tuple[Shape, ...]:
    """The shapes of some work that were measured on a kind of GPU.

    Args:
        gpu: PyTorch's name of it, or a word of that name such as "H100".
        work: the fields of a :class:`Work`, each by itself: torch.compile hands over nothing else as it is.
    """
    return _measured_shapes(gpu, Work(*work))  # type: ignore[arg-type]


@functools.cache  # every call of a layer asks
def _measured_shapes(gpu: str, work: Work) -> tuple[Shape, ...]:
    return tuple(shape for name, of, shape in measurements() if of == work and (gpu == name or gpu in name.split()))


@constant
def gpu_name(device_type: str, index: int | None) -> str:
    """PyTorch's name of a GPU that is here; without an index, of the current one."""
    current = torch.get_device_module(device_type).current_device
    return _gpu_name(device_type, current() if index is None else index)


@functools.cache  # every call of a layer asks
def _gpu_name(device_type: str, index: int) -> str:
    return torch.get_device_module(device_type).get_device_name(index)


def speedup(shapes: Iterable[Shape], T: int, B: int, H: int) -> float | None:
    """The lowest speed-up among the measured shapes that enclose a shape, or None if none do.

    These have the nearest measured B and H on both sides, or the very B and H if those were measured.
    """
    found: dict[tuple[int, int], float] = {}
    for one in shapes:
        if one.T <= SHORTEST * T:
            found[one.B, one.H] = min(one.speedup, found.get((one.B, one.H), one.speedup))
    sizes = _around({b for b, _ in found}, B), _around({h for _, h in found}, H)
    enclosing = [found.get(corner) for corner in product(*sizes)]
    return None if not enclosing or None in enclosing else min(enclosing)  # type: ignore[type-var]


def _around(sizes: set[int], size: int) -> list[int]:
    """The nearest of ``sizes`` on both sides of ``size``; nothing if there is none on a side."""
    below, above = [s for s in sizes if s <= size], [s for s in sizes if s >= size]
    return [max(below), min(above)] if below and above else []


def why_later(problem: Problem | Call, backend: str, gpu: str | None = None) -> str | None:
    """Why PyTorch's kernels come before a backend of ours, a sentence, or None if they do not.

    Args:
        gpu: a kind of GPU; unless given, that of the problem's device.
    """
    p = problem
    gpu = gpu or gpu_name(p.device.type, p.device.index)
    math = math_of(p.dtype, p.device)
    shapes = measured_shapes(gpu, backend, str(p.cell), math, p.training, p.layers, p.directions, p.packed)
    found = None if p.projection else speedup(shapes, p.T, p.B, p.H)  # no row has proj_size
    if found is None:
        return f"not measured on this GPU ({gpu}) at such sizes, so PyTorch's kernels come first"
    if found < MARGIN:
        return f"measured on this GPU ({gpu}) at {found:.2f} times the speed of PyTorch's kernels"
    return None
