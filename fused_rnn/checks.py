"""Checks of a module's inputs before any kernel runs: torch.nn's types of error, with wanted and given values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cell import Cell, States

Lengths = Tensor | Sequence[int]  # of the rows of a batch


def checked_flag(name: str, value: bool) -> bool:
    """value. Raises TypeError unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    return value


def checked_hx(kind: str, cell: Cell, hx: Any) -> States:
    """hx of a module as the states of its cell.

    Raises:
        AttributeError: it is not the tensor of a cell with one state. Torch.nn raises the same type.
        TypeError: it is not the pair of a cell with two.
    """
    if len(cell.states) == 1:
        if not isinstance(hx, Tensor):
            raise AttributeError(f"hx of {kind} must be one tensor, got a {type(hx).__name__}")
        return (hx,)
    if isinstance(hx, Tensor) or len(hx) != 2:
        got = "a Tensor" if isinstance(hx, Tensor) else f"{len(hx)} of them"
        raise TypeError(f"hx of {kind} must be two tensors (h_0, c_0), got {got}")
    return tuple(hx)


def checked_packed(data: Tensor, batch_sizes: Tensor, *permutations: Tensor | None) -> Tensor:
    """batch_sizes of a PackedSequence, contiguous as PyTorch reads them.

    Raises:
        RuntimeError, IndexError: its parts do not fit together. PyTorch would write past the end of its memory.
    """
    if batch_sizes.device.type != "cpu" or batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
        got = f"{list(batch_sizes.shape)} of {batch_sizes.dtype} on {batch_sizes.device}"
        raise RuntimeError(f"batch_sizes of a PackedSequence must be [T] of torch.int64 on cpu, got {got}")
    if batch_sizes.numel() == 0:
        raise IndexError("batch_sizes of a PackedSequence must have a size for each step, got none")
    batch_sizes = batch_sizes.contiguous()
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or sizes != sorted(sizes, reverse=True):
        raise RuntimeError(f"batch_sizes of a PackedSequence must be positive and never grow, got {sizes}")
    B, rows = sizes[0], len(data) if data.dim() else 0
    if sum(sizes) != rows:
        got = f"{rows} rows and {sizes}"
        raise RuntimeError(f"batch_sizes of a PackedSequence must sum to the rows of its data, got {got}")
    for indices in permutations:
        if indices is not None and indices.shape != (B,):
            shape = list(indices.shape)
            raise RuntimeError(f"indices of a PackedSequence must be [{B}], one for each row, got {shape}")
    return batch_sizes


def checked_lengths(lengths: Lengths, T: int, B: int, device: torch.device) -> Tensor:
    """lengths as [B] int64 on the device. Their range is checked on the CPU only: elsewhere it would wait for it."""
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
    if lengths.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"lengths must have dtype torch.int64, got {lengths.dtype}")
    if lengths.shape != (B,):
        raise RuntimeError(f"lengths must be [{B}], one a row, got {list(lengths.shape)}")
    if lengths.device != device:
        raise RuntimeError(f"lengths must be on {device} like input, got {lengths.device}")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and B > 0:
        shortest, longest = (int(n) for n in lengths.aminmax())
        if shortest < 0 or longest > T:
            raise RuntimeError(f"lengths must be from 0 to {T}, got {shortest if shortest < 0 else longest}")
    return lengths.to(torch.int64)


def resets_error(resets: Any, input: Tensor) -> Exception | None:
    """The error of resets that do not fit to an input [T, B, I], [B, T, I] or [T, I], or None if they do.

    No value is read: that would wait for the device.
    """
    if not isinstance(resets, Tensor):
        return TypeError(f"resets must be a tensor of torch.bool, got a {type(resets).__name__}")
    if resets.dtype != torch.bool:
        return RuntimeError(f"resets must have dtype torch.bool, got {resets.dtype}")
    if resets.shape != input.shape[:-1]:
        wanted, got = list(input.shape[:-1]), list(resets.shape)
        return RuntimeError(f"resets must be {wanted}, one for each step of a row, got {got}")
    if resets.device != input.device:
        return RuntimeError(f"resets must be on {input.device} like input, got {resets.device}")
    return None


def check_no_projection(proj_size: Any) -> None:
    """Raise torch.nn's error unless proj_size, which stands in the constructors of all layers, is 0."""
    if isinstance(proj_size, int) and proj_size != 0:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def check_cell_input(kind: str, input: Tensor, states: Sequence[Tensor], input_size: int, hidden_size: int) -> None:
    """Raise torch.nn's error unless input is [B, input_size] and each state [B, hidden_size], or both without B."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{kind}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for k, state in enumerate(states):
        if state.dim() not in (1, 2):
            name = f"hx[{k}]" if len(states) > 1 else "hidden"
            raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
        if state.dim() != input.dim():
            form = f"{'batched' if input.dim() == 2 else 'unbatched'} {input.dim()}-D"
            raise RuntimeError(f"For {form} input, hx should also be {input.dim()}-D but got {state.dim()}-D")
        if input.dim() == 2 and state.size(0) != input.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden{k} batch size {state.size(0)}")
        if state.size(-1) != hidden_size:
            got = state.size(-1)
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {got}, expected {hidden_size}")
    if input.size(-1) != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(-1)} expected {input_size}")
