"""The extension and the package around it: symbols, wheel, and what is said when something is missing."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fused_rnn
from fused_rnn import native

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fused_rnn.__file__).parent
needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the project's sources")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils to read the library's symbols")


def symbols(*options):
    listing = subprocess.run(["nm", "-D", *options, native.library], capture_output=True, text=True, check=True)
    return [line.split()[-2:] for line in listing.stdout.splitlines()]


@needs_nm
def test_only_symbols_that_torch_2_10_has():
    """What is undefined and has no version of the C or C++ library is PyTorch's: all of it was there in 2.10."""
    listed = (ROOT / "tests" / "data" / "torch_2_10_symbols.txt").read_text().splitlines()
    exported = {line for line in listed if not line.startswith("#")}
    undefined = {name for kind, name in symbols("--undefined-only") if "@" not in name and kind == "U"}
    assert undefined
    assert undefined <= exported, f"not in PyTorch 2.10: {sorted(undefined - exported)}"


@needs_nm
def test_nothing_of_python():
    assert not [name for _, name in symbols("--undefined-only") if name.startswith(("Py", "_Py"))]


@needs_nm
@pytest.mark.parametrize(
    "name", ["generic", "neon", "neon_dot", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx", "amx_emulated"]
)
def test_instruction_sets_share_no_code(name):
    """A function that two instruction sets define under one name is linked once: the older set's, which is slower."""
    code = Path(os.environ.get("FUSED_RNN_OBJECTS", ROOT / "build" / "native")) / "cpu" / f"{name}.o"
    if not code.exists():
        pytest.skip(f"no library with {name} was built in this checkout")
    listing = subprocess.run(["nm", "-C", "--defined-only", code], capture_output=True, text=True, check=True)
    shared = [line for line in listing.stdout.splitlines() if line.split()[1] in "TWVu"]
    # The one way in, and a reference to the C++ runtime that is data, not code.
    assert [s for s in shared if f"fused_rnn::{name}_loops()" not in s and "DW.ref." not in s] == []


@needs_sources
def test_no_object_file_is_linked_before_one_with_fewer_instructions():
    """Unoptimised object files share inline functions, and the linker keeps the first: it must run where the others do.

    In another order, AVX-512 instructions end the process on a processor with AVX2.
    """
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs the C++ compiler to ask it for a flag's instructions")
    before = set()
    for source, flags in runpy.run_path(str(ROOT / "setup.py"))["sources"](None):
        wanted = [flag for flag in shlex.split(flags) if flag.startswith("-m")]
        defined = run([*compiler, *wanted, "-dM", "-E", "-x", "c++", os.devnull], check=True).stdout
        has = {line.split()[1] for line in defined.splitlines() if re.match(r"#define __(SSE|AVX|FMA|BMI)\w* 1$", line)}
        assert has >= before, source
        before = has


def run(command, *, cwd=None, check=False, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=check, timeout=300
    )


@pytest.fixture
def small_copy(tmp_path):
    """The project with an extension that compiles in a second: the packaging without the kernels."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "fused_rnn", tmp_path / "fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "csrc").mkdir()
    for name in ("schemas.cpp", "schemas.h"):
        shutil.copy(ROOT / "csrc" / name, tmp_path / "csrc")
    return tmp_path


@pytest.mark.slow
@needs_sources
def test_wheel_is_for_every_python(small_copy):
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", "out", "."]
    done = run(wheel, cwd=small_copy, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    (built,) = (small_copy / "out").iterdir()
    assert built.name.startswith("fused_rnn-0.1.0-py3-none-"), built.name
    listing = run([sys.executable, "-m", "zipfile", "-l", str(built)]).stdout
    assert "fused_rnn/_C.so" in listing and "fused_rnn/modules.py" in listing
    assert "fused_rnn/triton/kernels.py" in listing


def one_sentence(done, *parts):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


TORCHES = {
    "none": (
        "raise ImportError('no torch here')",
        "building needs an installed PyTorch 2.10 or later: pip install torch",
    ),
    "old": ("__version__ = '2.9.1'", "building needs PyTorch 2.10 or later, got 2.9.1"),
}


@needs_sources
@pytest.mark.parametrize("installed", TORCHES)
def test_build_needs_a_torch(installed, small_copy):
    module, sentence = TORCHES[installed]
    (small_copy / "hidden").mkdir()
    (small_copy / "hidden" / "torch.py").write_text(module)
    done = run([sys.executable, "setup.py", "build_ext"], cwd=small_copy, PYTHONPATH=str(small_copy / "hidden"))
    one_sentence(done, sentence)


@pytest.mark.slow
@needs_sources
def test_build_without_a_compiler(small_copy):
    done = run([sys.executable, "setup.py", "build_ext"], cwd=small_copy, CXX="no-such-compiler")
    one_sentence(done, "building needs a C++17 compiler", "'no-such-compiler' was not found")


@pytest.mark.slow
@needs_sources
def test_build_that_does_not_compile(small_copy):
    (small_copy / "csrc" / "schemas.cpp").write_text("this is not C++\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = run([sys.executable, "setup.py", "build_ext"], cwd=small_copy, PATH=path)
    one_sentence(done, "the compiler reported the errors above")
    assert "schemas.cpp:1" in done.stdout + done.stderr


@pytest.mark.slow
@needs_sources
def test_users_builds_have_no_errors_of_ptxas(small_copy):
    """Another nvcc may spill registers: an error in the Makefile's build for tests only."""
    nvcc = {"FUSED_RNN_CUDA": "1", "NVCC": "echo release 12.8", "NVCCFLAGS": "-lineinfo"}
    run([sys.executable, "setup.py", "build_ext"], cwd=small_copy, CXX="true", **nvcc)
    (flags,) = re.findall(r"^nvccflags = (.*)$", (small_copy / "build/native/build.ninja").read_text(), re.MULTILINE)
    assert "-Werror" not in flags
    assert flags.endswith(" -lineinfo")


@pytest.mark.slow
@needs_sources
def test_debug_build(small_copy):
    """Symbols stay in the library, and a build never uses the object files of the other kind."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "FUSED_RNN_CUDA": "0", "CXXFLAGS": "", "LDFLAGS": ""}
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", "out"]
    for debug, compiles in (("", True), ("1", True), ("1", False), ("", True)):
        done = run(build, cwd=small_copy, **environment, FUSED_RNN_DEBUG=debug)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("compiling schemas.cpp" in done.stdout) == compiles
        library = (small_copy / "out" / "fused_rnn" / "_C.so").read_bytes()
        assert (b".debug_info" in library) == bool(debug)


@pytest.mark.slow
@needs_sources
@pytest.mark.parametrize("debug", [False, True], ids=["release", "debug"])
def test_flags_of_a_debug_build(debug, small_copy):
    nvcc = {"FUSED_RNN_CUDA": "1", "NVCC": "echo release 12.8", "NVCCFLAGS": ""}
    environment = {"FUSED_RNN_DEBUG": str(int(debug)), "CXX": "true", "CXXFLAGS": "", **nvcc}
    run([sys.executable, "setup.py", "build_ext"], cwd=small_copy, **environment)
    text = (small_copy / "build" / "native" / "build.ninja").read_text()
    flags = {name: value.split() for name, value in re.findall(r"^(\w*flags) = (.*)$", text, re.MULTILINE)}
    expected = {
        "cxxflags": {"-Og": debug, "-g": debug, "-O3": not debug},
        "nvccflags": {"-Xcompiler=-Og": debug, "-g": debug, "-lineinfo": debug, "-O3": not debug},
        "ldflags": {"-s": not debug},
    }
    assert {name: {flag: flag in flags[name] for flag in some} for name, some in expected.items()} == expected


USE_IT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fused_rnn, torch
    for _ in range(2):
        fused_rnn.LSTM(3, 4)(torch.zeros(2, 1, 3))[0].sum().backward()
        fused_rnn.GRU(3, 4, reset_after=False)(torch.zeros(2, 1, 3))[0].sum().backward()
    (tuned,) = fused_rnn.tune(fused_rnn.LSTM(3, 4), torch.zeros(2, 1, 3), seconds=0.01)
    assert tuned.choice == "torch" and fused_rnn.tuned()
print([str(w.message) for w in caught if "fused_rnn" in str(w.message)])
print(fused_rnn.explain(fused_rnn.GRU(3, 4, reset_after=False), torch.zeros(2, 1, 3)))
"""


def test_import_does_not_import_the_compiler():
    """PyTorch's compiler takes longer to import than everything else together."""
    done = run([sys.executable, "-c", "import sys, fused_rnn; print('torch._dynamo' in sys.modules)"])
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_a_checkout_runs_on_the_library_of_the_installed_package(tmp_path):
    """Its folder stands before the installed package on the path, and has no library."""
    shutil.copytree(PACKAGE, tmp_path / "fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    told = "import fused_rnn.native as n; print(n.__file__); print(n.library); print(n.load_error)"
    path = os.pathsep.join([str(tmp_path), str(native.library.parents[1])])
    done = run([sys.executable, "-c", told], cwd=tmp_path, PYTHONPATH=path)
    assert done.stdout.split() == [str(tmp_path / "fused_rnn" / "native.py"), str(native.library), "None"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("library", [None, b"this is not a library"], ids=["missing", "broken"])
def test_works_without_the_extension(library, tmp_path):
    hidden = "" if library else "import pathlib; pathlib.Path.exists = lambda path: False\n"  # also what is installed
    shutil.copytree(PACKAGE, tmp_path / "fused_rnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library is not None:
        (tmp_path / "fused_rnn" / "_C.so").write_bytes(library)
    done = run([sys.executable, "-c", hidden + USE_IT], cwd=tmp_path, PYTHONPATH=str(tmp_path), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    _, _, warned, *explained = done.stdout.splitlines()
    assert warned.count("fused_rnn runs without its compiled kernels, and slower") == 1
    assert ("was not built" if library is None else "_C.so") in warned
    assert "  reference" in explained[1]
    for backend in ("cuda", "cpu"):
        assert any(f"not {backend}: the extension could not be loaded" in line for line in explained)
