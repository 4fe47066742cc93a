"""From layers of floats to layers of int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import int8
from .convert import checked, convert, kind_of
from .quantized import QUANTIZED

M = TypeVar("M", bound=nn.Module)


def quantize_(
    module: M, weights: str = "int8", filter_fn: Callable[[nn.Module, str], bool] = lambda module, name: True
) -> M:
    """Make recurrent layers and cells in ``module`` layers for inference with small weights, in place.

    Weights become int8, with a float32 scale for each row; biases, gates and states stay float32. In each call the rows
    of the input and of h become int8 too, each by its own largest value, and products are exact sums of integers. A
    step then reads a quarter of the memory. Layers of torch.nn become ours on the way; subclasses of them are left
    alone. The module objects stay and change their class; their parameters are gone, and buffers are in their place.

    Args:
        module: a model, or a layer itself. Its recurrent layers must be float32.
        weights: "int8".
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
    if weights != "int8":
        raise ValueError(f'weights must be "int8", got {weights!r}')
    children = {
        name: child
        for name, child in checked(module).named_modules()
        if kind_of(child) is not None and filter_fn(child, name)
    }
    for name, child in children.items():
        if reason := _why_not(child):
            raise ValueError(f"cannot quantize {name or 'the module itself'}, a {type(child).__name__}: {reason}")
    for child in children.values():
        convert(child)
        names = getattr(child, "_flat_weights_names", ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        given = dict(zip(names, child._weights()))
        child.__class__ = QUANTIZED[type(child)]
        child.quantize(given)
    return module


def _why_not(module: nn.Module) -> str | None:
    """Why a recurrent layer or cell cannot be quantised: a phrase, or None."""
    if parametrize.is_parametrized(module):
        return "it is parametrised; torch.nn.utils.parametrize.remove_parametrizations comes first"
    if getattr(module, "proj_size", 0):
        return "it has proj_size, for which there is no kernel; filter_fn can leave it out"
    for name, weight in module.named_parameters():
        if weight.dtype != torch.float32:
            return f"it must be float32, and {name} is {weight.dtype}"
        if weight.size(-1) > int8.MOST_COLUMNS:
            return f"rows may have {int8.MOST_COLUMNS} numbers, and those of {name} have {weight.size(-1)}"
        if not weight.isfinite().all():
            return f"{name} has NaN or infinities"
    return None
