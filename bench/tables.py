"""Rows as tables in Markdown."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

from fused_rnn.cases import BATCHED, CPU_GRID, ONE_STEP, SINGLE, Case

from . import floors, kernels, targets
from .cases import CELL_OF, CELLS, Task, known_cases
from .recorded import Recorded
from .rows import Row, precision

# Our layers with quantised weights or as a Stream, and the systems that each is compared with.
FORMS = {
    "fused_rnn int8": ("fused_rnn", "torch.ao int8"),
    "fused_rnn bf16 weights": ("fused_rnn",),
    "fused_rnn Stream": ("fused_rnn",),
    "fused_rnn Stream int8": ("fused_rnn Stream", "torch.ao int8"),
    "fused_rnn Stream bf16 weights": ("fused_rnn Stream",),
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that a terminal shows well, too: the first column to the left, the others to the right."""
    widths = [max(2, *(len(line[k]) for line in (head, *rows))) for k in range(len(head))]

    def written(line: Sequence[str]) -> str:
        cells = [
            text.ljust(w) if k == 0 else text.rjust(w) for k, (text, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |\n"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "".join(map(written, (head, rule, *rows)))


def ratio(row: Row | None) -> str:
    """How many times as long that system takes as ours; bold where ours is slower."""
    if row is None:
        return ""
    if not row["ratio"]:
        return "wrong" if "not timed" in row["note"] else "-"
    value = float(row["ratio"])
    return f"{value:.2f}" if value >= 1 else f"**{value:.2f}**"


def means_table(machine: Recorded, threads: str) -> str:
    """Means and least of the ratios, for each other system; single steps belong to inference."""
    rows = []
    for found in targets.outcomes(machine.layers, threads):
        mean = f"{found.mean:.2f}"
        if "streaming" in found.target.works:
            mean += f" / {found.mean_of_batches:.2f}"
        least = f"{found.least:.2f} ({found.worst})"
        rows.append([against(found.target), found.target.layer(), mean, least, str(found.points)])
    return table(["against", "cell", "geometric mean", "least", "sizes"], rows) if rows else ""


def against(target: targets.Target) -> str:
    name = target.system.replace("onnxruntime", "ONNX Runtime").replace("openvino", "OpenVINO")
    return f"{name}, {target.works[0]}, {target.dtype}"


def targets_table(machine: Recorded, threads: str) -> str:
    rows = []
    for found in targets.outcomes(machine.layers, threads):
        target = found.target
        batches = f"{found.mean_of_batches:.2f}" if target.mean_of_batches else ""
        wanted = f"{target.mean:g} / {target.mean_of_batches:g}" if target.mean_of_batches else f"{target.mean:g}"
        measured = f"{found.mean:.2f} / {batches}" if batches else f"{found.mean:.2f}"
        missed = "reached" if found.reached() else "missed"
        if found.wrong:
            missed = f"missed: {found.wrong} wrong results"
        least = f"{found.least:.2f} ({found.worst})"
        rows.append(
            [against(target), target.layer(), measured, wanted, least, f"{target.least:g}", str(found.points), missed]
        )
    head = ["against", "cell", "geometric mean", "target", "least", "target", "sizes", ""]
    return table(head, rows) if rows else ""


def ratios_table(machine: Recorded, cases: Sequence[Case], dtype: str, tf32: str, threads: str) -> str:
    """torch.nn's time by ours for each case, cell and work."""
    rows_of = machine.of("torch.nn", dtype=dtype, tf32=tf32, threads=threads)
    works = dict.fromkeys((*SINGLE, *BATCHED, *ONE_STEP))
    every = [(cell, work) for cell in CELL_OF for work in works]
    columns = [column for column in every if any((case.name, *column) in rows_of for case in cases)]
    rows = []
    for case in cases:
        cells = [ratio(rows_of.get((case.name, cell, work))) for cell, work in columns]
        if any(cells):
            rows.append([case.name, str(case), *cells])
    return table(["", "sizes", *(f"{cell} {work}" for cell, work in columns)], rows) if rows else ""


def peers_table(machine: Recorded, threads: str) -> str:
    """Every other system's time by ours, float32."""
    systems = [s for s in dict.fromkeys(row["system"] for row in machine.layers) if s not in ("fused_rnn", *FORMS)]
    by_system = {system: machine.of(system, dtype="float32", tf32="0", threads=threads) for system in systems}
    keys = dict.fromkeys(key for rows in by_system.values() for key in rows)
    versions = {row["system"]: row["version"] for row in machine.layers}
    rows = [
        [f"{case} {cell}, {work}", *(ratio(by_system[s].get((case, cell, work))) for s in systems)]
        for case, cell, work in keys
    ]
    return table(["float32", *(f"{system} {versions[system]}" for system in systems)], rows) if rows else ""


def _forms(machine: Recorded, threads: str) -> dict[str, dict[tuple[str, ...], float]]:
    """How many times as long one system takes as another form of ours: by both names, and by case, cell and work."""

    def ratios(system: str) -> dict[tuple[str, ...], float]:
        rows = machine.of(system, dtype="float32", tf32="0", threads=threads)
        return {key: float(row["ratio"]) for key, row in rows.items() if row["ratio"]}

    def by(other: str, form: str) -> dict[tuple[str, ...], float]:
        theirs = ratios(other)
        return {key: theirs[key] / value for key, value in ratios(form).items() if key in theirs}

    return {f"{other} / {form}": by(other, form) for form, others in FORMS.items() for other in others}


def forms_means_table(machine: Recorded, threads: str) -> str:
    """Means and least of :func:`_forms` over the grid."""
    rows, grid = [], {case.name for case in CPU_GRID}
    for (name, ratios), cell, work in product(_forms(machine, threads).items(), CELLS, ("streaming", "inference")):
        found = {key[0]: value for key, value in ratios.items() if key[0] in grid and key[1:] == (cell, work)}
        if found:
            worst = min(found, key=lambda case: found[case])
            mean, least = statistics.geometric_mean(found.values()), f"{found[worst]:.2f} ({worst})"
            rows.append([f"{name}, {work}", cell, f"{mean:.2f}", least, str(len(found))])
    return table(["float32 / a form of ours", "cell", "geometric mean", "least", "sizes"], rows) if rows else ""


def forms_table(machine: Recorded, threads: str) -> str:
    """:func:`_forms` of each case."""
    forms = {name: ratios for name, ratios in _forms(machine, threads).items() if ratios}
    rows = [
        [
            f"{case} {cell}, {work}",
            *(f"{r[key]:.2f}" if (key := (case, cell, work)) in r else "" for r in forms.values()),
        ]
        for case, cell, work in dict.fromkeys(key for ratios in forms.values() for key in ratios)
    ]
    return table(["float32", *forms], rows) if rows else ""


def share_table(machine: Recorded, threads: str) -> str:
    """The part of the measured peak of float32 multiply-adds that the products reach, ours and torch.nn's."""
    systems = ("fused_rnn", "torch.nn")
    by_system = {system: machine.of(system, dtype="float32", tf32="0", threads=threads) for system in systems}
    rows = []
    for case in CPU_GRID:
        shares = [
            _share(by_system[system].get((case.name, cell, work)), Task(case, cell, work))
            for cell in CELLS
            for work in BATCHED
            for system in systems
        ]
        if any(shares):
            rows.append([case.name, *shares])
    head = [f"{cell} {work}{', torch.nn' * (s == systems[1])}" for cell in CELLS for work in BATCHED for s in systems]
    return table(["% of the peak", *head], rows) if rows else ""


def _share(row: Row | None, task: Task) -> str:
    if row is None or not row["peak_gflops"] or not row["us_per_step"]:
        return ""
    return f"{100 * task.flops() / float(row['us_per_step']) / 1e3 / float(row['peak_gflops']):.0f}"


def memory_table(machine: Recorded, threads: str) -> str:
    rows = []
    for dtype, tf32 in machine.precisions():
        ours, theirs = (
            machine.of(system, dtype=dtype, tf32=tf32, threads=threads, work="training")
            for system in ("fused_rnn", "torch.nn")
        )
        for key, row in ours.items():
            if row["peak_bytes"] and (other := theirs.get(key)) and other["peak_bytes"]:
                mebibytes = [f"{int(r['peak_bytes']) / 2**20:.1f}" for r in (row, other)]
                rows.append([f"{key[0]} {key[1]}, {machine.called(dtype, tf32)}", *mebibytes])
    return table(["MiB, a training step", "fused_rnn", "torch.nn"], rows) if rows else ""


def gpu_table(machine: Recorded) -> str:
    """Absolute figures, which are for GPUs only."""
    known = {case.name: case for case in known_cases("cuda")}
    rows = []
    for row in machine.layers:
        if row["system"] not in ("fused_rnn", "fused_rnn-cuda", "torch.nn") or not row["us_per_step"]:
            continue
        task = Task(known[row["case"]], row["cell"], row["work"], row["dtype"], row["tf32"] == "1", "cuda")
        us, floor = float(row["us_per_step"]), floor_of(row, task)
        name = f"{row['case']} {row['cell']}, {row['work']}, {precision(row['dtype'], row['tf32'])}"
        figures = [f"{us:.2f}", f"{float(row['p10']):.2f} to {float(row['p90']):.2f}"]
        figures += [f"{100 * floor / us:.0f}", modelled(row)]
        figures += [f"{task.flops() / us / 1e6:.1f}", f"{moved(task) / us / 1e3:.0f}"]
        figures += [f"{int(row['peak_bytes'] or 0) / 2**20:.0f}", row["ratio"]]
        rows.append([name, row["system"], *figures, row["path"]])
    head = ["", "", "us a step", "p10 to p90", "% of the floor", "by the model", "TFLOP/s", "GB/s", "MiB", "ratio"]
    return table([*head, "what ran"], rows) if rows else ""


def modelled(row: Row) -> str:
    """Microseconds a step by the planner's model, of the plans that a row names; of the loops, without the matmuls."""
    plans = re.findall(r"by the model of an H100 ([\d.]+) us a step", row["path"])
    return f"{sum(map(float, plans)):.2f}" if plans else ""


def moved(task: Task) -> float:
    """Bytes that the loops of all layers, directions and passes move at a step, at least."""
    passes = 2 if task.work == "training" else 1
    return passes * task.case.layers * (1 + task.case.bidirectional) * floors.traffic(task)


def floor_of(row: Row, task: Task) -> float:
    gpu = floors.Gpu.of(task)
    if row["peak_gflops"] and row["copy_gbs"]:
        gpu = gpu.calibrated(float(row["peak_gflops"]), float(row["copy_gbs"]))
    return floors.floor(task, gpu)


def kernels_table(machine: Recorded) -> str:
    """The cost of a call and of a step, from the line through the times of all numbers of steps."""
    series: dict[tuple[str, ...], list[Row]] = {}
    for row in machine.kernels:
        if row["us"]:
            series.setdefault(tuple(row[name] for name in kernels.KEY if name != "T"), []).append(row)
    rows = []
    for rows_of in series.values():
        if len(rows_of) < 3:
            continue
        row = rows_of[0]
        call, step = kernels.fitted([float(r["us"]) for r in rows_of], [int(r["T"]) for r in rows_of])
        name = f"{row['cell']} {row['op']}, {precision(row['dtype'], row['tf32'])}, B={row['B']} H={row['H']}"
        figures = [f"{call:.1f}", f"{step:.2f}"] if machine.on_gpu else [f"{call / step:.1f}"]
        rows.append([name, row["plan"] or "best", row["launch"], row["threads"], *figures, row["path"]])
    costs = ["us a call", "us a step"] if machine.on_gpu else ["a call costs as much as so many steps"]
    return table(["", "plan", "launch", "threads", *costs, "what ran"], rows) if rows else ""


def app_tables(machine: Recorded) -> Iterator[str]:
    layers = [row for row in machine.app if row["what"] == "layer"]
    pairs: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in layers:
        pairs.setdefault((row["case"], row["work"], row["threads"]), {})[row["cell"]] = row
    rows = []
    for (case, work, threads), pair in pairs.items():
        lstm, gru = pair["LSTM"], pair["GRU"]
        figures = [f"{int(gru[name]) / int(lstm[name]):.2f}" for name in ("parameters", "flops")]
        memory = f"{int(gru['peak_bytes']) / int(lstm['peak_bytes']):.2f}" if gru["peak_bytes"] else ""
        rows.append([f"{case}, {work}", threads, *figures, gru["by_lstm"], memory])
    yield table(["a GRU's by an LSTM's", "threads", "parameters", "FLOPs", "time", "memory"], rows) if rows else ""
    models = [row for row in machine.app if row["what"] == "model"]
    seconds = {row["work"]: float(row["seconds"]) for row in models if row["cell"] == "LSTM"}
    rows = [
        [
            f"{row['cell']}, {row['work']}",
            *(row["H"], row["parameters"], row["steps"]),
            f"{float(row['seconds']) / seconds[row['work']]:.2f}",
            f"{float(row['loss']):.3f}",
        ]
        for row in models
    ]
    yield table(["character model", "H", "parameters", "steps", "time by LSTM's", "loss"], rows) if rows else ""


def summary_table(machine: Recorded) -> str:
    """Geometric mean, least and largest of torch.nn's time by ours, over the grid."""
    rows = []
    for dtype, tf32 in machine.precisions():
        rows_of = machine.of("torch.nn", dtype=dtype, tf32=tf32)
        for cell in CELLS:
            for work in BATCHED:
                values = [
                    float(row["ratio"]) for key, row in rows_of.items() if key[1:] == (cell, work) and row["ratio"]
                ]
                if values:
                    figures = [statistics.geometric_mean(values), min(values), max(values)]
                    rows.append(
                        [f"{cell} {work}, {precision(dtype, tf32)}", *(f"{v:.2f}" for v in figures), str(len(values))]
                    )
    return table(["torch.nn's time by ours", "geometric mean", "least", "most", "sizes"], rows)


def resets_table(machine: Recorded, threads: str) -> str:
    """How long other ways to reset states inside a sequence take, by ours, and the same call of ours without resets."""
    rows = [
        [
            f"{row['case']}, {row['cell']}, {row['work']}, {row['dtype']}, {row['rate']} a step",
            *(f"{float(row[name]):.2f}" for name in ("plain", "packed", "loop")),
        ]
        for row in machine.resets
        if row["threads"] == threads
    ]
    head = ["", "ours without resets", "torch.nn, cut and packed", "a loop over torch.nn's cell"]
    return table(head, rows) if rows else ""


def tuned_table(machine: Recorded, threads: str) -> str:
    """After fused_rnn.tune: torch.nn's time by that of the choice, and how often each route is chosen."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in machine.tuned:
        if row["threads"] == threads and float(row["speedup"]):
            math = row["dtype"] if row["dtype"] == row["math"] else f"{row['dtype']} in {row['math']}"
            groups.setdefault((row["cell"], "training" if row["training"] == "1" else "inference", math), []).append(
                row
            )
    rows = []
    for (cell, work, math), group in sorted(groups.items()):
        least = min(group, key=lambda row: float(row["speedup"]))
        mean = statistics.geometric_mean(float(row["speedup"]) for row in group)
        gains = sorted(float(row["gain"]) for row in group if row["gain"] != "nan")
        routes = Counter(row["route"] for row in group)
        rows.append(
            [
                f"{cell}, {work}, {math}",
                f"{mean:.2f}",
                f"{float(least['speedup']):.2f} ({least['case']})",
                f"{gains[-1]:.2f}",
                str(len(group)),
                ", ".join(f"{route} {count}" for route, count in routes.most_common()),
            ]
        )
    head = ["", "geometric mean", "least", "most over no choice", "calls", "routes"]
    return table(head, rows) if rows else ""
