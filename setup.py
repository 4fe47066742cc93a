"""Builds the extension: one shared library on PyTorch's stable ABI, for every Python and every PyTorch from 2.10 on.

CXX, CXXFLAGS, LDFLAGS and MAX_JOBS are obeyed. FUSED_RNN_POISON=1 fills what the library allocates with NaN, for the
tests.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OLDEST_TORCH = (2, 10)
TARGET_VERSION = "0x020a000000000000ull"  # the stable ABI of OLDEST_TORCH

# Kernels of one instruction set: source file, flags. Other processors than x86-64 build without these files.
X86_64_FLAGS = {
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}


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


def sources() -> list[tuple[Path, str]]:
    """Every source file with the flags of its own."""
    x86_64 = platform.machine().lower() in ("x86_64", "amd64")
    files = sorted([*(ROOT / "csrc").glob("*.cpp"), *(ROOT / "csrc" / "cpu").glob("*.cpp")])
    return [(f, X86_64_FLAGS.get(f.stem, "")) for f in files if x86_64 or f.stem not in X86_64_FLAGS]


def ninja_file(library: Path) -> str:
    torch = torch_directory()
    cxx = shlex.split(env("CXX") or "c++")
    cxx[0] = program(cxx[0], "a C++17 compiler (set CXX to choose one)")
    flags = [
        "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -Wall -Wextra",
        f"-DTORCH_TARGET_VERSION={TARGET_VERSION} -isystem {torch}/include",
        "-DFUSED_RNN_POISON" if env("FUSED_RNN_POISON") == "1" else "",
        env("CXXFLAGS"),
    ]
    lines = [
        f"cxx = {shlex.join(cxx)}",
        f"cxxflags = {' '.join(flags)}",
        # -s: no debug symbols; -z defs: a symbol that no library has is found now and not at the user's
        f"ldflags = -shared -s -L{torch}/lib -ltorch_cpu -Wl,--exclude-libs,ALL -Wl,-z,defs {env('LDFLAGS')}",
        "rule compile",
        "  command = $cxx -MD -MF $out.d $cxxflags $own -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $name",
        "rule link",
        "  command = $cxx $in $ldflags -o $out",
        "  description = linking $out",
    ]
    objects = []
    for source, own in sources():
        name = source.relative_to(ROOT / "csrc")
        objects.append(str(name.with_suffix(".o")))
        lines += [f"build {objects[-1]}: compile {source}", f"  own = {own}", f"  name = {name}"]
    lines.append(f"build {library.resolve()}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildExtension(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"  # no Python in its name: it knows nothing of Python

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / "native"  # not pip's temporary folder: what did not change is not compiled again
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(library))
        jobs = ["-j", env("MAX_JOBS")] if env("MAX_JOBS") else []
        command = [program("ninja", "ninja (pip install ninja)"), "-C", str(folder), *jobs]
        if subprocess.run(command, check=False).returncode:
            fail("the compiler reported the errors above")


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("fused_rnn._C", sources=[])],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
)
