"""The properties of a call on which the choice of a backend depends."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .cell import Cell


class Problem(NamedTuple):
    """A stack of layers: everything the choice of a backend may depend on, and nothing else. I is the first layer's."""

    cell: Cell
    device: torch.device
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    projection: bool = False
    ragged: bool = False  # lengths are given
    packed: bool = False  # x is the data of a PackedSequence
    training: bool = False  # a backward may come
    transformed: bool = False  # inside torch.func or forward-mode differentiation
    subclass: str = ""  # the class of a tensor that is a subclass of Tensor with rules of its own
    layers: int = 1
    directions: int = 1

    def __str__(self) -> str:
        flags = [name for name in ("projection", "ragged", "packed", "training", "transformed") if getattr(self, name)]
        sizes = f"T={self.T} B={self.B} I={self.I} H={self.H}"
        flags += [self.subclass] if self.subclass else []
        flags += [f"layers={self.layers}"] if self.layers > 1 else []
        flags += ["bidirectional"] if self.directions > 1 else []
        return " ".join([str(self.cell), str(self.dtype).removeprefix("torch."), str(self.device), sizes, *flags])
