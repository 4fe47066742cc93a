"""``isinstance(rnn, nn.LSTM)`` is True for a module that does not derive from ``nn.LSTM``.

Code that initialises weights, groups parameters or wraps layers asks for the class. A real subclass is not possible,
because torch.compile refuses every instance of ``nn.LSTM`` and ``nn.GRU``. ``isinstance`` asks ``type(rnn)`` first and
``rnn.__class__`` second, so the second answers with the class of torch.nn, except to torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch

from . import private


class StockClass:
    """Mixin for a class whose body names a class of torch.nn as ``_stock``. Its own subclasses are not affected."""

    _stock: type

    @property
    def __class__(self) -> type:
        kind = type(self)
        if "_stock" in vars(kind) and not private.is_dynamo_running():
            return kind._stock
        return kind

    @__class__.setter
    def __class__(self, kind: type) -> None:
        own = type(self)
        if "_stock" in vars(own) and issubclass(kind, own._stock) and kind is not own._stock:
            # Tools such as parametrize derive a class from ``rnn.__class__``, which means the module's own class.
            kind = with_bases(kind, {own._stock: own})
        object.__dict__["__class__"].__set__(self, kind)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle refuses the default where type and __class__ differ.
        reduced: Any = super().__reduce_ex__(protocol)
        return _new, *reduced[1:]


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


torch.serialization.add_safe_globals([_new])  # the class itself must still be allowed


def with_bases(kind: type, bases: dict[type, type]) -> type:
    """A copy of the class ``kind`` with other bases where ``bases`` names some."""
    body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, tuple(bases.get(base, base) for base in kind.__bases__), body)
