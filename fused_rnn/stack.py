"""Layers x directions, with dropout between the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import layer
from .cell import Cell, States, Weights


def run(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Sequence[Weights],
    *,
    directions: int,
    lengths: Tensor | None = None,
    between: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, States]:
    """Run all layers.

    Args:
        x: [T, B, I].
        states: the initial states, each [L*D, B, H], layer by layer and in each the forward direction first.
        weights: L*D of them, in the same order.
        directions: D, 1 or 2.
        lengths: [B] on x's device or None, as in :func:`reference.run`.
        between: what happens to the output of every layer but the last.

    Returns:
        output [T, B, D*H] and the final states, each [L*D, B, H].
    """
    finals: list[States] = []
    for first in range(0, len(weights), directions):
        if first and between is not None:
            x = between(x)
        outputs = []
        for k in range(first, first + directions):
            initial = tuple(state[k] for state in states)
            output, final = layer.run(cell, x, initial, weights[k], lengths, reverse=k > first)
            outputs.append(output)
            finals.append(final)
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    if len(finals) == 1:
        return x, tuple(state.unsqueeze(0) for state in finals[0])
    return x, tuple(torch.stack(state) for state in zip(*finals, strict=True))
