"""The compiled extension: loads ``_C.so`` and runs a layer through its ops.

If the extension cannot be loaded, ``load_error`` says why, the import warns once, and other backends take over.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import autograd, cell, layered, panels
from .call import REDUCED_PRECISION, SET, Call, Form, flags_of, short
from .cell import Cell

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of the CPU kernels
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

F = TypeVar("F", bound=Callable[..., Any])
InferenceOp = tuple[Callable[..., Any], bool, int]  # an op, whether each weight is an argument of its own, its flags


def _find() -> Path:
    """The library beside this file, or else that of the installed package, for a checkout not built in place."""
    folders = (Path(__file__).parent, *(Path(entry, "fused_rnn") for entry in sys.path))
    return next((folder / "_C.so" for folder in folders if (folder / "_C.so").exists()), folders[0] / "_C.so")


def _load() -> str | None:
    """Load the extension and register its Python half; the reason if that fails."""
    if not library.exists():
        return f"{library} is missing: the package was not built"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return str(error)
    autograd.register("fused_rnn")
    return None


library = _find()
load_error = _load()
if load_error is not None:
    warnings.warn(
        f"fused_rnn runs without its compiled kernels, and slower: {load_error}", RuntimeWarning, stacklevel=2
    )


def cpu_instruction_set() -> str:
    """The instruction set of the CPU kernels: the best one here, or the one that ``FUSED_RNN_ISA`` names."""
    return torch.ops.fused_rnn.cpu_instruction_set()


@functools.cache
def cpu_instruction_sets(cell: Cell, dtype: torch.dtype, reduces: bool) -> list[str]:
    """The instruction sets that are here, by their numbers from 1.

    "" stands for one that is not here, or runs calls of that cell and dtype as one before it does.

    Args:
        reduces: float32 products may have factors of bfloat16.
    """
    return torch.ops.fused_rnn.cpu_instruction_sets(str(cell), dtype, REDUCED_PRECISION if reduces else 0)


def cpu_set_flags() -> dict[str, int]:
    """The instruction sets that are here, and the flag for calls that run on one."""
    if load_error is not None:
        return {}
    every = (enumerate(cpu_instruction_sets(cell.LSTM, dtype, True), 1) for dtype in DTYPES)
    return {name: number * SET for one in every for number, name in one if name}


def cpu_plan(
    cell: Cell,
    dtype: torch.dtype,
    T: int,
    B: int,
    I: int,
    H: int,
    projection: int,
    training: bool,
    quantized: torch.dtype | None,
    plan: int = 0,
) -> str:
    """The plan of the CPU kernels for a layer in one direction, in words, given ``torch.get_num_threads()``."""
    flags = plan | (REDUCED_PRECISION if dtype == torch.float32 and allow_bfloat16() else 0)
    flags |= panels.FLAGS[quantized] if quantized else 0
    return torch.ops.fused_rnn.cpu_plan(str(cell), dtype, T, B, I, H, projection, training, flags)


@functools.cache
def cpu_reduced_rows() -> int:
    """The least rows (step, batch) of a float32 call whose products may have factors of bfloat16; 0: none has."""
    return 0 if load_error else torch.ops.fused_rnn.cpu_reduced_rows()


def constant(function: F) -> F:
    """torch.compile may take the answer as a constant: it cannot look inside, and what is asked does not change.

    What ``torch.compiler.assume_constant_result`` does, without importing the compiler: that takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def cuda_why_not(device_index: int, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot run on that GPU: a sentence, or None if they can."""
    if (device_index, dtype) in _runs_on:
        return None
    if torch.version.hip is not None:
        return "it runs on NVIDIA GPUs, and this is a ROCm build of PyTorch"
    reason = torch.ops.fused_rnn.cuda_why_not(device_index, short(dtype)) or None
    if reason is None:
        _runs_on.add((device_index, dtype))
    return reason


# Every call asks. A reason is not kept: the memory that was missing may be there next time.
_runs_on: set[tuple[int, torch.dtype]] = set()


@constant
def allow_tf32() -> bool:
    """PyTorch's own switch for float32 RNNs on a GPU, as ``nn.LSTM`` obeys it; compiled code keeps what it was then."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined]


@constant
def allow_bfloat16() -> bool:
    """PyTorch's own switch for float32 RNNs on a CPU, as ``nn.LSTM`` obeys it, where the kernels here can."""
    return cpu_reduced_rows() > 0 and _switch.fp32_precision == "bf16"


_switch = torch.backends.mkldnn.rnn  # type: ignore[attr-defined]


def math_of(dtype: torch.dtype, device: torch.device) -> str:
    """The precision of products: tf32 or bfloat16 if PyTorch's switch lets float32 be rounded to it, else the dtype."""
    if dtype == torch.float32 and device.type == "cpu":
        return "bfloat16" if allow_bfloat16() else "float32"
    return "tf32" if dtype == torch.float32 and allow_tf32() else short(dtype)


def cuda_architectures() -> str:
    """The CUDA architectures that the extension has code for: ``"80 90a 100"``, or ``""`` for none."""
    return torch.ops.fused_rnn.cuda_architectures()


def cuda_plan(
    cell: Cell,
    dtype: torch.dtype,
    T: int,
    B: int,
    H: int,
    layers: int,
    directions: int,
    backward: bool,
    device: str,
    projection: int = 0,
) -> tuple[str, str | None]:
    """The plan of the CUDA kernels for a call, in words, and why there is none: one of the two is empty.

    Args:
        device: a GPU that is here, ``"cuda:0"``, or the name of one that need not be: T4, A100, L4, H100,
            H100 MIG 1g, H200, B200, RTX 5090.
        projection: its size, or 0.

    Raises:
        RuntimeError: there is no such device.
    """
    tf32 = dtype == torch.float32 and allow_tf32()
    sizes = T, B, H, layers, directions
    plan, why_not = torch.ops.fused_rnn.cuda_plan(str(cell), short(dtype), *sizes, backward, tf32, device, projection)
    return plan, why_not or None


def run(call: Call, plan: int = 0) -> Sequence[Tensor]:
    """The results of the native ops for a call.

    Args:
        plan: the flags that say how the CPU kernels run it; 0 leaves that to them.
    """
    x = call.input
    if call.batch_sizes is not None and (not x.is_cpu or torch.compiler.is_compiling()):
        return layered.run_padded(call, functools.partial(run, plan=plan))
    if call.dropout:
        call = layered.with_masks(call)
    if call.lengths is not None and x.is_cpu and (order := _longest_first(call.lengths)) is not None:
        return _run_in_order(call, order, plan)
    if x.dtype == torch.float32 and (allow_tf32() if x.is_cuda else x.is_cpu and allow_bfloat16()):
        plan |= REDUCED_PRECISION
    return autograd.run(torch.ops.fused_rnn, call, plan)


def inference_op(form: Form, plan: int = 0) -> InferenceOp:
    """The op for the inference of a module of that form on the CPU, where it needs no :func:`run`."""
    flags = flags_of(form) | plan
    is_one = form.step or (form.bias and form.layers * form.directions == 1 and not form.projection)
    if is_one and form.quantized is not torch.int8:
        return torch.ops.fused_rnn.layer_inference.default, True, flags
    return torch.ops.fused_rnn.inference.default, False, flags


def _longest_first(lengths: Tensor) -> Tensor | None:
    """The order of rows for which the CPU kernels skip the steps past each end; None if the rows have it already."""
    if not torch.compiler.is_compiling() and not (lengths[1:] > lengths[:-1]).any():
        return None
    return lengths.argsort(descending=True, stable=True)


def _run_in_order(call: Call, order: Tensor, plan: int) -> Sequence[Tensor]:
    """The results of a call whose rows are run in another order."""
    assert call.lengths is not None
    rows = 0 if call.form.batch_first else 1
    masks = [mask.index_select(1, order) for mask in call.masks]
    output, *final = autograd.run(
        torch.ops.fused_rnn,
        call.changed(
            input=call.input.index_select(rows, order),
            states=tuple(state.index_select(1, order) for state in call.states),
            lengths=call.lengths[order],
            resets=None if call.resets is None else call.resets.index_select(1, order),
            masks=masks,
        ),
        plan,
    )
    back = order.argsort()
    return output.index_select(rows, back), *(state.index_select(1, back) for state in final)
