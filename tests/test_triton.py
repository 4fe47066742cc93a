"""The Triton backend without a GPU: its kernels in the interpreter, compiled for GPUs that are not here; its plans.

python tests/test_triton.py --write    rewrites the table of what every kernel takes
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from closeness import assert_within_budget
from problems import CELLS, SIZES, Layer, Size, comparisons

from fused_rnn import autograd, backends, evidence, native, reference
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM
from fused_rnn.triton import plan

triton = pytest.importorskip("triton", reason="needs Triton: pip install '.[test]'")
from triton_compiler import TARGETS, Kernel, compiling  # noqa: E402

from fused_rnn.triton import ops  # noqa: E402

TESTS = Path(__file__).parent
TABLE = TESTS / "data" / "triton_resources.txt"
COLUMNS = ("kernel", "cell", "math", "tile", "target", "registers", "spilled", "shared")
MATHS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent), *(p for p in sys.path if p)])
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow(seconds=400)
def test_in_the_interpreter():
    tests = str(TESTS / "test_triton_interpreted.py")
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, TRITON_INTERPRET="1")
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


# ---- Compiled ----


def run(cell, math, T, B, H, *, shift=0):
    """Forward and backward of a random layer; `shift` moves the initial states that many numbers in their memory."""
    dtype, allow_tf32 = MATHS[math]
    drawn = Layer.random(cell, dtype, Size(T, B, 3, H), ragged=True)
    states = tuple(torch.cat([s.new_zeros(shift), s.detach().flatten()])[shift:].view_as(s) for s in drawn.states)
    output, final = autograd.run_layer(
        torch.ops.fused_rnn_triton, cell, drawn.x, states, drawn.weights, drawn.lengths, False, drawn.resets, allow_tf32
    )
    torch.autograd.grad((output, *final), drawn.x, drawn.grads)


def layers(target: str) -> Iterator[tuple]:
    """Cell, math, B and H of layers that take every kernel, at the block form's largest H; few rows and many."""
    nvidia = target.startswith("sm")
    for cell in CELLS:
        yield cell, "bfloat16", 16, 64 if target in ("gfx942", "sm_120") else 128
        yield cell, "bfloat16", 16, 256
        yield cell, "float32", 16, 64 if nvidia else 32
    if nvidia:
        yield LSTM, "tf32", 16, 64
    yield LSTM, "float16", 16, 64
    yield LSTM, "float32", 16, 256
    for math in ("bfloat16", "float32"):
        yield LSTM, math, 64, 256


@functools.cache
def compiled(target: str) -> list[tuple[Kernel, str, str]]:
    """The kernels of those layers, each with its cell and math."""
    found = []
    with compiling(target) as kernels:
        for cell, math, B, H in layers(target):
            done = len(kernels)
            run(cell, math, 2, B, H)
            found += [(kernel, str(cell), math) for kernel in kernels[done:]]
    return found


def rows(target: str) -> list[list[str]]:
    table = []
    for kernel, cell, math in compiled(target):
        tile = "x".join(str(kernel.arguments[name]) for name in ("BLOCK_B", "BLOCK_N"))
        taken = (kernel.registers, kernel.spilled, kernel.shared)
        table.append([kernel.name, cell, math, tile, target, *map(str, taken)])
    return sorted(table)


def table_of(rows: list[list[str]]) -> str:
    rows = [list(COLUMNS), *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([f"# Triton {triton.__version__}", *lines]) + "\n"


@pytest.mark.slow
@pytest.mark.xdist_group("compiled")
@pytest.mark.parametrize("target", TARGETS)
def test_compiles(target):
    kernels = compiled(target)
    assert {kernel.name for kernel, *_ in kernels} == {
        "block_forward",
        "block_backward",
        "stepwise_reset",
        "stepwise_forward",
        "stepwise_candidate",
        "stepwise_backward",
    }
    for kernel, cell, math in kernels:
        what = f"{kernel.name} of {cell} in {math}"
        assert kernel.shared <= TARGETS[target][1].shared_bytes, what
        assert kernel.spilled <= 16, f"{what} spills {kernel.spilled} bytes"
        if kernel.name.startswith("block") and (N := kernel.arguments["BLOCK_N"]) > 16:
            before, loop = kernel.code["ttir"].split("scf.for", 1)
            weights = f"tensor<{N}x{N}x!tt.ptr<"
            assert re.search(rf"tt\.load.*{weights}", before), what
            assert not re.search(rf"tt\.load.*{weights}", loop), f"{what} loads weight_hh in its loop"


@pytest.mark.slow
@pytest.mark.xdist_group("compiled")
def test_kernels_take_what_the_table_says():
    committed = TABLE.read_text()
    if not committed.startswith(f"# Triton {triton.__version__}\n"):
        pytest.skip(f"registers are the compiler's choice: {committed.splitlines()[0][2:]} made the table")
    got = [re.split(r"\s{2,}", line) for line in committed.splitlines()[2:]]
    now = [row for target in TARGETS for row in rows(target)]
    lines = [["  ".join(row) for row in table] for table in (got, now)]
    difference = "\n".join(difflib.unified_diff(*lines, TABLE.name, "now", n=0, lineterm=""))
    assert not difference, f"if it is meant, python tests/test_triton.py --write\n{difference}"


@pytest.mark.slow
@pytest.mark.parametrize(("H", "kernels"), [(20, 2), (300, 4)], ids=["block", "stepwise"])
def test_no_compilation_for_T_and_B(H, kernels):
    """Nor for where a state stands in memory. Stepwise there are two tiles, for few rows and many."""
    with compiling("sm_90") as made:
        for T, B, shift in ((1, 1, 0), (2, 2, 0), (3, 16, 1), (16, 17, 2), (4, 33, 3), (17, 64, 0), (2, 1, 1)):
            run(LSTM, "bfloat16", T, B, H, shift=shift)
    assert len(made) == kernels


@pytest.mark.slow
def test_one_unit_compiles():
    """Triton makes a constant of a size that is 1."""
    with compiling("sm_90") as made:
        for cell in CELLS:
            run(cell, "float32", 2, 1, 1)
    assert len(made) == 2 * len(CELLS)


# ---- Plans ----

# The largest H of the block form, forward and backward.
LARGEST = {
    # cell, math: sm_80, sm_120, sm_90, gfx942
    (LSTM, "float32"): ((64, 64, 64, 32), (64, 64, 64, 32)),
    (LSTM, "tf32"): ((64, 64, 64, 32), (64, 64, 64, 32)),
    (LSTM, "bfloat16"): ((128, 64, 128, 64), (128, 64, 128, 64)),
    (GRU, "float16"): ((128, 64, 128, 64), (128, 64, 128, 64)),
    (GRU_RESET_BEFORE, "float32"): ((64, 64, 64, 32), (64, 64, 64, 32)),
}


def make(cell, math, H, target, *, B=16, backward=False):
    dtype, allow_tf32 = MATHS[math]
    return plan.make_plan(cell, dtype, B, H, backward, allow_tf32, TARGETS[target][1])


def test_both_sides_of_the_block_form():
    for (cell, math), passes in LARGEST.items():
        for backward, sizes in zip((False, True), passes):
            for target, H in zip(("sm_80", "sm_120", "sm_90", "gfx942"), sizes):
                fits, too_large = (make(cell, math, h, target, backward=backward) for h in (H, H + 1))
                assert (fits.form, too_large.form) == ("block", "stepwise"), (cell, math, backward, target, H)
                assert fits.tiles.units >= H and not fits.reason
                assert "does not fit on the chip" in str(too_large)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_shape_has_a_plan(cell, target):
    for math in MATHS:
        for H in (1, 7, 64, 200, 1024, 5000):
            for B in (1, 32, 33, 100_000):
                for backward in (False, True):
                    made = make(cell, math, H, target, B=B, backward=backward)
                    assert made.form in ("block", "stepwise")
                    assert (made.precision == "tf32") == (math == "tf32" and target != "gfx942")


@pytest.mark.slow
def test_the_tuner_tries_every_row():
    done = python("-m", "bench.tune_triton", "--list")
    assert done.stdout.count("Row(") == len(plan.TABLE), done.stderr
    assert all(int(n) > 10 for n in re.findall(r"# (\d+) candidates", done.stdout))


# ---- Among the backends ----


def posed(device="cpu", dtype=torch.float32, **flags):
    return backends.Problem(LSTM, torch.device(device), dtype, T=3, B=2, I=4, H=5, **flags)


def test_says_why_not(monkeypatch):
    why_not = backends.by_name("triton").why_not
    assert "float64" in why_not(posed(dtype=torch.float64))
    assert "proj_size" in why_not(posed(projection=3))
    assert "torch.func" in why_not(posed(transformed=True))
    assert "TRITON_INTERPRET=1" in why_not(posed())
    assert "on meta" in why_not(posed("meta"))
    with backends.use_backend("triton"), pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        backends.choose(posed())
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert why_not(posed("cuda:0")) == "PyTorch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(evidence, "gpu_name", lambda device_type, index: "a GPU that was not measured")
    for device, compiler, reason in (
        (
            plan.Device("nvidia", 75, 64 << 10),
            "cc",
            "Triton needs compute capability 8.0 or later, and this GPU has 7.5",
        ),
        (plan.Device("nvidia", 80, 163 << 10), None, "Triton needs a C compiler to launch kernels"),
        (plan.Device("nvidia", 80, 163 << 10), "cc", None),
    ):
        plan._why_not.cache_clear()
        monkeypatch.setattr(plan, "device_of", lambda _, device=device: device)
        monkeypatch.setattr(plan.shutil, "which", lambda name, compiler=compiler: compiler)
        found = why_not(posed("cuda:0"))
        assert found is None if reason is None else found.startswith(reason)
    assert backends.choose(posed("cuda:0")).name == "torch"  # no measurement shows Triton's kernels to be faster
    assert backends.choose(posed("cuda:0", ragged=True)).name == "triton"
    assert str(backends.by_name("triton").plan(posed("cuda:0", training=True))).count("block: ") == 2
    plan._why_not.cache_clear()


IMPORTED = """
import sys, torch, fused_rnn
fused_rnn.GRU(3, 4, reset_after=False)(torch.zeros(2, 1, 3))[0].sum().backward()
print("triton" in sys.modules, [name for name in sys.modules if name.startswith("fused_rnn.triton.")])
"""


@pytest.mark.slow
def test_imported_only_when_chosen():
    assert python("-c", IMPORTED).stdout.strip() == "False ['fused_rnn.triton.plan']"  # plain arithmetic


WITHOUT = """
import sys
sys.modules["triton"] = None
import torch, fused_rnn
print(fused_rnn.backends.by_name("triton").why_not(fused_rnn.backends.Problem(
    fused_rnn.cell.LSTM, torch.device("cuda"), torch.float32, T=1, B=1, I=1, H=1)))
"""


@pytest.mark.slow
def test_without_triton():
    assert python("-c", WITHOUT).stdout.strip() == "Triton is not installed: pip install triton"


@pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}")
@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_schemas_are_the_native_ones(name):
    ours, theirs = (
        str(getattr(getattr(torch.ops, space), name).default._schema) for space in (ops.NAMESPACE, "fused_rnn")
    )
    assert ours.removeprefix(f"{ops.NAMESPACE}::") == theirs.removeprefix("fused_rnn::")


# ---- On a GPU ----

REASON = backends.by_name("triton").why_not(posed("cuda:0"))
needs_gpu = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@needs_gpu
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("size", (*SIZES, Size(40, 64, 32, 64), Size(20, 33, 40, 128), Size(9, 40, 5, 300)), ids=str)
@pytest.mark.parametrize("math", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_against_float64_on_a_gpu(cell, math, size, ragged, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    drawn = Layer.random(cell, MATHS[math][0], size, ragged=ragged)
    got = {name: value.cpu() for name, value in drawn.to("cuda").results(ops.run_layer, reverse=ragged).items()}
    same = drawn.results(reference.run, ragged)
    for name, compared in comparisons([drawn], [got], [same], ragged).items():
        assert_within_budget(name, *compared)


@needs_gpu
@pytest.mark.parametrize("H", [64, 300], ids=["block", "stepwise"])
def test_bits_repeat_on_a_gpu(H):
    drawn = Layer.random(LSTM, torch.bfloat16, Size(40, 64, 32, H)).to("cuda")
    first, second = drawn.results(ops.run_layer), drawn.results(ops.run_layer)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@needs_gpu
@pytest.mark.parametrize("H", [64, 300], ids=["block", "stepwise"])
def test_graph_capture_and_replay_on_a_gpu(H):
    drawn = Layer.random(GRU, torch.float32, Size(20, 8, 32, H)).to("cuda")
    arguments = (GRU, drawn.x, drawn.states, drawn.weights, None, False)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            ops.run_layer(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = ops.run_layer(*arguments)
        for _ in range(3):
            drawn.x.normal_()
            graph.replay()
            assert torch.equal(output, ops.run_layer(*arguments)[0])


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    TABLE.write_text(table_of([row for target in TARGETS for row in rows(target)]))
