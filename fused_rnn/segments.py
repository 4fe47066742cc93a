"""PyTorch's own layers for rows that hold several sequences: each is cut out, and all are packed into one batch.

The usual way where there is no ``resets``. The cuts are made on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import layered, reference, stock
from .call import Call


class Segments(NamedTuple):
    """The sequences of a batch, the longest first, and their steps in the order of a packed sequence."""

    row: Tensor  # [N] of each sequence
    starts: Tensor  # [N] bool: it is its row's first one, and so the forward direction enters it from hx,
    anew: Tensor  # [N] bool: unless it begins with a reset
    ends: Tensor  # [N] bool: it is its row's last one
    batch_sizes: Tensor  # [longest]
    t: Tensor  # [steps]: the place in the padded batch of each step of the packed sequence
    b: Tensor  # [steps]


def run(call: Call) -> Sequence[Tensor]:
    """The results of the op for a call with resets."""
    plain = call.standard()
    assert plain.resets is not None
    found = _cut(plain.resets, plain.lengths)
    if not found.row.numel():  # which PyTorch does not pack
        return layered.run(call, reference.run)
    enters = _of_each(plain, found.starts & ~found.anew, found.ends)
    states = tuple(state[:, found.row].masked_fill(~enters.unsqueeze(-1), 0) for state in plain.states)
    packed = dict(input=plain.input[found.t, found.b], states=states, lengths=None, resets=None)
    y, *final = stock.run(plain.changed(**packed, batch_sizes=found.batch_sizes))
    output = y.new_zeros((plain.T, plain.B, y.size(-1))).index_put((found.t, found.b), y)
    leaves = _of_each(plain, found.ends, found.starts)
    return call.as_asked(output, [_final(*states, leaves, found.row) for states in zip(plain.states, final)])


def _of_each(call: Call, forward: Tensor, reverse: Tensor) -> Tensor:
    """[L*D, N] of what holds for the forward and for the reverse direction of every layer."""
    return torch.stack((forward, reverse)[: call.directions]).repeat(call.layers, 1)


def _final(initial: Tensor, of_segments: Tensor, leaves: Tensor, row: Tensor) -> Tensor:
    """The final states of rows: that of the segment that each direction leaves last; of no steps the initial ones."""
    each = zip(initial, of_segments, leaves, strict=True)
    return torch.stack([before.index_copy(0, row[last], after[last]) for before, after, last in each])


def _cut(resets: Tensor, lengths: Tensor | None) -> Segments:
    T, B = resets.shape
    steps = torch.arange(T, device=resets.device)
    if lengths is None:
        lengths = torch.full((B,), T, device=resets.device)
    begins = (resets | (steps == 0)[:, None]) & (steps[:, None] < lengths)
    row, begin = begins.t().nonzero(as_tuple=True)
    starts = begin == 0
    ends = torch.cat([starts[1:], starts.new_ones(1)])[: len(row)]  # the next sequence is another row's
    end = torch.where(ends, lengths[row], begin.roll(-1))
    length, order = (end - begin).sort(descending=True, stable=True)
    row, begin, starts, ends = row[order], begin[order], starts[order], ends[order]
    is_step = steps[:, None] < length
    t, b = (begin + steps[:, None])[is_step], row.expand(T, -1)[is_step]
    sizes = is_step.sum(1).cpu()
    return Segments(row, starts, resets[begin, row], ends, sizes[sizes > 0], t, b)
