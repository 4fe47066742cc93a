"""The ops, with the schemas of ``csrc/schemas.h``, in the namespace ``fused_rnn_triton``: one layer and direction.

On a GPU they run Triton's compiled kernels; on the CPU they run in Triton's interpreter (``TRITON_INTERPRET=1``), which
is how they are tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import autograd, native
from ..call import BIAS, NEEDS_ALL, NEEDS_INPUT, NEEDS_STATES, NEEDS_WEIGHTS, REDUCED_PRECISION, REVERSE, SAVE
from ..cell import Cell, States, Weights, named
from .passes import Pass, backward, forward

NAMESPACE = "fused_rnn_triton"
DISPATCH_KEYS = ("CUDA", "XPU", "CPU")  # AMD's GPUs are CUDA to PyTorch

CALL = (
    "str cell, Tensor input, Tensor[] weights, Tensor? hx, Tensor? cx, Tensor? lengths, Tensor? resets, "
    "Tensor[] masks, int flags"
)
SCHEMAS = {
    "forward": f"({CALL}) -> Tensor[] results",
    "inference": f"({CALL.replace('Tensor? lengths, Tensor? resets, Tensor[] masks, ', '')}) -> Tensor[] results",
    "backward": f"(Tensor? grad_output, Tensor? grad_hy, Tensor? grad_cy, Tensor[] kept, {CALL}) -> Tensor[] grads",
}
_KNOWN_FLAGS = REDUCED_PRECISION | BIAS | NEEDS_ALL | REVERSE | SAVE


def _pass(args: Sequence[Any], is_backward: bool) -> Pass:
    """The pass for the arguments of an op."""
    name, x, weights, hx, cx, lengths, resets, masks, flags = args
    cell, states = named(name), [state for state in (hx, cx) if state is not None]
    wanted = 4 if flags & BIAS else 2
    if flags & ~_KNOWN_FLAGS or len(masks) or len(weights) != wanted or len(states) != len(cell.states):
        raise RuntimeError("these ops run one layer in one direction, with the time first and all states given")
    weight_ih, weight_hh, bias_ih, bias_hh = (*weights, None, None)[:4]
    states = [_of_layer(state) for state in states]
    reverse, allow_tf32 = bool(flags & REVERSE), bool(flags & REDUCED_PRECISION)
    rows = states, lengths, resets
    return Pass(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, *rows, reverse, allow_tf32, is_backward)


def _of_layer(state: Tensor) -> Tensor:
    """[B, H] of a state [1, B, H]."""
    if state.dim() != 3 or state.size(0) != 1:
        raise RuntimeError(f"a state must be [1, B, H], got {list(state.shape)}")
    return state[0]


def _forward(*args: Any) -> list[Tensor]:
    output, *final, saved = forward(_pass(args, False), bool(args[-1] & SAVE))
    results = [output, *(state.unsqueeze(0) for state in final)]
    return [*results, saved] if args[-1] & SAVE else results


def _inference(*args: Any) -> list[Tensor]:
    return _forward(*args[:-1], None, None, (), args[-1])


def _backward(*args: Any) -> list[Tensor]:
    grad_output, grad_hy, grad_cy, kept = args[:4]
    if len(kept) != 2:
        raise RuntimeError(f"kept must be 2 tensors, got {len(kept)}")
    output, saved = kept
    grads = [grad_output, *(None if grad is None else _of_layer(grad) for grad in (grad_hy, grad_cy))]
    layer, flags = _pass(args[4:], True), args[-1]
    needs = [bool(flags & need) for need in (NEEDS_INPUT, NEEDS_WEIGHTS, NEEDS_STATES)]
    grad_x, *rest = backward(layer, grads, output, saved, *needs)
    grad_weights, grad_states = rest[: len(args[6])], rest[4:]
    return [grad_x, *grad_weights, *(grad.unsqueeze(0) if needs[2] else grad for grad in grad_states)]


def _define() -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, implementation in (("forward", _forward), ("inference", _inference), ("backward", _backward)):
        library.define(name + SCHEMAS[name])
        for key in DISPATCH_KEYS:
            library.impl(name, implementation, key)
    autograd.register(NAMESPACE)
    return library


_LIBRARY = _define()  # the ops exist as long as it does


def run_layer(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Weights,
    lengths: Tensor | None,
    reverse: bool,
    resets: Tensor | None,
) -> tuple[Tensor, States]:
    """One layer in one direction through these ops; as :func:`reference.run`."""
    tf32 = x.dtype == torch.float32 and native.allow_tf32()
    ops = getattr(torch.ops, NAMESPACE)
    return autograd.run_layer(ops, cell, x, states, weights, lengths, reverse, resets, tf32)
