"""GPUs that are not here: what the ops launch is compiled for them, and not run."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fused_rnn.triton import passes, plan

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), plan.Device("nvidia", 80, 163 << 10)),
    "sm_90": (GPUTarget("cuda", 90, 32), plan.Device("nvidia", 90, 227 << 10)),
    "sm_100": (GPUTarget("cuda", 100, 32), plan.Device("nvidia", 100, 227 << 10)),
    "sm_120": (GPUTarget("cuda", 120, 32), plan.Device("nvidia", 120, 99 << 10)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), plan.Device("amd", 0, 64 << 10)),
}


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and what it takes, by the compiler's own account."""

    name: str
    target: str
    arguments: dict[str, Any]  # those it was compiled for
    registers: int
    spilled: int  # bytes of local memory of a thread
    shared: int  # bytes of a program
    code: dict[str, Any]  # by stage of the compiler


class _Driver:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, target: str) -> None:
        self.target = target

    def get_current_device(self) -> str:
        return self.target  # under which Triton keeps the kernels of this GPU

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target][0]


def usage(target: str, compiled: Any) -> tuple[int, int]:
    """Registers and spilled bytes of a thread."""
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        registers = re.search(r"\.vgpr_count:\s*(\d+)", text)
        spilled = re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(compiled.asm["cubin"])
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
            text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        registers, spilled = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    return int(registers[1]), int(spilled[1])


@contextlib.contextmanager
def compiling(target: str) -> Iterator[list[Kernel]]:
    """Within this context ops on CPU tensors plan for the GPU; the kernels they would launch are compiled and listed.

    What the ops return then is not written by anyone.
    """
    kernels: list[Kernel] = []
    seen: set[int] = set()
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        if id(compiled) not in seen:
            seen.add(id(compiled))
            used = usage(target, compiled)
            kernels.append(Kernel(self.__name__, target, kwargs, *used, compiled.metadata.shared, compiled.asm))

    before = passes.device_of
    triton.runtime.driver.set_active(_Driver(target))
    JITFunction.run, passes.device_of = compile_only, lambda device: TARGETS[target][1]
    try:
        yield kernels
    finally:
        JITFunction.run, passes.device_of = run, before
        triton.runtime.driver._active = None
