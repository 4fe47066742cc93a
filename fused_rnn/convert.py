"""Every recurrent layer of a model becomes ours, or torch.nn's again."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .cells import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN
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
    for child in _checked(module).modules():
        _change_class(child, _OURS)
    return module


def restore(module: M) -> M:
    """The way back: every layer of ours in ``module`` becomes torch.nn's, in place and with the very same parameters.

    For what knows torch.nn's classes only, such as quantisation, or to uninstall this package from a saved model.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is not an nn.Module.
        ValueError: a layer has ``reset_after=False``, which torch.nn cannot hold; nothing is changed then.
    """
    children = dict(_checked(module).named_modules())
    if refused := [name or "the module itself" for name, child in children.items() if _resets_before(child)]:
        raise ValueError(f"torch.nn has no GRU with reset_after=False: {', '.join(refused)}")
    for child in children.values():
        if _change_class(child, _STOCK):
            child.__dict__.pop("reset_after", None)
            if isinstance(child, nn.RNNBase):
                child._init_flat_weights()  # what torch.nn runs on, laid out for cuDNN
    return module


def _checked(module: M) -> M:
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(module).__name__}")
    return module


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
