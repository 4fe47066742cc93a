"""torch.nn, ours, and the plain loop: as it stands, and through torch.compile."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn

from .cases import Task
from .system import Layer

Change = Callable[[Any], Any]  # from a module to the one that runs, such as a quantised one


def converted(module: Any) -> Any:
    return fused_rnn.convert(module)


def torch_layer(
    task: Task,
    rnn: nn.RNNBase,
    x: Tensor,
    lengths: Tensor | None,
    changed: Change = lambda module: module,
) -> Layer:
    """torch.nn's layer. A ragged batch is packed and padded again, as its users do."""
    if task.is_cell:
        cell = changed(cell_of(rnn))
        return Layer(_steps(cell), dict(cell.named_parameters()), path=lambda x: type(cell).__name__)
    rnn.flatten_parameters()
    rnn = changed(rnn)

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        if lengths is None:
            return rnn(x, states)
        packed, states = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), states)
        return pad_packed_sequence(packed, total_length=x.size(0))[0], states

    return Layer(run, dict(rnn.named_parameters()), path=lambda x: busiest(lambda: run(x, None), x.device))


def int8(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """PyTorch's layers with weights of int8 and inputs quantised in each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still there

        def quantized(module: nn.Module) -> Any:
            return torch.ao.quantization.quantize_dynamic(nn.Sequential(module), {type(module)})[0]

        return torch_layer(task, rnn, x, lengths, quantized)


def cell_of(rnn: nn.RNNBase) -> nn.RNNCellBase:
    """torch.nn's cell with the weights of the layer."""
    weight = next(rnn.parameters())
    kind = getattr(nn, f"{type(rnn).__name__}Cell")
    cell = kind(rnn.input_size, rnn.hidden_size, device=weight.device, dtype=weight.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in rnn.state_dict().items()})
    return cell


def _steps(cell: Any) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    """A cell with a layer's input and output, for a single step."""

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        states = cell(x[0], states)
        return (states[0] if isinstance(states, tuple) else states)[None], states

    return run


def busiest(run: Callable[[], object], device: torch.device, count: int = 3) -> str:
    """What took longest in one call: PyTorch's operators on a CPU, kernels on a GPU; how often each ran."""
    activity = torch.profiler.ProfilerActivity
    on_gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize()

    def own_time(event: Any) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    events = sorted((e for e in profile.key_averages() if own_time(e) > 0), key=own_time, reverse=True)
    return " | ".join(f"{event.key[:70]} x{event.count}" for event in events[:count])


def our_layer(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None, changed: Change = converted) -> Layer:
    ours = changed(copy.deepcopy(cell_of(rnn) if task.is_cell else rnn))
    lengths = None if lengths is None else lengths.to(x.device)

    def path(x: Tensor) -> str:
        example = x[0] if task.is_cell else x
        choice = fused_rnn.explain(ours, example, lengths=lengths)
        return f"{choice.backend}: {choice.plan}" if choice.plan else choice.backend

    if task.is_cell:
        return Layer(_steps(ours), dict(ours.named_parameters()), path=path)
    return Layer(lambda x, states: ours(x, states, lengths=lengths), dict(ours.named_parameters()), path=path)


def our_quantized(weights: str, task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    return our_layer(task, rnn, x, lengths, partial(fused_rnn.quantize_, weights=weights))


def our_stream(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None, changed: Change = converted) -> Layer:
    """A Stream, which keeps the states itself."""
    ours = changed(copy.deepcopy(rnn))
    stream = fused_rnn.Stream(ours, x.size(1))

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        if states is None:
            stream.reset()
        return stream(x), stream.state

    def path(x: Tensor) -> str:
        return f"Stream, {fused_rnn.explain(ours, x[None]).plan}"

    return Layer(run, give=lambda x: x[0], take=lambda y: y if y.dim() == 3 else y[None], path=path)


def our_quantized_stream(weights: str, task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    return our_stream(task, rnn, x, lengths, partial(fused_rnn.quantize_, weights=weights))


def on_backend(name: str, task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """Our layer on a backend that is not the best one here."""
    layer = our_layer(task, rnn, x, lengths)

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        with fused_rnn.use_backend(name):
            return layer.run(x, states)

    def path(x: Tensor) -> str:
        with fused_rnn.use_backend(name):
            return layer.path(x)

    return Layer(run, layer.leaves, path=path)


def compiled_layer(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """The plain loop through torch.compile; with the very shapes, its best case."""
    torch._dynamo.reset()
    ours = fused_rnn.convert(copy.deepcopy(rnn))
    compiled = torch.compile(ours, fullgraph=True, dynamic=False)

    def run(x: Tensor, states: Any) -> tuple[Tensor, Any]:
        with fused_rnn.use_backend("reference"):
            return compiled(x, states)

    return Layer(run, dict(ours.named_parameters()), path=lambda x: f"a loop of {x.size(0)} steps, unrolled")
