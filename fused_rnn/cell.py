"""What tells one recurrent cell from another, as far as Python must know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """A recurrent cell: the prefix of its ops, how many gates it has, the names of its initial states."""

    name: str
    gates: int
    states: tuple[str, ...]
    reset_after: bool = True  # GRU only: the reset gate acts after (nn.GRU) or before (Cho et al. 2014) the matmul

    def __str__(self) -> str:
        return self.name if self.reset_after else f"{self.name}(reset_after=False)"


LSTM = Cell("lstm", gates=4, states=("hx", "cx"))
GRU = Cell("gru", gates=3, states=("hx",))
GRU_RESET_BEFORE = Cell("gru", gates=3, states=("hx",), reset_after=False)


class Weights(NamedTuple):
    """The weights of one layer in one direction, as torch.nn lays them out."""

    weight_ih: Tensor  # [G*H, I]
    weight_hh: Tensor  # [G*H, H], or [G*H, P] with a projection
    bias_ih: Tensor | None = None  # [G*H]
    bias_hh: Tensor | None = None  # [G*H]
    weight_hr: Tensor | None = None  # [P, H], the projection of an LSTM with proj_size


States = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of a GRU; each [B, H]
