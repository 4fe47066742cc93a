"""PyTorch's own layers as a backend: for what no kernel of ours covers, and where none was measured to be faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import layered, reference, twice
from .call import Call, reshaped
from .cell import States


def run(call: Call) -> tuple[Tensor, ...]:
    """The results of the op for a call, through the functions behind torch.nn's modules.

    Raises:
        RuntimeError: a tensor has the wrong shape, where PyTorch's float32 LSTM on the CPU would read past its end, or
            another dtype or device than the input.
    """
    plain = call.standard()
    _check_shapes(call)
    if call.form.step and not call.projection:
        final = _run_step(plain)
        return final if call.is_batched else tuple(reshaped(state, "squeeze", 0) for state in final)
    output, final = _run_stack(plain)
    if not torch.compiler.is_compiling() and twice.is_needed(output):
        _let_differentiate_again(plain, output)
    return call.as_asked(output, final)


def _run_stack(call: Call) -> tuple[Tensor, States]:
    # train=True keeps what cuDNN needs for a backward, which nn.LSTM refuses in eval mode.
    train = torch.is_grad_enabled() or call.dropout > 0
    options = (call.form.bias, call.layers, call.dropout, train, call.directions == 2)
    function: Any = getattr(torch._VF, call.cell.stock)
    states = [state.contiguous() for state in call.states]  # cuDNN takes no others
    hx: Any = states if len(states) > 1 else states[0]
    weights = list(call.weights)
    if call.batch_sizes is None:
        output, *final = function(call.input, hx, weights, *options, False)
    else:
        output, *final = function(call.input, call.batch_sizes, hx, weights, *options)
    return output, tuple(final)


def _run_step(call: Call) -> States:
    """As nn.LSTMCell and nn.GRUCell."""
    function: Any = getattr(torch._VF, f"{call.cell.stock}_cell")
    states = [state[0] for state in call.states]
    weights = [*call.weights, *(None,) * (4 - len(call.weights))]
    final = function(call.input[0], states if len(states) > 1 else states[0], *weights)
    return (final,) if isinstance(final, Tensor) else tuple(final)


def _let_differentiate_again(call: Call, output: Tensor) -> None:
    n_states = len(call.states)
    # Without its tensors: autograd alone decides how long these live.
    empty = call.changed(input=torch.empty(0), states=(), weights=())

    def same(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        if empty.dropout > 0:
            raise RuntimeError("double backward needs dropout=0 here: PyTorch's kernels do not give their masks away")
        again = empty.changed(input=x, states=tensors[:n_states], weights=tensors[n_states:])
        return layered.run(again, reference.run)

    twice.differentiate_again(output, [call.input, *call.states, *call.weights], same)


def _check_shapes(call: Call) -> None:
    output_size, H = call.output_size, call.H
    rows = call.cell.gates * H
    shapes: list[tuple[int, ...]] = []
    for k in range(call.layers * call.directions):
        inputs = call.I if k < call.directions else call.directions * output_size
        shapes += [(rows, inputs), (rows, output_size), *[(rows,)] * (2 * call.form.bias)]
        shapes += [(output_size, H)] * call.form.projection
    for k, (weight, shape) in enumerate(zip(call.weights, shapes, strict=True)):
        if weight.shape != shape:
            name = call.names()[len(call.states) + k]
            raise RuntimeError(f"{name} must be {list(shape)}, got {list(weight.shape)}")
