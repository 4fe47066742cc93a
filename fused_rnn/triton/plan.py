"""From a shape and a device to a plan: the form of the loop and its tiles. Plain arithmetic, and no Triton.

Nothing is tuned on a user's call: the tables below are all there is. T is no part of the choice, and B only chooses
between two tiles, so that a kernel is compiled once for all T and at most twice for all B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cell import Cell


@dataclass(frozen=True)
class Device:
    """What the choice depends on."""

    vendor: str  # "cuda", "hip", "xpu", or "interpreter" for tensors on the CPU
    capability: int  # 10 * major + minor of an NVIDIA GPU, otherwise 0
    shared_bytes: int  # that one program may have


@dataclass(frozen=True)
class Tiles:
    """The tile of one program, and how Triton compiles it."""

    rows: int  # of the batch
    units: int  # block: all of them, rounded up to a power of two
    depth: int  # stepwise: of the part of a product that is read at once
    warps: int
    stages: int  # how far loads run ahead


@dataclass(frozen=True)
class Plan:
    form: str  # "block" or "stepwise"
    tiles: Tiles
    precision: str  # of float32 products: "ieee" or "tf32"
    reason: str = ""  # why not block, a sentence

    def __str__(self) -> str:
        t = self.tiles
        if self.form == "block":
            return f"block: all steps in one kernel, {t.rows} rows a program, {t.units} units on chip, {t.warps} warps"
        return f"stepwise: a kernel a step, tiles of {t.rows} rows and {t.units} units, because {self.reason}"


def precision_of(dtype: torch.dtype, allow_tf32: bool, device: Device) -> str:
    return "tf32" if dtype == torch.float32 and allow_tf32 and device.capability >= 80 else "ieee"


def make_plan(cell: Cell, dtype: torch.dtype, B: int, H: int, backward: bool, allow_tf32: bool, device: Device) -> Plan:
    precision = precision_of(dtype, allow_tf32, device)
    units = max(16, 1 << (H - 1).bit_length())
    if units <= 64 and device.shared_bytes > 0:
        return Plan("block", Tiles(16, units, 0, 4, 1), precision)
    return Plan("stepwise", Tiles(16, 16, 32, 4, 2), precision, "weight_hh does not fit in one program")


INTERPRETED = Device("interpreter", 0, 227 << 10)


def device_of(device: torch.device) -> Device:
    return INTERPRETED
