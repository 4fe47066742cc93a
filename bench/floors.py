"""The least time that a step can take on a Hopper GPU, from what its parts can do: a model, not a measurement.

A step of the recurrence cannot be faster than the latency of one exchange of h, plus the largest of: the products on
the tensor cores, reading weight_hh and h from where they are kept on chip, taking h in from other blocks, and the
traffic with device memory. The blocks may be arranged in any way: P of them share the rows of one group of the batch,
and Q groups work beside each other. The projection of the input is one matmul over all steps, and comes before.
Backward goes through the steps the same way, each block adding up its units' share of the gradient of h, and the
gradients of x and of both weights are matmuls over all steps again.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from .cases import CELL_OF, Task


@dataclass(frozen=True)
class Gpu:
    """Figures of an H100 or H200; microseconds, bytes per microsecond, products per microsecond.

    ``calibrated`` puts measured ones in their place. Where these come from: latencies of grid.sync and of flags between
    blocks as measured on an H100 (revollllt/flash-vla, unit-coop.md and unit-atomic.md); bandwidth of L2 as measured on
    an H200 (RRZE-HPC/gpu-benches); 64 B a clock into an SM and 128 B from its shared memory, of the architecture.
    """

    blocks: int = 132
    shared_bytes: int = 190 << 10  # for weights; the rest holds h and the projected input
    register_bytes: int = 128 << 10  # for weights
    one_block: float = 0.20  # a chain of products, the activations, a barrier in the block
    cluster: float = 0.40  # and h to the other blocks of a cluster and back
    grid: float = 0.85  # and through L2, the data carrying its own mark
    cluster_blocks: int = 16
    matmul: float = 790e6  # FLOP per microsecond of all SMs in bfloat16
    mma_share: float = 0.63  # of it for fewer than 32 rows, which the larger instructions do not take
    shared: float = 237e3  # bytes per microsecond, of one SM
    ingest: float = 118e3  # of one SM
    l2: float = 10e6
    memory: float = 4.3e6

    @classmethod
    def of(cls, task: Task) -> Gpu:
        """With the datasheet's ratio of a matmul in the task's precision to one in bfloat16."""
        slower = 1 if task.dtype != "float32" else 2 if task.tf32 else 15
        return cls(matmul=cls.matmul / slower)

    def calibrated(self, gflops: float, copy_gbs: float) -> Gpu:
        """With the ceilings that a run measured: GFLOP/s of a matmul in the task's precision, GB/s of a copy."""
        return replace(self, matmul=gflops * 1e3, memory=copy_gbs * 1e3)

    def share(self, parts: int) -> Gpu:
        """The share of one of ``parts`` layers or directions that run side by side."""
        each = {name: getattr(self, name) / parts for name in ("matmul", "l2", "memory")}
        return replace(self, blocks=self.blocks // parts, **each)


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def floor(task: Task, gpu: Gpu) -> float:
    """Microseconds of one time step of all layers and directions, of which those run side by side that can."""
    case, directions = task.case, 1 + task.case.bidirectional
    G, B, H = CELL_OF[task.cell].gates, case.B, case.H
    inputs = [case.I, *[directions * H] * (case.layers - 1)]
    projections = sum(2 * G * H * size * B * directions for size in inputs) / gpu.matmul
    # With two directions, a layer needs all steps of the one before.
    together, turns = (directions, case.layers) if directions > 1 else (case.layers, 1)
    steps = turns * min(math.ceil(together / k) * step(task, gpu.share(k)) for k in range(1, together + 1))
    if task.work != "training":
        return projections + steps
    return 3 * projections + 2 * steps + 2 * G * H * H * B * case.layers * directions / gpu.matmul


def step(task: Task, gpu: Gpu) -> float:
    """Microseconds of one time step of one layer in one direction and one pass, in the best arrangement."""
    case = task.case
    sizes = CELL_OF[task.cell].gates, case.B, case.H, traffic(task), BYTES[task.dtype]
    return min(
        _arranged(P, Q, *sizes, gpu)
        for P, Q in itertools.product(range(1, gpu.blocks + 1), _groups(case.B, gpu.blocks))
        if gpu.blocks >= P * Q and case.H >= P
    )


def traffic(task: Task) -> float:
    """Bytes to and from device memory at a step of one direction, in each pass.

    The projected input and the output; in training also the gates and c that are kept, or their gradients.
    """
    G = CELL_OF[task.cell].gates
    return (2 * G + 3 if task.work == "training" else G + 1) * task.case.H * task.case.B * BYTES[task.dtype]


def _groups(B: int, most: int) -> list[int]:
    return sorted({min(B, 2**k) for k in range(8)} | {min(B, most)})


def _arranged(P: int, Q: int, G: int, B: int, H: int, traffic: float, element: int, gpu: Gpu) -> float:
    """traffic: bytes to and from device memory."""
    rows, units = math.ceil(B / Q), math.ceil(H / P)
    latency = gpu.one_block if P == 1 else gpu.cluster if gpu.cluster_blocks >= P else gpu.grid
    share = 1.0 if rows >= 32 else gpu.mma_share
    products = 2 * G * units * H * (math.ceil(rows / 8) * 8) / (gpu.matmul / gpu.blocks * share)
    weights = G * units * H * element
    kept = gpu.shared_bytes + gpu.register_bytes
    on_chip = max(0, min(weights, kept) - gpu.register_bytes) / gpu.shared
    streamed = max(0, weights - kept) * P * Q / gpu.l2  # what does not fit is read from L2 at every step
    taken_in = rows * H * element * (P > 1)
    return latency + max(
        products, on_chip, taken_in / gpu.ingest, taken_in * P * Q / gpu.l2 + streamed, traffic / gpu.memory
    )
