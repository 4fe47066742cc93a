"""The planner of the CUDA kernels: plain arithmetic, so that it is tested for GPUs that are not here."""

import itertools
import re

import pytest
import torch
from problems import CELLS

from fused_rnn import native
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM, RNN_TANH

pytestmark = pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}")

SHARED_KIB = {  # of a block
    "T4": 64,
    "A100": 163,
    "L4": 99,
    "H100": 227,
    "H100 MIG 1g": 227,
    "H200": 227,
    "B200": 227,
    "RTX 5090": 99,
}
MULTIPROCESSORS = {
    "T4": 40,
    "A100": 108,
    "L4": 58,
    "H100": 132,
    "H100 MIG 1g": 16,
    "H200": 132,
    "B200": 148,
    "RTX 5090": 170,
}
HALVES = (torch.bfloat16, torch.float16)


MODEL = re.compile(r"; by the model of an H100 (\d+\.\d\d) us a step$")


def described(cell, dtype, H, device, *, T=100, B=16, L=1, D=1, backward=False, tf32=False):
    name = str(dtype).removeprefix("torch.")
    text, why_not = torch.ops.fused_rnn.cuda_plan(str(cell), name, T, B, H, L, D, backward, tf32, device)
    assert bool(text) != bool(why_not)
    return text or f"none: {why_not}"


def plan(*arguments, **options):
    return MODEL.sub("", described(*arguments, **options))


def tier(*arguments, **options):
    return re.split("[ :]", plan(*arguments, **options))[0]


# The largest H of the block tier, forward and backward: from the gates of H x H numbers, with H in whole tiles
# of 16, and what a step needs beside them, against the device's shared memory.
LARGEST = {
    # cell, what is multiplied: T4, A100, L4, H100, H100 MIG 1g, H200, B200, RTX 5090
    (LSTM, "float32"): ((48, 96, 64, 112, 112, 112, 112, 64), (48, 80, 64, 96, 96, 96, 96, 64)),
    (LSTM, "tf32"): ((48, 96, 64, 112, 112, 112, 112, 64), (48, 80, 64, 96, 96, 96, 96, 64)),
    (LSTM, "float16"): ((128, 128, 128, 160, 160, 160, 160, 128), (128, 128, 128, 160, 160, 160, 160, 128)),
    (GRU, "float32"): ((64, 112, 80, 128, 128, 128, 128, 80), (64, 96, 80, 128, 128, 128, 128, 80)),
    (GRU, "tf32"): ((64, 112, 80, 128, 128, 128, 128, 80), (64, 96, 80, 128, 128, 128, 128, 80)),
    (GRU, "float16"): ((128, 160, 128, 192, 192, 192, 192, 128), (128, 144, 128, 176, 176, 176, 176, 128)),
    (GRU_RESET_BEFORE, "float32"): ((64, 96, 80, 128, 128, 128, 128, 80), (64, 96, 80, 128, 128, 128, 128, 80)),
    (GRU_RESET_BEFORE, "float16"): ((128, 144, 128, 176, 176, 176, 176, 128), (128, 144, 128, 176, 176, 176, 176, 128)),
    (RNN_TANH, "float32"): ((112, 128, 128, 128, 128, 128, 128, 128),) * 2,
    (RNN_TANH, "float16"): ((160, 192, 192, 192, 192, 192, 192, 192),) * 2,
}


def boundaries():
    for (cell, math), passes in LARGEST.items():
        for backward, sizes in zip((False, True), passes):
            for device, H in zip(SHARED_KIB, sizes):
                yield cell, math, backward, device, H


@pytest.mark.parametrize(("cell", "math", "backward", "device", "H"), list(boundaries()), ids=str)
def test_both_sides_of_the_block_tier(cell, math, backward, device, H, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TIER", "block")
    dtype = torch.float16 if math == "float16" else torch.float32
    options = {"backward": backward, "tf32": math == "tf32"}
    fits = plan(cell, dtype, H, device, **options)
    shared = int(re.search(r"(\d+) KiB of shared memory", fits)[1])
    assert fits.startswith("block: ") and shared <= SHARED_KIB[device]
    with pytest.raises(RuntimeError, match=f"does not fit in one block's {SHARED_KIB[device]} KiB"):
        plan(cell, dtype, H + 1, device, **options)


SHARED_LAYER = re.compile(
    r"(?:cluster|grid) \d+x\d+x\d+: (\d+) groups? of (\d+) blocks of (\d+) threads and (\d+) rows; "
    r"weight_hh, \d+ KiB, in .*; (\d+) KiB of shared memory"
)


@pytest.mark.parametrize("device", SHARED_KIB)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_grid_has_its_multiprocessors_to_itself_and_leaves_some(cell, device):
    """All blocks of a grid run at the same time: one a multiprocessor, and never on all of them."""
    tiers = set()
    for dtype, tf32 in ((torch.float32, False), (torch.float32, True), (torch.float16, False)):
        for H in (17, 200, 256, 500, 768, 1024, 2000):
            for B in (1, 16, 17, 64, 256):
                for backward in (False, True):
                    text = plan(cell, dtype, H, device, B=B, backward=backward, tf32=tf32)
                    if not text.startswith(("cluster", "grid")):
                        continue
                    groups, blocks, threads, rows, shared = map(int, SHARED_LAYER.match(text).groups())
                    tiers.add(text.split()[0])
                    if text.startswith("grid"):
                        assert blocks > 1 and groups * blocks < MULTIPROCESSORS[device]
                    else:
                        assert blocks in (2, 4, 6, 8)
                    assert threads <= 256 and threads % 32 == 0 and rows % 8 == 0
                    assert (groups - 1) * rows < B  # no group without rows
                    assert shared <= SHARED_KIB[device]
    before = {"T4": set(), "A100": {"grid"}, "L4": {"grid"}}  # clusters came with 9.0
    if device == "H100 MIG 1g":  # hardly larger than a cluster
        assert "cluster" in tiers
    else:
        assert tiers == before.get(device, {"cluster", "grid"})


@pytest.mark.parametrize("device", [name for name in SHARED_KIB if name != "T4"])
@pytest.mark.parametrize(("L", "D"), [(1, 2), (2, 1), (20, 1), (3, 2)])
def test_what_runs_side_by_side_has_multiprocessors(L, D, device):
    """Layers and directions are in one launch only where that is faster; of a grid all their blocks run at once."""
    found = set()
    for H, B in itertools.product((64, 256, 700, 1024), (1, 16, 64, 300)):
        for T, backward in ((20, False), (500, True)):
            one = plan(GRU, torch.bfloat16, H, device, T=T, B=B, backward=backward)
            text = plan(GRU, torch.bfloat16, H, device, T=T, B=B, L=L, D=D, backward=backward)
            layers = re.search(r"; (\d+) layers side by side, each (\d+) steps behind the one before$", text)
            together = 2 if text.endswith("; both directions side by side") else int(layers[1]) if layers else 1
            assert together == 1 or not text.startswith("stepwise")
            assert together <= (2 if D > 1 else min(L, 8)) and not (layers and D > 1)
            assert not layers or 4 <= int(layers[2]) <= T
            if text.startswith("grid"):
                groups, blocks, *_ = map(int, SHARED_LAYER.match(text).groups())
                assert together * groups * blocks < MULTIPROCESSORS[device]
            if together == 1 and D > 1:
                assert text.startswith("stepwise") or one.startswith("grid")
            found.add(together)
    assert min(found) == 1 < max(found)


def test_side_by_side():
    for H, B, T, options, wanted in (
        (256, 16, 100, {"D": 2}, "; both directions side by side"),
        (1024, 16, 100, {"D": 2}, "; both directions side by side"),
        (1024, 64, 100, {"D": 2}, " of shared memory"),  # one fills the GPU
        (256, 16, 1000, {"L": 3}, "; 3 layers side by side, each \\d+ steps behind the one before"),
        (256, 16, 20, {"L": 3}, " of shared memory"),  # too few steps to be cut
        (256, 16, 1000, {"L": 3, "D": 2}, "; both directions side by side"),
    ):
        assert re.search(f"{wanted}$", plan(LSTM, torch.bfloat16, H, "H100", T=T, B=B, **options))


def test_where_blocks_share_a_layer():
    for H, B, wanted in (
        (64, 64, "block"),
        (128, 64, "cluster"),
        (256, 16, "cluster"),
        (1024, 16, "grid"),
        (1024, 4096, "stepwise"),
    ):
        assert tier(LSTM, torch.bfloat16, H, "H100", B=B) == wanted
    assert tier(LSTM, torch.bfloat16, 256, "A100") == "grid"
    assert tier(LSTM, torch.bfloat16, 256, "H100 MIG 1g") == "cluster"
    assert plan(LSTM, torch.bfloat16, 1024, "H100 MIG 1g") == (
        "stepwise: one matmul and one kernel a step, because weight_hh, 8192 KiB, does not fit in 15 blocks of 227 KiB"
    )
    assert plan(GRU, torch.float16, 256, "T4") == (
        "stepwise: one matmul and one kernel a step, because "
        "blocks exchange what they compute from compute capability 8.0 on"
    )
    assert plan(LSTM, torch.bfloat16, 1024, "H100", B=4096).endswith("that takes fewer cycles by the model")


@pytest.mark.parametrize("device", SHARED_KIB)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_shape_has_a_plan(cell, device):
    for dtype in (torch.float32, torch.float16):
        for H in (1, 7, 64, 200, 1024, 5000):
            for B in (1, 8, 9, 1000, 80_000):
                for backward in (False, True):
                    chosen = tier(cell, dtype, H, device, B=B, backward=backward)
                    assert chosen in ("block", "cluster", "grid", "stepwise")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_on_chip_bytes(cell, dtype):
    text = plan(cell, dtype, 64, "H100")
    size = torch.finfo(dtype).bits // 8
    assert f"weight_hh, {cell.gates * 64 * 64 * size // 1024} KiB, in" in text


def test_registers_hold_what_they_can(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TIER", "block")
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
    assert tier(LSTM, torch.bfloat16, 64, "H100", T=1) == "block"
    with pytest.raises(RuntimeError, match="FUSED_RNN_TIER=block cannot run this layer: weight_hh, 2048 KiB"):
        plan(LSTM, torch.bfloat16, 512, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "grid")
    assert tier(LSTM, torch.bfloat16, 64, "H100") == "grid"
    monkeypatch.setenv("FUSED_RNN_TIER", "grid 2x4x2")  # 16 unit tiles, two in a block
    assert "4 groups of 8 blocks of 256 threads and 16 rows" in plan(LSTM, torch.bfloat16, 256, "H100", B=64)
    assert "1 group of 8 blocks of 256 threads and 16 rows" in plan(LSTM, torch.bfloat16, 256, "H100 MIG 1g", B=64)
    for wrong in ("4x2x1", "1x3x2", "1x8x1", "1x16x1", "16x2x1"):  # one block, no warp for a row, no depth for a warp
        monkeypatch.setenv("FUSED_RNN_TIER", f"grid {wrong}")
        with pytest.raises(RuntimeError, match="16 KiB, does not fit in blocks that are divided like that"):
            plan(LSTM, torch.bfloat16, 45, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "cluster 2x4x2")
    assert plan(LSTM, torch.bfloat16, 256, "H100", B=64).startswith(
        "cluster 2x4x2: 4 groups of 8 blocks of 256 threads"
    )
    monkeypatch.setenv("FUSED_RNN_TIER", "cluster 2x2x1")  # of 5 unit tiles: four blocks, and not three
    assert "2 groups of 4 blocks of 128 threads" in plan(LSTM, torch.bfloat16, 70, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "cluster 1x2x1")  # six blocks, and one would have no unit tile
    with pytest.raises(RuntimeError, match="does not fit in blocks that are divided like that"):
        plan(LSTM, torch.bfloat16, 70, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "block together 3")
    for options, wanted in ({"L": 2}, "; 2 layers"), ({"L": 9}, "; 3 layers"), ({"D": 2}, "; both directions"):
        assert wanted in plan(LSTM, torch.bfloat16, 64, "H100", T=20, **options)
    assert "side by side" not in plan(LSTM, torch.bfloat16, 64, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "cluster 2x4x2 together 2")
    assert plan(LSTM, torch.bfloat16, 256, "H100", B=64, D=2).endswith("; both directions side by side")
    with pytest.raises(RuntimeError, match="clusters of blocks need compute capability"):
        plan(LSTM, torch.bfloat16, 256, "A100")
    for wrong in (
        "block 1x1x1", "grid 2x", "grid 1x1x1x1", "grid 0x0x0", "grid -1x-1x1", "grid together", "grid together 0",
        "grid together 2 3", "grid 2x4x1 2", "stepwise together 2", "block together together",
    ):  # fmt: skip
        monkeypatch.setenv("FUSED_RNN_TIER", wrong)
        with pytest.raises(RuntimeError, match=f"must be a tier, or such as 'grid .*, got '{wrong}'"):
            plan(LSTM, torch.bfloat16, 64, "H100")
    monkeypatch.setenv("FUSED_RNN_TIER", "warp")
    with pytest.raises(RuntimeError, match="FUSED_RNN_TIER 'warp' is not one of block, cluster, grid, stepwise"):
        plan(LSTM, torch.bfloat16, 64, "H100")


def test_the_model_is_of_a_whole_call():
    def us(**options):
        return float(MODEL.search(described(LSTM, torch.bfloat16, 1024, "H100", **options))[1])

    assert us(L=2, D=2) > 1.9 * us(D=2) > us()
    assert us(T=5) > us() > 1  # the start of a launch, by fewer steps
    assert us(T=1) > 6  # stepwise: two launches
    assert us(B=4096) > 40


def test_no_layers_and_three_directions():
    for L, D in ((0, 1), (-1, 1), (2**31, 1), (1, 0), (1, 3)):
        plan, why_not = native.cuda_plan(LSTM, torch.float32, 4, 2, 3, L, D, False, "H100")
        assert plan == "" and why_not.endswith(f"one direction or two, got L = {L}, D = {D}")


def test_steps_that_cannot_be_counted_in_32_bits():
    for sizes in ((2**31, 1, 1), (4, 2**20, 2**20), (4, 1, 2**62), (4, -1, 1)):
        plan, why_not = native.cuda_plan(LSTM, torch.float32, *sizes, 1, 1, False, "H100")
        assert plan == "" and "T and the numbers of one step must be below 2^31, got T = " in why_not
