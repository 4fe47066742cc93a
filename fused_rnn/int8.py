"""Weights of int8: rows with a scale each, the panels that the CPU kernels take, and their product in PyTorch.

A row of a weight is a scale, its largest absolute value divided by 127, times numbers from -127 to 127. A row of x or
h becomes the same before it is multiplied. So the product is a sum of integers, exact, times two scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .cell import Cell, Weights

LARGEST = 127
MOST_COLUMNS = 2**17  # of a weight; the sum of so many products of two int8 always fits into int32
_DEPTH = 4  # consecutive numbers of a row that lie together
_SMALLEST = 2.0**-100  # a row without larger numbers is zeros: their inverse would not be finite


class Rows(NamedTuple):
    """A weight [G*H, K], or the rows of x or h."""

    numbers: Tensor  # int8 [..., K]
    scale: Tensor  # float32 [...]

    def split(self, sizes: tuple[int, ...]) -> list[Rows]:
        """As of a tensor, along the rows."""
        return [Rows(*some) for some in zip(self.numbers.split(sizes), self.scale.split(sizes), strict=True)]

    def floats(self) -> Tensor:
        """The float32 numbers: each int8 times the scale of its row."""
        return self.numbers * self.scale.unsqueeze(-1)


def rows_of(x: Tensor) -> Rows:
    """float32 [..., K] as int8, rounded to the nearest. A row with NaN or an infinity gets the scale NaN."""
    if x.size(-1) == 0:
        return Rows(x.to(torch.int8), x.new_zeros(x.shape[:-1]))
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > _SMALLEST, LARGEST / largest, 0)
    numbers = (x * inverse.unsqueeze(-1)).round()
    scale = torch.where(largest.isfinite(), largest / LARGEST, torch.nan)
    return Rows(numbers.nan_to_num(0).to(torch.int8), scale)


def linear(x: Tensor, weight: Rows, bias: Tensor | None) -> Tensor:
    """``functional.linear`` of rows that become int8, and a weight of int8."""
    left = rows_of(x)
    sums = (left.numbers.double() @ weight.numbers.double().t()).float()  # of integers, exact
    product = sums * (left.scale.unsqueeze(-1) * weight.scale)
    return product if bias is None else product + bias


# ---- Panels: csrc/cpu/layout.inl.h ----


class _Panels(NamedTuple):
    """Some gates of a weight in panels."""

    gates: int
    lanes: int  # units of a vector
    units: int  # vectors of units in a panel
    tile: int  # vectors that lie side by side
    offset: int  # added to each number

    @property
    def tiles(self) -> int:
        """Of a panel."""
        return self.units * self.gates // self.tile

    def sizes(self, K: int, H: int) -> tuple[int, int, int]:
        """Panels, numbers of a row in fours, and all numbers."""
        panels, words = -(-H // (self.lanes * self.units)), -(-K // _DEPTH)
        return panels, words, panels * self.units * self.gates * self.lanes * words * _DEPTH

    def pack(self, numbers: Tensor) -> Tensor:
        """[gates, H, K] to one dimension."""
        _, H, K = numbers.shape
        panels, words, _ = self.sizes(K, H)
        padded = pad(numbers, (0, words * _DEPTH - K, 0, panels * self.units * self.lanes - H))
        split = padded.view(self.gates, panels, self.units, self.lanes, words, _DEPTH).permute(1, 2, 0, 4, 3, 5)
        tiled = split.reshape(panels, self.tiles, self.tile, words, self.lanes, _DEPTH).transpose(2, 3)
        return self._shifted(tiled.flatten())

    def unpack(self, packed: Tensor, K: int, H: int) -> Tensor:
        """The way back."""
        panels, words, _ = self.sizes(K, H)
        tiled = self._shifted(packed).view(panels, self.tiles, words, self.tile, self.lanes, _DEPTH).transpose(2, 3)
        split = tiled.reshape(panels, self.units, self.gates, words, self.lanes, _DEPTH).permute(2, 0, 1, 4, 3, 5)
        return split.reshape(self.gates, panels * self.units * self.lanes, words * _DEPTH)[:, :H, :K]

    def _shifted(self, numbers: Tensor) -> Tensor:
        return numbers ^ -128 if self.offset else numbers  # by 128, modulo 256


def layout_here(cell: Cell) -> Sequence[int]:
    """How the CPU kernels of this process take the weights of a cell: the fields of :class:`_Panels` but the first."""
    ask = getattr(torch.ops.fused_rnn, "cpu_int8_layout", None)  # None: the extension could not be loaded
    return ask(cell.name) if ask else (1, 1, cell.gates, 0)


def _panels(cell: Cell, is_hidden: bool, layout: Sequence[int] | None) -> list[_Panels]:
    """The panels of a weight one after the other: gates that multiply the same rows."""
    lanes, units, tile, offset = layout or layout_here(cell)
    groups = [cell.gates - 1, 1] if is_hidden and cell.resets_before else [cell.gates]
    return [_Panels(n, lanes, units, tile if n == cell.gates else n * units, offset) for n in groups]


def packed(cell: Cell, numbers: Tensor, is_hidden: bool, layout: Sequence[int] | None = None) -> Tensor:
    """int8 [G*H, K] as CPU kernels take it: one dimension, contiguous.

    Args:
        is_hidden: whether it multiplies h.
        layout: as :func:`layout_here`, of other kernels than those of this process.
    """
    H, K = numbers.size(0) // cell.gates, numbers.size(1)
    panels = _panels(cell, is_hidden, layout)
    parts = numbers.split([p.gates * H for p in panels])
    packed = [p.pack(some.reshape(p.gates, H, K)) for p, some in zip(panels, parts, strict=True)]
    return torch.cat([*packed, numbers.new_zeros(K % _DEPTH)])  # so that the size tells K


def unpacked(cell: Cell, panels: Tensor, K: int, H: int, is_hidden: bool) -> Tensor:
    """The way back from :func:`packed`."""
    parts = _panels(cell, is_hidden, None)
    split = panels.split([*(p.sizes(K, H)[-1] for p in parts), K % _DEPTH])
    return torch.cat([p.unpack(some, K, H).reshape(p.gates * H, K) for p, some in zip(parts, split)])


def unpacked_layer(cell: Cell, layer: dict[str, Tensor], I: int, H: int) -> Weights:
    """The weights of a layer in one direction from their panels and scales, for :mod:`fused_rnn.reference`."""
    layer = dict(layer)
    rows: dict[str, Rows] = {}
    for name, K in (("ih", I), ("hh", H)):
        panels = layer.pop(f"weight_{name}")
        rows[f"weight_{name}"] = Rows(unpacked(cell, panels, K, H, name == "hh"), layer.pop(f"scale_{name}"))
    return Weights(**rows, **layer)  # type: ignore[arg-type]
