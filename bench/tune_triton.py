"""Chooses the tiles of the Triton kernels by measurement: a table for ``fused_rnn/triton/plan.py``, on standard output.

    python -m bench.tune_triton           every row for this GPU, most of the time compiling
    python -m bench.tune_triton --list    the candidates of every row; needs no GPU

Each row of the table that is there keeps what it is for; its tiles are measured against others at its largest H and B
(without a limit: H 512, B 64 or 256), forward and backward, for each cell. What does not compile, does not fit or is
off by more than rounding is out. The tiles with the least geometric mean of the times win. Nothing is changed: paste
what you agree with, run ``python tests/test_triton.py --write``, and commit the measurement beside it. It has not run
on a GPU yet.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from fused_rnn import autograd
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM, Cell, Weights
from fused_rnn.triton import plan
from fused_rnn.triton.plan import Plan, Row, Tiles

T, I = 64, 64


def candidates(row: Row) -> Iterator[Tiles]:
    """Tiles to try for a row: its own first, then its neighbours."""
    yield row.tiles
    if row.form == "block":  # the units are H, and more rows than 16 are more work for one program
        others = (replace(row.tiles, warps=w, stages=s) for w, s in itertools.product((1, 2, 4, 8, 16), (1, 2, 3)))
    else:
        sizes = itertools.product((row.tiles.rows,), (16, 32, 64), (32, 64, 128), (2, 4, 8), (2, 3))
        others = (Tiles(*size) for size in sizes)
    yield from (tiles for tiles in others if tiles != row.tiles)


def passes_of(cell: Cell, row: Row) -> Callable[[], list[Tensor]]:
    """Forward and backward of a random layer at the largest size of a row: what it computes."""
    B, H = row.B or (256 if row.form == "stepwise" else 64), row.H or 512
    tf32 = row.maths[0] == "tf32"
    dtype = torch.float32 if tf32 else getattr(torch, row.maths[0])

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, device="cuda") * H**-0.5).to(dtype).requires_grad_()

    rows = cell.gates * H
    x, states = random(T, B, I), tuple(random(B, H) for _ in cell.states)
    leaves = [random(rows, I), random(rows, H), random(rows), random(rows)]
    weights = Weights(*leaves)

    def run() -> list[Tensor]:
        ops, layer = torch.ops.fused_rnn_triton, (cell, x, states, weights, None, False)
        output, final = autograd.run_layer(ops, *layer, reduced_precision=tf32)
        outputs = [output, *final]
        return [output, *torch.autograd.grad(outputs, [x, *states, *leaves], list(map(torch.ones_like, outputs)))]

    return run


def milliseconds(row: Row, tiles: Tiles, layers: list[Callable[[], list[Tensor]]]) -> float | None:
    """The geometric mean over the layers, forward and backward; None if one does not run or is wrong."""
    import triton

    from fused_rnn.triton import passes

    tolerance = 1e-4 if row.maths[0] == "float32" else 2e-2
    forced = Plan(row.form, tiles, "tf32" if row.maths[0] == "tf32" else "ieee", "")
    times = []
    for run in layers:
        wanted = run()
        with mock.patch.object(passes, "make_plan", lambda *args: forced):
            try:
                if any((a - b).abs().max() > tolerance * b.abs().max() for a, b in zip(run(), wanted, strict=True)):
                    return None
                times.append(triton.testing.do_bench(run, return_mode="median"))
            except Exception as error:  # out of resources, or the compiler gives up
                print(f"#   {tiles}: {type(error).__name__}", file=sys.stderr)
                return None
    return math.exp(sum(map(math.log, times)) / len(times))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        for row in plan.TABLE:
            print(row, f"# {sum(1 for _ in candidates(row))} candidates")
        return 0
    device = torch.device("cuda")
    if reason := plan.why_not(device):
        print(reason, file=sys.stderr)
        return 2
    from fused_rnn.triton import ops  # noqa: F401  defines the ops

    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    for row in plan.TABLE:
        if plan.device_of(device).vendor not in row.vendors:
            continue
        layers = [passes_of(cell, row) for cell in (LSTM, GRU, GRU_RESET_BEFORE)]
        measured = {tiles: milliseconds(row, tiles, layers) for tiles in candidates(row)}
        times = {tiles: time for tiles, time in measured.items() if time is not None}
        if not times:
            print(f"# nothing runs for {row}")
            continue
        best = min(times, key=times.__getitem__)
        before = f"{times[row.tiles]:.3f} ms" if row.tiles in times else "did not run"
        print(replace(row, tiles=best), f"# {times[best]:.3f} ms; {row.tiles} {before}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
