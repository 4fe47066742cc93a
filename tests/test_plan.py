"""The planner of the CUDA kernels: plain arithmetic, so that it is tested for GPUs that are not here."""

import re

import pytest
import torch
from problems import CELLS

from fused_rnn import native
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM, RNN_TANH

pytestmark = pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}")

SHARED_KIB = {"T4": 64, "A100": 163, "L4": 99, "H100": 227, "H200": 227, "B200": 227, "RTX 5090": 99}  # of a block
HALVES = (torch.bfloat16, torch.float16)


def plan(cell, dtype, H, device, *, T=100, B=16, backward=False, tf32=False):
    name = str(dtype).removeprefix("torch.")
    text, why_not = torch.ops.fused_rnn.cuda_plan(str(cell), name, T, B, H, backward, tf32, device)
    assert bool(text) != bool(why_not)
    return text or f"none: {why_not}"


def tier(*arguments, **options):
    return plan(*arguments, **options).split(":")[0]


# The largest H of the block tier, forward and backward: from the gates of H x H numbers (H in whole tiles of 16,
# rows 16 bytes longer) and what a step needs beside them, against the device's shared memory.
LARGEST = {
    # cell, what is multiplied: T4, A100, L4, H100, H200, B200, RTX 5090
    (LSTM, "float32"): ((48, 96, 64, 112, 112, 112, 64), (48, 80, 64, 96, 96, 96, 64)),
    (LSTM, "tf32"): ((48, 96, 64, 112, 112, 112, 64), (48, 80, 64, 96, 96, 96, 64)),
    (LSTM, "float16"): ((128, 128, 128, 160, 160, 160, 128), (128, 128, 128, 144, 144, 144, 128)),
    (GRU, "float32"): ((64, 112, 80, 128, 128, 128, 80), (64, 96, 80, 128, 128, 128, 80)),
    (GRU, "tf32"): ((64, 112, 80, 128, 128, 128, 80), (64, 96, 80, 128, 128, 128, 80)),
    (GRU, "float16"): ((128, 144, 128, 176, 176, 176, 128), (128, 144, 128, 176, 176, 176, 128)),
    (GRU_RESET_BEFORE, "float32"): ((64, 96, 80, 128, 128, 128, 80), (64, 96, 80, 128, 128, 128, 80)),
    (GRU_RESET_BEFORE, "float16"): ((128, 144, 128, 176, 176, 176, 128), (128, 144, 128, 176, 176, 176, 128)),
    (RNN_TANH, "float32"): ((112, 128, 128, 128, 128, 128, 128),) * 2,
    (RNN_TANH, "float16"): ((160, 192, 192, 192, 192, 192, 192),) * 2,
}


def boundaries():
    for (cell, math), passes in LARGEST.items():
        for backward, sizes in zip((False, True), passes):
            for device, H in zip(SHARED_KIB, sizes):
                yield cell, math, backward, device, H


@pytest.mark.parametrize(("cell", "math", "backward", "device", "H"), list(boundaries()), ids=str)
def test_both_sides_of_the_block_tier(cell, math, backward, device, H):
    dtype = torch.float16 if math == "float16" else torch.float32
    options = {"backward": backward, "tf32": math == "tf32"}
    fits, too_large = plan(cell, dtype, H, device, **options), plan(cell, dtype, H + 1, device, **options)
    assert fits.startswith("block: ") and too_large.startswith("stepwise: ")
    shared = int(re.search(r"(\d+) KiB of shared memory", fits)[1])
    assert shared <= SHARED_KIB[device]
    assert f"one block's {SHARED_KIB[device]} KiB" in too_large


@pytest.mark.parametrize("device", SHARED_KIB)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_shape_has_a_plan(cell, device):
    for dtype in (torch.float32, torch.float16):
        for H in (1, 7, 64, 200, 1024, 5000):
            for B in (1, 8, 9, 1000, 80_000):
                for backward in (False, True):
                    assert tier(cell, dtype, H, device, B=B, backward=backward) in ("block", "stepwise")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_on_chip_bytes(cell, dtype):
    text = plan(cell, dtype, 64, "H100")
    size = torch.finfo(dtype).bits // 8
    assert f"weight_hh, {cell.gates * 64 * 64 * size // 1024} KiB, in" in text


def test_registers_hold_what_they_can():
    for H, place in ((128, "registers"), (129, "shared memory")):
        assert f"in {place};" in plan(LSTM, torch.bfloat16, H, "H200")
    for H, place in ((64, "registers"), (65, "shared memory")):
        assert f"in {place};" in plan(LSTM, torch.float32, H, "H200", tf32=True)
    assert "in shared memory;" in plan(LSTM, torch.float32, 16, "H200")


def test_blocks_cover_the_batch():
    for B, blocks in ((1, "1 block of"), (8, "1 block of"), (9, "2 blocks of"), (64, "8 blocks of")):
        assert f"{blocks} 128 threads and 8 rows" in plan(GRU, torch.bfloat16, 50, "A100", B=B)


def test_few_steps_are_stepwise():
    assert tier(LSTM, torch.bfloat16, 64, "H100", T=3) == "stepwise"
    assert tier(LSTM, torch.bfloat16, 64, "H100", T=4) == "block"


def test_what_a_device_cannot_do():
    assert plan(LSTM, torch.bfloat16, 64, "T4") == (
        "none: bfloat16 needs compute capability 8.0 or later, and this GPU has 7.5"
    )
    assert plan(LSTM, torch.float32, 64, "T4", tf32=True) == plan(LSTM, torch.float32, 64, "T4")  # it has no TF32
    with pytest.raises(RuntimeError, match="device 'GTX 970' is neither here nor one of T4, A100, L4, H100"):
        plan(LSTM, torch.float32, 64, "GTX 970")
    with pytest.raises(RuntimeError, match="dtype 'float64' is not one of float32"):
        plan(LSTM, torch.float64, 64, "H100")


def test_a_forced_tier(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TIER", "stepwise")
    assert plan(LSTM, torch.bfloat16, 64, "H100") == (
        "stepwise: one matmul and one kernel a step, because FUSED_RNN_TIER forces it"
    )
    monkeypatch.setenv("FUSED_RNN_TIER", "block")
    assert tier(LSTM, torch.bfloat16, 64, "H100") == "block"
    with pytest.raises(RuntimeError, match="FUSED_RNN_TIER=block cannot run this layer: weight_hh, 2048 KiB"):
        plan(LSTM, torch.bfloat16, 512, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "grid")
    with pytest.raises(RuntimeError, match="FUSED_RNN_TIER 'grid' is not one of block, stepwise"):
        plan(LSTM, torch.bfloat16, 64, "H100")


def test_steps_that_cannot_be_counted_in_32_bits():
    for sizes in ((2**31, 1, 1), (4, 2**20, 2**20), (4, 1, 2**62), (4, -1, 1)):
        plan, why_not = native.cuda_plan(LSTM, torch.float32, *sizes, False, "H100")
        assert plan == "" and "T and the numbers of one step must be below 2^31, got T = " in why_not
