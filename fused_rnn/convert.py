"""Every recurrent layer of a model becomes ours, or torch.nn's again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .cells import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN
from .quantized import Quantized
from .stock_class import with_bases

_KINDS = (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
_STOCK: dict[type[nn.Module], type[nn.Module]] = {kind: kind._stock for kind in _KINDS}
_OURS = {stock: ours for ours, stock in _STOCK.items()}

M = TypeVar("M", bound=nn.Module)


def convert(module: M) -> M:
    """Make every nn.LSTM, nn.GRU, nn.RNN and cell of torch.nn in ``module`` one of ours, in place.

    The modules stay the objects that they are and only change their class, so that parameters, hooks, optimisers,
    parametrisations, train or eval mode and every reference to them stay, and a module that is used twice still is one.
    Subclasses of torch.nn's layers are left alone: what they override cannot be known. Converting twice is harmless.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not an nn.Module.
    """
    for child in checked(module).modules():
        _change_class(child, _OURS)
    return module


def restore(module: M, dequantize: bool = False) -> M:
    """The way back: every layer of ours in ``module`` becomes torch.nn's, in place and with the very same parameters.

    For what knows torch.nn's classes only, or to uninstall this package from a saved model.

    Args:
        dequantize: give layers of :func:`quantize_` parameters that are what their weights stand for. Those that they
            had are gone.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not an nn.Module.
        ValueError: a layer has ``reset_after=False``, which torch.nn cannot hold, or quantised weights; nothing is
            changed then.
    """
    children = dict(checked(module).named_modules())
    if refused := _names(children, _resets_before):
        raise ValueError(f"torch.nn has no GRU with reset_after=False: {refused}")
    if not dequantize and (refused := _names(children, _is_quantized)):
        raise ValueError(
            f"the weights that {refused} had before quantize_ are gone; restore(module, dequantize=True) gives those "
            "that the quantised weights stand for"
        )
    for child in children.values():
        if isinstance(child, Quantized):
            child.dequantize()
        if _change_class(child, _STOCK):
            child.__dict__.pop("reset_after", None)
            if isinstance(child, nn.RNNBase):
                child._init_flat_weights()  # what torch.nn runs on, laid out for cuDNN
    return module


def checked(module: M) -> M:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}")
    return module


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """Which class of ours a layer or cell of ours or of torch.nn is, or would be; of anything else None."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        kind = kind.__bases__[0]
    kind = _OURS.get(kind, kind)
    return kind if kind in _STOCK else None


def alias_of_ours(module: nn.Module) -> nn.Module:
    """A module of torch.nn as one of ours that shares everything with it; any other object itself."""
    kind = _OURS.get(type(module))
    if kind is None:
        return module
    alias = kind.__new__(kind)
    alias.__dict__ = module.__dict__
    return alias


def _names(modules: dict[str, nn.Module], are_meant: Callable[[nn.Module], bool]) -> str:
    """The names of some modules in a sentence, or "" if there are none."""
    return ", ".join(name or "the module itself" for name, module in modules.items() if are_meant(module))


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, Quantized)


def _resets_before(module: nn.Module) -> bool:
    return isinstance(module, (GRU, GRUCell)) and not module.reset_after


def _change_class(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> bool:
    kind = type(module)
    if kind in classes:
        module.__class__ = classes[kind]
    elif parametrize.is_parametrized(module) and kind.__bases__[0] in classes:
        # A parametrised module has a class of its own, derived from the layer's, that computes the weights.
        module.__class__ = with_bases(kind, classes)
    else:
        return False
    return True
