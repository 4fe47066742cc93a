"""Models captured as graphs: TorchScript, ONNX, torch.export and torch.fx get the nodes that torch.nn gives them.

``torch.compile`` is not among them: it keeps our ops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.fx import Proxy

from . import backends, private

F = TypeVar("F", bound=Callable[..., Any])

# Properties of our modules that TorchScript must not compile.
UNUSED_PROPERTIES = [
    *nn.RNNBase.__jit_unused_properties__,
    "__class__",
    "__jit_ignored_attributes__",
    "_cell",
    "_has_stock",
]


def scripted_as(forward: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator for a ``forward`` in whose place TorchScript compiles the one of torch.nn.

    TorchScript reads the source of the function that is wrapped, looks its overloads up by ``__module__``, and resolves
    names in the file of the decorated function.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        function.__wrapped__ = forward  # type: ignore[attr-defined]
        function.__signature__ = signature  # type: ignore[attr-defined]
        function.__module__ = forward.__module__
        return function

    return decorate


def taken(module: Any, input: Any, hx: Any, lengths: Any = None, resets: Any = None) -> Any:
    """The result of a module while a model is being captured as a graph; None if the module shall run as usual.

    Args:
        module: has ``_has_stock`` and ``_stock``.

    Raises:
        RuntimeError: jit.trace, and ONNX export with it, cannot hold our ops, and torch.nn has no equivalent.
    """
    may_be_proxy = type(input) is not Tensor or hx is not None
    if may_be_proxy and (proxy := proxy_among(input, hx, lengths, resets)) is not None:
        return record(proxy, module, input, hx, lengths=lengths, resets=resets)
    is_tracing = private.jit_tracing_state() is not None
    if not is_tracing and not private.is_exporting():
        return None
    has_equivalent = lengths is None and resets is None and module._has_stock
    if is_tracing and not has_equivalent:
        raise RuntimeError(
            "quantised weights, lengths, resets and reset_after=False cannot be traced or exported: "
            "torch.nn has none of them"
        )
    if has_equivalent and (is_tracing or backends.forced() is None):
        return module._stock.forward(module, input, hx)
    return None


def proxy_among(*arguments: Any) -> Proxy | None:
    """The first stand-in of torch.fx.symbolic_trace among the arguments of a module, also inside a pair of states."""
    for argument in arguments:
        for value in argument if type(argument) in (tuple, list) else (argument,):
            if isinstance(value, Proxy):
                return value
    return None


def record(proxy: Proxy, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The ``call_module`` node of ``module(*args, **kwargs)``, which torch.fx gives modules of torch.nn by itself."""
    tracer: Any = proxy.tracer
    given = {name: value for name, value in kwargs.items() if value is not None}
    while args and args[-1] is None:
        args = args[:-1]
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)
