"""The emulator itself: its primitives against numpy, and planted faults, which it must report."""

import gzip
import re
import subprocess
import sys

import build
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2, 3)
COMMITTED = build.ROOT / "tests" / "data" / "primitives.txt.gz"


@pytest.fixture(params=build.FLAVOURS)
def flavour(request):
    if reason := build.why_not(request.param):
        pytest.skip(reason)
    return request.param


def run(flavour, name, *arguments, **variables):
    program = build.program(name, flavour)
    environment = build.environment(flavour) | {key: str(value) for key, value in variables.items()}
    environment.pop("LD_PRELOAD", None)  # the programs are linked with what they need
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- Primitives ----


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Name to words, from the plain flavour in a round robin."""
    return words(tmp_path_factory.mktemp("primitives") / "plain", "plain", 0)


def words(path, flavour, seed):
    run(flavour, "primitives", str(path), EMU_SEED=seed)
    lines = (line.split() for line in path.read_text().splitlines())
    return {name: np.array([int(word, 16) for word in rest], np.uint32) for name, *rest in lines}


@pytest.mark.parametrize("seed", SEEDS)
def test_primitives_are_the_same_in_every_schedule_and_flavour(results, flavour, seed, tmp_path):
    got = words(tmp_path / "words", flavour, seed)
    assert got.keys() == results.keys()
    for name in got:
        assert np.array_equal(got[name], results[name]), name


def test_the_committed_words_are_those_of_the_emulator(results):
    """A GPU is compared with that file; python tests/emu/test_emulator.py --write renews it."""
    lines = (line.split() for line in gzip.decompress(COMMITTED.read_bytes()).decode().splitlines())
    committed = {name: np.array([int(word, 16) for word in rest], np.uint32) for name, *rest in lines}
    assert committed.keys() == results.keys()
    for name, words_of_it in committed.items():
        assert np.array_equal(words_of_it, results[name]), name


@pytest.mark.parametrize("name, depth", [("mma_bfloat16", 16), ("mma_float16", 16), ("mma_tf32", 8)])
def test_matrix_products(results, name, depth):
    row, column, k = np.arange(16), np.arange(8), np.arange(depth)
    left = (7 * row[:, None] + 3 * k) % 11 - 5
    right = (5 * k[:, None] + 2 * column) % 7 - 3
    wanted = left @ right + row[:, None] - column
    assert np.array_equal(results[name].view(np.float32).reshape(16, 8), wanted)


def test_a_matrix_is_transposed(results):
    wanted = np.ascontiguousarray(np.arange(64, dtype=np.uint16).reshape(8, 8).T).view(np.uint32).ravel()
    assert np.array_equal(results["transpose"], wanted)


def test_warp_exchange(results):
    lane = np.arange(32)
    value = 100 + lane
    got = results["warp_exchange"].reshape(6, 32)
    assert np.array_equal(got[0], value[lane ^ 1])
    assert np.array_equal(got[1].view(np.float32), value[lane ^ 21])
    assert np.array_equal(got[2], np.full(32, value[5]))
    assert np.array_equal(got[3], value[lane // 8 * 8 + (lane + 3) % 8])
    assert np.array_equal(got[4], value[lane // 16 * 16 + lane // 2 % 16])
    assert np.array_equal(got[5], np.full(32, sum(1 << i for i in range(0, 32, 3))))


def test_asynchronous_copies(results):
    source = np.arange(1, 1025, dtype=np.uint64) * 0x01020304
    source = source.astype(np.uint32)
    first, second = results["cp_async"].reshape(2, 128)
    whole = source[:128].view(np.uint8).reshape(32, 16)
    assert np.array_equal(
        first.view(np.uint8).reshape(32, 16), np.where(np.arange(16) < np.arange(32)[:, None] % 17, whole, 0)
    )
    assert np.array_equal(second, np.roll(source[:128], -4))
    assert np.array_equal(results["bulk_pipeline"], source[:384].reshape(-1, 2)[:, ::-1].ravel())

    value = np.arange(32)
    for _ in range(4):
        value = value + np.roll(value, -1)
    assert np.array_equal(results["arrivals"], value)


def test_clusters(results):
    got = results["cluster"].reshape(2, 4, 12, 32).astype(int)  # cluster, rank, result, lane
    value = 1000 * np.arange(8).reshape(2, 4, 1) + np.arange(32)
    following, preceding = np.roll(value, -1, axis=1), np.roll(value, 1, axis=1)
    rank = np.broadcast_to(np.arange(4)[:, None], value.shape)
    own = [rank, following, following, following + 300]
    wanted = own + [preceding + i for i in (1, 1, 4, 5, 6, 7, 8, 9)]
    assert np.array_equal(got, np.stack(wanted, 2))


def test_grids(results):
    words = results["grid"].reshape(4, 4, 32).astype(int)  # round, block, lane
    value = 1000 * np.arange(4)[:, None] + np.arange(32)
    for round in range(4):
        assert np.array_equal(words[round], value)
        value = 2 * np.roll(value, -1, axis=0) + 3
    assert results["message"].tolist() == [42, 43, 44, 44, 45]


def test_conversions(results):
    numbers = results["numbers"].view(np.float32)
    got = results["convert"].reshape(6, -1)
    is_nan = np.isnan(numbers)
    with np.errstate(over="ignore"):
        bfloat16 = torch.from_numpy(numbers.copy()).bfloat16()
        float16 = numbers.astype(np.float16)
    exact = results["numbers"].astype(np.uint16).view(np.float16).astype(np.float32)

    def same(kind, wanted_bits, nan, nan_bits):
        assert np.array_equal(got[kind], np.where(nan, nan_bits, wanted_bits))

    same(0, bfloat16.view(torch.int16).numpy().view(np.uint16), is_nan, 0x7FFF)
    same(1, float16.view(np.uint16), is_nan, 0x7FFF)
    same(2, bfloat16.float().numpy().view(np.uint32), is_nan, 0x7FFFFFFF)
    same(3, float16.astype(np.float32).view(np.uint32), is_nan, 0x7FFFFFFF)
    same(4, exact.view(np.uint32), np.isnan(exact), 0x7FFFFFFF)
    assert is_nan.any() and np.isnan(exact).any()

    # TF32: the nearest of the two neighbours, the one further from zero where both are as near. In float64, exactly.
    magnitude = np.abs(numbers).view(np.uint32)
    low, high = magnitude & ~np.uint32(0x1FFF), (magnitude & ~np.uint32(0x1FFF)) + np.uint32(0x2000)
    finite = np.isfinite(numbers) & (high < 0x7F800000)
    with np.errstate(invalid="ignore"):
        value = [bits.view(np.float32).astype(np.float64) for bits in (low, magnitude, high)]
        nearest = np.where(value[1] - value[0] < value[2] - value[1], low, high) | (results["numbers"] & 0x80000000)
    assert np.array_equal(got[5][finite], nearest[finite])
    assert np.array_equal(got[5][np.isinf(numbers)], results["numbers"][np.isinf(numbers)])
    assert (got[5][is_nan] == 0x7FFFFFFF).all()


@pytest.mark.parametrize("function", ["reciprocals", "powers"])
def test_approximate_functions(results, function):
    assert results[function].all()


def test_loads_and_stores_under_a_condition(results):
    lanes = np.arange(32)
    given = (np.arange(1, 1025, dtype=np.uint64) * 0x01020304 & 0xFFFFFFFF).astype(np.uint32)
    word = np.where(lanes % 2 == 0, given[:32], np.uint32(0x11111111))
    half = np.where(lanes % 3 == 0, given.view(np.uint16)[:32], np.uint16(0x2222)).astype(np.uint16)
    assert np.array_equal(results["conditions"][:32], np.where(lanes % 5 != 0, half, word))
    halves = np.where(lanes % 7 == 0, word.astype(np.uint16), half)
    assert np.array_equal(results["conditions"][32:], halves.view(np.uint32))


# ---- Kernels that are right ----

RIGHT = ["shared", "shared_of_many", "warp", "cluster", "grid", "fence", "flag", "copy", "bulk", "later"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_are_silent(flavour, kernel, seed):
    lines = run(flavour, "faults", kernel, EMU_SEED=seed).splitlines()
    assert lines[0] == "silent" and lines[-1] == "usable"


def test_sites_are_counted():
    lines = run("plain", "faults", "grid").splitlines()
    calls = {name: int(count) for name, count in (line.split()[1:] for line in lines if line.startswith("site "))}
    assert calls["grid.enter"] == calls["grid.leave"] == 4 * 64
    assert calls["grid.release"] == 4 and calls["grid.acquire"] >= 4


# ---- Faults ----

ACCESS = r"an? (atomic )?(write|read) of \d+ bytes by (thread \d+ of block \d+|an asynchronous copy) at .*\.cuh?:\d+"
RACE = rf"data race: {ACCESS}.*,\nnot ordered after {ACCESS}"

# A call that is switched off: its name, the kernel, and what the race detector's flavour says.
MUTANTS = [
    ("shared.written", "shared", RACE),
    ("shared.read", "shared", RACE),
    ("shared.written_again", "shared", RACE),
    ("shared.written", "shared_of_many", RACE),
    ("shared.read", "shared_of_many", RACE),
    ("warp.written", "warp", RACE),
    ("cluster.written", "cluster", RACE),
    ("cluster.read", "cluster", "a block that has ended"),
    ("grid.enter", "grid", RACE),
    ("grid.release", "grid", RACE),
    ("grid.acquire", "grid", RACE),
    ("grid.leave", "grid", RACE),
    ("fence.written", "fence", RACE),
    ("fence.published", "fence", RACE),
    ("fence.observed", "fence", RACE),
    ("fence.waited", "fence", RACE),
    ("flag.released", "flag", RACE),
    ("flag.acquired", "flag", RACE),
    ("copy.landed", "copy", f"{RACE}|ends with cp.async in flight"),
    ("copy.published", "copy", RACE),
    ("bulk.initialised", "bulk", f"{RACE}|not initialised"),
    ("bulk.full", "bulk", RACE),
    ("bulk.empty", "bulk", f"{RACE}|livelock"),
    ("later.initialised", "later", f"{RACE}|not initialised|has ended"),
    ("later.full", "later", f"{RACE}|has ended|in flight"),
]


def reported(flavour, fault, **variables):
    text = run(flavour, "faults", fault, **variables)
    assert text.endswith("usable\n"), text
    return text


def reported_in_some_schedule(fault, message, mutant=""):
    """In one of the seeds 0 to 3; whatever another one reports is a report too."""
    texts = [reported("thread", fault, EMU_SEED=seed, EMU_MUTANT=mutant) for seed in SEEDS]
    assert any(re.search(message, text) for text in texts), texts
    return texts


@pytest.mark.parametrize(
    "mutant, kernel, message", MUTANTS, ids=[f"{kernel}-{mutant}" for mutant, kernel, _ in MUTANTS]
)
def test_mutants_are_reported(mutant, kernel, message):
    texts = reported_in_some_schedule(kernel, message, mutant)
    assert all(f"site {mutant} " in text for text in texts)
    if message is RACE:  # the detector does not need a lucky schedule
        assert all(re.search(RACE, text) for text in texts), texts


def test_every_site_of_the_right_kernels_has_a_mutant():
    met = {
        line.split()[1] for kernel in RIGHT for line in run("plain", "faults", kernel).splitlines() if "site " in line
    }
    assert met == {mutant for mutant, _, _ in MUTANTS}


@pytest.mark.parametrize(
    "fault, message",
    [
        ("divergent_barrier", "livelock: .*\n.*\n.*32 x block barrier divergent in block 0"),
        ("two_barriers", "in two places: block barrier one and block barrier other"),
        ("early_end", "a thread ends while others wait"),
        ("missing_lanes", "a thread ends while others wait|missing lanes"),
        ("half_a_warp", "shuffle of a warp with missing lanes"),
        ("absent_block", "livelock"),
        ("not_cooperative", "a grid barrier in a launch that is not cooperative"),
        ("misaligned_copy", "not aligned to 16 bytes"),
        ("copy_past_the_end", "cp.async outside of shared memory"),
        ("forgotten_bulk_copy", "ends with copies into its shared memory in flight"),
        ("overwritten_mbarrier", "not initialised, or was overwritten"),
        ("too_many_arrivals", "more arrivals"),
        ("unwritten_shared_memory", "^wrong"),
        ("too_much_shared_memory", "232449 bytes of shared memory; 232448 are possible"),
        ("too_many_threads", "1025 threads a block; 1024 are possible"),
        ("broken_cluster", "6 blocks in clusters of 4"),
    ],
)
def test_faults_are_reported(flavour, fault, message):
    assert re.search(message, reported(flavour, fault))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", ["halves_of_words", "late_write", "plain_flag", "same_word"])
def test_races_are_reported(fault, seed):
    assert re.search(RACE, reported("thread", fault, EMU_SEED=seed))


@pytest.mark.parametrize("fault", ["short_shared_memory", "write_past_the_end"])
def test_overruns_are_reported(fault):
    if reason := build.why_not("address"):
        pytest.skip(reason)
    assert re.search(r"heap-buffer-overflow(.|\n)*WRITE of size 4(.|\n)*faults\.cu", reported("address", fault))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_is_a_schedule(seed):
    """Another seed may race at another place; the same one races at the same."""
    race = [reported("thread", "shared", EMU_MUTANT="shared.written", EMU_SEED=s) for s in (seed, seed, seed + 2)]
    assert race[0] == race[1] != race[2]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: test_emulator.py --write")
    path = build.ROOT / "build" / "primitives.txt"
    run("plain", "primitives", str(path), EMU_SEED=0)
    COMMITTED.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
