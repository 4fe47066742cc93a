"""PyTorch's own layer as a backend, for what no kernel of ours covers yet."""

from __future__ import annotations

import torch
from torch import Tensor

from .cell import Cell, States, Weights


def run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    """One layer in one direction through the function behind nn.LSTM or nn.GRU; as :func:`reference.run`."""
    layers = [state.unsqueeze(0) for state in states]
    flat_weights = [weight for weight in weights if weight is not None]
    # train=True keeps what cuDNN needs for a backward, which nn.LSTM refuses in eval mode; dropout is 0 either way.
    options = (weights.bias_ih is not None, 1, 0.0, torch.is_grad_enabled(), False, False)
    x = x.flip(0) if reverse else x
    output: Tensor
    if cell.name == "lstm":
        output, *layers = torch._VF.lstm(x, layers, flat_weights, *options)
    else:
        output, *layers = torch._VF.gru(x, layers[0], flat_weights, *options)
    return output.flip(0) if reverse else output, tuple(state.squeeze(0) for state in layers)
