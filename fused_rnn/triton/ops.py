"""The four ops of a layer in the namespace ``fused_rnn_triton``, with the schemas of ``csrc/schemas.h``.

On a GPU they run Triton's compiled kernels; on the CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``), which
is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import autograd, native
from ..cell import GRU, GRU_RESET_BEFORE, LSTM, Cell, States, Weights
from .passes import Pass, backward, forward

NAMESPACE = "fused_rnn_triton"
DISPATCH_KEYS = ("CUDA", "XPU", "CPU")  # AMD's GPUs are CUDA to PyTorch

LAYER = "Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor hx"
GRADS = "Tensor grad_x, Tensor grad_weight_ih, Tensor grad_weight_hh, Tensor grad_bias_ih, Tensor grad_bias_hh"
SCHEMAS = {
    "lstm_forward": f"({LAYER}, Tensor cx, Tensor? lengths, bool reverse, bool allow_tf32, bool save) "
    "-> (Tensor output, Tensor hy, Tensor cy, Tensor saved)",
    "lstm_backward": f"(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, {LAYER}, Tensor cx, Tensor output, "
    "Tensor saved, Tensor? lengths, bool reverse, bool allow_tf32, bool needs_x, bool needs_weights) "
    f"-> ({GRADS}, Tensor grad_hx, Tensor grad_cx)",
    "gru_forward": f"({LAYER}, Tensor? lengths, bool reset_after, bool reverse, bool allow_tf32, bool save) "
    "-> (Tensor output, Tensor hy, Tensor saved)",
    "gru_backward": f"(Tensor? grad_output, Tensor? grad_hy, {LAYER}, Tensor output, Tensor saved, Tensor? lengths, "
    "bool reset_after, bool reverse, bool allow_tf32, bool needs_x, bool needs_weights) "
    f"-> ({GRADS}, Tensor grad_hx)",
}


def lstm_forward(*args: Any) -> tuple[Tensor, ...]:
    x, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx, lengths, reverse, allow_tf32, save = args
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    return forward(Pass(LSTM, x, *weights, (hx, cx), lengths, reverse, allow_tf32, False), save)


def gru_forward(*args: Any) -> tuple[Tensor, ...]:
    x, weight_ih, weight_hh, bias_ih, bias_hh, hx, lengths, reset_after, reverse, allow_tf32, save = args
    cell, weights = GRU if reset_after else GRU_RESET_BEFORE, (weight_ih, weight_hh, bias_ih, bias_hh)
    return forward(Pass(cell, x, *weights, (hx,), lengths, reverse, allow_tf32, False), save)


def lstm_backward(*args: Any) -> tuple[Tensor, ...]:
    *grads, x, weight_ih, weight_hh, bias_ih, bias_hh, hx, cx, output, saved = args[:12]
    lengths, reverse, allow_tf32, needs_x, needs_weights = args[12:]
    layer = Pass(LSTM, x, weight_ih, weight_hh, bias_ih, bias_hh, (hx, cx), lengths, reverse, allow_tf32, True)
    return backward(layer, grads, output, saved, needs_x, needs_weights)


def gru_backward(*args: Any) -> tuple[Tensor, ...]:
    *grads, x, weight_ih, weight_hh, bias_ih, bias_hh, hx, output, saved = args[:10]
    lengths, reset_after, reverse, allow_tf32, needs_x, needs_weights = args[10:]
    cell = GRU if reset_after else GRU_RESET_BEFORE
    layer = Pass(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, (hx,), lengths, reverse, allow_tf32, True)
    return backward(layer, grads, output, saved, needs_x, needs_weights)


def _define() -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "DEF")
    for implementation in (lstm_forward, lstm_backward, gru_forward, gru_backward):
        name = implementation.__name__
        library.define(name + SCHEMAS[name])
        for key in DISPATCH_KEYS:
            library.impl(name, implementation, key)
    autograd.register(NAMESPACE)
    return library


_LIBRARY = _define()  # the ops exist as long as it does


def run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    """One layer in one direction through these ops; as :func:`reference.run`."""
    tf32 = x.dtype == torch.float32 and native.allow_tf32()
    return autograd.run(getattr(torch.ops, NAMESPACE), cell, x, states, weights, lengths, reverse, tf32)
