"""The specification: every cell in plain PyTorch, any dtype, differentiable any number of times.

Gates are in PyTorch's order, LSTM ``i, f, g, o`` and GRU ``r, z, n``; the equations are those of the documentation
of ``torch.nn.LSTM``, ``torch.nn.GRU`` and ``torch.nn.RNN``, and for ``reset_after=False`` those of Cho et al. 2014
(arXiv:1406.1078) with PyTorch's meaning of z. Every kernel of this package is checked against this file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from . import int8
from .cell import GRU, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH, Cell, States, Weights


def linear(x: Tensor, weight: Tensor | int8.Rows, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``; a weight of int8 multiplies rows that become int8, too."""
    if isinstance(weight, int8.Rows):
        return int8.linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def lstm_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """One LSTM step. gates_x [B, 4H] is ``weight_ih x + bias_ih``; returns the new (h, c)."""
    h, c = states
    i, f, g, o = (gates_x + linear(h, weights.weight_hh, weights.bias_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if weights.weight_hr is not None:
        h = linear(h, weights.weight_hr)
    return h, c


def gru_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """One GRU step as nn.GRU defines it: the reset gate acts after the matmul. gates_x [B, 3H]; returns (h,)."""
    (h,) = states
    r_x, z_x, n_x = gates_x.chunk(3, -1)
    r_h, z_h, n_h = linear(h, weights.weight_hh, weights.bias_hh).chunk(3, -1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * h,)


def gru_step_reset_before(gates_x: Tensor, states: States, weights: Weights) -> States:
    """One GRU step of Cho et al. 2014: the reset gate acts before the matmul. gates_x [B, 3H]; returns (h,)."""
    (h,) = states
    H = h.size(-1)
    weight_rz, weight_n = weights.weight_hh.split((2 * H, H))
    bias_rz, bias_n = (None, None) if weights.bias_hh is None else weights.bias_hh.split((2 * H, H))
    rz_x, n_x = gates_x.split((2 * H, H), -1)
    r, z = torch.sigmoid(rz_x + linear(h, weight_rz, bias_rz)).chunk(2, -1)
    n = torch.tanh(n_x + linear(r * h, weight_n, bias_n))
    return ((1 - z) * n + z * h,)


def rnn_tanh_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """One step of nn.RNN with tanh. gates_x [B, H]; returns (h,)."""
    return (torch.tanh(gates_x + linear(states[0], weights.weight_hh, weights.bias_hh)),)


def rnn_relu_step(gates_x: Tensor, states: States, weights: Weights) -> States:
    """One step of nn.RNN with ReLU. gates_x [B, H]; returns (h,)."""
    return (torch.relu(gates_x + linear(states[0], weights.weight_hh, weights.bias_hh)),)


STEPS: dict[Cell, Callable[[Tensor, States, Weights], States]] = {
    LSTM: lstm_step,
    GRU: gru_step,
    GRU_RESET_BEFORE: gru_step_reset_before,
    RNN_TANH: rnn_tanh_step,
    RNN_RELU: rnn_relu_step,
}


def run(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Weights,
    lengths: Tensor | None = None,
    reverse: bool = False,
    resets: Tensor | None = None,
) -> tuple[Tensor, States]:
    """One layer in one direction.

    Args:
        x: [T, B, I].
        states: the initial states, each [B, H].
        weights: the layer's weights.
        lengths: [B] or None; row b takes part in step t only if ``t < lengths[b]``. Otherwise its states stay and
            its output is zero.
        reverse: run from the last step to the first; each row then starts at its own last step.
        resets: [T, B] bool or None; where true, a new sequence begins at that step.

    Returns:
        output [T, B, H] and the final states, each [B, H].
    """
    if lengths is not None:  # nothing that stands in the padding, NaN included, may reach a gradient
        steps = torch.arange(x.size(0), device=x.device)
        x = x.masked_fill((steps[:, None] >= lengths)[..., None], 0)
    step = STEPS[cell]
    anew = None if resets is None else starts_anew(resets, lengths, reverse).unsqueeze(-1)
    gates_x = linear(x, weights.weight_ih, weights.bias_ih)
    outputs: list[Tensor] = []
    for t in reversed(range(x.size(0))) if reverse else range(x.size(0)):
        before = states if anew is None else tuple(state.masked_fill(anew[t], 0) for state in states)
        stepped = step(gates_x[t], before, weights)
        if lengths is None:
            outputs.append(stepped[0])
            states = stepped
        else:
            active = (t < lengths).unsqueeze(-1)
            outputs.append(torch.where(active, stepped[0], torch.zeros_like(stepped[0])))
            states = tuple(torch.where(active, new, old) for new, old in zip(stepped, states, strict=True))
    if not outputs:
        return gates_x[..., : states[0].size(-1)], states  # [0, B, H]
    return torch.stack(outputs[::-1] if reverse else outputs), states


def starts_anew(resets: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """[T, B] bool: whether the state before an active step, in the order in which a direction takes them, is zero.

    Args:
        resets: [T, B] bool: where true, a new sequence begins at that step.
        lengths, reverse: as of :func:`run`.
    """
    if not reverse:
        return resets
    later = torch.cat([resets[1:], torch.zeros_like(resets[:1])])
    if lengths is None:
        return later
    return later & (torch.arange(1, len(later) + 1, device=later.device)[:, None] < lengths)
