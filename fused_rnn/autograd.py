"""Shapes and derivatives of the four ops, for any namespace that has them.

``lstm_forward``, ``lstm_backward``, ``gru_forward`` and ``gru_backward`` are defined and implemented elsewhere (in
C++ for the namespace ``fused_rnn``, with the schemas in ``csrc/schemas.h``). Here each gets a fake kernel, so that
FakeTensor, meta tensors, ``torch.compile`` and ``torch.export`` know its outputs, and a derivative. The derivative of
a forward op is its backward op; the derivative of a backward op differentiates the reference.

All four ops share one order of arguments, with one state for a GRU (hx) and two for an LSTM (hx, cx)::

    forward:   x, weight_ih, weight_hh, bias_ih, bias_hh, states..., lengths, flags..., save
    backward:  grad_output, grad_states..., x, weight_ih, weight_hh, bias_ih, bias_hh, states..., output, saved,
               lengths, flags..., needs_x, needs_weights

A state is [B, H]. The flags are ``reverse, allow_tf32`` for an LSTM, ``reset_after, reverse, allow_tf32`` for a GRU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from . import reference
from .cell import GRU, GRU_RESET_BEFORE, LSTM, Cell, States, Weights

MaybeTensors = Sequence[Tensor | None]


def will_differentiate(*tensors: Tensor | None) -> bool:
    """Whether autograd records an op on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def run(
    ops: Any,
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Weights,
    lengths: Tensor | None,
    reverse: bool,
    allow_tf32: bool = False,
) -> tuple[Tensor, States]:
    """One layer in one direction through the ops of a namespace; arguments and results as :func:`reference.run`.

    allow_tf32: the factors of float32 products may be rounded to TF32, where a device has it.
    """
    tensors = (x, *weights[:4], *states)
    save = will_differentiate(*tensors)
    op = ops.lstm_forward if cell.name == "lstm" else ops.gru_forward
    flags = (reverse, allow_tf32) if cell.name == "lstm" else (cell.reset_after, reverse, allow_tf32)
    if torch.compiler.is_compiling():
        output, *final, _ = op(*tensors, lengths, *flags, save)
    elif save:
        output, *final, _ = _functions[op].apply(*tensors, lengths, *flags, save)
    else:
        output, *final, _ = _below_autograd(op, *tensors, lengths, *flags, save)
    return output, tuple(final)


def _below_autograd(op: Any, *args: Any) -> tuple[Tensor, ...]:
    """``op(*args)`` where there is nothing to record, past the Python half of autograd, which takes some 5 us.

    Raises:
        torch.OutOfMemoryError: a GPU's memory does not suffice. The stable ABI knows RuntimeError only.
    """
    try:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)
    except RuntimeError as error:
        if str(error).startswith("CUDA out of memory"):
            raise torch.OutOfMemoryError(str(error)) from None
        raise


# The forward ops as eager autograd records them: what register_autograd does, without its detour of some 50 us.
_functions: dict[Any, type[torch.autograd.Function]] = {}


def register(namespace: str) -> None:
    """Register fake kernels and derivatives for the four ops of ``namespace``."""
    _register(namespace, "lstm", n_states=2)
    _register(namespace, "gru", n_states=1)


def _cell(name: str, flags: Sequence[bool]) -> Cell:
    if name == "lstm":
        return LSTM
    return GRU if flags[0] else GRU_RESET_BEFORE


def saved_per_unit(cell: Cell) -> int:
    """How many numbers a forward keeps per step, row and unit: i, f, g, o, c of an LSTM; r, z, n (and n_h) of a GRU."""
    return 5 if cell is LSTM else 4 if cell is GRU else 3


def _register(namespace: str, name: str, n_states: int) -> None:
    n_tensors = 5 + n_states
    n_grads = 1 + n_states
    forward_op, backward_op = f"{namespace}::{name}_forward", f"{namespace}::{name}_backward"

    def forward_fake(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
        _check_devices(x, *args)
        T, B, H = x.size(0), x.size(1), args[1].size(1)
        *flags, save = args[n_tensors:]
        shape = (T, B, saved_per_unit(_cell(name, flags)), H) if save else (0,)
        saved = x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        return x.new_empty((T, B, H)), *(x.new_empty((B, H)) for _ in range(n_states)), saved

    def forward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        lengths, *ctx.flags, ctx.save = inputs[n_tensors:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[-1])
        _save(ctx, *inputs[:n_tensors], output[0], output[-1], lengths)

    def forward_derivative(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.save:
            raise RuntimeError(f"{forward_op} ran with save=False, so it has no backward")
        *tensors, output, saved, lengths = _saved(ctx)
        needs = ctx.needs_input_grad[:n_tensors]
        op = getattr(getattr(torch.ops, namespace), f"{name}_backward")
        args = (*grads[:-1], *tensors, output, saved, lengths, *ctx.flags, needs[0], any(needs[1:5]))
        # With create_graph the backward is recorded too.
        results = op(*args) if torch.is_grad_enabled() else _below_autograd(op, *args)
        wanted = (grad if need else None for grad, need in zip(results, needs, strict=True))
        return *wanted, *(None,) * (2 + len(ctx.flags))

    def backward_fake(*args: Any) -> tuple[Tensor, ...]:
        tensors = args[n_grads : n_grads + n_tensors]
        _check_devices(*tensors, *args)
        needs_x, needs_weights = args[-2:]
        needs = (needs_x, *(needs_weights,) * 4, *(True,) * n_states)
        shapes = (t.shape if t is not None and need else (0,) for t, need in zip(tensors, needs, strict=True))
        return tuple(tensors[0].new_empty(shape) for shape in shapes)

    def backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, lengths, *ctx.flags, _, _ = inputs[n_grads + n_tensors :]
        ctx.set_materialize_grads(False)
        _save(ctx, *inputs[: n_grads + n_tensors], lengths)

    def backward_derivative(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, lengths = _saved(ctx)
        *_, reverse, _ = ctx.flags
        second = _second_derivative(
            _cell(name, ctx.flags), tensors[:n_grads], tensors[n_grads:], lengths, reverse, grads
        )
        # output and saved are functions of the other inputs, so their part is in those gradients already.
        return *second, *(None,) * (5 + len(ctx.flags))

    class FusedRnn(torch.autograd.Function):  # its node in a graph is called FusedRnnBackward
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
            output = _below_autograd(op, *inputs)
            forward_setup(ctx, inputs, output)
            return output

        backward = staticmethod(forward_derivative)

    op = getattr(getattr(torch.ops, namespace), f"{name}_forward")
    _functions[op] = FusedRnn
    torch.library.register_fake(forward_op, forward_fake)
    torch.library.register_autograd(forward_op, forward_derivative, setup_context=forward_setup)
    torch.library.register_fake(backward_op, backward_fake)
    torch.library.register_autograd(backward_op, backward_derivative, setup_context=backward_setup)


def _check_devices(x: Tensor, *args: Any) -> None:
    """Raise if the devices differ: PyTorch runs the fake kernel, which computes nothing, if any tensor is on meta."""
    for arg in args:
        if isinstance(arg, Tensor) and arg.device != x.device:
            raise RuntimeError(f"all tensors must be on {x.device} like x, got {arg.device}")


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save the tensors that are there: tools that draw a graph look at ``saved_tensors`` and know no None."""
    ctx.are_saved = [t is not None for t in tensors]
    ctx.save_for_backward(*compress(tensors, ctx.are_saved))


def _saved(ctx: Any) -> list[Tensor | None]:
    """The tensors given to :func:`_save`."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if is_saved else None for is_saved in ctx.are_saved]


def _second_derivative(
    cell: Cell,
    grads: MaybeTensors,
    tensors: MaybeTensors,
    lengths: Tensor | None,
    reverse: bool,
    grad_grads: MaybeTensors,
) -> list[Tensor | None]:
    """The derivative of a backward op by ``grads`` and ``tensors``: the reference is differentiated twice."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        grads, tensors = [_own(g) for g in grads], [_own(t) for t in tensors]
        x, weight_ih, weight_hh, bias_ih, bias_hh, *states = tensors
        weights = Weights(weight_ih, weight_hh, bias_ih, bias_hh)  # type: ignore[arg-type]
        output, final = reference.run(cell, x, tuple(states), weights, lengths, reverse)  # type: ignore[arg-type]
        outputs, grad_outputs = _given((output, *final), grads)
        inputs, grad_inputs = _given(tensors, grad_grads)
        if not outputs or not inputs:
            return [None] * (len(grads) + len(tensors))
        first = torch.autograd.grad(outputs, inputs, grad_outputs, create_graph=True, materialize_grads=True)
        sources = [t for t in (*grads, *tensors) if t is not None]
        second = torch.autograd.grad(first, sources, grad_inputs, create_graph=create_graph, allow_unused=True)
    found = iter(second)
    return [None if t is None else next(found) for t in (*grads, *tensors)]


def _given(tensors: MaybeTensors, grads: MaybeTensors) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that have a gradient, and those gradients."""
    pairs = [(t, g) for t, g in zip(tensors, grads, strict=True) if t is not None and g is not None]
    return [t for t, _ in pairs], [g for _, g in pairs]


def _own(tensor: Tensor | None) -> Tensor | None:
    """A view that is differentiated by itself, even where the same tensor stands for two inputs."""
    if tensor is None:
        return None
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
