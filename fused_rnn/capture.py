"""Models captured as graphs: jit.trace, ONNX, torch.export and torch.fx get the nodes that torch.nn gives them.

``torch.compile`` is not among them: it keeps our ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from . import backends


def wants_torch_nn(has_equivalent: bool) -> bool:
    """Whether a model is being captured as a graph that must run where this package is not installed.

    Args:
        has_equivalent: torch.nn computes the same. If not, torch.export gets our ops.

    Raises:
        RuntimeError: jit.trace and ONNX export cannot hold our ops, and there is no equivalent.
    """
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        if not has_equivalent:
            raise RuntimeError("lengths and reset_after=False cannot be traced or exported: torch.nn has neither")
        return True
    return has_equivalent and torch.compiler.is_exporting() and backends.forced() is None


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
