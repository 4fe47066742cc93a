"""Rows as pictures in SVG. Each bears the digest of the rows that it was drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fused_rnn.cases import BATCHED

from .cases import CELLS, GPU_GRID, Task, known_cases
from .recorded import Recorded, digest
from .rows import Row
from .tables import floor_of

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "fused_rnn"  # the same rows, the same file


Draw = Callable[[Path], None]


def pictures(machine: Recorded) -> dict[str, Draw]:
    """Every picture of a machine: the name of its file, and what draws it there."""
    return dict(_pictures(machine))


def _pictures(machine: Recorded) -> Iterator[tuple[str, Draw]]:
    for threads, (dtype, tf32) in product(machine.threads(), machine.precisions()):
        rows_of = machine.of("torch.nn", dtype=dtype, tf32=tf32, threads=threads)
        what = machine.called(dtype, tf32).replace(" ", "-")
        title = f"torch.nn's time by fused_rnn's, {what}"
        if not rows_of:  # a precision that was measured in another number of threads only
            continue
        if not machine.on_gpu:
            draw = partial(_draw_heat_map, machine, f"{title}, threads: {threads}", _points(rows_of))
            yield f"speedup-{what}-{threads}-threads.svg", draw
            continue
        for cell, work in product(CELLS, BATCHED):
            if grid := _grid(rows_of, cell, work):
                draw = partial(_draw_heat_map, machine, f"{title}: {cell} {work}", grid)
                yield f"speedup-{cell.lower()}-{work}-{what}.svg", draw
    if any(row["peak_bytes"] for row in machine.layers):
        yield "memory.svg", partial(_draw_memory, machine)
    if machine.on_gpu:
        yield "floor.svg", partial(_draw_floor, machine)


Grid = tuple[list[str], list[str], list[list[float]]]  # names of rows, of columns, values; NaN where there is none


def _value(row: Row | None) -> float:
    return float(row["ratio"]) if row is not None and row["ratio"] else float("nan")


def _grid(rows_of: dict[tuple[str, str, str], Row], cell: str, work: str) -> Grid | None:
    """H down, B across."""
    heights, batches = (sorted({getattr(case, name) for case in GPU_GRID}) for name in ("H", "B"))
    values = [[_value(rows_of.get((f"h{H}-b{B}", cell, work))) for B in batches] for H in heights]
    if all(value != value for line in values for value in line):
        return None
    return [f"H {H}" for H in heights], [f"B {B}" for B in batches], values


def _points(rows_of: dict[tuple[str, str, str], Row]) -> Grid:
    """The cases down, what is done with them across; a streaming case has its one figure under inference."""
    columns = [(cell, work) for cell in CELLS for work in BATCHED]
    cases = [case for case in known_cases("cpu") if any(key[0] == case.name for key in rows_of)]
    values = [
        [
            _value(rows_of.get((case.name, cell, "streaming" if case.T == 1 and work == "inference" else work)))
            for cell, work in columns
        ]
        for case in cases
    ]
    return (
        [f"{c.name}  T {c.T}, B {c.B}, H {c.H}" for c in cases],
        [f"{cell}\n{work}" for cell, work in columns],
        values,
    )


def _draw_heat_map(machine: Recorded, title: str, grid: Grid, path: Path) -> None:
    names, columns, values = grid
    figure, axes = plt.subplots(figsize=(3.4 + 1.1 * len(columns), 1.2 + 0.32 * len(names)), layout="constrained")
    logs = [[_log2(value) for value in line] for line in values]
    axes.imshow(logs, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value == value:
                dark = abs(_log2(value)) > 1.2
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.set_title(f"{title}\n{machine.name}; blue: fused_rnn is faster", fontsize=10)
    _save(figure, path, machine.layers)


def _log2(value: float) -> float:
    return math.log2(value) if value == value and value > 0 else float("nan")


def _draw_memory(machine: Recorded, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 4.5), layout="constrained")
    ours, theirs = (_training_memory(machine, system) for system in ("fused_rnn", "torch.nn"))
    for cell, marker in zip(CELLS, "os", strict=True):
        keys = [key for key in ours if key in theirs and key[1] == cell]
        axes.scatter([theirs[k] for k in keys], [ours[k] for k in keys], marker=marker, label=cell, alpha=0.7)
    limits = [min([*ours.values(), *theirs.values()]) / 2, max([*ours.values(), *theirs.values()]) * 2]
    axes.plot(limits, limits, color="gray", linewidth=1)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    axes.set(xlabel="torch.nn, MiB", ylabel="fused_rnn, MiB")
    axes.set_title(f"Peak memory of a training step\n{machine.name}; below the line fused_rnn needs less", fontsize=10)
    axes.legend()
    _save(figure, path, machine.layers)


def _training_memory(machine: Recorded, system: str) -> dict[tuple[str, ...], float]:
    names = ("case", "cell", "dtype", "tf32", "threads")
    return {
        tuple(row[name] for name in names): int(row["peak_bytes"]) / 2**20
        for row in machine.layers
        if row["system"] == system and row["peak_bytes"] and int(row["peak_bytes"]) > 0
    }


def _draw_floor(machine: Recorded, path: Path) -> None:
    """Microseconds a step over the floor's, forward: ours and torch.nn's."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    known = {case.name: case for case in GPU_GRID}
    largest = 1.0
    for system, marker in (("torch.nn", "x"), ("fused_rnn", "o")):
        xs, ys = [], []
        for row in machine.layers:
            if row["system"] == system and row["case"] in known and row["us_per_step"] and row["work"] == "inference":
                task = Task(known[row["case"]], row["cell"], row["work"], row["dtype"], row["tf32"] == "1", "cuda")
                xs.append(floor_of(row, task))
                ys.append(float(row["us_per_step"]))
        axes.scatter(xs, ys, marker=marker, label=system, alpha=0.6)
        largest = max([largest, *xs, *ys])
    axes.plot([0.2, largest], [0.2, largest], color="gray", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="floor (a model), us a step", ylabel="measured, us a step")
    axes.set_title(f"Inference against the floor\n{machine.name}", fontsize=10)
    axes.legend()
    _save(figure, path, machine.layers)


def _save(figure: Figure, path: Path, rows: Sequence[Row]) -> None:
    figure.savefig(path, metadata={"Date": None, "Description": f"rows {digest(rows)}"})
    plt.close(figure)
