"""Microbenchmarks: how long layers take in fused_rnn, in torch.nn and in every peer that is installed.

    python -m bench --quick           # what is here, in two minutes: a table, rows and pictures in build/bench
    python -m bench cpu               # all cases on the CPU; rows in bench/results/<device>
    python -m bench gpu               # on an NVIDIA GPU
    python -m bench kernel            # single ops: the cost of a call and of a step; --plan forces a kernel
    python -m bench app               # LSTM against GRU, and a language model of each
    python -m bench tuned             # which way fused_rnn.tune chooses on the CPU for each case
    python -m bench resets            # sequences that begin inside rows, against cutting, packing and loops
    python -m bench check             # on an NVIDIA GPU: the grid that decides which kernels run there
    python -m bench report            # tables and pictures from the rows, and the README's numbers; --import DIR first
                                      # takes over the rows of another run, such as those of make gpu-check
    python -m bench --list            # cases and peers

Results are compared with float64 before a clock starts; what is wrong has no time. Ctrl-C keeps the rows that are
there, and the next run goes on behind them: what has a row is not measured again, unless with --fresh.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

try:
    import matplotlib  # noqa: F401
    from tqdm import tqdm
except ImportError as error:
    print(f"bench: {error}: pip install -r bench/requirements.txt", file=sys.stderr)
    raise SystemExit(2) from None

from fused_rnn import evidence, native
from fused_rnn.cases import select

from . import app, condensed, kernels, layers, machine, recorded, report, resets, systems, tuned
from .cases import CELL_OF, CELLS, cases_for, check_tasks, quick_cases, tasks
from .rows import FIELDS, KEY, Results, Row

RESULTS, QUICK_RESULTS = machine.ROOT / "bench" / "results", machine.BUILT / "quick"
SECONDS, QUICK_SECONDS = 1.5, 0.25


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = ("cpu", "gpu", "kernel", "app", "tuned", "resets", "check", "report")
    parser.add_argument("what", nargs="?", choices=what, help="gpu where there is one, else cpu, unless told")
    parser.add_argument("--list", action="store_true", help="name the cases and the peers, and end")
    parser.add_argument("--quick", action="store_true", help="a few cases, short, no compilers: under two minutes")
    parser.add_argument("--case", nargs="+", metavar="NAME", help="these cases only; 'typ*' for all that match")
    parser.add_argument("--cell", nargs="+", choices=CELL_OF, default=CELLS, help="cpu, gpu: LSTM and GRU unless told")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help="these peers; without names none but torch.nn")
    parser.add_argument("--threads", nargs="+", type=_positive, metavar="N", help="on a CPU: 1 and all, unless told")
    plans = "avx512, avx2, generic; block, cluster, grid, stepwise"
    parser.add_argument("--plan", nargs=1, metavar="NAME", help=f"kernel: {plans}")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"a task's time; {SECONDS}, quick {QUICK_SECONDS}")
    parser.add_argument("--out", type=Path, help="a folder; bench/results, and build/bench for --quick, unless told")
    parser.add_argument("--fresh", action="store_true", help="measure again what has a row")
    parser.add_argument("--import", type=Path, dest="imported", metavar="DIR", help="report: rows to take over first")
    args = parser.parse_args(arguments)
    args.out = (args.out or (QUICK_RESULTS if args.quick else RESULTS)).resolve()
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def device_of(what: str | None) -> torch.device:
    """Where to measure.

    Raises:
        ValueError: gpu, and there is none.
    """
    here = torch.cuda.is_available()
    if what == "gpu" and not here:
        raise ValueError("gpu needs an NVIDIA GPU and a PyTorch with CUDA")
    return torch.device("cuda" if here and what not in ("cpu", "tuned", "resets") else "cpu")


def threads_of(args: argparse.Namespace, device: torch.device) -> list[int]:
    every = torch.get_num_threads()
    if device.type == "cuda":
        return [every]
    return args.threads or ([every] if args.quick else sorted({1, every}))


def print_list(device: torch.device) -> None:
    for case in cases_for(device.type):
        print(f"{case.name:<16}{case!s:<58}{case.source}")
    print()
    for peer in systems.PEERS:
        print(f"{peer.name:<16}{peer.missing() or peer.version()}")


class Todo(NamedTuple):
    """Something to measure: its name, the keys of its rows, and what makes them."""

    name: str
    keys: Sequence[tuple[str, ...]]
    measure: Callable[[], Iterable[Row]]


def layers_todo(args: argparse.Namespace, device: torch.device) -> Iterator[Todo]:
    known = cases_for(device.type)
    cases = select(known, args.case) if args.case else quick_cases(device.type) if args.quick else known
    peers = systems.peers(args.peers, args.quick)
    every_threads = threads_of(args, device)
    reduced = device.type == "cpu" and native.cpu_reduced_rows() > 0
    for threads in every_threads:
        with_memory = not args.quick and args.what != "check" and threads == every_threads[-1]
        setting = layers.Setting(device, threads, peers, args.seconds, with_memory)
        every = tasks(cases, device.type, args.cell, reduced)
        for task in check_tasks(device.type) if args.what == "check" else every:
            if args.quick and device.type == "cpu" and task.dtype != "float32":
                continue
            keys = [layers.key(task, system, setting) for system in layers.systems_for(task, setting)]
            yield Todo(str(task), keys, partial(layers.measure, task, setting))


def kernels_todo(args: argparse.Namespace, device: torch.device) -> Iterator[Todo]:
    plan = kernels.plan_of(device.type, args.plan)
    for threads in threads_of(args, device):
        for kernel in kernels.kernels(device.type, args.quick):
            keys = list(kernels.keys(kernel, device, plan, threads))
            yield Todo(str(kernel), keys, partial(kernels.measure, kernel, device, plan, threads, args.seconds))


def app_todo(args: argparse.Namespace, device: torch.device) -> Iterator[Todo]:
    threads = threads_of(args, device)[-1]
    cases = select(cases_for(device.type), args.case or app.COMPARED[device.type])
    for case in cases[:1] if args.quick else cases:
        keys = list(app.layer_keys(case, device, threads))
        yield Todo(case.name, keys, partial(app.layers_side_by_side, [case], device, threads, args.seconds))
    steps = app.QUICK_STEPS if args.quick else app.STEPS
    keys = list(app.model_keys(device, threads))
    yield Todo("language models", keys, partial(app.language_models, device, threads, steps))


def tuned_todo(args: argparse.Namespace, device: torch.device) -> Iterator[Todo]:
    cases = select(cases_for("cpu"), args.case) if args.case else cases_for("cpu")
    for threads in threads_of(args, torch.device("cpu")):
        for task in tasks(cases, "cpu", args.cell, native.cpu_reduced_rows() > 0):
            yield Todo(str(task), [tuned.key(task, threads)], partial(tuned.measure, task, threads, args.seconds))


def resets_todo(args: argparse.Namespace, device: torch.device) -> Iterator[Todo]:
    cases = select(resets.CASES, args.case) if args.case else resets.CASES
    for threads in threads_of(args, device):
        for task, rate in resets.tasks(cases, args.cell):
            measure = partial(resets.measure, task, rate, threads, args.seconds)
            yield Todo(f"{task} {rate}", [resets.key(task, rate, threads)], measure)


def measure_all(todo: Sequence[Todo], results: Results) -> None:
    """Measure, with a bar of the time that remains; every row is kept at once."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=len(todo), mininterval=interval) as bar:
        for one in todo:
            bar.set_postfix_str(one.name, refresh=False)
            results.put(one.measure())
            bar.update()


class Kind(NamedTuple):
    """A kind of measurement: its file, the columns there and those that tell rows apart, and what is to be done."""

    file: str
    fields: Sequence[str]
    key: Sequence[str]
    todo: Callable[[argparse.Namespace, torch.device], Iterator[Todo]]


LAYERS = Kind("layers.csv", FIELDS, KEY, layers_todo)
KINDS = {
    "kernel": Kind("kernels.csv", kernels.FIELDS, kernels.KEY, kernels_todo),
    "app": Kind("app.csv", app.FIELDS, app.KEY, app_todo),
    "tuned": Kind("tuned.csv", tuned.FIELDS, tuned.KEY, tuned_todo),
    "resets": Kind("resets.csv", resets.FIELDS, resets.KEY, resets_todo),
}


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        return run(args)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Do what was asked; the exit status.

    Raises:
        ValueError: it cannot be done; the message says why.
    """
    if args.what == "report":
        return write_report(args)
    device = device_of(args.what)
    if args.list:
        print_list(device)
        return 0
    if native.load_error is not None:
        raise ValueError(f"fused_rnn's extension could not be loaded: {native.load_error}")
    folder = args.out / machine.slug(machine.device_name(device))
    kind = KINDS.get(args.what, LAYERS)
    results = Results(folder / kind.file, kind.fields, kind.key)
    todo = [one for one in kind.todo(args, device) if args.fresh or any(key not in results for key in one.keys)]
    if args.out in (RESULTS, QUICK_RESULTS) and torch.ops.fused_rnn.poisoned():
        raise ValueError("this build of fused_rnn fills memory with NaN, for tests: build it without FUSED_RNN_POISON")
    try:
        measure_all(todo, results)
    except KeyboardInterrupt:
        print(f"\nstopped; what was measured is in {results.path}", file=sys.stderr)
        return 130
    print(results.path)
    found = recorded.Recorded(folder)
    print(report.console(found, args.what))
    if args.quick:
        for path in report.write(args.out, None):
            print(os.path.relpath(path))
    failed = [row for row in found.layers if row["system"] == systems.OURS.name and row["note"]]
    for row in failed:
        print(f"failed: {row['case']} {row['cell']} {row['work']} {row['dtype']}: {row['note']}", file=sys.stderr)
    return 1 if failed else 0


def write_report(args: argparse.Namespace) -> int:
    if args.imported is not None:
        recorded.take_over(args.imported, args.out)
    ours = args.out == RESULTS
    written = report.write(args.out, machine.ROOT / "README.md" if ours else None)
    if not written:
        raise ValueError(f"there are no rows under {args.out}")
    folder = evidence.PATH.parent if ours else args.out
    written += condensed.write(recorded.all_recorded(args.out), folder)
    for path in written:
        print(os.path.relpath(path))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
