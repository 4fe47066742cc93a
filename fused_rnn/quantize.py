"""From layers of float32 to layers with int8 or bfloat16 weights, and what that costs in accuracy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import int8, panels
from .call import short
from .convert import checked, convert, kind_of
from .quantized import QUANTIZED, Quantized

M = TypeVar("M", bound=nn.Module)


def quantize_(
    module: M, weights: str = "int8", filter_fn: Callable[[nn.Module, str], bool] = lambda module, name: True
) -> M:
    """Make recurrent layers and cells in ``module`` layers for inference with small weights, in place.

    Biases, gates and states stay float32. Layers of torch.nn become ours on the way; subclasses of them are left alone.
    The module objects stay and change their class; their parameters are gone, and buffers are in their place.

    Args:
        module: a model, or a layer itself. Its recurrent layers must be float32.
        weights: what weights become. "int8", with a float32 scale for each row: in each call the rows of the input and
            of h become int8 too, each by its own largest value, and products are exact sums of integers. A step then
            reads a quarter of the memory. "bfloat16": all else stays float32, products too; a step reads half.
        filter_fn: which layers; called with each recurrent layer or cell and its name in ``module``.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not an nn.Module.
        ValueError: another kind of weights; or a layer is not float32, is parametrised, has ``proj_size``, has NaN or
            infinities among its weights or is too large. Nothing is changed then.

    Example:
        >>> model = fused_rnn.quantize_(nn.Sequential(nn.LSTM(80, 512)).eval())
    """
    dtype = next((dtype for dtype in panels.FLAGS if short(dtype) == weights), None)
    if dtype is None:
        raise ValueError(f'weights must be "int8" or "bfloat16", got {weights!r}')
    children = {
        name: child
        for name, child in checked(module).named_modules()
        if kind_of(child) is not None and filter_fn(child, name)
    }
    for name, child in children.items():
        if reason := _why_not(child, dtype):
            raise ValueError(f"cannot quantize {name or 'the module itself'}, a {type(child).__name__}: {reason}")
    for child in children.values():
        convert(child)
        names = getattr(child, "_flat_weights_names", ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        given = dict(zip(names, child._weights()))
        child.__class__ = QUANTIZED[type(child)]
        child.quantize(given, dtype)
    return module


def _why_not(module: nn.Module, dtype: torch.dtype) -> str | None:
    """Why a recurrent layer or cell cannot be quantised: a phrase, or None."""
    if parametrize.is_parametrized(module):
        return "it is parametrised; torch.nn.utils.parametrize.remove_parametrizations comes first"
    if getattr(module, "proj_size", 0):
        return "it has proj_size, for which there is no kernel of such weights; filter_fn can leave it out"
    if module.hidden_size == 0:
        return "it has no units"
    for name, weight in module.named_parameters():
        if weight.dtype != torch.float32:
            return f"it must be float32, and {name} is {weight.dtype}"
        if dtype is torch.int8 and weight.size(-1) > int8.MOST_COLUMNS:
            return f"rows may have {int8.MOST_COLUMNS} numbers, and those of {name} have {weight.size(-1)}"
        if not weight.isfinite().all():
            return f"{name} has NaN or infinities"
        if not weight.to(torch.bfloat16).isfinite().all() and dtype is torch.bfloat16:
            return f"{name} has NaN or infinities in bfloat16"
    return None


def compare(module: nn.Module, quantized: nn.Module, *inputs: Any) -> dict[str, float]:
    """Run a model and its quantised copy on the same inputs, and print how far each quantised layer's output is off.

    The error of a layer is the norm of the difference of both outputs over that of the first, and includes what the
    layers before it add: run both in eval mode. The last line is the model's own output, if that is a tensor or begins
    with one.

    Args:
        module: the model as it was, for example ``copy.deepcopy(model)`` before :func:`quantize_`.
        quantized: the model after it.
        inputs: what each is called with.

    Returns:
        The errors by the names of the layers in ``quantized``, and that of the model's output as "output".

    Raises:
        TypeError: one is not an nn.Module.
        ValueError: nothing in ``quantized`` is quantised, or ``module`` has no layer of such a name.

    Example:
        >>> before = copy.deepcopy(model.eval())
        >>> fused_rnn.compare(before, fused_rnn.quantize_(model), x)
    """
    names = [name for name, child in checked(quantized).named_modules() if isinstance(child, Quantized)]
    if not names:
        raise ValueError("quantized has no layer that quantize_ has changed")
    had = dict(checked(module).named_modules())
    if missing := [name for name in names if name not in had]:
        raise ValueError(f"module has no {', '.join(missing)}, which are quantised in the other")
    results = []
    for model in (module, quantized):
        with _recorded(model, names) as outputs, torch.no_grad():
            results.append(outputs | {"output": [_first(model(*inputs))]})
    plain, small = results
    errors = {name: _distance(plain[name], small[name]) for name in small if small[name] and small[name][0] is not None}
    width = max(len(name or "the module itself") for name in errors)
    for name, error in errors.items():
        print(f"{name or 'the module itself':<{width}}  {error:.2e}")
    return errors


@contextlib.contextmanager
def _recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[Any]]]:
    """The outputs of layers, of each of their calls, by name."""
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    children = dict(model.named_modules())

    def hook(name: str) -> Callable[..., None]:
        return lambda child, args, output: outputs[name].append(_first(output))

    handles = [children[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor | None:
    """The first tensor of an output, or None; of a packed sequence its data."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output.detach().clone() if isinstance(output, Tensor) else None


def _distance(plain: list[Tensor], small: list[Tensor]) -> float:
    wanted, got = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (plain, small))
    return ((got - wanted).norm() / wanted.norm().clamp(min=1e-300)).item()
