"""What a benchmark needs to know of something that runs a layer."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import fused_rnn

from .cases import Task


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Layer:
    """A layer in a system's own form, for inputs of one shape.

    Args:
        run: x and states, or None for zeros, to the output and the final states.
        leaves: its parameters under torch.nn's names, for the gradients.
        give, take: a tensor in the form of the system, and back.
        path: what ran it, in words, for an input.
    """

    run: Callable[[Any, Any], tuple[Any, Any]]
    leaves: Mapping[str, Tensor] = field(default_factory=dict)
    give: Callable[[Tensor], Any] = _same
    take: Callable[[Any], Tensor] = _same
    path: Callable[[Any], str] = lambda x: ""


@dataclass(frozen=True)
class System:
    """Something that runs a layer.

    Args:
        package: the distribution that it comes with; "" for this one, which may run from a checkout.
        why_not: why it cannot run a task, a sentence, or None.
        build: a layer from one of torch.nn, an input and the lengths of its rows.
        quick: whether it is ready within a second or so.
        rounding: of what it multiplies, relative, if that is coarser than the task's dtype.
        projects: whether it has an LSTM with proj_size.
    """

    name: str
    package: str
    why_not: Callable[[Task], str | None]
    build: Callable[[Task, nn.RNNBase, Tensor, Tensor | None], Layer]
    quick: bool = True
    rounding: float = 0.0
    projects: bool = False

    def missing(self) -> str | None:
        """Why it is not here, a sentence, or None."""
        try:
            self.version()
        except importlib.metadata.PackageNotFoundError:
            return f"{self.package} is not installed"
        return None

    def version(self) -> str:
        return importlib.metadata.version(self.package) if self.package else fused_rnn.__version__
