"""Packed sequences on the CPU: the kernels take them as they are, with the results of `lengths` and little memory."""

import subprocess
import sys

import pytest
import torch
from problems import LOOPS
from test_modules import KINDS, assert_same, pair
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import autograd, layered
from fused_rnn.call import BIAS, PACKED, SAVE, STEP, Call, Form

ops = torch.ops.fused_rnn

# Lengths, I, H.
BATCHES = {
    "one row": ([5], 3, 4),
    "the same length": ([4] * 7, 5, 20),
    "a long row among short ones": ([700, 3, 3, 2, 2, 2, 1, 1], 4, 9),  # from x and h in one tile to x for many steps
    "a step of more rows than a chunk": ([3] * 40 + [2] * 130 + [1] * 130, 3, 5),
    "more steps than a chunk has": ([1100, 2], 2, 3),
    "whole vectors": ([9, 8, 8, 6, 5, 5, 5, 3, 1, 1], 16, 48),
}


def leaves_of(cell, lengths, I, H, dtype):
    """Padded input, states and weights of two directions."""
    generator = torch.Generator().manual_seed(0)
    B, G = len(lengths), cell.gates
    shapes = [(max(lengths), B, I), *[(2, B, H)] * len(cell.states), *[(G * H, I), (G * H, H), (G * H,), (G * H,)] * 2]
    return [(torch.randn(shape, generator=generator) / 2).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_it_is_lengths_bit_for_bit(cell, batch, dtype):
    """Both are the same loops over the same numbers, so what test_recurrence shows for `lengths` holds for both."""
    lengths, I, H = BATCHES[batch]
    sizes = torch.tensor(lengths)
    leaves = leaves_of(cell, lengths, I, H, dtype)
    n = 1 + len(cell.states)
    results = []
    for packed in (True, False):
        x, batch_sizes = leaves[0], None
        if packed:
            x, batch_sizes, *_ = pack_padded_sequence(x, sizes)
        options = dict(batch_sizes=batch_sizes) if packed else dict(lengths=sizes)
        call = Call(cell, x, leaves[1:n], leaves[n:], Form(directions=2), **options)
        output, *final = autograd.run(ops, call)
        if packed:
            output, _ = pad_packed_sequence(PackedSequence(output, batch_sizes))
        grads = torch.autograd.grad([output, *final], leaves, [torch.ones_like(y) for y in (output, *final)])
        results.append([output, *final, *grads])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_not_padded(kind, monkeypatch):
    monkeypatch.setattr(layered, "run_padded", lambda *_: pytest.fail("padded"))
    module = getattr(fused_rnn, kind)(3, 4, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)
    output, _ = module(pack_padded_sequence(torch.randn(5, 2, 3), torch.tensor([5, 2])))
    output.data.sum().backward()


# ---- Errors ----


BATCH_SIZES = {
    "zero in the middle": ([2, 0, 1], RuntimeError, r"must be positive and never grow, got \[2, 0, 1\]"),
    "zero at the end": ([2, 1, 0], RuntimeError, r"must be positive and never grow, got \[2, 1, 0\]"),
    "growing": ([1, 2], RuntimeError, r"must be positive and never grow, got \[1, 2\]"),
    "negative": ([4, -1], RuntimeError, r"must be positive and never grow, got \[4, -1\]"),
    "too few": ([1, 1], RuntimeError, r"must sum to the rows of its data, got 3 rows and \[1, 1\]"),
    "too many": ([3, 3], RuntimeError, r"must sum to the rows of its data, got 3 rows and \[3, 3\]"),
    "a sum that overflows": ([2**62] * 4, RuntimeError, "must sum to the rows of its data"),
    "int32": (torch.tensor([2, 1], dtype=torch.int32), RuntimeError, "torch.int64 on cpu, got .* of torch.int32"),
    "none": ([], IndexError, "must have a size for each step, got none"),
    "a matrix": ([[2, 1]], RuntimeError, r"must be \[T\] of torch.int64 on cpu, got \[1, 2\]"),
}


@pytest.mark.parametrize("case", BATCH_SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_sequence_whose_batch_sizes_lie(kind, case):
    batch_sizes, error, message = BATCH_SIZES[case]
    packed = PackedSequence(
        torch.zeros(3, 3), torch.as_tensor(batch_sizes, dtype=getattr(batch_sizes, "dtype", torch.int64))
    )
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(error, match=message):
            getattr(fused_rnn, kind)(3, 4)(packed)


def test_a_packed_sequence_with_the_indices_of_another():
    packed = PackedSequence(torch.zeros(3, 3), torch.tensor([2, 1]), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match=r"indices of a PackedSequence must be \[2\].*got \[3\]"):
        fused_rnn.GRU(3, 4)(packed)


@pytest.mark.parametrize("case", [name for name in BATCH_SIZES if name != "none"])
def test_batch_sizes_of_the_op_that_lie(case):
    batch_sizes = torch.as_tensor(BATCH_SIZES[case][0])
    weights = [torch.zeros(12, 3), torch.zeros(12, 4)]
    with pytest.raises(RuntimeError, match=r"batch_sizes .*must"):
        ops.forward("gru", torch.zeros(3, 3), weights, None, None, batch_sizes, None, [], PACKED)


def test_what_a_packed_call_of_the_op_cannot_have():
    weights, sizes = [torch.zeros(12, 3), torch.zeros(12, 4)], torch.tensor([2, 1])
    for x, lengths, flags, message in (
        (torch.zeros(3, 1, 3), sizes, PACKED, r"input must be \[N, I\], got \[3, 1, 3\]"),
        (torch.zeros(3, 3), None, PACKED, r"batch_sizes .* must be a tensor \[T\]"),
        (torch.zeros(3, 3), sizes, PACKED | STEP, "a single step has no packed sequence"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.forward("gru", x, weights, None, None, lengths, None, [], flags)
    biased = [*weights, torch.zeros(12), torch.zeros(12)] * 2
    biased[4] = torch.zeros(12, 4)
    with pytest.raises(RuntimeError, match=r"mask must be \[3, 4\], got \[2, 2, 4\]"):
        args = (None, None, sizes, None, [torch.zeros(2, 2, 4)], PACKED | BIAS | SAVE)
        ops.forward("gru", torch.zeros(3, 3), biased, *args)


# ---- Other backends, memory ----


@pytest.mark.parametrize("proj_size", [2, 0])
def test_a_packed_sequence_runs_on_torchs_own_packed_path(proj_size, monkeypatch):
    """Where PyTorch's kernels are asked for; the step-by-step reference is never reached."""
    ours, theirs = pair("LSTM", 3, 4, num_layers=2, bidirectional=True, dropout=0.5, proj_size=proj_size)
    monkeypatch.setattr(fused_rnn.reference, "run", lambda *_: pytest.fail("the reference ran"))
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 5, 3)], enforce_sorted=False)
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        with fused_rnn.use_backend("torch"):
            output, final = module(packed)
        grads = torch.autograd.grad(output.data.sum(), list(module.parameters()))
        results.append([output.data, final, *grads])
    assert_same(*results)


MEASURE = """
import sys, torch, fused_rnn
from torch import nn

from torch.nn.utils.rnn import pack_sequence
from bench.memory import resident_peak

def step(lengths):
    packed = pack_sequence([torch.ones(n, 128) for n in lengths])
    def run():
        output, _ = rnn(packed)
        output.data.sum().backward()
    return run

torch.set_num_threads(1)
rnn = getattr(eval(sys.argv[1]), sys.argv[2])(128, 128)
step([3, 2])()
print(resident_peak(step([1000] + [2] * 127)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_memory_of_one_long_row(kind):
    """A padded batch of one row of 1000 steps among 127 of 2 takes 100 times the numbers of the packed one."""
    ours, theirs = (
        int(
            subprocess.run([sys.executable, "-c", MEASURE, of, kind], capture_output=True, text=True, check=True).stdout
        )
        for of in ("fused_rnn", "nn")
    )
    assert ours <= 1.5 * theirs, (ours, theirs)
