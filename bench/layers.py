"""Layers through every system, in turns: what ``python -m bench cpu`` and ``gpu`` measure."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fused_rnn.cases import SINGLE
from fused_rnn.timing import in_turns, ratios, spread

from . import compare, machine, memory, rows, systems
from .cases import Task
from .compare import CHECKED_STEPS, OUR_SHARE, PEER_SHARE
from .rows import Row
from .system import Layer, System
from .torch_systems import torch_layer

STREAMED = 32  # single steps in one round of the clock


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Args:
        peers: systems besides ours and torch.nn.
        seconds: about how long for each task.
        with_memory: also the peak of memory of training steps.
    """

    device: torch.device
    threads: int
    peers: Sequence[System]
    seconds: float = 1.5
    with_memory: bool = True


def systems_for(task: Task, setting: Setting) -> list[System]:
    """Ours, torch.nn and the peers that can run the task."""
    peers = [peer for peer in setting.peers if peer.projects or not task.case.proj_size]
    return [systems.OURS, systems.TORCH, *(peer for peer in peers if peer.why_not(task) is None)]


def key(task: Task, system: System, setting: Setting) -> tuple[str, ...]:
    """The key of the row that :func:`measure` makes for a system."""
    return rows.key(_identity(task, system, setting))


def measure(task: Task, setting: Setting) -> list[Row]:
    """One row for each system: its time if its results are right, and otherwise the reason as its note."""
    device = setting.device
    torch.set_num_threads(setting.threads)
    with reduced(task):
        rnn, x, lengths = inputs(task, device)
        start, start_lengths = x[:CHECKED_STEPS], None if lengths is None else lengths.clamp(max=CHECKED_STEPS)
        if task.work in SINGLE:
            start = x.repeat(CHECKED_STEPS, 1, 1)
        plain = compare.results(torch_layer(task, rnn, start, start_lengths), start, task.work)
        truth = compare.results(
            torch_layer(task, copy.deepcopy(rnn).double(), start.double(), start_lengths), start.double(), task.work
        )
        measured, layers = [], []
        for system in systems_for(task, setting):
            row = _identity(task, system, setting) | machine.about(device)
            row |= machine.ceilings(device, task.dtype, task.tf32, setting.threads)
            try:
                piece = start[:1] if task.work in SINGLE else start
                layer = system.build(task, rnn, piece, start_lengths)
                found = compare.results(layer, start, task.work)
                share = OUR_SHARE if system is systems.OURS else PEER_SHARE
                error, row["note"] = compare.judge(found, plain, truth, share, task, system.rounding)
                row["error"], row["path"] = f"{error:.2e}", layer.path(layer.give(piece))
                if not row["note"]:
                    layers.append((row, system.build(task, rnn, x, lengths)))
            except Exception as problem:  # one system's failure is its row's note, and no end of the others
                row["note"] = first_sentence(problem)
            measured.append(row)
        try:
            _time(task, layers, x, setting)
        except RuntimeError as problem:  # such as memory that is not there
            for row, _ in layers:
                row["note"] = first_sentence(problem)
    return measured


def _time(task: Task, layers: list[tuple[Row, Layer]], x: Tensor, setting: Setting) -> None:
    calls = [work_of(task, layer, x) for _, layer in layers]
    steps = STREAMED if task.work in SINGLE else task.case.T
    times = in_turns(calls, setting.device, setting.seconds)
    ours = next((own for (row, _), own in zip(layers, times, strict=True) if row["system"] == systems.OURS.name), None)
    for (row, _), call, own in zip(layers, calls, times, strict=True):
        median, p10, p90 = (f"{value / steps:.4g}" for value in spread(own))
        row |= {"us_per_step": median, "p10": p10, "p90": p90, "rounds": str(len(own))}
        if ours is not None:
            row["ratio"] = f"{spread(ratios(own, ours))[0]:.3f}"
        if task.work == "training" and task.case.T > 1 and setting.with_memory:
            row["peak_bytes"] = _peak_bytes(task, row["system"], call, setting)


def _peak_bytes(task: Task, system: str, call: Callable[[], object], setting: Setting) -> str:
    if setting.device.type == "cuda":
        return str(memory.peak_bytes_on_gpu(call))
    if system not in (systems.OURS.name, systems.TORCH.name):
        return ""
    found = memory.peak_bytes_on_cpu(str(task), system, setting.threads)
    return "" if found is None else str(found)


def inputs(task: Task, device: torch.device) -> tuple[nn.RNNBase, Tensor, Tensor | None]:
    """torch.nn's layer, an input, and the lengths of its rows if they differ, on the host; always the same."""
    torch.manual_seed(0)
    case, dtype = task.case, getattr(torch, task.dtype)
    options: dict[str, int] = {"bidirectional": case.bidirectional}
    options |= {"proj_size": case.proj_size} if case.proj_size else {}  # torch.nn.GRU takes none
    rnn = getattr(nn, task.cell)(case.I, case.H, case.layers, **options).to(device, dtype)
    x = torch.randn(case.T, case.B, case.I).to(device, dtype)
    lengths = torch.randint(max(1, case.T // 4), case.T + 1, (case.B,)) if case.ragged else None
    return rnn, x, lengths


def work_of(task: Task, layer: Layer, x: Tensor) -> Callable[[], object]:
    """The call that the clock sees."""
    given = layer.give(x)
    if task.is_training:
        x = x.clone().requires_grad_()
        leaves = [x, *layer.leaves.values()]
        with torch.no_grad():
            grad_output = torch.randn_like(layer.run(x, None)[0])
        return lambda: torch.autograd.grad(layer.run(x, None)[0], leaves, grad_output)

    def inference() -> object:
        with torch.inference_mode():
            return layer.run(given, None)

    def streaming() -> object:
        states = None
        with torch.inference_mode():
            for _ in range(STREAMED):
                _, states = layer.run(given, states)
        return states

    return streaming if task.work in SINGLE else inference


@contextlib.contextmanager
def reduced(task: Task) -> Iterator[None]:
    """Sets PyTorch's switches for the precision of float32 products on the device: of RNNs and of matmuls."""
    with contextlib.ExitStack() as restored:
        if task.device == "cuda":
            matmul = torch.backends.cuda.matmul
            restored.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
            matmul.allow_tf32 = task.tf32
            restored.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=task.tf32))
        elif task.tf32:
            library = torch.backends.mkldnn
            for switch in library.rnn, library.matmul:  # type: ignore[attr-defined]
                restored.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
                switch.fp32_precision = "bf16"
        yield


def _identity(task: Task, system: System, setting: Setting) -> Row:
    case = task.case
    sizes = {name: str(getattr(case, name)) for name in ("T", "B", "I", "H", "layers")}
    flags = {name: str(int(getattr(case, name))) for name in ("bidirectional", "ragged")}
    what = {"case": case.name, "cell": task.cell, "work": task.work, "dtype": task.dtype, "tf32": str(int(task.tf32))}
    threads = "" if setting.device.type == "cuda" else str(setting.threads)
    return {**what, "threads": threads, "system": system.name, "version": system.version(), **sizes, **flags}


def first_sentence(error: BaseException) -> str:
    """An error as one short line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
