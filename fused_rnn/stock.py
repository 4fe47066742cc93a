"""PyTorch's own layers as a backend: for what no kernel of ours covers, and where none was measured to be faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cell import Cell, States, Weights


def run_stack(
    cell: Cell,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: States,
    weights: Sequence[Weights],
    directions: int = 1,
    dropout: float = 0.0,
) -> tuple[Tensor, States]:
    """All layers through the function behind nn.LSTM or nn.GRU; arguments and results as of :func:`stack.run`.

    Raises:
        RuntimeError: a weight has the wrong shape; PyTorch's float32 LSTM on the CPU would read past its end.
    """
    _check_shapes(cell, x.size(-1), states, weights, directions)
    flat_weights = [weight for layer in weights for weight in layer if weight is not None]
    has_bias = weights[0].bias_ih is not None
    # train=True keeps what cuDNN needs for a backward, which nn.LSTM refuses in eval mode.
    train = torch.is_grad_enabled() or dropout > 0
    options = (has_bias, len(weights) // directions, dropout, train, directions == 2)
    function: Any = torch._VF.lstm if cell.name == "lstm" else torch._VF.gru
    states = tuple(state.contiguous() for state in states)  # cuDNN takes no others
    hx: Any = list(states) if cell.name == "lstm" else states[0]
    if batch_sizes is None:
        output, *final = function(x, hx, flat_weights, *options, False)
    else:
        output, *final = function(x, batch_sizes, hx, flat_weights, *options)
    return output, tuple(final)


def run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    """One layer in one direction; as :func:`reference.run`, without lengths."""
    x = x.flip(0) if reverse else x
    output, final = run_stack(cell, x, None, tuple(state.unsqueeze(0) for state in states), (weights,))
    return output.flip(0) if reverse else output, tuple(state.squeeze(0) for state in final)


def run_cell(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    """As :func:`run`, and a single step as nn.LSTMCell and nn.GRUCell compute it."""
    if x.size(0) != 1 or weights.weight_hr is not None:
        return run(cell, x, states, weights, lengths, reverse)
    _check_shapes(cell, x.size(-1), states, (weights,), directions=1)
    functions: Any = torch._VF
    if cell.name == "lstm":
        final: States = functions.lstm_cell(x[0], states, *weights[:4])
    else:
        final = (functions.gru_cell(x[0], states[0], *weights[:4]),)
    return final[0].unsqueeze(0), final


def _check_shapes(cell: Cell, I: int, states: States, weights: Sequence[Weights], directions: int) -> None:
    output_size, H = states[0].size(-1), states[-1].size(-1)
    rows = cell.gates * H
    for k, layer in enumerate(weights):
        inputs = I if k < directions else directions * output_size
        shapes = ((rows, inputs), (rows, output_size), (rows,), (rows,), (output_size, H))
        for name, weight, shape in zip(Weights._fields, layer, shapes, strict=True):
            if weight is not None and weight.shape != shape:
                raise RuntimeError(f"{name} must be {list(shape)}, got {list(weight.shape)}")
