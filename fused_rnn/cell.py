"""The properties of the recurrent cells that Python code depends on: one row for each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """A recurrent cell. ``csrc/cells.h`` has the same facts for the kernels."""

    name: str  # of the ops' argument
    gates: int  # G
    states: tuple[str, ...]  # the names of its initial states
    saved: int  # how many numbers a forward keeps per step, row and unit; c, if there is one, is the last
    stock: str = ""  # PyTorch's name: torch._VF.lstm and torch._VF.lstm_cell; "" if torch.nn does not have it
    resets_before: bool = False  # the last gate multiplies r * h instead of h
    joins: bool = False  # gates are of the sum of both products, so that the kernels may multiply x and h in one tile
    grads_differ: bool = False  # the backward gives gates_x and gates_h different gradients

    def __str__(self) -> str:
        return self.name


LSTM = Cell("lstm", gates=4, states=("hx", "cx"), saved=5, stock="lstm", joins=True)  # saved: i, f, g, o, c
GRU = Cell("gru", gates=3, states=("hx",), saved=4, stock="gru", grads_differ=True)  # r, z, n, n_h
GRU_RESET_BEFORE = Cell("gru(reset_after=False)", gates=3, states=("hx",), saved=3, resets_before=True)  # r, z, n
RNN_TANH = Cell("rnn_tanh", gates=1, states=("hx",), saved=1, stock="rnn_tanh", joins=True)  # h
RNN_RELU = Cell("rnn_relu", gates=1, states=("hx",), saved=1, stock="rnn_relu", joins=True)  # h
CELLS = (LSTM, GRU, GRU_RESET_BEFORE, RNN_TANH, RNN_RELU)

_BY_NAME = {cell.name: cell for cell in CELLS}


def named(name: str) -> Cell:
    """The cell of that name. Raises RuntimeError if there is none."""
    if name not in _BY_NAME:
        raise RuntimeError(f"cell {name!r} is not one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


class Weights(NamedTuple):
    """The weights of one layer in one direction, as torch.nn lays them out."""

    weight_ih: Tensor  # [G*H, I]
    weight_hh: Tensor  # [G*H, H], or [G*H, P] with a projection
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]
    weight_hr: Tensor | None = None  # [P, H], the projection of an LSTM with proj_size


States = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of every other cell
