"""Shapes and derivatives of the ops, for any namespace that has them.

``forward``, ``backward`` and ``inference`` are defined and implemented elsewhere (in C++ for the namespace
``fused_rnn``, with the schemas in ``csrc/schemas.h``). Here each gets a fake kernel, so that FakeTensor, meta tensors,
``torch.compile`` and ``torch.export`` know its results. The derivative of the forward is the backward; that of the
backward differentiates the reference. The inference is the forward without a derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from . import layered, panels, private, reference
from .call import (
    BATCH_FIRST,
    BIAS,
    BIDIRECTIONAL,
    NEEDS_INPUT,
    NEEDS_STATES,
    NEEDS_WEIGHTS,
    PACKED,
    PROJECTED,
    REDUCED_PRECISION,
    REVERSE,
    SAVE,
    STEP,
    Call,
    Form,
    flags_of,
    one_layer,
)
from .cell import Cell, States, Weights, named

MaybeTensor = Tensor | None


def run(ops: Any, call: Call, flags: int = 0) -> Sequence[Tensor]:
    """The results of the ops of a namespace for a call whose masks are drawn.

    Args:
        flags: those that are not of the call's form, such as REDUCED_PRECISION.

    Returns:
        The output and the final states, of a step the states alone.
    """
    flags |= flags_of(call.form)
    rows = call.lengths
    if call.batch_sizes is not None:
        flags, rows = flags | PACKED, call.batch_sizes
    states = call.states
    hx, cx, *_ = *states, None, None
    args = (call.cell.name, call.input, call.weights, hx, cx, rows, call.resets, call.masks)
    training = call.training
    if not training and rows is None and call.resets is None and not call.masks:
        return _infer(ops, *args[:5], flags)
    if torch.compiler.is_compiling():
        results = ops.forward.default(*args, flags | SAVE if training else flags)
        return results[: _count_results(call.cell, flags)]
    if not training:
        return _below_autograd(ops.forward.default, *args, flags)
    options = (ops, call.cell.name, flags | SAVE, rows, call.resets, call.masks, len(call.weights))
    return _apply(*options, call.input, *call.weights, *states)


def run_layer(
    ops: Any,
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Weights,
    lengths: MaybeTensor,
    reverse: bool,
    resets: MaybeTensor = None,
    reduced_precision: bool = False,
) -> tuple[Tensor, States]:
    """One layer in one direction through the ops of a namespace; arguments and results as :func:`reference.run`."""
    flags = REDUCED_PRECISION if reduced_precision else 0
    return one_layer(lambda call: run(ops, call, flags))(cell, x, states, weights, lengths, reverse, resets)


def _two(states: Sequence[MaybeTensor]) -> tuple[MaybeTensor, MaybeTensor]:
    """hx and cx, or None."""
    hx, cx, *_ = *states, None, None
    return hx, cx


def _count_results(cell: Cell, flags: int) -> int:
    """How many of the forward op's results are the call's."""
    return len(cell.states) + (not flags & STEP)


def _infer(ops: Any, *args: Any) -> Sequence[Tensor]:
    """The results of the inference op.

    Raises:
        torch.OutOfMemoryError: a GPU's memory does not suffice. The stable ABI knows RuntimeError only.
    """
    try:
        return ops.inference.default(*args)
    except RuntimeError as error:
        raise _typed(error) from None


def _typed(error: RuntimeError) -> RuntimeError:
    message = str(error)
    return torch.OutOfMemoryError(message) if message.startswith("CUDA out of memory") else error


# ---- The derivative of the forward ----


class FusedRnn(torch.autograd.Function):  # its node in a graph is called FusedRnnBackward
    """The forward op for eager autograd. By register_autograd alone, it would take some 50 us longer."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: Any,
        name: str,
        flags: int,
        lengths: MaybeTensor,
        resets: MaybeTensor,
        masks: Any,
        n_weights: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        x, weights, states = tensors[0], tensors[1 : 1 + n_weights], tensors[1 + n_weights :]
        hx, cx, *_ = *states, None, None
        results = _below_autograd(ops.forward.default, name, x, weights, hx, cx, lengths, resets, masks, flags)
        count = _count_results(named(name), flags)
        _save_forward(ctx, ops, name, flags, (x, weights, states, lengths, resets, masks), results[0], results[count:])
        return tuple(results[:count])

    @staticmethod
    def backward(ctx: Any, *grads: MaybeTensor) -> tuple[MaybeTensor, ...]:
        return *(None,) * 7, *_forward_derivative(ctx, grads, ctx.needs_input_grad[7:])


# FusedRnn.apply without its preparations for torch.func, whose transforms never come here.
_apply = super(torch.autograd.Function, FusedRnn).apply


def _below_autograd(op: Any, *args: Any) -> Any:
    """``op(*args)`` where there is nothing to record."""
    try:
        with private.below_autograd():
            return op(*args)
    except RuntimeError as error:
        raise _typed(error) from None


def _save_forward(
    ctx: Any, ops: Any, name: str, flags: int, inputs: tuple[Any, ...], first: Tensor, saved: Sequence[Tensor]
) -> None:
    x, weights, states, lengths, resets, masks = inputs
    ctx.set_materialize_grads(False)
    ctx.op = ops, name, flags
    rows = () if lengths is None else (lengths,), () if resets is None else (resets,)
    _save(ctx, (x,), weights, states, *rows, masks, (first, *saved))


def _forward_derivative(ctx: Any, grads: Sequence[MaybeTensor], needs: Sequence[bool]) -> list[MaybeTensor]:
    """The gradients of input, weights and states from those of the results; ``needs`` says which are needed."""
    ops, name, flags = ctx.op
    if not flags & SAVE:
        raise RuntimeError("the forward ran without the flag SAVE, so it has no backward")
    (x,), weights, states, lengths, resets, masks, kept = _saved(ctx)
    needs_x, needs_weights, needs_states = needs[0], needs[1 : 1 + len(weights)], needs[1 + len(weights) :]
    flags |= NEEDS_INPUT * needs_x | NEEDS_WEIGHTS * any(needs_weights) | NEEDS_STATES * any(needs_states)
    grad_output, *grad_states = (None, *grads) if flags & STEP else grads
    options = (lengths[0] if lengths else None, resets[0] if resets else None, masks, flags)
    args = (grad_output, *_two(grad_states), kept, name, x, weights, *_two(states), *options)
    op = ops.backward.default
    # With create_graph the backward is recorded too.
    results = op(*args) if torch.is_grad_enabled() else _below_autograd(op, *args)
    return [grad if need else None for grad, need in zip(results, needs, strict=True)]


# ---- Registration: fake kernels and derivatives ----


def register(namespace: str) -> None:
    """Register fake kernels and derivatives for the ops of ``namespace``."""
    forward_name, backward_name = f"{namespace}::forward", f"{namespace}::backward"
    ops = getattr(torch.ops, namespace)

    def forward_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        name, x, weights, hx, cx, lengths, resets, masks, flags = inputs
        count = _count_results(named(name), flags)
        ctx.count, ctx.mask_count = count, len(masks)
        ctx.mark_non_differentiable(*output[count:])
        given = (x, weights, _there(hx, cx), lengths, resets, masks)
        _save_forward(ctx, ops, name, flags, given, output[0], output[count:])

    def forward_derivative(ctx: Any, grads: list[MaybeTensor]) -> tuple[Any, ...]:
        _, x, weights, hx, cx, *_ = ctx.needs_input_grad
        needs = (x, *weights, *(hx, cx)[: ctx.sizes[2]])
        grad_x, *rest = _forward_derivative(ctx, grads[: ctx.count], needs)
        grad_weights, grad_states = rest[: len(weights)], rest[len(weights) :]
        return None, grad_x, grad_weights, *_two(grad_states), None, None, [None] * ctx.mask_count, None

    def backward_setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        grad_output, grad_hy, grad_cy, kept, name, x, weights, hx, cx, lengths, resets, masks, flags = inputs
        ctx.set_materialize_grads(False)
        grads = (grad_output, grad_hy, grad_cy)
        ctx.op = name, flags
        ctx.counts = len(kept), len(masks)
        ctx.has_grad = [grad is not None for grad in grads]
        _save(ctx, _there(*grads), (x,), weights, _there(hx, cx), _there(lengths), _there(resets), masks)

    def backward_derivative(ctx: Any, grads: list[MaybeTensor]) -> tuple[Any, ...]:
        name, flags = ctx.op
        given, (x,), weights, states, *rows, masks = _saved(ctx)
        lengths, resets = (tensors[0] if tensors else None for tensors in rows)
        found = iter(given)
        incoming = [next(found) if has_grad else None for has_grad in ctx.has_grad]
        call = asked(name, x, weights, *_two(states), lengths, resets, masks, flags)
        second, by_x, by_weights, by_states = _second_derivative(call, incoming, grads)
        # The kept tensors are functions of the other inputs, whose gradients include them already.
        kept, n_masks = ctx.counts
        return *second, [None] * kept, None, by_x, by_weights, *_two(by_states), None, None, [None] * n_masks, None

    torch.library.register_fake(forward_name, _forward_fake)
    torch.library.register_fake(f"{namespace}::inference", _inference_fake)
    torch.library.register_autograd(forward_name, forward_derivative, setup_context=forward_setup)
    torch.library.register_fake(backward_name, _backward_fake)
    torch.library.register_autograd(backward_name, backward_derivative, setup_context=backward_setup)


def _there(*tensors: MaybeTensor) -> tuple[Tensor, ...]:
    return tuple([tensor for tensor in tensors if tensor is not None])


def asked(
    name: str,
    x: Tensor,
    weights: Any,
    hx: MaybeTensor,
    cx: MaybeTensor,
    lengths: MaybeTensor,
    resets: MaybeTensor,
    masks: Any,
    flags: int,
) -> Call:
    """The call that the arguments of the forward op ask for."""
    has_bias, directions = bool(flags & BIAS), 2 if flags & BIDIRECTIONAL else 1
    quantized = next((dtype for dtype, flag in panels.FLAGS.items() if flags & flag), None)
    projected = bool(flags & PROJECTED)
    layers = len(weights) // (directions * (2 + 2 * has_bias + projected + 2 * (quantized is torch.int8)))
    batch_first, step, reverse = bool(flags & BATCH_FIRST), bool(flags & STEP), bool(flags & REVERSE)
    made = Form(layers, directions, has_bias, projected, batch_first, step, reverse, quantized)
    rows: dict[str, Any] = {"batch_sizes" if flags & PACKED else "lengths": lengths}
    return Call(named(name), x, _there(hx, cx), weights, made, resets=resets, masks=masks, **rows)


def _forward_fake(*args: Any) -> list[Tensor]:
    call, flags = asked(*args), args[-1]
    _check_devices(call)
    x, cell, step = call.input, call.cell, call.form.step
    H, count, width = call.H, call.layers * call.directions, call.directions * call.output_size
    if call.states:  # the batch of a packed sequence is a number in a tensor, which no graph knows
        leading: tuple[int, ...] = call.states[0].shape[:-1]
    else:
        leading = (*((count,) * (not step)), *((call.B,) if call.packed or call.is_batched else ()))
    results = [] if step else [_empty_like_input(call, width)]
    results += [x.new_empty((*leading, size)) for size in (call.output_size, H)[: len(cell.states)]]
    if flags & SAVE:
        wide = x.device.type in ("cpu", "meta") and x.dtype in (torch.bfloat16, torch.float16)  # GPUs save x's dtype
        dtype = torch.float32 if wide else x.dtype
        rows = (x.size(0),) if call.packed else (call.T, call.B)
        results += [x.new_empty((*rows, cell.saved, H), dtype=dtype) for _ in range(count)]
        results += [x.new_empty((*rows, width)) for _ in range(call.layers - 1)]
    return results


def _inference_fake(*args: Any) -> list[Tensor]:
    return _forward_fake(*args[:-1], None, None, (), args[-1])


def _backward_fake(
    grad_output: MaybeTensor, grad_hy: MaybeTensor, grad_cy: MaybeTensor, kept: Sequence[Tensor], *args: Any
) -> list[Tensor]:
    call, flags = asked(*args), args[-1]
    _check_devices(call, grad_output=grad_output, grad_hy=grad_hy, grad_cy=grad_cy, kept=kept)
    x = call.input
    results = [_empty_like_input(call, call.I) if flags & NEEDS_INPUT else x.new_empty((0,))]
    results += [x.new_empty(weight.shape if flags & NEEDS_WEIGHTS else (0,)) for weight in call.weights]
    return results + [x.new_empty(state.shape if flags & NEEDS_STATES else (0,)) for state in call.states]


def _empty_like_input(call: Call, width: int) -> Tensor:
    """As Call::allocate_like_input in C++: with the batch first, strided."""
    x = call.input
    shape = (*x.shape[:-1], width)
    if call.form.batch_first and call.is_batched and not call.form.step and not call.packed:
        return x.new_empty((shape[1], shape[0], width)).transpose(0, 1)
    return x.new_empty(shape)


def _check_devices(call: Call, **more: MaybeTensor | Sequence[Tensor]) -> None:
    """Raise if the devices differ: PyTorch runs the fake kernel, which computes nothing, if any tensor is on meta."""
    x, states = call.input, dict(zip(call.cell.states, call.states))
    if call.batch_sizes is not None and call.batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes must be on cpu, got a tensor on {call.batch_sizes.device}")
    rows = {"lengths": call.lengths, "resets": call.resets}
    tensors: dict[str, Any] = {**states, **rows, "weights": call.weights, "masks": call.masks, **more}
    for name, given in tensors.items():
        for tensor in (given,) if isinstance(given, Tensor) else given or ():
            if tensor.device != x.device:
                got = f"{tensor.dtype} on {tensor.device}"
                raise RuntimeError(f"{name} must be {x.dtype} on {x.device} like input, got {got}")


def _save(ctx: Any, *groups: Sequence[Tensor]) -> None:
    ctx.sizes = list(map(len, groups))
    ctx.save_for_backward(*chain.from_iterable(groups))


def _saved(ctx: Any) -> list[list[Tensor]]:
    """The groups given to :func:`_save`."""
    tensors = iter(ctx.saved_tensors)
    return [list(islice(tensors, size)) for size in ctx.sizes]


# ---- The derivative of the backward ----


def _second_derivative(
    call: Call, grads: Sequence[MaybeTensor], grad_grads: Sequence[MaybeTensor]
) -> tuple[list[MaybeTensor], MaybeTensor, list[MaybeTensor], list[MaybeTensor]]:
    """The derivative of a backward op by ``grads`` (of output, hy and cy) and by the call's input, weights and states.

    The reference is differentiated twice.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        grads, x = [_own(grad) for grad in grads], _own(call.input)
        weights, states = [_own(weight) for weight in call.weights], [_own(state) for state in call.states]
        own = call.changed(input=x, weights=weights, states=tuple(states))
        results = layered.run(own, reference.run)
        outputs, grad_outputs = _given(results, grads[1:] if call.form.step else grads)
        inputs, grad_inputs = _given((x, *weights, *states), grad_grads)
        sources = _there(*grads, x, *weights, *states)
        found: Iterator[MaybeTensor] = iter((None,) * len(sources))
        if outputs and inputs:
            first = torch.autograd.grad(outputs, inputs, grad_outputs, create_graph=True, materialize_grads=True)
            options = dict(create_graph=create_graph, allow_unused=True)
            found = iter(torch.autograd.grad(first, sources, grad_inputs, **options))
    by_grads = [None if grad is None else next(found) for grad in grads]
    return by_grads, next(found), [next(found) for _ in weights], [next(found) for _ in states]


def _given(tensors: Sequence[Tensor], grads: Sequence[MaybeTensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that have a gradient, and those gradients."""
    pairs = [(t, g) for t, g in zip(tensors, grads) if g is not None]
    return [t for t, _ in pairs], [g for _, g in pairs]


def _own(tensor: MaybeTensor) -> Any:
    """A view that is differentiated by itself, even where the same tensor stands for two inputs."""
    if tensor is None:
        return None
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
