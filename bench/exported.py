"""ONNX Runtime, OpenVINO and tract: the layer goes to each through PyTorch's exporter to ONNX."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Task
from .system import Layer


def onnx_runtime(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # after a run, as others' turns come then
    session = onnxruntime.InferenceSession(_onnx(rnn, x), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    zeros = [state.numpy() for state in _zeros(rnn, x)]

    def run(x: Any, states: Any) -> tuple[Any, Any]:
        output, *final = session.run(None, dict(zip(names, (x, *(states or zeros)), strict=True)))
        return output, final

    return Layer(run, give=_to_numpy, take=torch.from_numpy, path=lambda x: "CPUExecutionProvider")


def openvino(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # or it takes bfloat16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(_onnx(rnn, x)), "CPU", settings).create_infer_request()
    zeros = [state.numpy() for state in _zeros(rnn, x)]

    def run(x: Any, states: Any) -> tuple[Any, Any]:
        output, *final = request.infer([x, *(states or zeros)], share_inputs=True).values()
        return output, final

    return Layer(run, give=_to_numpy, take=torch.from_numpy, path=lambda x: "CPU, float32")


def tract(task: Task, rnn: nn.RNNBase, x: Tensor, lengths: Tensor | None) -> Layer:
    """tract has one thread."""
    import tract

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(_onnx(rnn, x))
        model = tract.onnx().load(path).into_model().into_runnable()
    zeros = [state.numpy() for state in _zeros(rnn, x)]

    def run(x: Any, states: Any) -> tuple[Any, Any]:
        output, *final = model.run([x, *(states or zeros)])
        return output, final

    return Layer(run, give=_to_numpy, take=lambda y: torch.from_numpy(y.to_numpy()), path=lambda x: "one thread")


def _to_numpy(x: Tensor) -> Any:
    return x.contiguous().numpy()


def _zeros(rnn: nn.RNNBase, x: Tensor) -> list[Tensor]:
    count = rnn.num_layers * (1 + rnn.bidirectional)
    return [x.new_zeros(count, x.size(1), rnn.hidden_size) for _ in range(2 if rnn.mode == "LSTM" else 1)]


def _onnx(rnn: nn.RNNBase, x: Tensor) -> bytes:
    """A model of inputs x, h and c, and outputs in the same order, for this shape of x."""
    zeros, file = _zeros(rnn, x), io.BytesIO()
    with warnings.catch_warnings():
        # This exporter is the one that keeps an LSTM one operator, and it is deprecated.
        warnings.simplefilter("ignore")
        arguments = (x, tuple(zeros) if len(zeros) == 2 else zeros[0])
        names = ["x", *("h", "c")[: len(zeros)]]
        torch.onnx.export(rnn, arguments, file, dynamo=False, input_names=names)  # type: ignore[arg-type]
    return file.getvalue()
