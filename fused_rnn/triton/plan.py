"""From a shape and a device to a plan: the form of the loop and its tiles. Plain arithmetic on plain data, no Triton.

Nothing is tuned on a user's call: the table below is all there is. T is no part of the choice, and B only says whether
tiles have few rows or many, so a kernel is compiled once for all T and at most twice for all B. No row has been
measured on a GPU yet; each was chosen from what the compiler makes of it (tests/data/triton_resources.txt).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass

import torch

from ..call import short
from ..cell import Cell
from ..native import constant

OLDEST_TRITON = (3, 6)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Device:
    """What the choice may depend on."""

    vendor: str  # "nvidia", "amd" or "intel"
    capability: int  # 10 * major + minor of NVIDIA's, otherwise 0
    shared_bytes: int  # that one program may have


@dataclass(frozen=True)
class Tiles:
    """The tile of one program, and how Triton compiles it."""

    rows: int  # of the batch
    units: int
    depth: int  # stepwise: of the part of a product that is read at once
    warps: int
    stages: int  # how many loads are under way at once; 1: none ahead of its use


@dataclass(frozen=True)
class Row:
    """What tiles are for. The first row that fits is taken."""

    form: str  # "block" or "stepwise", see kernels.py
    vendors: tuple[str, ...]
    maths: tuple[str, ...]
    H: int | None  # at most
    B: int | None  # at most
    tiles: Tiles


NVIDIA, OTHERS = ("nvidia",), ("amd", "intel")
HALF, TF32, FLOAT32 = ("bfloat16", "float16"), ("tf32",), ("float32",)

# A block's tile has all units, and 16 of them a warp where there are matrix instructions. On AMD's GPUs weight_hh is in
# registers alone. Where shared memory is small, loads do not run ahead.
TABLE = (
    Row("block", NVIDIA, HALF + TF32, 16, None, Tiles(16, 16, 0, 1, 2)),
    Row("block", NVIDIA, HALF + TF32, 32, None, Tiles(16, 32, 0, 2, 2)),
    Row("block", NVIDIA, HALF + TF32, 64, None, Tiles(16, 64, 0, 4, 2)),
    Row("block", NVIDIA, HALF + TF32, 64, None, Tiles(16, 64, 0, 4, 1)),
    Row("block", NVIDIA, HALF, 128, None, Tiles(16, 128, 0, 8, 2)),
    Row("block", NVIDIA, HALF, 128, None, Tiles(16, 128, 0, 8, 1)),
    Row("block", NVIDIA, FLOAT32, 16, None, Tiles(16, 16, 0, 2, 2)),
    Row("block", NVIDIA, FLOAT32, 32, None, Tiles(16, 32, 0, 4, 2)),
    Row("block", NVIDIA, FLOAT32, 64, None, Tiles(16, 64, 0, 8, 2)),
    Row("block", NVIDIA, FLOAT32, 64, None, Tiles(16, 64, 0, 8, 1)),
    Row("block", OTHERS, HALF + FLOAT32, 16, None, Tiles(16, 16, 0, 1, 1)),
    Row("block", OTHERS, HALF + FLOAT32, 32, None, Tiles(16, 32, 0, 2, 1)),
    Row("block", OTHERS, HALF, 64, None, Tiles(16, 64, 0, 4, 1)),
    Row("stepwise", NVIDIA + OTHERS, HALF, None, 32, Tiles(16, 16, 128, 2, 3)),
    Row("stepwise", NVIDIA + OTHERS, HALF, None, None, Tiles(64, 32, 64, 8, 2)),
    Row("stepwise", NVIDIA + OTHERS, TF32 + FLOAT32, None, 32, Tiles(16, 16, 64, 2, 3)),
    Row("stepwise", NVIDIA + OTHERS, TF32 + FLOAT32, None, None, Tiles(64, 32, 32, 8, 2)),
)


@dataclass(frozen=True)
class Plan:
    form: str
    tiles: Tiles
    precision: str  # of float32 products: "ieee" or "tf32"
    reason: str  # why it is not the block form, a sentence, or empty

    def __str__(self) -> str:
        t = self.tiles
        if self.form == "block":
            return f"block: all steps in one kernel, {t.rows} rows a program of {t.warps} warps, weight_hh on chip"
        return f"stepwise: a kernel a step, tiles of {t.rows} rows and {t.units} units, because {self.reason}"


def shared_bytes(cell: Cell, tiles: Tiles, itemsize: int, backward: bool) -> int:
    """What the block form takes of shared memory on NVIDIA's GPUs: weight_hh, exchanges between warps, loads ahead."""
    element, G = tiles.rows * tiles.units, cell.gates
    weights = G * tiles.units**2 * itemsize
    states = len(cell.states) * 2  # loads of a state: of the initial one and of what came before
    if backward:
        ahead = cell.saved * 4 + (1 + states) * itemsize + (len(cell.states) - 1) * (4 - itemsize)
        return weights + (G + 1) * element * itemsize + (tiles.stages - 1) * element * ahead
    return weights + element * 4 + (tiles.stages - 1) * element * G * 4


def make_plan(cell: Cell, dtype: torch.dtype, B: int, H: int, backward: bool, allow_tf32: bool, device: Device) -> Plan:
    """The plan of one pass: of the table's rows for the device and the arithmetic the first that fits."""
    tf32 = dtype == torch.float32 and allow_tf32 and device.capability >= 80
    math = "tf32" if tf32 else short(dtype)

    def fits(row: Row) -> bool:
        if device.vendor not in row.vendors or math not in row.maths:
            return False
        if (row.H is not None and row.H < H) or (row.B is not None and row.B < B):
            return False
        on_nvidia = row.form == "block" and device.vendor == "nvidia"
        return not on_nvidia or shared_bytes(cell, row.tiles, dtype.itemsize, backward) <= device.shared_bytes

    row = next(row for row in TABLE if fits(row))
    kib = -(-cell.gates * H * H * dtype.itemsize // 1024)
    reason = "" if row.form == "block" else f"weight_hh, {kib} KiB, does not fit on the chip beside one program"
    return Plan(row.form, row.tiles, "tf32" if tf32 else "ieee", reason)


INTERPRETED = Device("nvidia", 90, 227 << 10)  # what the interpreter plays


@functools.cache
def device_of(device: torch.device) -> Device:
    """What a device is to the planner. A tensor on the CPU runs in Triton's interpreter, which plays a GPU."""
    if device.type == "cpu":
        return INTERPRETED
    properties = torch.get_device_module(device).get_device_properties(device)
    if device.type == "xpu":
        return Device("intel", 0, getattr(properties, "local_mem_size", 64 << 10))
    shared = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    if torch.version.hip is not None:
        return Device("amd", 0, shared)
    return Device("nvidia", 10 * properties.major + properties.minor, shared)


@constant
def why_not(device: torch.device) -> str | None:
    """Why Triton cannot run on a device: a sentence, or None if it can."""
    return _why_not(device)


@functools.cache  # every layer asks at every call
def _why_not(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # the builds for AMD and Intel have other names
        version = ""
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"it needs Triton 3.6 or later, and {version} is installed"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "Triton runs on the CPU in its interpreter only, which TRITON_INTERPRET=1 turns on"
    if device.type not in ("cuda", "xpu"):
        return f"Triton runs on GPUs, and the input is on {device}"
    if not torch.get_device_module(device).is_available():
        return "PyTorch sees no GPU"
    found = device_of(device)
    if found.vendor == "nvidia" and found.capability < 80:
        got = f"{found.capability // 10}.{found.capability % 10}"
        return f"Triton needs compute capability 8.0 or later, and this GPU has {got}"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"Triton needs a C compiler to launch kernels, and {' and '.join(compilers)} were not found"
    return None
