"""No time without a right result: outputs and gradients against float64, before the clock starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fused_rnn.cases import SINGLE

from .cases import Task
from .system import Layer

CHECKED_STEPS = 16
OUR_SHARE = 1.5  # of torch.nn's error: what a kernel of ours may lose
PEER_SHARE = 4.0  # what a peer may lose: enough to find a wrong one, and its error stands in its row
TF32_ROUNDING = 2.0**-10

Results = Mapping[str, Tensor]


def results(layer: Layer, x: Tensor, work: str) -> Results:
    """Output, final states, and for training every gradient, by name."""
    if work.endswith("training"):
        return _with_gradients(layer, x)
    with torch.inference_mode():
        states, outputs = None, []
        for part in x.split(1 if work in SINGLE else len(x)):
            output, states = layer.run(layer.give(part), states)
            outputs.append(layer.take(output).clone())
        return {"output": torch.cat(outputs), **_named(layer.take(state) for state in _as_tuple(states))}


def _with_gradients(layer: Layer, x: Tensor) -> Results:
    x = x.clone().requires_grad_()
    output, states = layer.run(x, None)
    outputs = {"output": output, **_named(_as_tuple(states))}
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs.values()]
    leaves = {"x": x, **layer.leaves}
    found = torch.autograd.grad(tuple(outputs.values()), list(leaves.values()), grads)
    named = {f"grad_{name}": grad for name, grad in zip(leaves, found, strict=True)}
    return {**{name: y.detach() for name, y in outputs.items()}, **named}


def _as_tuple(states: object) -> tuple:
    return tuple(states) if isinstance(states, (tuple, list)) else (states,)


def _named(states: object) -> dict[str, Tensor]:
    return dict(zip(("h_n", "c_n"), states, strict=False))  # type: ignore[call-overload]


def judge(
    got: Results, plain: Results, truth: Results, share: float, task: Task, coarser: float = 0.0
) -> tuple[float, str]:
    """The relative distance from float64 of what uses most of its budget, and why that is too much, or "".

    The budget is ``share`` times torch.nn's distance and one rounding of what is multiplied, of the task's precision or
    ``coarser``.
    """
    reduced = torch.finfo(torch.bfloat16).eps if task.device == "cpu" else TF32_ROUNDING
    rounding = max(coarser, reduced if task.tf32 else torch.finfo(getattr(torch, task.dtype)).eps)
    worst, reason = (0.0, 0.0), ""
    for name, right in truth.items():
        error, torch_error = distance(got[name], right), distance(plain[name], right)
        used = error / (share * torch_error + rounding)
        if not used <= worst[0]:  # a NaN too
            worst = (used, error)
        if not used <= 1:
            reason = reason or f"{name} is off by {error:.2e}, torch.nn by {torch_error:.2e}: not timed"
    return worst[1], reason


def distance(got: Tensor, right: Tensor) -> float:
    if got.shape != right.shape:
        return float("inf")
    scale = max(right.norm().item(), torch.finfo(torch.float64).tiny)
    return (got.double() - right).norm().item() / scale
