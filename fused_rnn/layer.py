"""One layer in one direction: choose the backend, run it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import backends, native
from .autograd import will_differentiate
from .backends import Problem, choose
from .cell import Cell, States, Weights


def problem_of(cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None = None) -> Problem:
    """The :class:`Problem` that these tensors pose."""
    T, B, I = x.shape
    return Problem(
        cell=cell,
        device=x.device,
        dtype=x.dtype,
        T=T,
        B=B,
        I=I,
        H=states[-1].size(-1),
        projection=weights.weight_hr is not None,
        ragged=lengths is not None,
        training=will_differentiate(x, *states, *weights),
        transformed=torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0,
    )


def run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, States]:
    """Run one layer in one direction on the best backend; arguments and results as in :func:`reference.run`.

    Under autocast, x, states and weights are first cast to the autocast dtype (float64 and complex stay).

    Raises:
        RuntimeError: a state or weight has another dtype or device than x.
    """
    x, states, weights = autocast(x, states, weights)
    device, dtype = x.device, x.dtype
    for names, tensors in ((cell.states, states), (Weights._fields, weights)):
        for name, tensor in zip(names, tensors, strict=True):
            if tensor is not None and (tensor.device != device or tensor.dtype != dtype):
                got = f"{tensor.dtype} on {tensor.device}"
                raise RuntimeError(f"{name} must be {dtype} on {device} like input, got {got}")
    backend = choose(problem_of(cell, x, states, weights, lengths))
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


def autocast(x: Tensor, states: States, weights: Weights) -> tuple[Tensor, States, Weights]:
    """The tensors of a layer as autocast wants them for x's device."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return x, states, weights
    dtype = torch.get_autocast_dtype(device_type)
    x, states = _cast(x, dtype), tuple(_cast(state, dtype) for state in states)
    return x, states, Weights(*(None if w is None else _cast(w, dtype) for w in weights))  # type: ignore[arg-type]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    castable = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return tensor.to(dtype) if castable else tensor
