"""The environment report, and the measurement of the fastest kernels on this machine.

    python -m fused_rnn               # devices, and which backends run on them
    python -m fused_rnn tune          # measure a grid of common sizes, and choose by that from now on: five minutes
    python -m fused_rnn tune --quick  # a few of them, in a minute
    python -m fused_rnn tune --clear  # forget what was measured

fused_rnn.tune(model, *inputs) does the same for the layers of a model, at its own sizes.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from tqdm import tqdm

from . import __version__, backends, choices, evidence, native, tuning
from .cases import CHECK_GRID, CPU_GRID, CPU_QUICK, STEP_GRID, USES, Case, layer, select
from .cell import LSTM

GPU_QUICK = ("voice-activity", "forecasting", "check-h256-b16", "check-h1024-b16", "check-h128-b1")
SECONDS, QUICK_SECONDS = 1.0, 0.5  # for the rounds of one call


def report() -> str:
    """The report as text."""
    devices = [torch.device("cpu"), *(torch.device("cuda", k) for k in range(torch.cuda.device_count()))]
    extension = native.load_error or str(native.library)
    lines = [
        f"fused_rnn  {__version__}",
        f"torch      {torch.__version__}",
        f"python     {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"extension  {extension}",
    ]
    if native.load_error is None:
        lines.append(f"CUDA code  {native.cuda_architectures() or 'none: the extension was built without CUDA'}")
    measured = sorted({gpu for gpu, _, _ in evidence.measurements()})
    lines.append(f"measured   {', '.join(measured) or 'no GPU: on every one, kernels of PyTorch come first'}")
    lines.append(f"tuned      {len(choices.tuned())} kinds of calls; in {choices.own_folder() or 'no folder'}")
    if forced := backends.forced():
        lines.append(f"forced     {forced}")
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        lines.append(f"{device} ({name}), a float32 layer in training:")
        problem = backends.Problem(LSTM, device, torch.float32, T=100, B=16, I=256, H=256, training=True)
        for backend in backends.BACKENDS:
            reason = backend.why_not(problem)
            later = backend.why_later(problem) if reason is None else None
            answer = f"no: {reason}" if reason else f"later: {later}" if later else "yes"
            plan = backend.plan(problem) if reason is None else ""
            lines.append(f"  {backend.name:<10} {answer}{plan and f' ({plan})'}")
    return "\n".join(lines)


# ---- tune ----


def tune(quick: bool, patterns: Sequence[str]) -> int:
    """Measure the calls of a grid, with a bar of the time that remains, and tell what was found; the exit status.

    Raises:
        ValueError: a pattern matches no case, or a backend is forced.
        OSError: what is found could not be kept.
    """
    tuning.check_ready()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    todo = list(_grid(device, quick, patterns))
    seconds, found, status = QUICK_SECONDS if quick else SECONDS, [], 0
    with tqdm(total=len(todo), mininterval=0.1 if sys.stderr.isatty() else 10.0) as bar:
        try:
            for case, cell, work in todo:
                bar.set_postfix_str(f"{case.name} {cell} {work}", refresh=False)
                for posed in tuning.calls_of(*layer(case, cell, work, device), training=work.endswith("training")):
                    found.append(tuning.tune_call(posed, seconds))
                    bar.write(str(found[-1]), file=sys.stdout)
                bar.update()
        except KeyboardInterrupt:
            bar.write("stopped; what was found is kept", file=sys.stderr)
            status = 130
    others = sum(one.gain != 1 for one in found)
    kept = choices.own_folder() or "nowhere, as FUSED_RNN_TUNED is 0"
    print(f"{len(found)} kinds of calls measured; {others} of them run another way from now on. Kept in {kept}")
    return status


def _grid(device: torch.device, quick: bool, patterns: Sequence[str]) -> Iterator[tuple[Case, str, str]]:
    """The cases to measure, with cells and works."""
    grid, few = (CHECK_GRID, GPU_QUICK) if device.type == "cuda" else (CPU_GRID, CPU_QUICK)
    common = (*grid, *USES)
    cases = select((*common, *STEP_GRID), patterns) if patterns else select(common, few) if quick else common
    longest = choices.LONGEST // 2 if quick else choices.LONGEST
    for case, cell in product(cases, ("LSTM", "GRU")):
        yield from ((replace(case, T=min(case.T, longest)), cell, work) for work in case.works())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fused_rnn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    tune_parser = commands.add_parser("tune", help="measure which kernels are fastest here, and keep that")
    tune_parser.add_argument("--quick", action="store_true", help="a few sizes, in a minute")
    tune_parser.add_argument("--case", nargs="+", default=(), metavar="NAME", help="these; 'typ*' for all that match")
    tune_parser.add_argument("--clear", action="store_true", help="forget what was measured, and remove its files")
    args = parser.parse_args(arguments)
    if args.command is None:
        print(report())
        return 0
    try:
        if not args.clear:
            return tune(args.quick, args.case)
        print("\n".join(f"removed {path}" for path in choices.clear()) or "nothing was tuned")
    except (OSError, ValueError) as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
