"""Chooses the tiles of the Triton kernels by measurement: a table for ``fused_rnn/triton/plan.py``, on standard output.

    python bench/tune_triton.py           every row for this GPU, most of the time compiling
    python bench/tune_triton.py --list    the candidates of every row; needs no GPU

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
from pathlib import Path
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]
from problems import CELLS, Layer, Size  # noqa: E402

from fused_rnn import autograd  # noqa: E402
from fused_rnn.triton import plan  # noqa: E402
from fused_rnn.triton.plan import Plan, Row, Tiles  # noqa: E402

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


def layers(row: Row) -> list[tuple[Layer, bool]]:
    """A layer of each cell at the largest size of a row, and whether it may use TF32."""
    B = row.B or (256 if row.form == "stepwise" else 64)
    dtype = getattr(torch, {"tf32": "float32"}.get(row.maths[0], row.maths[0]))
    size = Size(T, B, I, row.H or 512)
    return [(Layer.random(cell, dtype, size).to("cuda"), row.maths[0] == "tf32") for cell in CELLS]


def call(layer: Layer, allow_tf32: bool) -> Callable[[], dict[str, torch.Tensor]]:
    def run(*arguments):  # type: ignore[no-untyped-def]
        return autograd.run(torch.ops.fused_rnn_triton, *arguments, allow_tf32)

    return lambda: layer.results(run)


def milliseconds(row: Row, tiles: Tiles, posed: list[tuple[Layer, bool]]) -> float | None:
    """The geometric mean over the cells, forward and backward; None if it does not run or is wrong."""
    import triton

    from fused_rnn.triton import passes

    times = []
    for layer, allow_tf32 in posed:
        forced = Plan(row.form, tiles, "tf32" if allow_tf32 else "ieee", "")
        run = call(layer, allow_tf32)
        wanted = run()
        with mock.patch.object(passes, "make_plan", lambda *args, forced=forced: forced):
            try:
                got = run()
                tolerance = 2e-2 if allow_tf32 or layer.x.element_size() == 2 else 1e-4
                if any((got[n] - wanted[n]).abs().max() > tolerance * wanted[n].abs().max() for n in wanted):
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
        posed = layers(row)
        measured = {tiles: milliseconds(row, tiles, posed) for tiles in candidates(row)}
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
