"""Builds the extension: one shared library on PyTorch's stable ABI, for every Python and every PyTorch from 2.10 on.

CXX, CXXFLAGS, LDFLAGS and MAX_JOBS are obeyed. FUSED_RNN_POISON=1 fills what the library allocates with NaN, for the
tests. FUSED_RNN_DEBUG=1 builds for a debugger: symbols, little optimisation, and line numbers in the CUDA kernels.
FUSED_RNN_OBJECTS is the folder of the object files, build/native unless set. Object files whose flags have changed are
compiled again.

The CUDA kernels are built where nvcc is: $NVCC, in $CUDA_HOME/bin or on PATH. Building needs no GPU.
FUSED_RNN_CUDA=1 insists on them, 0 leaves them out. FUSED_RNN_CUDA_ARCHS="80 90a" chooses the architectures; the newest
one's PTX comes with them, for GPUs that are newer still. NVCCFLAGS is obeyed.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OLDEST_TORCH = (2, 10)
TARGET_VERSION = "0x020a000000000000ull"  # the stable ABI of OLDEST_TORCH

# GCC 12 warns of its own header of intrinsics.
AVX512_FLAGS = (
    "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512 "
    "-Wno-uninitialized -Wno-maybe-uninitialized"
)

# Loops begin at the start of a cache line: a tile of 4 x 2 took a third longer where its loop did not.
ALIGNED = "-falign-loops=64"

# Kernels of one instruction set: source file, flags. Only builds for its processor have the file. Each set has all
# instructions of those before it.
ISA_FLAGS = {
    "x86_64": {
        "avx2": f"-mavx2 -mfma {ALIGNED}",
        "avx_vnni": f"-mavx2 -mfma {ALIGNED}",
        "amx_emulated": "-mavx2 -mfma -Wno-psabi",
        "avx512": f"{AVX512_FLAGS} {ALIGNED}",
        "avx512_vnni": f"{AVX512_FLAGS} -mavx512vnni {ALIGNED}",
        "avx512_bf16": f"{AVX512_FLAGS} -mavx512vnni -mavx512bf16 {ALIGNED}",
        "amx": f"{AVX512_FLAGS} -mavx512vnni -mavx512bf16 {ALIGNED}",
    },
    "aarch64": {"neon": "", "neon_dot": "-march=armv8.2-a+dotprod"},  # every AArch64 processor has the first
}

# Clang's assembler knows the instructions of a file's flags only. GCC's knows AMX without a flag, which GCC 10 lacks.
CLANG_FLAGS = {"amx": "-mamx-tile -mamx-bf16 -mamx-int8"}

# GCC 10 lacks these: there, such a file has the instructions of the set before it.
LATE_FLAGS = {"avx_vnni": "-mavxvnni"}

OLDEST_NVCC = (12, 8)  # the first one that knows the architectures 100 and 120
CUDA_ARCHITECTURES = "75 80 86 89 90a 100 120"


def fail(sentence: str) -> NoReturn:
    sys.exit(f"fused_rnn: {sentence}")


def torch_directory() -> Path:
    try:
        import torch
    except ImportError:
        fail(
            "building needs an installed PyTorch 2.10 or later: pip install torch, "
            "then pip install --no-build-isolation fused-rnn"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        fail(f"building needs PyTorch 2.10 or later, got {torch.__version__}")
    return Path(torch.__file__).parent


def env(name: str) -> str:
    return os.environ.get(name, "")


def program(name: str, purpose: str) -> str:
    found = shutil.which(name)
    if found is None:
        fail(f"building needs {purpose}, and {name!r} was not found")
    return found


class Cuda(NamedTuple):
    nvcc: list[str]
    architectures: list[str]
    targets: list[str]  # nvcc's flags for the architectures
    includes: list[str]  # g++'s flags
    libraries: list[str]

    def names(self) -> str:
        return " ".join(self.architectures)


def what_it_says(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def knows(compiler: list[str], flag: str) -> bool:
    command = [*compiler, flag, "-fsyntax-only", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def find_nvcc() -> list[str] | None:
    wanted = env("FUSED_RNN_CUDA")
    if wanted not in ("", "0", "1"):
        fail(f"FUSED_RNN_CUDA must be 0, 1 or empty, got {wanted!r}")
    if wanted == "0":
        return None
    nvcc = shlex.split(env("NVCC")) or ["nvcc"]
    home = [f"{env('CUDA_HOME')}/bin"] if env("CUDA_HOME") else []
    found = shutil.which(nvcc[0], path=os.pathsep.join([*home, env("PATH")]))
    if found is None and (wanted == "1" or env("NVCC")):
        fail(f"building the CUDA kernels needs nvcc, and {nvcc[0]!r} was found neither in $CUDA_HOME/bin nor on PATH")
    return found and [found, *nvcc[1:]]


def find_cuda() -> Cuda | None:
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    version = re.search(r"release (\d+)\.(\d+)", what_it_says([*nvcc, "--version"]))
    if version is None or (int(version[1]), int(version[2])) < OLDEST_NVCC:
        got = version[0] if version else shlex.join(nvcc)
        fail(f"building the CUDA kernels needs nvcc 12.8 or later, got {got}; FUSED_RNN_CUDA=0 builds without them")

    asked = re.findall(r"[^\s;,]+", env("FUSED_RNN_CUDA_ARCHS")) or CUDA_ARCHITECTURES.split()
    names = sorted(set(asked), key=lambda name: (int("0" + re.sub(r"\D", "", name)), name))
    newest = names[-1].rstrip("af")  # the PTX of 90a would run on 90 only
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
    targets.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")

    # nvcc may be a script somewhere else: only itself knows where its headers and libraries are.
    plan = what_it_says([*nvcc, "--dryrun", *targets, "-x", "cu", "-c", os.devnull, "-o", os.devnull])
    if unknown := re.search(r"Unsupported gpu architecture '\w+?_([^']*)'", plan):
        known = " ".join(re.findall(r"sm_(\w+)", what_it_says([*nvcc, "--list-gpu-code"])))
        fail(f"nvcc {version[0]} has no architecture {unknown[1]!r}, which FUSED_RNN_CUDA_ARCHS names; it has {known}")
    folders = {name: shlex.split(value) for name, value in re.findall(r"^#\$ (INCLUDES|LIBRARIES)=(.*)$", plan, re.M)}
    includes = [f"-isystem {flag.removeprefix('-I')}" for flag in folders.get("INCLUDES", [])]
    libraries = [*folders.get("LIBRARIES", []), "-lcudart_static -ldl -lpthread -lrt"]
    return Cuda(nvcc, names, targets, includes, libraries)


def sources(cuda: Cuda | None) -> Iterator[tuple[Path, str]]:
    """Every source file with the flags of its own, in the linker's order.

    Instruction sets come last, the oldest first. Without optimisation, object files share inline functions, of which
    the linker keeps the first: one that runs wherever the others do.
    """
    csrc = ROOT / "csrc"
    machine = platform.machine().lower()
    here = ISA_FLAGS.get({"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine), {})
    all_sets = {stem for flags in ISA_FLAGS.values() for stem in flags}
    for file in sorted([*csrc.glob("*.cpp"), *csrc.glob("cpu/*.cpp")]):
        if file.stem not in all_sets:
            yield file, ""
    architectures = cuda.names() if cuda else ""
    report = f"-DFUSED_RNN_CUDA_ARCHS='\"{architectures}\"'"
    without_cuda = {"cost": "", "plan": "", "report": report}  # files of every build
    for file in sorted(csrc.glob("cuda/*.cpp")):
        if cuda or file.stem in without_cuda:
            yield file, without_cuda.get(file.stem, " ".join(cuda.includes) if cuda else "")
    if cuda:
        yield from ((file, "") for file in sorted(csrc.glob("cuda/kernels/*.cu")))
    for stem, flags in here.items():
        if (file := csrc / "cpu" / f"{stem}.cpp").exists():
            yield file, flags


def ninja_file(library: Path) -> str:
    torch = torch_directory()
    cuda = find_cuda()
    cxx = shlex.split(env("CXX") or "c++")
    cxx[0] = program(cxx[0], "a C++17 compiler (set CXX to choose one)")
    debug = env("FUSED_RNN_DEBUG") == "1"
    flags = [
        f"-std=c++17 {'-Og -g' if debug else '-O3'} -fPIC -fvisibility=hidden",
        "-fno-math-errno -ffp-contract=fast -Wall -Wextra",
        f"-DTORCH_TARGET_VERSION={TARGET_VERSION} -isystem {torch}/include",
        "-DFUSED_RNN_POISON" if env("FUSED_RNN_POISON") == "1" else "",
        env("CXXFLAGS"),
    ]
    strip = "" if debug or "-g" in env("CXXFLAGS").split() else "-s"
    lines = [
        f"cxx = {shlex.join(cxx)}",
        f"cxxflags = {' '.join(flags)}",
        # -s: no debug symbols, unless -g asks for them; -z defs: a symbol that no library has is found now and not at
        # the user's
        f"libraries = -L{torch}/lib -ltorch_cpu {' '.join(cuda.libraries) if cuda else ''}",
        f"ldflags = -shared {strip} $libraries -Wl,--exclude-libs,ALL -Wl,-z,defs {env('LDFLAGS')}",
        "rule compile",
        "  command = $cxx -MD -MF $out.d $cxxflags $own -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $name",
        "rule compile_cuda",
        "  command = $nvcc -MD -MF $out.d $nvccflags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $name",
        "rule link",
        "  command = $cxx $in $ldflags -o $out",
        "  description = linking $out",
    ]
    if cuda:
        flags = [
            f"-std=c++17 {'-g -lineinfo -Xcompiler=-Og' if debug else '-O3'}",
            "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
            *cuda.targets,
            env("NVCCFLAGS"),
        ]
        lines += [f"nvcc = {shlex.join(cuda.nvcc)}", f"nvccflags = {' '.join(flags)}"]
    objects = []
    clang = CLANG_FLAGS if "clang" in what_it_says([*cxx, "--version"]) else {}
    late = {stem: flag for stem, flag in LATE_FLAGS.items() if knows(cxx, flag)}
    for source, own in sources(cuda):
        name = source.relative_to(ROOT / "csrc")
        objects.append(str(name.with_suffix(".o")))
        rule = "compile_cuda" if source.suffix == ".cu" else "compile"
        own = " ".join([own, *(flags[source.stem] for flags in (clang, late) if source.stem in flags)])
        lines += [f"build {objects[-1]}: {rule} {source}", f"  own = {own}", f"  name = {name}"]
    lines.append(f"build {library.resolve()}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildExtension(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"  # no Python in its name: it knows nothing of Python

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        # Not pip's temporary folder: what did not change is not compiled again.
        folder = Path(env("FUSED_RNN_OBJECTS") or ROOT / "build" / "native").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(library))
        jobs = ["-j", env("MAX_JOBS")] if env("MAX_JOBS") else []
        command = [program("ninja", "ninja (pip install ninja)"), "-C", str(folder), *jobs]
        if subprocess.run(command, check=False).returncode:
            fail("the compiler reported the errors above")


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":  # not where a test looks up the flags of an instruction set
    setup(
        ext_modules=[Extension("fused_rnn._C", sources=[])],
        cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
    )
