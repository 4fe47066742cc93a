"""Choose the backend for a stack of layers; run one layer in one direction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from . import backends, native
from .autograd import will_differentiate
from .backends import Backend, choose
from .cell import Cell, States, Weights
from .problem import Problem

# The classes of tensors that our ops support, and None for a tensor that is not there.
_SUPPORTED = frozenset((Tensor, torch.nn.Parameter, FakeTensor, FunctionalTensor, type(None)))


def problem_of(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Weights,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    layers: int = 1,
    directions: int = 1,
) -> Problem:
    """The :class:`Problem` of a stack of layers; arguments as of :func:`stack.run`, weights of its first layer."""
    tensors = (x, *states, *weights)
    return Problem(
        cell=cell,
        device=x.device,
        dtype=x.dtype,
        T=x.size(0) if batch_sizes is None else batch_sizes.size(0),
        B=states[0].size(-2),
        I=x.size(-1),
        H=states[-1].size(-1),
        projection=weights.weight_hr is not None,
        ragged=lengths is not None,
        packed=batch_sizes is not None,
        training=will_differentiate(*tensors),
        transformed=torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0,
        subclass=subclass_among(*tensors),
        layers=layers,
        directions=directions,
    )


def subclass_among(*tensors: object) -> str:
    """The name of the first class that derives from Tensor and has rules of its own for PyTorch's functions, or ""."""
    if _SUPPORTED.issuperset(map(type, tensors)):
        return ""
    kinds = (kind for kind in map(type, tensors) if kind not in _SUPPORTED and issubclass(kind, Tensor))
    return next((kind.__name__ for kind in kinds), "")


def chosen(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Sequence[Weights],
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    directions: int = 1,
) -> tuple[Backend, Tensor, States, Sequence[Weights]]:
    """The backend for a stack of layers, and x, states and weights as autocast wants them; arguments as there.

    The choice is the first layer's: nothing that it depends on differs between layers.

    Raises:
        RuntimeError: a state or weight has another dtype or device than x.
        ValueError: the forced backend cannot run this.
    """
    x, states, weights = autocast(x, states, weights)
    device, dtype = x.device, x.dtype
    for tensor in chain(states, *weights):
        if tensor is not None and (tensor.device != device or tensor.dtype != dtype):
            names = (*cell.states, *Weights._fields * len(weights))
            name = next(name for name, t in zip(names, chain(states, *weights), strict=True) if t is tensor)
            got = f"{tensor.dtype} on {tensor.device}"
            raise RuntimeError(f"{name} must be {dtype} on {device} like input, got {got}")
    layers = len(weights) // directions
    problem = problem_of(cell, x, states, weights[0], lengths, batch_sizes, layers, directions)
    return choose(problem), x, states, weights


def run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, States]:
    """Run one layer in one direction on the best backend; arguments and results as in :func:`reference.run`, errors as
    in :func:`chosen`."""
    backend, x, states, (weights,) = chosen(cell, x, states, (weights,), lengths)
    return backend.run(cell, x, states, weights, lengths, reverse)


def is_plain() -> bool:
    """Whether nothing stands between a module and the CPU kernels: no autograd, autocast, transform, mode, tracing or
    forced backend.

    Then a module may go to the inference ops directly. :func:`run` comes to the same results, but its questions take
    several times as long as a streaming step.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or native.load_error is not None
        or backends.forced() is not None
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def autocast(x: Tensor, states: States, weights: Sequence[Weights]) -> tuple[Tensor, States, Sequence[Weights]]:
    """The tensors of layers in the autocast dtype of x's device, if autocast is on; float64 and complex stay."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return x, states, weights
    dtype = torch.get_autocast_dtype(device_type)
    x, states = _cast(x, dtype), tuple(_cast(state, dtype) for state in states)
    cast = [Weights(*(None if w is None else _cast(w, dtype) for w in layer)) for layer in weights]  # type: ignore[arg-type]
    return x, states, cast


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    castable = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return tensor.to(dtype) if castable else tensor
