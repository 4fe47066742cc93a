"""The machine that a measurement ran on: its name, its ceilings, the versions of what ran."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import torch

from fused_rnn import choices
from fused_rnn.timing import in_turns, spread

from .gpu_check.library import COMMIT
from .rows import Row

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "build" / "bench"  # programs, and what quick runs write


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's, with its cores, its vector instructions, and whether it has AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability() + ", AMX" * (" amx_bf16" in about)
    return f"{choices.cpu_name()}, {cores} cores, {capability}"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def commit() -> str:
    """The commit of the checkout, with -dirty if what runs differs from it; without git that of what was carried here
    (``python -m bench.gpu_check --prepare``), or "unknown"."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        code = [*git, "diff", "--quiet", "HEAD", "--", "fused_rnn", "csrc", "bench/*.py", "setup.py"]
        dirty = subprocess.run(code, capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return COMMIT.read_text().strip() if COMMIT.exists() else "unknown"
    return head.stdout.strip() + "-dirty" * bool(dirty)


@functools.cache
def about(device: torch.device) -> Row:
    """What a row says of the machine, whatever the number of threads."""
    version = str(torch.__version__)
    if device.type == "cuda":
        version += f", cuDNN {torch.backends.cudnn.version()}"
    return {"device": device_name(device), "torch": version, "date": time.strftime("%Y-%m-%d"), "commit": commit()}


@functools.cache
def ceilings(device: torch.device, dtype: str, tf32: bool, threads: int) -> Row:
    """What this machine can do: GFLOP/s, and on a GPU GB/s copied, read and written bytes counted.

    On a CPU float32 multiply-adds in that many threads, and nothing where no compiler is.
    """
    if device.type != "cuda":
        peak = _cpu_peak(threads) if dtype == "float32" else None
        return {} if peak is None else {"peak_gflops": f"{peak:.0f}"}
    source = torch.randint(256, (1 << 30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device=device, dtype=getattr(torch, dtype))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        copying, multiplying = in_turns([lambda: target.copy_(source), lambda: square @ square], device, seconds=0.1)
    finally:
        matmul.allow_tf32 = before
    gigabytes = 2 * source.numel() / spread(copying)[0] / 1e3  # bytes per microsecond are megabytes per second
    gigaflops = 2 * 8192**3 / spread(multiplying)[0] / 1e3
    return {"peak_gflops": f"{gigaflops:.0f}", "copy_gbs": f"{gigabytes:.0f}"}


def _cpu_peak(threads: int) -> float | None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    program = BUILT / "peak"
    source = ROOT / "bench" / "peak.cpp"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(f".{os.getpid()}")  # others may look for it while ld writes
        command = [compiler, "-std=c++17", "-O3", "-march=native", "-pthread", str(source), "-o", str(unfinished)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        unfinished.replace(program)
    return float(subprocess.run([program, str(threads)], capture_output=True, text=True, check=True).stdout)
