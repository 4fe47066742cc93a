"""The table of what is compared: ours, torch.nn, and every peer that is installed.

All do the same work: the projection of the input, both biases, and in training the forward, what it saves, and the
gradients of the input and of every parameter. They start from the same weights. Inputs are in a system's own form
before the clock starts, and a state is fed on as the system returned it.
"""

from __future__ import annotations

from functools import partial

from fused_rnn.cases import SINGLE

from . import exported, gpu_peers, ncnn_layers, torch_systems
from .cases import Task
from .system import System

# Of a whole layer's results with such weights: to find a wrong one.
INT8, BFLOAT16 = 2.0**-4, 2.0**-7
LONGEST_LOOP = 16  # steps; torch.compile unrolls them in about a minute


def _compile_why_not(task: Task) -> str | None:
    if task.is_cell:
        return "a layer of one step is the same"
    if task.case.T * task.case.layers * (1 + task.case.bidirectional) > LONGEST_LOOP:
        return f"it unrolls the loop, and more than {LONGEST_LOOP} steps take minutes to compile"
    return "a ragged batch is a graph for each of its shapes" if task.case.ragged else None


def _reference_why_not(task: Task) -> str | None:
    if task.is_cell:
        return "a layer of one step is the same"
    if task.device == "cuda" and task.case.T > LONGEST_LOOP:
        return "on a GPU so many small kernels cost more than they tell"
    return None


def _cuda_why_not(task: Task) -> str | None:
    return None if task.device == "cuda" else "it needs an NVIDIA GPU"


def _triton_why_not(task: Task) -> str | None:
    return None if task.device == "cuda" else "without a GPU it runs in Triton's interpreter"


def _inference_why_not(task: Task) -> str | None:
    if task.device != "cpu":
        return "it is measured on the CPU"
    if task.is_training:
        return "it is for inference"
    return None if task.dtype == "float32" and not task.tf32 else "it is measured in float32"


def _stream_why_not(task: Task) -> str | None:
    return _inference_why_not(task) if task.work == "streaming" else "it takes single steps of a layer"


def _onnx_why_not(task: Task) -> str | None:
    if task.is_cell:
        return "it has no cells"
    return "its export has no lengths" if task.case.ragged else _inference_why_not(task)


def _ncnn_why_not(task: Task) -> str | None:
    if task.cell == "RNN":
        return "it is called for LSTM and GRU only"
    return "its layers have no batch" if task.case.B > 1 else _onnx_why_not(task)


def _gpu_peer_why_not(task: Task) -> str | None:
    if task.device != "cuda":
        return "it needs an NVIDIA GPU"
    if task.case.layers > 1 or task.case.bidirectional or task.case.ragged:
        return "it has one layer, one direction and no lengths"
    if task.cell == "RNN":
        return "it is called for LSTM and GRU only"
    return "it has no initial states" if task.work in SINGLE else None


def _flashrnn_why_not(task: Task) -> str | None:
    if task.cell != "LSTM":
        return f"its fused kernel has no {task.cell}"
    if task.dtype == "float32" and not task.tf32:
        return "its float32 is TF32"
    return _gpu_peer_why_not(task)


def _haste_why_not(task: Task) -> str | None:
    return "its layers are float32" if task.dtype != "float32" or task.tf32 else _gpu_peer_why_not(task)


def _torchrl_why_not(task: Task) -> str | None:
    return "its kernels take float32" if task.dtype != "float32" else _gpu_peer_why_not(task)


_quantized, _stream = torch_systems.our_quantized, torch_systems.our_quantized_stream
OURS = System("fused_rnn", "", lambda task: None, torch_systems.our_layer)
TORCH = System("torch.nn", "torch", lambda task: None, torch_systems.torch_layer)
PEERS = (
    System("torch.compile", "torch", _compile_why_not, torch_systems.compiled_layer, quick=False, projects=True),
    System(
        *("reference", "", _reference_why_not, partial(torch_systems.on_backend, "reference")),
        quick=False,
        projects=True,
    ),
    System("fused_rnn-cuda", "", _cuda_why_not, partial(torch_systems.on_backend, "cuda"), projects=True),
    System("fused_rnn-triton", "triton", _triton_why_not, partial(torch_systems.on_backend, "triton")),
    System("onnxruntime", "onnxruntime", _onnx_why_not, exported.onnx_runtime),
    System("openvino", "openvino", _onnx_why_not, exported.openvino),
    System("tract", "tract", _onnx_why_not, exported.tract),
    System("ncnn", "ncnn", _ncnn_why_not, ncnn_layers.ncnn),
    System("fused_rnn int8", "", _inference_why_not, partial(_quantized, "int8"), rounding=INT8),
    System("fused_rnn bf16 weights", "", _inference_why_not, partial(_quantized, "bfloat16"), rounding=BFLOAT16),
    System("fused_rnn Stream", "", _stream_why_not, torch_systems.our_stream, projects=True),
    System("fused_rnn Stream int8", "", _stream_why_not, partial(_stream, "int8"), rounding=INT8),
    System("fused_rnn Stream bf16 weights", "", _stream_why_not, partial(_stream, "bfloat16"), rounding=BFLOAT16),
    System("torch.ao int8", "torch", _inference_why_not, torch_systems.int8, rounding=INT8),
    System("flashrnn", "flashrnn", _flashrnn_why_not, gpu_peers.flashrnn, quick=False),
    System("haste", "haste_pytorch", _haste_why_not, gpu_peers.haste),
    System("torchrl", "torchrl", _torchrl_why_not, gpu_peers.torchrl, quick=False),
)


def peers(names: list[str] | None, quick: bool) -> list[System]:
    """The peers that are here, or those of these names.

    Raises:
        ValueError: a name is unknown, or what it stands for is not installed.
    """
    if names is None:
        return [peer for peer in PEERS if peer.missing() is None and (peer.quick or not quick)]
    by_name = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in by_name:
            raise ValueError(f"no peer is called {name!r}; there are {', '.join(by_name)}")
        if reason := by_name[name].missing():
            raise ValueError(f"the peer {name!r} cannot run: {reason}")
    return [by_name[name] for name in names]
