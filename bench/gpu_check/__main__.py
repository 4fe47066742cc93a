"""Everything that needs an NVIDIA GPU, in one command and without a network, in seven minutes at most.

    make gpu-check                                        # or: python -m bench.gpu_check
    make gpu-check GPU_CHECK_ARGS="--only kernels speed"
    python -m bench.gpu_check --prepare                   # with nvcc, without a GPU: builds the extension and programs
    python -m bench.gpu_check --dry-run                   # every stage on a CPU, with tiny sizes
    python -m bench.gpu_check --list

Nothing is installed. What --prepare built in build/gpu, or a wheel in dist/, is used if it has code for the GPU; only
what is missing is compiled. The stages run in order of worth, each a process of its own with its own time limit. All
results are under --out: check.json, written after every stage, and the rows of the measurements, each written at once;
``python -m bench report --import DIR`` turns them into tables and into the choice of kernels. Exit status: 0 if no
stage failed, 1 if one did, 2 without an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from . import library, stages
from .runner import ROOT, WHOLE, check, summary


def why_no_gpu() -> str:
    """Why the check cannot run here, a sentence, or an empty string."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no PyTorch"
    import torch

    if not torch.version.cuda:
        return f"this PyTorch, {torch.__version__}, was built without CUDA"
    return "" if torch.cuda.is_available() else "there is no NVIDIA GPU"


def main() -> int:
    names = list(stages.LIMITS)
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="a folder for all results")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE")
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    parser.add_argument(
        "--prepare", nargs="?", const="90a", metavar="ARCH", help="build the extension and the programs"
    )
    parser.add_argument("--dry-run", action="store_true", help="on a CPU")
    args = parser.parse_args()
    if args.list:
        for name, limit in stages.LIMITS.items():
            print(f"{name:<12} {limit:>4} s at most  {getattr(stages, name).__doc__}")
        print(f"{'all':<12} {WHOLE:>4} s at most")
        return 0
    if args.prepare:
        return library.prepare(args.prepare)
    if not args.dry_run and (reason := why_no_gpu()):
        print(f"gpu_check needs an NVIDIA GPU: {reason}; --dry-run shows the stages without.", file=sys.stderr)
        return 2
    wanted = {name: (getattr(stages, name), limit) for name, limit in stages.LIMITS.items() if name in args.only}
    report = check(wanted, args.out.resolve(), args.dry_run)
    print("\n".join(summary(report)))
    return 1 if any(entry["status"] == "failed" for entry in report["stages"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
