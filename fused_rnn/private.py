"""Everything of PyTorch that this package uses and that PyTorch does not document.

tests/test_private.py says what each must do, so that a new PyTorch is checked in one place. Not here: what a class
inherits from the modules of torch.nn, such as ``_flat_weights``, and ``torch._VF``, the functions behind those modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._guards import CompileContext
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

# The subclasses of Tensor with which torch.compile and torch.export trace.
TRACED = frozenset({FakeTensor, FunctionalTensor})

# A context in which ops are called past the Python half of autograd, which takes some 5 us.
below_autograd: Any = torch._C._AutoDispatchBelowAutograd

# Whether a transform of torch.func is active.
is_func_active = torch._C._are_functorch_transforms_active

# None unless torch.jit.trace runs: torch.jit.is_tracing() takes several times as long.
jit_tracing_state = torch._C._get_tracing_state


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is active."""
    return is_func_active() or forward_ad._current_level >= 0


def is_plain() -> bool:
    """Whether nothing stands between a module and an op: no autograd, autocast, transform, graph or capture.

    In few Python calls: a streaming step asks it.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_dynamo_compiling()
        or torch.compiler._is_compiling_flag
        or torch._C._is_any_autocast_enabled()
        or is_func_active()
        or forward_ad._current_level >= 0
        or jit_tracing_state() is not None
    )


def is_exporting() -> bool:
    """Whether torch.export runs. torch.compiler.is_exporting() is True in all of torch.compile before PyTorch 2.13."""
    return torch.compiler._is_exporting_flag


def is_dynamo_running() -> bool:
    """Whether torch.compile is at work on this thread: also in its own code, unlike torch.compiler.is_compiling()."""
    return CompileContext.try_get() is not None


def is_static(size: int) -> bool:
    """Whether a size is a number, and not a symbol in a graph whose sizes vary; without a guard."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes long to import

    return has_static_value(size)


def set_version(tensor: Tensor, version: int) -> None:
    """Set the number by which autograd recognises that a saved tensor was changed in place."""
    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
