"""Which backend would run a module, and why no better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import backends, choices, evidence
from .call import Problem
from .cells import OneStep
from .checks import Lengths
from .modules import Layers


@dataclass(frozen=True)
class Explanation:
    """The result of :func:`explain`; print it."""

    module: str
    problem: Problem
    backend: str
    plan: str
    forced: bool
    source: str  # where the choice comes from
    refusals: tuple[tuple[str, str], ...]  # each better backend, and the sentence why it does not run this

    def __str__(self) -> str:
        plan = f" ({self.plan})" if self.plan else ""
        lines = [self.module, f"  {self.backend}{plan}, {self.source}  [{self.problem}]"]
        return "\n".join([*lines, *(f"    not {name}: {reason}" for name, reason in self.refusals)])


def explain(
    rnn: Layers | OneStep,
    x: Any,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    gpu: str | None = None,
) -> Explanation:
    """Which backend would run ``rnn(x, hx, lengths=lengths, resets=resets)``, and why not each better one.

    Nothing is run. ``str()`` of the result reads as a report. A plan, such as the number of threads, is that of
    the first layer.

    Args:
        rnn: a module of this package.
        x, hx, lengths, resets: what it would be called with.
        gpu: ask for a GPU that need not be here instead of x's device: "T4", "A100", "L4", "H100", "H100 MIG 1g",
            "H200", "B200" or "RTX 5090".

    Raises:
        TypeError: ``rnn`` is not a module of this package.
        ValueError: a backend is forced that does not exist or cannot run this; the message has its reason.
        RuntimeError: ``gpu`` is not one of those.
        As the module does, where the arguments do not fit.
    """
    if not isinstance(rnn, (Layers, OneStep)):
        raise TypeError(f"expected a module of fused_rnn, got {type(rnn).__name__}; fused_rnn.convert makes one")
    call = rnn._call(x, hx) if isinstance(rnn, OneStep) else rnn._call(x, hx, lengths, resets)
    call.check(call)
    problem = backends.autocast(call).problem
    return _explain(repr(rnn), problem) if gpu is None else _explain_on(gpu, repr(rnn), problem)


def _explain(module: str, problem: Problem) -> Explanation:
    chosen = backends.choose(problem)
    name, forced = chosen.name.split()[0], backends.forced() is not None
    measured = None if forced else choices.choice(problem)
    if measured is not None and measured.route == chosen.name:
        source, why = str(measured), f"{name} was measured to be faster"
    else:
        source, why = ("forced", f"{name} is forced") if forced else (_unmeasured(problem, name), "")
    refusals = []
    for backend in backends.BACKENDS:
        if backend.name == name:
            break
        reason = backend.why_not(problem)
        if reason is None:
            reason = _later(why or backend.why_later(problem) or "", backend.plan(problem))
        refusals.append((backend.name, reason))
    return Explanation(module, problem, name, chosen.plan(problem), forced, source, tuple(refusals))


def _explain_on(gpu: str, module: str, problem: Problem) -> Explanation:
    """For a GPU that need not be here: the answer does not depend on this machine."""
    problem = problem._replace(device=torch.device("cuda"))
    plan, reason = backends.plan_on(problem, gpu)
    torch_runs = backends.by_name("torch").why_not(problem) is None
    if reason is None and torch_runs and (later := evidence.why_later(problem, "cuda", gpu)):
        reason = _later(later, plan)
    if reason is None:
        source = _MEASURED if torch_runs else _MODEL
        return Explanation(module, problem, "cuda", f"on {gpu}: {plan}", False, source, ())
    name = "torch" if torch_runs else "reference"
    return Explanation(module, problem, name, f"on {gpu}", False, _MODEL, (("cuda", reason),))


_MEASURED, _MODEL = "measured on this kind of GPU", "by the model"


def _unmeasured(problem: Problem, name: str) -> str:
    """Where the choice of a backend comes from that is neither forced nor tuned."""
    replaces_torch = name in ("cuda", "triton") and backends.by_name("torch").why_not(problem) is None
    return _MEASURED if replaces_torch else _MODEL


def _later(reason: str, plan: str) -> str:
    """The reason why a backend comes later, with its plan."""
    return f"{reason}; its plan: {plan}" if plan else reason
