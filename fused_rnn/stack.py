"""Layers x directions on one backend, over padded or packed sequences, with dropout between the layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import dropout as zeroed
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import layer, twice
from .backends import Backend, by_name
from .cell import Cell, States, Weights


def run(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Sequence[Weights],
    *,
    directions: int,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, States]:
    """Choose the backend and run all layers on it.

    Under autocast, x, states and weights are first cast to the autocast dtype (float64 and complex stay).

    Args:
        x: [T, B, I], or the data [N, I] of a packed sequence.
        states: the initial states, each [L*D, B, H], layer by layer and in each the forward direction first.
        weights: L*D of them, in the same order.
        directions: D, 1 or 2.
        lengths: [B] on x's device or None, as in :func:`reference.run`.
        batch_sizes: of a packed sequence, [T], or None.
        dropout: probability of an element of a layer's output, but the last layer's, to be zeroed.

    Returns:
        output [T, B, D*H] or [N, D*H] and the final states, each [L*D, B, H].

    Raises:
        RuntimeError: a state or weight has another dtype or device than x.
        ValueError: the forced backend cannot run this.
    """
    given = x, states, weights
    backend, x, states, weights = layer.chosen(cell, x, states, weights, lengths, batch_sizes, directions)
    if backend.run_stack is not None:
        if x.is_cuda:  # PyTorch's own autocast keeps all weights in one piece, which cuDNN would have to make again
            x, states, weights = given
        return _run_whole(backend.run_stack, cell, x, batch_sizes, states, weights, directions, dropout)
    return _run_by_layers(backend, cell, x, batch_sizes, states, weights, directions, dropout, lengths)


def _run_whole(
    run_stack: Callable[..., tuple[Tensor, States]],
    cell: Cell,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: States,
    weights: Sequence[Weights],
    directions: int,
    dropout: float,
) -> tuple[Tensor, States]:
    """As :func:`run` on a backend that runs all layers at once."""
    output, final = run_stack(cell, x, batch_sizes, states, weights, directions, dropout)
    if output.grad_fn is None or torch.compiler.is_compiling():
        return output, final

    there = [[weight is not None for weight in one] for one in weights]

    def same(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        if dropout > 0:
            raise RuntimeError("double backward needs dropout=0 here: PyTorch's kernels do not give their masks away")
        rest = iter(tensors)
        states = tuple(next(rest) for _ in cell.states)
        weights = [Weights(*(next(rest) if is_there else None for is_there in one)) for one in there]  # type: ignore[arg-type]
        output, final = _run_by_layers(by_name("reference"), cell, x, batch_sizes, states, weights, directions)
        return output, *final

    tensors = [x, *states, *(weight for one in weights for weight in one if weight is not None)]
    twice.differentiate_again(output, tensors, same)
    return output, final


def _run_by_layers(
    backend: Backend,
    cell: Cell,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: States,
    weights: Sequence[Weights],
    directions: int,
    dropout: float = 0.0,
    lengths: Tensor | None = None,
) -> tuple[Tensor, States]:
    """As :func:`run` on a backend that runs one layer in one direction."""
    layers = functools.partial(_run_layers, backend, cell, weights=weights, directions=directions)
    if batch_sizes is not None:
        return _run_packed(layers, x, batch_sizes, states, dropout)

    def drop(y: Tensor) -> Tensor:
        return zeroed(y, dropout, training=True)

    between = drop if dropout > 0 else None
    order = None if lengths is None else _longest_first(lengths)
    if lengths is None or order is None:
        return layers(x, states, lengths=lengths, between=between)
    rows = x.index_select(1, order)
    output, final = layers(rows, permuted(states, order), lengths=lengths[order], between=between)
    back = order.argsort()
    return output.index_select(1, back), permuted(final, back)


def _run_packed(
    layers: Callable[..., tuple[Tensor, States]], data: Tensor, batch_sizes: Tensor, states: States, dropout: float
) -> tuple[Tensor, States]:
    x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))

    def drop(y: Tensor) -> Tensor:  # in packed form, so that it draws the random numbers that torch.nn draws
        dropped = zeroed(pack_padded_sequence(y, lengths).data, dropout, training=True)
        return pad_packed_sequence(PackedSequence(dropped, batch_sizes))[0]

    output, final = layers(x, states, lengths=lengths.to(data.device), between=drop if dropout > 0 else None)
    return pack_padded_sequence(output, lengths).data, final


def _run_layers(
    backend: Backend,
    cell: Cell,
    x: Tensor,
    states: States,
    *,
    weights: Sequence[Weights],
    directions: int,
    lengths: Tensor | None,
    between: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, States]:
    """As :func:`run` for padded input; ``between`` changes the output of every layer but the last."""
    finals: list[States] = []
    for first in range(0, len(weights), directions):
        if first and between is not None:
            x = between(x)
        outputs = []
        for k in range(first, first + directions):
            initial = tuple(state[k] for state in states)
            output, final = backend.run(cell, x, initial, weights[k], lengths, k > first)
            outputs.append(output)
            finals.append(final)
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    if len(finals) == 1:
        # In place, which makes no view and no copy; no backward needs a final state.
        change = Tensor.unsqueeze if _are_views_unavoidable() else Tensor.unsqueeze_
        return x, tuple(change(state, 0) for state in finals[0])
    return x, tuple(torch.stack(state) for state in zip(*finals, strict=True))


def _longest_first(lengths: Tensor) -> Tensor | None:
    """The order of rows for which the CPU kernels skip the steps past each end; None if the rows have it already."""
    if lengths.device.type != "cpu":
        return None
    if not torch.compiler.is_compiling() and not (lengths[1:] > lengths[:-1]).any():
        return None
    return lengths.argsort(descending=True, stable=True)


def permuted(states: States, order: Tensor | None) -> States:
    """The rows of states, each [L*D, B, H], in another order."""
    return states if order is None else tuple(state.index_select(1, order) for state in states)


def reshaped(tensor: Tensor, change: str, *dims: int) -> Tensor:
    """``tensor.<change>(*dims)`` of an output that nothing else holds, not as a view if that can be.

    PyTorch refuses ``detach_()`` and some in-place updates of views.

    Args:
        change: "transpose" or "squeeze".
    """
    if _are_views_unavoidable():
        return getattr(tensor, change)(*dims)
    if tensor.is_inference():  # it has no version
        return getattr(tensor, change + "_")(*dims)
    # The backward saves the values of an output, which do not change: to autograd this is no new version of it.
    version = tensor._version
    getattr(tensor, change + "_")(*dims)
    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
    return tensor


def _are_views_unavoidable() -> bool:
    """torch.compile and torch.func rewrite changes in place."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
