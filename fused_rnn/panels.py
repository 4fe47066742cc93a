"""Quantised weights in the panels that the CPU kernels take: csrc/cpu/layout.inl.h."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .cell import Cell

# The bits of the ops' argument ``flags`` for weights of a dtype, as in csrc/call.h.
FLAGS = {torch.int8: 2048, torch.bfloat16: 4096}
# What panels are as tensors: of integers, because ``module.float()`` and the like change those of floats.
STORED = {torch.int8: torch.int8, torch.bfloat16: torch.int16}

_WORD_BYTES = 4  # the bytes of a row that lie together


class _Panels(NamedTuple):
    """Some gates of a weight in panels."""

    gates: int
    lanes: int  # units of a vector
    units: int  # vectors of units in a panel
    tile: int  # vectors that lie side by side
    offset: int  # added to each number of int8
    depth: int  # numbers of a word

    @property
    def tiles(self) -> int:
        """Of a panel."""
        return self.units * self.gates // self.tile

    def sizes(self, K: int, H: int) -> tuple[int, int, int]:
        """Panels, words of a row, and all numbers."""
        panels, words = -(-H // (self.lanes * self.units)), -(-K // self.depth)
        return panels, words, panels * self.units * self.gates * self.lanes * words * self.depth

    def pack(self, numbers: Tensor) -> Tensor:
        """[gates, H, K] to one dimension."""
        _, H, K = numbers.shape
        panels, words, _ = self.sizes(K, H)
        padded = pad(numbers, (0, words * self.depth - K, 0, panels * self.units * self.lanes - H))
        split = padded.view(self.gates, panels, self.units, self.lanes, words, self.depth).permute(1, 2, 0, 4, 3, 5)
        tiled = split.reshape(panels, self.tiles, self.tile, words, self.lanes, self.depth).transpose(2, 3)
        return self._shifted(tiled.flatten())

    def unpack(self, packed: Tensor, K: int, H: int) -> Tensor:
        """The way back."""
        panels, words, _ = self.sizes(K, H)
        tiled = self._shifted(packed).view(panels, self.tiles, words, self.tile, self.lanes, self.depth)
        tiled = tiled.transpose(2, 3)
        split = tiled.reshape(panels, self.units, self.gates, words, self.lanes, self.depth).permute(2, 0, 1, 4, 3, 5)
        return split.reshape(self.gates, panels * self.units * self.lanes, words * self.depth)[:, :H, :K]

    def _shifted(self, numbers: Tensor) -> Tensor:
        return numbers ^ -128 if self.offset else numbers  # by 128, modulo 256


def layout_here(cell: Cell, dtype: torch.dtype) -> Sequence[int]:
    """How the CPU kernels of this process take weights of a cell: the fields of :class:`_Panels` between the ends."""
    ask = getattr(torch.ops.fused_rnn, "cpu_panel_layout", None)  # None: the extension could not be loaded
    return ask(cell.name, FLAGS[dtype]) if ask else (1, 1, cell.gates, 0)


def _panels(cell: Cell, dtype: torch.dtype, is_hidden: bool, layout: Sequence[int] | None) -> list[_Panels]:
    """The panels of a weight one after the other: gates that multiply the same rows."""
    lanes, units, tile, offset = layout or layout_here(cell, dtype)
    groups = [cell.gates - 1, 1] if is_hidden and cell.resets_before else [cell.gates]
    depth = _WORD_BYTES // dtype.itemsize
    return [_Panels(n, lanes, units, tile if n == cell.gates else n * units, offset, depth) for n in groups]


def packed(cell: Cell, numbers: Tensor, is_hidden: bool, layout: Sequence[int] | None = None) -> Tensor:
    """int8 or bfloat16 [G*H, K] as CPU kernels take it: one dimension, contiguous, the latter as int16.

    Args:
        is_hidden: whether it multiplies h.
        layout: as :func:`layout_here`, of other kernels than those of this process.
    """
    H, K = numbers.size(0) // cell.gates, numbers.size(1)
    panels = _panels(cell, numbers.dtype, is_hidden, layout)
    parts = numbers.split([p.gates * H for p in panels])
    packed = [p.pack(some.reshape(p.gates, H, K)) for p, some in zip(panels, parts, strict=True)]
    whole = torch.cat([*packed, numbers.new_zeros(K % panels[0].depth)])  # so that the size tells K
    return whole.view(STORED[numbers.dtype])


def unpacked(cell: Cell, panels: Tensor, K: int, H: int, is_hidden: bool) -> Tensor:
    """The way back from :func:`packed`."""
    if panels.dtype == torch.int16:
        panels = panels.view(torch.bfloat16)
    rows, begin = [], 0
    for part in _panels(cell, panels.dtype, is_hidden, None):
        end = begin + part.sizes(K, H)[-1]
        rows.append(part.unpack(panels[begin:end], K, H).reshape(part.gates * H, K))
        begin = end
    return torch.cat(rows)
