"""The parts of csrc/ that need no torch, compiled alone by the test."""

import itertools
import os
import platform
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import reduced
import torch
from closeness import assert_within_budget
from problems import CELLS, DTYPES, Layer, Size, comparisons
from test_backends import instruction_sets, isa_flags
from test_recurrence import plain

from fused_rnn import int8, panels, reference
from fused_rnn.cell import LSTM

NATIVE = Path(__file__).parent / "native"
CPU = NATIVE.parent.parent / "csrc" / "cpu"
CXX = os.environ.get("CXX", "c++")

if not shutil.which(CXX):
    pytest.skip(f"needs the compiler {CXX}", allow_module_level=True)


pytestmark = pytest.mark.slow

# Bytes, instruction set. The compiler builds vectors that are too wide for a set from narrower ones.
VECTORS = [(16, "generic"), (32, "generic"), (64, "generic"), (32, "avx2"), (64, "avx512"), (64, "avx512_bf16")]


@pytest.mark.parametrize(("vector_bytes", "isa"), VECTORS)
def test_vector_arithmetic(vector_bytes, isa, tmp_path):
    if isa not in instruction_sets():
        pytest.skip(f"this processor has no {isa}")
    program = tmp_path / "test_vector"
    own = ["-ffp-contract=off"] if isa == "generic" else isa_flags(isa)
    flags = ["-std=c++17", "-O2", *own, "-Wno-psabi", f"-DFUSED_RNN_VECTOR_BYTES={vector_bytes}"]
    subprocess.run([CXX, *flags, str(NATIVE / "test_vector.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ---- The loops of a processor that is not here ----

AARCH64 = ("aarch64-linux-gnu-g++", "qemu-aarch64")  # Debian: g++-aarch64-linux-gnu, qemu-user


def layer_runner(folder, compiler, flags, *sources, by=()):
    """Compiles native/run_layer.cpp with these loops; a function that runs the program, by the command ``by``."""
    program = folder / "run_layer"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-DFUSED_RNN_POISON", *flags]
    files = [NATIVE / "run_layer.cpp", CPU / "caches.cpp", CPU / "scratch.cpp", *sources]
    subprocess.run([compiler, *flags, *files, "-o", program], check=True)

    def run(*arguments, given=b"", **environment):
        command = [*by, program, *arguments]
        done = subprocess.run(command, input=given, stdout=subprocess.PIPE, env=os.environ | environment)
        assert done.returncode == 0
        return done.stdout

    return run


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    """Runs layers as compiled for AArch64, by an emulator."""
    if missing := [tool for tool in AARCH64 if not shutil.which(tool)]:
        pytest.skip(f"needs {' and '.join(missing)}: other processors than this one's are emulated")
    compiler, emulator = AARCH64
    folder = tmp_path_factory.mktemp("aarch64")
    dot = folder / "neon_dot.o"
    own = runpy.run_path(str(CPU.parent.parent / "setup.py"))["ISA_FLAGS"]["aarch64"]["neon_dot"]
    subprocess.run([compiler, "-std=c++17", "-O1", own, "-c", CPU / "neon_dot.cpp", "-o", dot], check=True)
    sources = [CPU / f"{name}.cpp" for name in ("isa", "neon", "generic")]
    return layer_runner(folder, compiler, ["-static"], *sources, dot, by=[emulator])


def wide_runner(tmp_path_factory, *flags):
    flags = ["-Wno-psabi", *(isa_flags("avx2") if "avx2" in instruction_sets() else []), *flags]
    return layer_runner(tmp_path_factory.mktemp("wide"), CXX, flags, NATIVE / "wide_loops.cpp")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Runs layers with the vectors and tiles of AVX-512 on any processor."""
    return wide_runner(tmp_path_factory)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Runs layers of bfloat16, and float32 in reduced precision, in pairs of bfloat16 as AVX512-BF16 has them."""
    return wide_runner(tmp_path_factory, "-DFUSED_RNN_PAIRS")


@pytest.fixture(scope="module")
def amx(tmp_path_factory):
    """The same in emulated tiles of AMX."""
    return wide_runner(tmp_path_factory, "-DFUSED_RNN_AMX", "-DFUSED_RNN_AMX_EMULATED")


def numbers(tensor):
    """The tensor's numbers as they lie in memory; numpy has no bfloat16."""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


FLOAT32, BFLOAT16 = 0, 1  # factors of float32 layers
QUANTIZED = {torch.bfloat16: 2, torch.int8: 3}  # or their weights


def posed(layer, reverse, factors, weights=None):
    """What native/run_layer.cpp reads."""
    T, B, I = layer.x.shape
    ragged, bias = layer.lengths is not None, layer.weights.bias_ih is not None
    kind, dtype = CELLS.index(layer.cell), layer.x.dtype
    P, H = layer.weights.weight_hh.size(1), layer.weights.weight_hh.size(0) // layer.cell.gates
    header = (kind, dtype.itemsize, dtype == torch.bfloat16, factors, T, B, I, H, P if P < H else 0)
    tensors = (layer.lengths, layer.x, *(weights or layer.weights), *layer.states, *layer.grads)
    return numpy.array([*header, reverse, ragged, bias], numpy.int64).tobytes() + b"".join(
        numbers(t) for t in tensors if t is not None
    )


@pytest.mark.slow(seconds=150)
@pytest.mark.xdist_group("aarch64")
def test_aarch64_has_neon(aarch64):
    assert aarch64("isa").split()[0] == b"neon_dot"
    assert aarch64("isa", FUSED_RNN_ISA="neon").split()[0] == b"neon"
    assert aarch64("isa", FUSED_RNN_ISA="generic").split()[0] == b"generic"


SIZES = Size(7, 3, 5, 63), Size(3, 6, 7, 20), Size(1, 8, 7, 20), Size(2, 5, 7, 20), Size(70, 4, 3, 6)


def assert_right(run, cell, dtype, sizes=SIZES, *, reduces=False, **environment):
    """Every result within the budget that test_recurrence.py has for this processor's own loops."""
    plain_layer = reduced.in_bfloat16 if reduces else plain
    factors = BFLOAT16 if reduces else FLOAT32
    cases = [(size, False, False, True, 0) for size in sizes]
    cases += [(sizes[0], *flags, 0) for flags in itertools.product((False, True), repeat=3)]
    if cell is LSTM:
        short = [size for size in sizes if size.T < 50]  # many steps take many draws
        cases += [(size, i % 2 == 1, i % 2 == 0, i % 2 == 1, (size.H + 1) // 2) for i, size in enumerate(short)]
    for size, reverse, ragged, bias, projection in cases:
        options = dict(ragged=ragged, bias=bias, projection=projection)
        draws = 10 if projection else 3  # the more, the less of PyTorch's largest error is luck
        drawn = [Layer.random(cell, dtype, size, **options, seed=seed) for seed in range(draws)]
        same = [layer.results(plain_layer, reverse) for layer in drawn]
        written = run(given=b"".join(posed(layer, reverse, factors) for layer in drawn), **environment)
        flat = torch.frombuffer(bytearray(written), dtype=dtype)
        flat = iter(flat.split([t.numel() for result in same for t in result.values()]))
        got = [{name: next(flat).reshape(t.shape) for name, t in result.items()} for result in same]
        for name, compared in comparisons(drawn, got, same, reverse).items():
            assert_within_budget(name, *compared)


@pytest.mark.slow(seconds=150)
@pytest.mark.xdist_group("aarch64")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("isa", ["neon", "generic"])
def test_loops_of_aarch64(isa, cell, dtype, aarch64):
    assert_right(aarch64, cell, dtype, FUSED_RNN_ISA=isa)


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("wide")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_wide_loops(cell, dtype, wide):
    """With weights that are near, and with caches that are too small for any: 1, 3 and 5 tiles of rows prefetch."""
    assert_right(wide, cell, dtype)
    assert_right(wide, cell, dtype, (*SIZES, Size(4, 13, 5, 40), Size(3, 26, 17, 40)), FUSED_RNN_L2_KIB="1")


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("amx")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_amx_loops(cell, amx):
    """Around 16 and 32 rows of the batch, 16 units, 32 numbers of k and 512 rows of a chunk; up to 15 steps of 16 rows
    use the weights where they are, and more pack them."""
    in_place = Size(4, 13, 5, 40), Size(15, 8, 33, 17), Size(2, 16, 64, 32)
    packed = Size(16, 13, 5, 40), Size(3, 17, 33, 17), Size(3, 33, 31, 16), Size(2, 40, 1, 65), Size(9, 66, 8, 3)
    assert_right(amx, cell, torch.bfloat16, (*SIZES, *in_place))
    assert_right(amx, cell, torch.bfloat16, packed)
    assert_right(amx, cell, torch.bfloat16, (*in_place[:2], *packed[:2]), FUSED_RNN_L2_KIB="1")


def products_of_tiles(folder, *flags):
    """The output of native/tiles.cpp, products of bfloat16 and of int8, or None if the system refuses AMX."""
    program = folder / "tiles"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([CXX, *flags, NATIVE / "tiles.cpp", "-o", program], check=True)
    done = subprocess.run([program], stdout=subprocess.PIPE, check=False)
    assert done.returncode in (0, 2)
    if done.returncode == 2:
        return None
    products = numpy.frombuffer(done.stdout, numpy.float32).reshape(-1, 2, 16, 16)
    return products[:, 0], products[:, 1].view(numpy.int32)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86 processors have AMX")
def test_emulated_tiles_are_the_instructions(tmp_path):
    emulated = products_of_tiles(tmp_path, "-DFUSED_RNN_AMX_EMULATED")
    assert all(len(products) == 16 * 3 for products in emulated) and numpy.isfinite(emulated[0]).all()
    if "amx" not in instruction_sets():
        pytest.skip("the emulated products ran; this processor has no AMX to compare them with")
    if (products := products_of_tiles(tmp_path)) is None:
        pytest.skip("the emulated products ran; the system refuses AMX to this process")
    for got, want in zip(products, emulated, strict=True):
        numpy.testing.assert_array_equal(got, want)  # but for the sign of zeros


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("pairs")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_pairs_of_bfloat16(cell, pairs):
    assert_right(pairs, cell, torch.bfloat16, (*SIZES, Size(4, 13, 5, 40), Size(3, 33, 31, 16)))
    assert_float32_in_reduced_precision(pairs, cell)


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("amx")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_amx_in_reduced_precision(cell, amx):
    assert_float32_in_reduced_precision(amx, cell)


def assert_float32_in_reduced_precision(run, cell):
    """Factors of bfloat16; states, gates and sums of float32."""
    sizes = Size(16, 13, 5, 40), Size(3, 17, 33, 17), Size(3, 33, 64, 16), Size(9, 66, 8, 3)
    assert_right(run, cell, torch.float32, (*SIZES, *sizes), reduces=True)
    assert_right(run, cell, torch.float32, sizes[:2], reduces=True, FUSED_RNN_L2_KIB="1")


# ---- Quantised weights ----


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory):
    """Runs layers of int8 with numbers of weights as VNNI takes them."""
    return wide_runner(tmp_path_factory, "-DFUSED_RNN_UNSIGNED")


@pytest.fixture(scope="module")
def avx_vnni(tmp_path_factory):
    """The same in vectors of 32 bytes with the instruction of AVX-VNNI, which the test program defines."""
    if "avx2" not in instruction_sets():
        pytest.skip("needs a processor with AVX2: the rest of the set is that")
    return wide_runner(tmp_path_factory, "-DFUSED_RNN_AVX_VNNI")


def assert_quantized_is_right(run, cell, dtype, sizes=SIZES, doubtful=0.0, **environment):
    """Results are those of the package in PyTorch, which tests/test_quantize.py checks.

    Args:
        doubtful: the share of results that may be off by 0.002, where an h between two int8 became the other.
    """
    name, *layouts = run("isa", **environment).decode().splitlines()
    layout = [int(n) for n in layouts[CELLS.index(cell) + (len(CELLS) if dtype == torch.int8 else 0)].split()]
    for size, (reverse, ragged, bias) in itertools.product(sizes, [(False, False, True), (True, True, False)]):
        layer = Layer.random(cell, torch.float32, size, ragged=ragged, bias=bias)
        rows = {n: getattr(layer.weights, n) for n in ("weight_ih", "weight_hh")}
        if dtype == torch.int8:
            rows = {n: int8.rows_of(weight) for n, weight in rows.items()}
            numbers, scales = zip(*rows.values())
        else:
            numbers, scales = [weight.to(dtype) for weight in rows.values()], ()
            rows = dict(zip(rows, [n.float() for n in numbers]))
        packed = [panels.packed(cell, n, is_hidden, layout) for n, is_hidden in zip(numbers, (False, True))]
        given = [*scales, *packed, layer.weights.bias_ih, layer.weights.bias_hh]
        written = run(given=posed(layer, reverse, QUANTIZED[dtype], given), **environment)
        got = torch.frombuffer(bytearray(written), dtype=torch.float32)
        output, final = reference.run(
            cell, layer.x, layer.states, layer.weights._replace(**rows), layer.lengths, reverse, layer.resets
        )
        want = torch.cat([t.flatten() for t in (output, *final)])
        error = (got - want).abs()
        is_off = ~(error < 3e-6 * max(1, size.T // 8))
        assert is_off.float().mean() <= doubtful, f"{name} {size}: {error[is_off]}"
        assert not is_off.any() or error.max() < 0.002, f"{name} {size}: {error.max()}"


MORE_SIZES = (*SIZES, Size(4, 13, 5, 40), Size(3, 26, 17, 40))
by_dtype = pytest.mark.parametrize("dtype", QUANTIZED, ids=str)


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("wide")
@by_dtype
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_quantized_in_wide_vectors(cell, dtype, wide):
    assert_quantized_is_right(wide, cell, dtype, MORE_SIZES)
    assert_quantized_is_right(wide, cell, dtype, FUSED_RNN_L2_KIB="1")


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("unsigned")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_int8_as_vnni_takes_it(cell, unsigned):
    assert_quantized_is_right(unsigned, cell, torch.int8, MORE_SIZES)


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("avx_vnni")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_int8_in_short_vectors_of_vnni(cell, avx_vnni):
    assert_quantized_is_right(avx_vnni, cell, torch.int8, MORE_SIZES)


@pytest.mark.slow(seconds=100)
@pytest.mark.xdist_group("amx")
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_int8_in_emulated_tiles(cell, amx):
    """Up to 2 rows in vector registers, up to 16 in one row of tiles, 17 and more in two; K of whole tiles and not."""
    sizes = [Size(2, B, I, H) for B, (I, H) in itertools.product((1, 2, 3, 16, 17, 33), ((64, 128), (63, 70), (5, 9)))]
    assert_quantized_is_right(amx, cell, torch.int8, (*MORE_SIZES, *sizes), doubtful=0.05)


@pytest.mark.slow(seconds=150)
@pytest.mark.xdist_group("aarch64")
@by_dtype
@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("isa", ["neon_dot", "neon"])
def test_quantized_on_aarch64(isa, cell, dtype, aarch64):
    assert_quantized_is_right(aarch64, cell, dtype, FUSED_RNN_ISA=isa)
