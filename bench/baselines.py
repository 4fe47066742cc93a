#!/usr/bin/env python3
"""What torch.nn.LSTM and nn.GRU cost per time step on the GPU at hand, and which kernels they run.

    python bench/baselines.py --out baselines.csv    # the grid
    python bench/baselines.py --quick                # a tenth of it, to the screen
    python bench/baselines.py --device cpu           # a few tiny layers: only to see that it works

One row per layer and pass: microseconds per step with the 10th and 90th percentile, the peak of allocated memory, and
the three kernels that took longest. Their names tell cuDNN's algorithm: one persistent kernel, or a matmul and a
pointwise kernel at every step. The comment above the rows has the machine's two ceilings. It needs nothing but torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from timing import Row, first_sentence, in_turns, machine, spread, write_csv
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

COLUMNS = (
    *("cell", "dtype", "tf32", "T", "B", "I", "H", "layers", "bidirectional", "ragged", "pass"),
    *("us_per_step", "p10", "p90", "peak_bytes", "kernels", "note"),
)
PRECISIONS = (("bfloat16", True), ("float16", True), ("float32", True), ("float32", False))  # dtype, TF32 allowed


@dataclass(frozen=True)
class Case:
    """A layer of torch.nn and its input: [T, B, H], and H units."""

    cell: str
    dtype: str
    tf32: bool
    T: int
    B: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False  # a PackedSequence of T/4 to T steps


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """The grid of one layer in one direction, then stacked, bidirectional and ragged ones."""
    T = 512 if device.type == "cuda" else 4
    sizes, batches, deep = [64, 128, 160, 192, 256, 512, 768, 1024, 1536, 2048], [16, 1, 64, 256], [256, 768]
    if quick:
        sizes, batches, deep = [256, 1024], [16], [256]
    if device.type != "cuda":
        sizes, batches, deep = [32], [2], [16]
    for B, H, cell, (dtype, tf32) in product(batches, sizes, ("LSTM", "GRU"), PRECISIONS):
        yield Case(cell, dtype, tf32, T, B, H)
    for cell, H in product(("LSTM", "GRU"), deep):
        yield Case(cell, "bfloat16", True, T, batches[0], H, bidirectional=True)
        yield Case(cell, "bfloat16", True, T, batches[0], H, layers=4)
        yield Case(cell, "float32", True, T, batches[0], H, ragged=True)


def rows(device: torch.device, quick: bool = False, seconds: float = 0.15) -> Iterator[Row]:
    """Measure ``cases``; a layer that torch refuses is a row with the reason as its note.

    Args:
        seconds: about how long to measure each pass.
    """
    for case in cases(device, quick):
        about: Row = {**asdict(case), "I": case.H}
        try:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=case.tf32):
                for name, run in _passes(case, device):
                    yield {**about, "pass": name, **_measured(run, case.T, device, seconds)}
        except (RuntimeError, ValueError) as error:
            yield {**about, "note": first_sentence(error)}


def _passes(case: Case, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Inference, and a training step: forward, and the gradients of the input and all parameters."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    kind = getattr(nn, case.cell)
    rnn = kind(case.H, case.H, case.layers, bidirectional=case.bidirectional).to(device, dtype)
    rnn.flatten_parameters()
    x = torch.randn(case.T, case.B, case.H, device=device, dtype=dtype)
    lengths = torch.randint(max(1, case.T // 4), case.T + 1, (case.B,))

    def output(x: Tensor) -> Tensor:
        given = pack_padded_sequence(x, lengths, enforce_sorted=False) if case.ragged else x
        y = rnn(given)[0]
        return y.data if isinstance(y, PackedSequence) else y

    def inference() -> Tensor:
        with torch.inference_mode():
            return output(x)

    leaves = [x.clone().requires_grad_(), *rnn.parameters()]
    grad_output = torch.randn_like(output(x).detach())
    yield "inference", inference
    yield "training", lambda: torch.autograd.grad(output(leaves[0]), leaves, grad_output)


def _measured(run: Callable[[], object], T: int, device: torch.device, seconds: float) -> Row:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    (times,) = in_turns([run], device, seconds)
    peak = torch.cuda.max_memory_allocated() if on_gpu else ""
    figures = (f"{value / T:.4f}" for value in spread(times))
    kernels = busiest_kernels(run) if on_gpu else ""
    return {**dict(zip(("us_per_step", "p10", "p90"), figures, strict=True)), "peak_bytes": peak, "kernels": kernels}


def busiest_kernels(run: Callable[[], object]) -> str:
    """The three kernels of one call that took longest, with how often each ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return " | ".join(f"{event.key[:70]} x{event.count}" for event in events[:3])


def ceilings(device: torch.device) -> str:
    """What this GPU copies, counting bytes read and written, and what it multiplies, in words."""
    if device.type != "cuda":
        return ""
    source = torch.randint(256, (1 << 30,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    copy, matmul = in_turns([lambda: target.copy_(source), lambda: square @ square], device, seconds=0.1)
    gigabytes = 2 * source.numel() / spread(copy)[0] / 1e3  # bytes per microsecond are megabytes per second
    teraflops = 2 * 8192**3 / spread(matmul)[0] / 1e6
    return f", copy {gigabytes:.0f} GB/s, 8192^3 bfloat16 matmul {teraflops:.0f} TFLOP/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a CSV file; else the screen")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    args = parser.parse_args()
    about = machine(args.device) + ceilings(args.device)
    write_csv(rows(args.device, args.quick), COLUMNS, about, args.out)


if __name__ == "__main__":
    main()
