"""How much memory a training step takes beyond the layer and its input, at its peak.

On a CPU a process of its own does the step: what earlier measurements left with the allocator does not count. Linux
tells the peak, and resets it on request; elsewhere there is no figure.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .machine import ROOT

STEPS = 2  # what a first step keeps for the later ones counts


def peak_bytes_on_gpu(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_bytes_on_cpu(task: str, system: str, threads: int) -> int | None:
    """Of a task and a system by their names, in a new process; None where there is no figure."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "bench.memory_step", task, system, str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def resident_peak(step: Callable[[], object]) -> int:
    """Bytes by which this process' resident memory grows at its peak during ``STEPS`` steps."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = _status("VmHWM")
    for _ in range(STEPS):
        step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
