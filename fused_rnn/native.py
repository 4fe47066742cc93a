"""The compiled extension: loads ``_C.so`` and runs a layer through its ops.

If the extension cannot be loaded, ``load_error`` says why, the import warns once, and other backends take over.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from . import autograd
from .cell import Cell, States, Weights

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load() -> str | None:
    """Load the extension and register its Python half; the reason if that fails."""
    library = Path(__file__).with_name("_C.so")
    if not library.exists():
        return f"{library} is missing: the package was not built"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return str(error)
    autograd.register("fused_rnn")
    return None


load_error = _load()
if load_error is not None:
    warnings.warn(
        f"fused_rnn runs without its compiled kernels, and slower: {load_error}", RuntimeWarning, stacklevel=2
    )


def cpu_instruction_set() -> str:
    """The instruction set of the CPU kernels: the best one here, or the one that ``FUSED_RNN_ISA`` names."""
    return torch.ops.fused_rnn.cpu_instruction_set()


def run(
    cell: Cell, x: Tensor, states: States, weights: Weights, lengths: Tensor | None, reverse: bool
) -> tuple[Tensor, States]:
    """One layer in one direction through the native ops; as :func:`reference.run`."""
    return autograd.run(torch.ops.fused_rnn, cell, x, states, weights, lengths, reverse)
