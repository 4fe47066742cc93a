"""The choice of a backend and its refusals; that the forced one really ran; the instruction sets of the CPU."""

import ctypes
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import Layer, Size

from fused_rnn import backends, native
from fused_rnn.call import Call, Form, Problem
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM

TESTS = Path(__file__).parent


def problem(cell=LSTM, device="cpu", dtype=torch.float32, **flags):
    return Problem(cell, torch.device(device), dtype, T=3, B=2, I=4, H=5, **flags)


@pytest.mark.parametrize(
    ("posed", "chosen"),
    [
        (problem(), "cpu"),
        (problem(training=True, ragged=True), "cpu"),
        (problem(GRU_RESET_BEFORE, dtype=torch.bfloat16), "cpu"),
        (problem(projection=3), "cpu"),
        (problem(projection=3, ragged=True), "cpu"),
        (problem(dtype=torch.complex64), "torch"),
        (problem(transformed=True), "reference"),
        (problem(device="cuda"), "torch"),
        (problem(GRU_RESET_BEFORE, device="cuda"), "reference"),
        (problem(device="meta"), "reference"),
    ],
    ids=str,
)
def test_choice(posed, chosen):
    assert backends.choose(posed).name == chosen


def test_the_last_backend_runs_everything():
    assert backends.BACKENDS[-1].why_not(problem(GRU_RESET_BEFORE, "meta", torch.complex64, projection=3)) is None


def test_a_wish_that_cannot_be_met_is_an_error():
    with backends.use_backend("cpu"), pytest.raises(ValueError, match=r"'cpu' cannot run .*complex64"):
        backends.choose(problem(dtype=torch.complex64))
    with (
        pytest.raises(ValueError, match="'gpu' is not one of cuda, cpu, triton, torch, segments, reference"),
        backends.use_backend("gpu"),
    ):
        pass


def test_the_wish_ends_with_the_context():
    with backends.use_backend("reference"):
        with backends.use_backend("cpu"):
            assert backends.choose(problem()).name == "cpu"
        assert backends.choose(problem()).name == "reference"
    assert backends.choose(problem()).name == "cpu"


@pytest.mark.slow
def test_environment_forces_a_backend():
    script = "import fused_rnn, torch; fused_rnn.GRU(1, 1)(torch.zeros(1, 1)); print(fused_rnn.backends.forced())"
    for name, told in (("reference", "reference\n"), ("", "None\n"), ("nonsense", "'nonsense' is not one of")):
        environment = {**os.environ, "FUSED_RNN_BACKEND": name}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert told in done.stdout + done.stderr


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=str)
@pytest.mark.parametrize("name", ["cpu", "torch", "reference"])  # the others need a GPU
def test_the_forced_backend_ran(name, cell):
    """Seen in the operators that reach the dispatcher."""
    drawn = Layer.random(cell, torch.float32, Size(3, 2, 4, 5))
    with torch.profiler.profile() as profile, backends.use_backend(name), torch.no_grad():
        backends.run(drawn.call())
    seen = {event.key for event in profile.key_averages()}
    marks = {"cpu": "fused_rnn::inference", "torch": f"aten::{cell.name}"}
    assert {n for n, mark in marks.items() if mark in seen} == {name} - {"reference"}


def test_torch_backend_projects():
    module = torch.nn.LSTM(4, 6, proj_size=3)
    x = torch.randn(5, 2, 4)
    with backends.use_backend("torch"):
        results = backends.run(Call(LSTM, x, (), module._flat_weights, Form(projection=True)))
    output, (h, c) = module(x)
    assert all(torch.equal(got, want) for got, want in zip(results, (output, h, c), strict=True))


def isa_flags(name):
    """The compiler's flags for the kernels of an x86 instruction set, from the build."""
    return runpy.run_path(str(TESTS.parent / "setup.py"))["ISA_FLAGS"]["x86_64"].get(name, "").split()


def instruction_sets():
    if platform.machine() in ("aarch64", "arm64"):
        features = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        return ["neon_dot"] * ("asimddp" in features) + ["neon", "generic"]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return [
        name
        for name, flag in (
            ("amx", "amx_bf16"),
            ("avx512_bf16", "avx512_bf16"),
            ("avx512_vnni", "avx512_vnni"),
            ("avx512", "avx512vl"),
            ("avx2", "avx2"),
        )
        if f" {flag} " in flags
    ] + ["generic"]


def system_allows_amx():
    """Asked as the loops ask, by Linux' arch_prctl; an x86 processor with AMX is there."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def run_python(*arguments, **environment):
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


NAME_IT = "import torch, fused_rnn.native; print(torch.ops.fused_rnn.cpu_instruction_set())"


@pytest.mark.slow(seconds=80)
@pytest.mark.parametrize("name", [*instruction_sets(), "amx_emulated"])
def test_forced_instruction_set(name):
    """It ran, and is right: the sizes around its vectors, in a process of its own. Chunks of steps are not its own."""
    if name == "amx_emulated" and not (torch.ops.fused_rnn.poisoned() and "avx2" in instruction_sets()):
        pytest.skip("only builds for the tests have the emulated AMX, and it needs AVX2")
    if name == "amx" and not system_allows_amx():
        pytest.skip("the processor has AMX, and the system refuses it to this process")
    assert run_python("-c", NAME_IT, FUSED_RNN_ISA=name).stdout.strip() == name
    if name == native.cpu_instruction_set():
        return  # what test_recurrence.py runs on in this process
    if name in ("avx512_vnni", "neon_dot"):
        return  # only its loops of int8 weights are its own: tests/test_quantize.py
    dtypes = "bfloat16" if name.startswith("amx") else "float64 or bfloat16 or float16"  # that have loops of its own
    tests = [str(TESTS / "test_recurrence.py"), "-k", f"not rnn_relu and not T70 and ({dtypes})"]
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, FUSED_RNN_ISA=name)
    assert done.returncode == 0, done.stdout[-4000:]
    if name == "amx_emulated":
        reduced = str(TESTS / "test_reduced_precision.py")
        done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", reduced, FUSED_RNN_ISA=name)
        assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout[-4000:]


def test_cuda_says_why_not():
    """Here there is no driver, or the extension was built without CUDA: a sentence, and the next backend."""
    posed = problem(device="cuda:0")
    cuda = backends.by_name("cuda")
    assert "float64" in cuda.why_not(problem(device="cuda:0", dtype=torch.float64))
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: tests/test_cuda.py runs the kernels")
    reason = cuda.why_not(posed)
    assert reason in ("there is no NVIDIA driver", "the extension was built without CUDA") or "CUDA" in reason
    assert backends.choose(posed).name == "torch"
    with backends.use_backend("cuda"), pytest.raises(ValueError, match=reason):
        backends.choose(posed)


@pytest.mark.slow(seconds=40)
def test_small_caches():
    """Weights of every size are prefetched, projected in small chunks, and rows are taken in slices."""
    tests = [str(TESTS / "test_recurrence.py"), "-k", "not rnn_relu and not T70 and (float32 or bfloat16)"]
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, FUSED_RNN_L2_KIB="1")
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("given", ["0", "-1", "1.5", "big", "1e3", "9999999999"])
def test_not_the_size_of_a_cache(given):
    done = run_python(
        "-c", "import torch, fused_rnn; fused_rnn.LSTM(8, 8)(torch.ones(9, 1, 8))", FUSED_RNN_L2_KIB=given
    )
    assert f"FUSED_RNN_L2_KIB={given} is not the size of a second-level cache in KiB" in done.stderr


@pytest.mark.slow
def test_unknown_instruction_set():
    done = run_python("-c", NAME_IT, FUSED_RNN_ISA="mmx")
    assert "FUSED_RNN_ISA=mmx is not one of" in done.stderr
