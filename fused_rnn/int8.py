"""Weights of int8: rows with a scale each, and their product in PyTorch.

A row of a weight is a scale, its largest absolute value divided by 127, times numbers from -127 to 127. A row of x or
h becomes the same before it is multiplied. So the product is a sum of integers, exact, times two scales.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 127
MOST_COLUMNS = 2**17  # of a weight: the sum of 2^17 products of two int8 fits into int32
_SMALLEST = 2.0**-100  # a row without larger numbers is zeros: their inverse would not be finite


class Rows(NamedTuple):
    """A weight [G*H, K], or the rows of x or h."""

    numbers: Tensor  # int8 [..., K]
    scale: Tensor  # float32 [...]

    def split(self, sizes: tuple[int, ...]) -> list[Rows]:
        """As of a tensor, along the rows."""
        return [Rows(*some) for some in zip(self.numbers.split(sizes), self.scale.split(sizes), strict=True)]

    def floats(self) -> Tensor:
        """The float32 numbers: each int8 times the scale of its row."""
        return self.numbers * self.scale.unsqueeze(-1)


def rows_of(x: Tensor) -> Rows:
    """float32 [..., K] as int8, rounded to the nearest. A row with NaN or an infinity gets the scale NaN."""
    if x.size(-1) == 0:
        return Rows(x.to(torch.int8), x.new_zeros(x.shape[:-1]))
    largest = x.abs().amax(-1)
    inverse = torch.where(largest > _SMALLEST, LARGEST / largest, 0)
    numbers = (x * inverse.unsqueeze(-1)).round()
    scale = torch.where(largest.isfinite(), largest / LARGEST, torch.nan)
    return Rows(numbers.nan_to_num(0).to(torch.int8), scale)


def linear(x: Tensor, weight: Rows, bias: Tensor | None) -> Tensor:
    """``functional.linear`` of rows that become int8, and a weight of int8."""
    left = rows_of(x)
    sums = (left.numbers.double() @ weight.numbers.double().t()).float()  # of integers, exact
    product = sums * (left.scale.unsqueeze(-1) * weight.scale)
    return product if bias is None else product + bias
