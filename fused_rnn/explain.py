"""Which backend would run a module, and why no better one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import backends, evidence, layer
from .cell import Weights
from .modules import GRU, LSTM, GRUCell, LSTMCell
from .problem import Problem


@dataclass(frozen=True)
class Choice:
    """What runs one layer in one direction."""

    where: str  # "layer 0", "layer 0 reverse"
    problem: Problem
    backend: str
    plan: str
    forced: bool
    refusals: tuple[tuple[str, str], ...]  # each better backend, and the sentence why it does not run this


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; print it."""

    module: str
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        lines = [self.module]
        for choice in self.choices:
            plan = f" ({choice.plan})" if choice.plan else ""
            forced = ", forced" if choice.forced else ""
            lines.append(f"  {choice.where}: {choice.backend}{plan}{forced}  [{choice.problem}]")
            lines += [f"    not {name}: {reason}" for name, reason in choice.refusals]
        return "\n".join(lines)


def explain(
    rnn: LSTM | GRU | LSTMCell | GRUCell,
    x: Any,
    hx: Any = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    gpu: str | None = None,
) -> Explanation:
    """Which backend would run ``rnn(x, hx, lengths=lengths)``, layer by layer, and why each better one would not.

    Nothing is run. ``str()`` of the result reads as a report.

    Args:
        rnn, x, hx, lengths: as they would be called.
        gpu: ask for a GPU that need not be here instead of x's device: "T4", "A100", "L4", "H100", "H200", "B200" or
            "RTX 5090".

    Raises:
        TypeError: ``rnn`` is not a module of this package.
        ValueError: a backend is forced that does not exist or cannot run this; the message has its reason.
        RuntimeError: ``gpu`` is not one of those.
    """
    if not isinstance(rnn, (LSTM, GRU, LSTMCell, GRUCell)):
        raise TypeError(f"expected a module of fused_rnn, got {type(rnn).__name__}; fused_rnn.convert makes one")
    choose = _choice if gpu is None else partial(_choice_on, gpu)
    return Explanation(repr(rnn), tuple(choose(where, problem) for where, problem in _problems(rnn, x, hx, lengths)))


def _choice(where: str, problem: Problem) -> Choice:
    chosen = backends.choose(problem)
    forced = backends.forced() is not None
    better = backends.BACKENDS[: backends.BACKENDS.index(chosen)]
    refusals = []
    for backend in better:
        reason = backend.why_not(problem)
        if reason is None:
            later = None if forced else backend.why_later(problem)
            reason = _later(later or f"{chosen.name} is forced", backend.plan(problem))
        refusals.append((backend.name, reason))
    return Choice(where, problem, chosen.name, chosen.plan(problem), forced, tuple(refusals))


def _choice_on(gpu: str, where: str, problem: Problem) -> Choice:
    """The choice for a GPU that need not be here: nothing is asked of this machine."""
    problem = problem._replace(device=torch.device("cuda"))
    plan, reason = backends.plan_on(problem, gpu)
    torch_runs = backends.by_name("torch").why_not(problem) is None
    if reason is None and torch_runs and (later := evidence.why_later(problem, "cuda", gpu)):
        reason = _later(later, plan)
    if reason is None:
        return Choice(where, problem, "cuda", f"on {gpu}: {plan}", False, ())
    return Choice(where, problem, "torch" if torch_runs else "reference", f"on {gpu}", False, (("cuda", reason),))


def _later(reason: str, plan: str) -> str:
    """The reason why a backend comes later, with its plan."""
    return f"{reason}; its plan: {plan}" if plan else reason


def _problems(rnn: Any, x: Any, hx: Any, lengths: Any) -> Iterator[tuple[str, Problem]]:
    if isinstance(rnn, (LSTMCell, GRUCell)):
        weights = Weights(rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh)
        yield "step", _problem(rnn, x, (1, x.size(0) if x.dim() == 2 else 1), x.size(-1), weights, hx, False)
        return
    packed = isinstance(x, PackedSequence)
    if packed:
        steps, data = (len(x.batch_sizes), int(x.batch_sizes[0])), x.data
    else:
        steps, data = (tuple(x.shape[:2]) if x.dim() == 3 else (x.size(0), 1)), x
        if rnn.batch_first and x.dim() == 3:
            steps = steps[::-1]
    directions = 2 if rnn.bidirectional else 1
    weights = rnn._layer_weights()
    size, learns = data.size(-1), False
    for k in range(rnn.num_layers):
        own = weights[k * directions : (k + 1) * directions]
        problems = [_problem(rnn, data, steps, size, w, hx, learns) for w in own]
        stack = dict(packed=packed, ragged=lengths is not None, layers=rnn.num_layers, directions=directions)
        problems = [p._replace(**stack) for p in problems]
        yield from zip((f"layer {k}", f"layer {k} reverse"), problems, strict=False)
        size, learns = directions * (rnn.proj_size or rnn.hidden_size), problems[0].training


def _problem(rnn: Any, x: Tensor, steps: Sequence[int], size: int, weights: Weights, hx: Any, learns: bool) -> Problem:
    """The problem of one layer, from stand-ins without memory for the tensors that do not exist yet."""
    stand_in = x.detach().new_empty(())
    given = [] if hx is None else list(hx) if isinstance(hx, (tuple, list)) else [hx]
    tracked = x.requires_grad or learns or any(state.requires_grad for state in given)
    cell = rnn._cell
    inputs = stand_in.expand(*steps, size).requires_grad_(tracked)
    sizes = (weights.weight_hh.size(1), rnn.hidden_size)
    states = tuple(stand_in.expand(steps[1], H) for _, H in zip(cell.states, sizes, strict=False))
    inputs, states, (weights,) = layer.autocast(inputs, states, (weights,))
    return layer.problem_of(cell, inputs, states, weights)
