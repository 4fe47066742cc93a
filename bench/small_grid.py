#!/usr/bin/env python3
"""Small layers through our kernels, forward and backward, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python bench/small_grid.py
    python bench/small_grid.py --device cpu --backend cpu    # only to see that it works

Values are not compared here, the tests do that; a result that is not finite fails. Cheap layers come first, and the
last line says how many ran: --seconds ends the grid early, because a tool that is killed prints no summary.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

import fused_rnn

CELLS: dict[str, Callable[..., torch.nn.Module]] = {
    "LSTM": fused_rnn.LSTM,
    "GRU": fused_rnn.GRU,
    "GRU(reset_after=False)": partial(fused_rnn.GRU, reset_after=False),
    "RNN": fused_rnn.RNN,
    "RNN(nonlinearity='relu')": partial(fused_rnn.RNN, nonlinearity="relu"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (
    (5, 3, 5, 17),  # T, B, I, H: no size divides a vector, a warp or a tile
    (4, 9, 8, 64),  # one row past a tile of the batch
    (4, 5, 3, 161),  # weights of this size stay on chip in some types and not in others
    (4, 9, 7, 300),  # past every layer that one block holds
    (2, 2, 7, 300),  # fewer steps than pay for weights on chip
)


@dataclass(frozen=True)
class Layer:
    cell: str
    dtype: torch.dtype
    size: tuple[int, int, int, int]
    ragged: bool

    def run(self, device: torch.device) -> bool:
        """Both directions, forward and backward; whether every result is finite."""
        T, B, I, H = self.size
        rnn = CELLS[self.cell](I, H, bidirectional=True).to(device, self.dtype)
        x = torch.randn(T, B, I, device=device, dtype=self.dtype, requires_grad=True)
        lengths = torch.randint(1, T + 1, (B,)).to(device) if self.ragged else None
        with torch.no_grad():
            rnn(x, lengths=lengths)  # the kernels that keep nothing for a backward
        output, states = rnn(x, lengths=lengths)
        final = states if isinstance(states, tuple) else (states,)
        grads = torch.autograd.grad(sum(y.sum() for y in (output, *final)), [x, *rnn.parameters()])
        return all(bool(y.isfinite().all()) for y in (output, *final, *grads))


def layers() -> Iterator[Layer]:
    for size, ragged, dtype, cell in product(SIZES, (False, True), DTYPES, CELLS):
        yield Layer(cell, dtype, size, ragged)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further layer after that long")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    grid, ran, wrong = list(layers()), 0, 0
    torch.manual_seed(0)
    with fused_rnn.use_backend(args.backend):
        for layer in grid:
            if time.monotonic() > end:
                break
            ran += 1
            if not layer.run(args.device):
                wrong += 1
                print(f"not finite: {layer}")
    print(f"{ran} of {len(grid)} layers ran")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
