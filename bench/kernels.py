"""One op at a time: what a call costs, and what a step of it costs, from the time against the number of steps.

The kernels may be forced: FUSED_RNN_ISA on a CPU, FUSED_RNN_TIER on a GPU (``--plan`` sets them).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from fused_rnn import backends, native
from fused_rnn.call import BIAS, NEEDS_ALL, REDUCED_PRECISION, SAVE
from fused_rnn.cell import GRU_RESET_BEFORE
from fused_rnn.timing import in_turns, spread

from . import machine
from .cases import CELL_OF
from .rows import Row

FORCES = {"cpu": "FUSED_RNN_ISA", "cuda": "FUSED_RNN_TIER"}
OPS = ("forward", "forward, saving", "backward")
CELLS = CELL_OF | {"GRU(reset_after=False)": GRU_RESET_BEFORE}
STEPS = (1, 4, 16, 64, 256)
KEY = ("cell", "op", "dtype", "tf32", "plan", "launch", "threads", "T", "B", "H")
FIELDS = (*KEY, "us", "p10", "p90", "rounds", "path", "note", "torch", "device", "date", "commit")


@dataclass(frozen=True)
class Kernel:
    """An op on a layer of H units with an input of [T, B, H]."""

    cell: str
    op: str
    dtype: str
    B: int
    H: int
    tf32: bool = False

    def __str__(self) -> str:
        return f"{self.cell} {self.op} {self.dtype}{' tf32' * self.tf32} B={self.B} H={self.H}"


def kernels(device_type: str, quick: bool) -> Iterator[Kernel]:
    on_gpu = device_type == "cuda"
    sizes = product((1, 16, 64), (64, 128, 256, 512, 1024)) if on_gpu else product((1, 16), (64, 256))
    precisions = [("bfloat16", False), ("float32", True), ("float32", False)] if on_gpu else [("float32", False)]
    if quick:
        sizes = product((16,), (64,))
    for (B, H), cell, (dtype, tf32), op in product(sizes, CELLS, precisions, OPS):
        yield Kernel(cell, op, dtype, B, H, tf32)


def measure(kernel: Kernel, device: torch.device, plan: str, threads: int, seconds: float) -> list[Row]:
    """A row for each number of steps, and on a GPU for each way to launch: by the host, and as a replayed graph."""
    torch.set_num_threads(threads)
    rows = []
    for launch in _launches(device):
        calls: list[Callable[[], object]] = []
        path, note = "", ""
        try:
            calls = [_call(kernel, T, device) for T in STEPS]
            if launch == "graph":
                calls = [_replay(call) for call in calls]
            path = _path(kernel, device)
            times: Sequence[Sequence[float]] = in_turns(calls, device, seconds)
        except RuntimeError as error:
            note, times = str(error).splitlines()[0], [[] for _ in STEPS]
        for T, own in zip(STEPS, times, strict=True):
            row = _identity(kernel, T, device, plan, launch, threads) | {"path": path, "note": note}
            if own:
                us, p10, p90 = (f"{value:.4g}" for value in spread(own))
                row |= {"us": us, "p10": p10, "p90": p90, "rounds": str(len(own))}
            rows.append(row | machine.about(device))
    return rows


def keys(kernel: Kernel, device: torch.device, plan: str, threads: int) -> Iterator[tuple[str, ...]]:
    """The keys of the rows that :func:`measure` makes."""
    for launch, T in product(_launches(device), STEPS):
        row = _identity(kernel, T, device, plan, launch, threads)
        yield tuple(row[name] for name in KEY)


def _launches(device: torch.device) -> tuple[str, ...]:
    return ("eager", "graph") if device.type == "cuda" else ("eager",)


def _identity(kernel: Kernel, T: int, device: torch.device, plan: str, launch: str, threads: int) -> Row:
    row = {"cell": kernel.cell, "op": kernel.op, "dtype": kernel.dtype, "tf32": str(int(kernel.tf32)), "plan": plan}
    row |= {"launch": launch, "threads": "" if device.type == "cuda" else str(threads)}
    return row | {"T": str(T), "B": str(kernel.B), "H": str(kernel.H)}


def _call(kernel: Kernel, T: int, device: torch.device) -> Callable[[], object]:
    torch.manual_seed(0)
    cell, dtype = CELLS[kernel.cell], getattr(torch, kernel.dtype)
    B, H, G = kernel.B, kernel.H, cell.gates

    def tensor(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) / H**0.5).to(device, dtype)

    x = tensor(T, B, H)
    weights = [tensor(G * H, H), tensor(G * H, H), tensor(G * H), tensor(G * H)]
    hx, cx, *_ = *(tensor(1, B, H) for _ in cell.states), None
    inputs = (cell.name, x, weights, hx, cx, None, None, ())
    flags = BIAS | REDUCED_PRECISION * kernel.tf32 | SAVE * (kernel.op != "forward")
    ops = torch.ops.fused_rnn

    def run_forward() -> list[torch.Tensor]:
        with torch._C._AutoDispatchBelowAutograd():  # as the package calls it where nothing is recorded
            return ops.forward.default(*inputs, flags)

    if kernel.op != "backward":
        return run_forward
    output, *final, saved = run_forward()
    grad_output, grad_hy, grad_cy, *_ = *map(torch.randn_like, (output, *final)), None
    grads_and_kept = (grad_output, grad_hy, grad_cy, [output, saved])

    def run_backward() -> object:
        with torch._C._AutoDispatchBelowAutograd():
            return ops.backward.default(*grads_and_kept, *inputs, flags | NEEDS_ALL)

    return run_backward


def _replay(call: Callable[[], object]) -> Callable[[], object]:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _path(kernel: Kernel, device: torch.device) -> str:
    """What runs the longest of its sequences, in words."""
    if device.type != "cuda":
        return native.cpu_instruction_set()
    index, dtype = torch.cuda.current_device(), getattr(torch, kernel.dtype)
    problem = backends.Problem(CELLS[kernel.cell], device, dtype, max(STEPS), kernel.B, kernel.H, kernel.H)
    return backends.plan_on(problem, f"cuda:{index}")[0]


def plan_of(device_type: str, wanted: Sequence[str] | None) -> str:
    """What is forced, by ``--plan`` or by the environment; "" for what is best here."""
    name = FORCES[device_type]
    if wanted:
        os.environ[name] = wanted[0]  # read when the first op runs
    return os.environ.get(name, "")


def fitted(us: Sequence[float], steps: Sequence[int]) -> tuple[float, float]:
    """Microseconds of a call without steps, and of a step: the line with the least sum of squared relative errors."""
    weights = [1 / value**2 for value in us]
    total = sum(weights)
    mean_t = sum(w * t for w, t in zip(weights, steps, strict=True)) / total
    mean_us = sum(w * value for w, value in zip(weights, us, strict=True)) / total
    spread_t = sum(w * (t - mean_t) ** 2 for w, t in zip(weights, steps, strict=True))
    step = sum(w * (t - mean_t) * (v - mean_us) for w, t, v in zip(weights, steps, us, strict=True)) / spread_t
    return mean_us - step * mean_t, step
