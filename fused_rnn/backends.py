"""Which backend runs a layer: one table, best first.

``why_not`` returns ``None`` when the backend can run the problem and otherwise a sentence. That sentence is the
error of a forced backend, the line in ``explain()``, the reason of a skipped test and the report of
``python -m fused_rnn``. ``why_later`` is a sentence where the backend can run the problem, but PyTorch's kernels come
before it, as no measurement shows that they are slower.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import evidence, native, reference, stock
from .cell import Cell, States, Weights
from .problem import Problem
from .triton import plan as triton_plan


@dataclass(frozen=True)
class Backend:
    """A way to run one layer in one direction, with the signature of :func:`reference.run`, or a whole stack."""

    name: str
    why_not: Callable[[Problem], str | None]
    run: Callable[[Cell, Tensor, States, Weights, Tensor | None, bool], tuple[Tensor, States]]
    plan: Callable[[Problem], str] = lambda problem: ""  # how it would run the problem, in a few words
    why_later: Callable[[Problem], str | None] = lambda problem: None
    run_stack: Callable[..., tuple[Tensor, States]] | None = None  # with the signature of stock.run_stack


def _kernels_why_not(problem: Problem) -> str | None:
    """What none of our kernels can run, whatever the device."""
    if problem.projection:
        return "it has no kernel for proj_size"
    if problem.transformed:
        return "its ops have no rule for torch.func transforms and forward-mode differentiation"
    if problem.subclass:
        return f"its ops know plain tensors only, and one is a {problem.subclass}"
    return None


def _native_why_not(problem: Problem, device_type: str, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if native.load_error is not None:
        return f"the extension could not be loaded: {native.load_error}"
    if problem.device.type != device_type:
        return f"it runs on {device_type}, and the input is on {problem.device}"
    if problem.dtype not in dtypes:
        return f"it has no kernel for {problem.dtype}"
    return _kernels_why_not(problem)


def _cuda_why_not(problem: Problem) -> str | None:
    if reason := _native_why_not(problem, "cuda", native.CUDA_DTYPES):
        return reason
    return native.cuda_why_not(_cuda_index(problem.device), problem.dtype)


def _cuda_index(device: torch.device) -> int:
    if device.index is not None:
        return device.index
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _cuda_plan(problem: Problem) -> str:
    return plan_on(problem, f"cuda:{_cuda_index(problem.device)}")[0]


def plan_on(problem: Problem, gpu: str) -> tuple[str, str | None]:
    """How the CUDA kernels would run a problem on a GPU that need not be here, in words, and why they would not.

    Args:
        gpu: as in :func:`native.cuda_plan`.
    """
    p = problem
    if reason := _native_why_not(p, "cuda", native.CUDA_DTYPES):
        return "", reason
    forward, reason = native.cuda_plan(p.cell, p.dtype, p.T, p.B, p.H, False, gpu)
    if reason or not p.training:
        return forward, reason
    backward, _ = native.cuda_plan(p.cell, p.dtype, p.T, p.B, p.H, True, gpu)
    return f"{forward}; backward: {backward}", None


def _cpu_why_not(problem: Problem) -> str | None:
    return _native_why_not(problem, "cpu", native.DTYPES)


def _cpu_plan(problem: Problem) -> str:
    p = problem
    forward, backward = (native.cpu_threads(p.cell, p.dtype, p.T, p.B, p.I, p.H, b) for b in (False, True))
    plan = f"{native.cpu_instruction_set()}, {forward} thread{'s' if forward > 1 else ''}"
    return f"{plan}; backward: {backward}" if p.training and backward != forward else plan


def _why_later(name: str, problem: Problem) -> str | None:
    """Why PyTorch's kernels come before the GPU kernels of ours that have that name.

    Not where PyTorch has none: torch.compile would unroll its loop, step by step.
    """
    if torch.compiler.is_compiling() or _torch_why_not(problem) is not None:
        return None
    return evidence.why_later(problem, name)


def _torch_why_not(problem: Problem) -> str | None:
    if not problem.cell.reset_after:
        return "torch.nn has no GRU with reset_after=False"
    if problem.ragged:
        return "torch.nn packs ragged batches on the host"
    if problem.transformed:
        return "torch.nn's kernels do not support every torch.func transform and forward-mode differentiation"
    if problem.device.type == "meta":
        return "a meta tensor needs shapes only"
    if 0 in (problem.T, problem.B, problem.I, problem.H):
        return "torch.nn's kernels need sizes above 0"
    return None


def _triton_why_not(problem: Problem) -> str | None:
    if problem.dtype not in triton_plan.DTYPES:
        return f"it has no kernel for {problem.dtype}"
    return _kernels_why_not(problem) or triton_plan.why_not(problem.device)


def _triton_run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    from .triton import ops  # imports Triton

    return ops.run(cell, x, states, weights, lengths, reverse)


def _triton_plan(problem: Problem) -> str:
    p, device = problem, triton_plan.device_of(problem.device)
    passes = (False, True) if p.training else (False,)
    plans = [triton_plan.make_plan(p.cell, p.dtype, p.B, p.H, b, native.allow_tf32(), device) for b in passes]
    return "; backward: ".join(map(str, plans))


# Best first; the last one runs everything.
BACKENDS = (
    Backend("cuda", _cuda_why_not, native.run, _cuda_plan, functools.partial(_why_later, "cuda")),
    Backend("cpu", _cpu_why_not, native.run, _cpu_plan),
    Backend("triton", _triton_why_not, _triton_run, _triton_plan, functools.partial(_why_later, "triton")),
    Backend("torch", _torch_why_not, stock.run_cell, run_stack=stock.run_stack),
    Backend("reference", lambda problem: None, reference.run),
)

# A plain global and no ContextVar: torch.compile guards on the one, not on the other.
_forced: str | None = os.environ.get("FUSED_RNN_BACKEND") or None


def by_name(name: str) -> Backend:
    """The backend called ``name``. Raises ValueError for an unknown name."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend {name!r} is not one of {', '.join(b.name for b in BACKENDS)}")


def forced() -> str | None:
    """The name of the backend that :func:`use_backend` or ``FUSED_RNN_BACKEND`` demands, if any."""
    return _forced


def choose(problem: Problem) -> Backend:
    """The forced backend, or else the first that can run ``problem`` and need not come later.

    Raises:
        ValueError: the forced backend does not exist or cannot run ``problem``.
    """
    name = forced()
    if name is None:
        return next(b for b in BACKENDS if b.why_not(problem) is None and b.why_later(problem) is None)
    backend = by_name(name)
    if reason := backend.why_not(problem):
        raise ValueError(f"backend {name!r} cannot run {problem}: {reason}")
    return backend


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within this context every layer runs on the backend called ``name``, or raises with the reason why not.

    It holds for all threads of the process. The environment variable ``FUSED_RNN_BACKEND``, read when the package is
    imported, does the same for all of the process.

    Raises:
        ValueError: there is no backend of that name.
    """
    global _forced
    before, _forced = _forced, by_name(name).name
    try:
        yield
    finally:
        _forced = before
