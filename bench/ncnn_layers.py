"""ncnn: the layer as a description and weights in its own format."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Task
from .system import Layer

# ncnn's order of the gates in terms of torch.nn's.
_GATES = {"LSTM": (0, 1, 3, 2), "GRU": (0, 1, 2)}
_STATES = {"LSTM": ("h", "c"), "GRU": ("h",)}


def ncnn(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """ncnn's layers in float32. They have no batch. Source of the format: Tencent/ncnn, docs/developer-guide."""
    import ncnn
    import numpy

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    for name in dir(net.opt):
        if name.startswith(("use_fp16", "use_bf16", "use_int8")):
            setattr(net.opt, name, False)
    with tempfile.TemporaryDirectory() as folder:
        described, weights = Path(folder, "model.param"), Path(folder, "model.bin")
        described.write_text(_ncnn_description(rnn))
        weights.write_bytes(b"".join(_ncnn_weights(rnn)))
        if net.load_param(str(described)) or net.load_model(str(weights)):
            raise RuntimeError("ncnn refused the model")
    names = _STATES[rnn.mode]
    layers, directions = range(rnn.num_layers), 1 + rnn.bidirectional
    nothing = [numpy.zeros((rnn.num_layers * directions, rnn.hidden_size), numpy.float32) for _ in names]

    def run(x: Any, states: Any) -> tuple[Any, Any]:
        given = net.create_extractor()
        given.input("x", ncnn.Mat(x))
        for name, state in zip(names, states or nothing, strict=True):
            for k in layers:
                given.input(f"{name}{k}", ncnn.Mat(state[k * directions : (k + 1) * directions]))
        output = numpy.array(given.extract(f"y{rnn.num_layers - 1}")[1])
        every = ([given.extract(f"{name}_out{k}")[1] for k in layers] for name in names)
        return output, [numpy.concatenate([numpy.array(state) for state in own]) for own in every]

    return Layer(
        run,
        give=lambda x: x[:, 0].contiguous().numpy(),
        take=lambda y: torch.from_numpy(y)[:, None],
        path=lambda x: "CPU, float32",
    )


def _ncnn_description(rnn: nn.RNNBase) -> str:
    """The layers of a model with inputs x, h0, c0, h1 and so on, and outputs y0, h_out0, c_out0 and so on."""
    names, directions = _STATES[rnn.mode], 1 + rnn.bidirectional
    lines, top = ["Input x 0 1 x"], "x"
    for k in range(rnn.num_layers):
        states = [f"{name}{k}" for name in names]
        results = [f"y{k}", *(f"{name}_out{k}" for name in names)]
        lines += [f"Input {state} 0 1 {state}" for state in states]
        size = directions * getattr(rnn, f"weight_ih_l{k}").numel()
        options = f"0={rnn.hidden_size} 1={size} 2={2 * rnn.bidirectional} 3={rnn.hidden_size}"
        tensors = " ".join([top, *states, *results])
        lines.append(f"{rnn.mode} layer{k} {1 + len(states)} {len(results)} {tensors} {options}")
        top = f"y{k}"
    count = 1 + rnn.num_layers * (1 + 2 * len(names))  # of tensors
    return "\n".join(["7767517", f"{len(lines)} {count}", *lines, ""])


def _ncnn_weights(rnn: nn.RNNBase) -> list[bytes]:
    """weight_ih, biases and weight_hh of each layer, all directions of each; a word of zeros says float32."""
    gates, suffixes = _GATES[rnn.mode], ("", "_reverse")[: 1 + rnn.bidirectional]

    def of(name: str) -> Tensor:
        own = [getattr(rnn, name + suffix).detach().unflatten(0, (-1, rnn.hidden_size)) for suffix in suffixes]
        return torch.stack(own)[:, list(gates)]

    found = []
    for k in range(rnn.num_layers):
        bias_ih, bias_hh = of(f"bias_ih_l{k}"), of(f"bias_hh_l{k}")
        bias = bias_ih + bias_hh
        if rnn.mode == "GRU":  # n's two biases stay apart
            bias = torch.cat([bias[:, :2], bias_ih[:, 2:], bias_hh[:, 2:]], 1)
        found += [of(f"weight_ih_l{k}"), bias, of(f"weight_hh_l{k}")]
    return [bytes(4) + tensor.contiguous().numpy().tobytes() for tensor in found]
