"""Builds the emulator: the ops of csrc/cuda over it as a library, and the programs of its own tests.

Flavours: `plain`; `thread`, where kernels are instrumented for the emulator's race detector; `address`, under the
compiler's AddressSanitizer and UndefinedBehaviorSanitizer. The latter two have no kernels of float16. What is built
stays in build/emu and is built again when a source changes. CXX chooses the compiler, EMU_FLAVOUR the flavour that
`load` loads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMU = ROOT / "tests" / "emu"
CUDA = ROOT / "csrc" / "cuda"

CORE = ["fiber", "scheduler", "launch", "synchronisation", "warp", "async", "sites", "race", "trace"]
PROGRAMS = ["primitives", "faults"]
FLAVOURS = ("plain", "thread", "address")
TARGET_VERSION = "0x020a000000000000ull"

# -g1: lines for the sanitizers' reports. Variables, too, would double the time of compilation.
FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -g1 -Wall -Wextra -Wno-unknown-pragmas"
OPTIMISE = {"plain": "-O2 -fno-math-errno", "thread": "-O2 -fno-math-errno", "address": "-O1 -fno-omit-frame-pointer"}
SANITIZE = (
    "-fsanitize=address,undefined -fsanitize-recover=address -fno-sanitize-recover=undefined"
    " -fno-sanitize=vptr,null,object-size"  # of pointers, which ASan sees
)


def flavour_from_environment() -> str:
    return os.environ.get("EMU_FLAVOUR", "plain")


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def why_not(flavour: str) -> str:
    """Why that flavour cannot be built here, a sentence, or an empty string."""
    if not shutil.which(compiler()):
        return f"needs the compiler {compiler()}"
    if flavour == "address" and not Path(address_runtime()).is_absolute():
        return f"{compiler()} has no AddressSanitizer"
    return ""


def is_clang() -> bool:
    return "clang" in subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def address_runtime() -> str:
    return library_of_the_compiler(f"libclang_rt.asan-{os.uname().machine}.so" if is_clang() else "libasan.so")


def library_of_the_compiler(name: str) -> str:
    """Its path, or only its name if the compiler has no such library."""
    command = [compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def library_sources(flavour: str) -> list[Path]:
    host = [EMU / "ops.cpp", EMU / "host.cpp", CUDA / "plan.cpp", CUDA / "cost.cpp"]
    kernels = sorted((CUDA / "kernels").glob("*.cu"))
    if flavour == "plain":
        return [*host, *kernels]
    return [*host, EMU / "no_float16.cpp", *(file for file in kernels if not file.stem.endswith("_float16"))]


def ninja_file(flavour: str) -> str:
    import torch

    torch_directory = Path(torch.__file__).parent
    sanitize = SANITIZE if flavour == "address" else ""
    shared = "-shared-libsan" if sanitize and is_clang() else ""  # the runtime that environment() preloads
    flags = f"{FLAGS} {OPTIMISE[flavour]} {sanitize} -include {EMU}/emulator.h"
    lines = [
        f"cxx = {compiler()}",
        f"flags = {flags} -DTORCH_TARGET_VERSION={TARGET_VERSION} -isystem {torch_directory}/include",
        f"kernel_flags = {'-fsanitize=thread' if flavour == 'thread' else ''}",
        "rule host",
        "  command = $cxx -MD -MF $out.d $flags -c $in -o $out",
        "rule kernel",
        "  command = $cxx -MD -MF $out.d $flags $kernel_flags -x c++ -c $in -o $out",
        "rule program",
        f"  command = $cxx {sanitize} $in -ldl -o $out",
        "rule library",
        f"  command = $cxx {sanitize} {shared} -shared $in -L{torch_directory}/lib -ltorch_cpu -ldl -o $out",
    ]

    def compiled(source: Path) -> str:
        made = f"{source.parent.name}.{source.name}.o"
        rule = "kernel" if source.suffix == ".cu" else "host"
        lines.extend([f"build {made}: {rule} {source}", f"  depfile = {made}.d", "  deps = gcc"])
        return made

    # First: where the linker chooses between two copies of an inline function, it takes one that is not instrumented.
    core = " ".join(compiled(EMU / f"{name}.cpp") for name in CORE)
    for name in PROGRAMS:
        lines.append(f"build {name}: program {core} {compiled(EMU / f'{name}.cu')}")
    lines.append(f"build library.so: library {core} {' '.join(map(compiled, library_sources(flavour)))}")
    return "\n".join(lines) + "\n"


def built(target: str, flavour: str) -> Path:
    folder = ROOT / "build" / "emu" / flavour
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(ninja_file(flavour))
        command = [sys.executable, "-m", "ninja", "-C", str(folder), "--quiet", target]
        clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # not for the compiler
        done = subprocess.run(
            command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the emulator's {target} ({flavour}) could not be built:\n{done.stdout}")
    return folder / target


def program(name: str, flavour: str) -> Path:
    return built(name, flavour)


def library(flavour: str) -> Path:
    """The ops of csrc/cuda over the emulator, in the namespace fused_rnn_emu."""
    return built("library.so", flavour)


def environment(flavour: str) -> dict[str, str]:
    """What a process needs in order to load the library of that flavour."""
    result = os.environ | {"EMU_FLAVOUR": flavour, "OMP_NUM_THREADS": "1"}
    if flavour == "address":
        result["ASAN_OPTIONS"] = (
            "halt_on_error=0:suppress_equal_pcs=0:detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0"
        )
        # With the C++ library: the sanitizer looks for its __cxa_throw once, when it starts.
        result["LD_PRELOAD"] = f"{address_runtime()} {library_of_the_compiler('libstdc++.so.6')}"
    return result


def load() -> None:
    import torch

    torch.ops.load_library(str(library(flavour_from_environment())))
