"""The compiled code of the check: built elsewhere and carried here, or built here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .runner import ROOT

CARRIED = ROOT / "build" / "gpu"  # what `prepare` builds: fused_rnn/_C.so, programs, commit
COMMIT = CARRIED / "commit"
PROGRAMS = {"exchange": ROOT / "bench" / "exchange.cu", "primitives": ROOT / "tests" / "emu" / "primitives.cu"}


def has_code(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for such architectures, "80 90a 100", runs on a GPU of that capability.

    Code runs on its own and higher minor versions of its major version; with an "a", on its own alone.
    """
    for major, minor, only in re.findall(r"\b(\d+)(\d)(a?)\b", architectures):
        if int(major) == capability[0] and (int(minor) == capability[1] if only else int(minor) <= capability[1]):
            return True
    return False


def architecture(capability: tuple[int, int]) -> str:
    """The architecture to build for: with the features of its own for Hopper."""
    name = f"{capability[0]}{capability[1]}"
    return f"{name}a" if name == "90" else name


def nvcc() -> str | None:
    """The CUDA compiler: of $NVCC, $CUDA_HOME, the PATH or the toolkit's usual folder."""
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    path = os.pathsep.join([*(f"{folder}/bin" for folder in folders if folder), os.environ.get("PATH", "")])
    return shutil.which(os.environ.get("NVCC", "nvcc"), path=path)


def candidates(out: Path) -> list[Path]:
    """Folders that may hold fused_rnn/_C.so: the carried one, then wheels of dist/, unpacked under ``out``."""
    folders = [CARRIED] if (CARRIED / "fused_rnn" / "_C.so").exists() else []
    for wheel in sorted((ROOT / "dist").glob("*.whl"), key=lambda path: -path.stat().st_mtime):
        folder = out / "wheel"
        with zipfile.ZipFile(wheel) as archive:
            if "fused_rnn/_C.so" in archive.namelist():
                archive.extract("fused_rnn/_C.so", folder)
                folders.append(folder)
                break
    return folders


def build_command(folder: Path) -> list[str]:
    """Builds fused_rnn/_C.so in a folder."""
    base = str(folder.parent / f"{folder.name}-objects")
    return [sys.executable, "setup.py", "--quiet", "build", "--build-base", base, "--build-lib", str(folder)]


def build_environment(folder: Path, arch: str) -> dict[str, str]:
    objects = str(folder.parent / f"{folder.name}-objects")
    return {
        "FUSED_RNN_CUDA": "1",
        "FUSED_RNN_CUDA_ARCHS": arch,
        "FUSED_RNN_OBJECTS": objects,
        "NVCC": nvcc() or "nvcc",
    }


def program_command(name: str, arch: str, target: Path) -> list[str]:
    code = f"arch=compute_{arch},code=sm_{arch}"
    return [nvcc() or "nvcc", "-std=c++17", "-O3", "-gencode", code, str(PROGRAMS[name]), "-o", str(target)]


def carried_program(name: str) -> Path | None:
    """A program that was built before, if its source has not changed since."""
    path = CARRIED / name
    return path if path.exists() and path.stat().st_mtime >= PROGRAMS[name].stat().st_mtime else None


def prepare(arch: str) -> int:
    """Build the extension and the programs for an architecture; the exit status."""
    if nvcc() is None:
        print("--prepare needs nvcc: on the PATH, in $CUDA_HOME or named by $NVCC.", file=sys.stderr)
        return 2
    CARRIED.mkdir(parents=True, exist_ok=True)
    environment = os.environ | build_environment(CARRIED, arch)
    commands = [build_command(CARRIED), *(program_command(name, arch, CARRIED / name) for name in PROGRAMS)]
    for command in commands:
        if status := subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            return status
    from .. import machine  # imports PyTorch, which the check must not need before it has looked for it

    COMMIT.write_text(machine.commit() + "\n")
    print(f"{CARRIED} has what the check needs on a GPU of architecture {arch}; carry the folder.")
    return 0
