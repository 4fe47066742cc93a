"""The machine code of the CUDA kernels in the built extension."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from machine_code import Code

from fused_rnn import native

ROOT = Path(__file__).parents[1]
RESOURCES = ROOT / "tests" / "data" / "cuda_resources.txt"


class Kernel(NamedTuple):
    name: str  # recurrent_forward<LstmCell, float, Tf32, 4, false, Block>
    architecture: str
    registers: int
    shared: int  # bytes of static shared memory
    stack: int  # bytes
    code: Code


@functools.cache
def built() -> tuple[str, list[Kernel]]:
    """The release of nvcc that made the extension, and the kernels."""
    releases, kernels = set(), []
    with tempfile.TemporaryDirectory() as folder:
        _run(_tool("cuobjdump"), "-xelf", "all", native.library, cwd=Path(folder))
        for cubin in sorted(Path(folder).glob("*.cubin")):
            releases.update(re.findall(rb"Cuda compilation tools, release ([\d.]+)", cubin.read_bytes()))
            usage = _run(_tool("cuobjdump"), "-res-usage", cubin)
            functions = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
            sections = re.split(r"^\.text\.(\w+):$", _run(_tool("nvdisasm"), "-c", "-hex", cubin), flags=re.MULTILINE)
            texts = dict(zip(sections[1::2], sections[2::2]))
            architecture = re.search(r"\.sm_(\w+)\.cubin$", cubin.name)[1]
            for (mangled, registers, stack, shared), name in zip(functions, _readable([f[0] for f in functions])):
                kernel = Kernel(name, architecture, int(registers), int(shared), int(stack), Code(texts[mangled]))
                assert kernel.code.counts["EXIT"], f"the code of {name} was not understood"
                kernels.append(kernel)
    return b" and ".join(sorted(releases)).decode(), sorted(
        kernels, key=lambda k: (k.name, int(k.architecture.strip("af")))
    )


def _tool(name: str) -> str | None:
    """A program of the pip packages, or the toolkit's."""
    packages = importlib.util.find_spec("nvidia")
    folders = [f"{place}/cu13/bin" for place in (packages and packages.submodule_search_locations) or ()]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))


def _run(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    return subprocess.run(command, cwd=cwd, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def _readable(mangled: list[str]) -> list[str]:
    """The kernels' names, from the linker's."""
    header = (ROOT / "csrc" / "cuda" / "layout.h").read_text()
    enums = {
        name: re.findall(r"\bk(\w+)", values) for name, values in re.findall(r"enum class (\w+) \{(.*?)\}", header)
    }
    names = _run("c++filt", text="\n".join(mangled))
    names = re.sub(r"^void |fused_rnn::|<fused_rnn::RealOf<\w+> ?>|\([^()]*\)$", "", names, flags=re.MULTILINE)
    return re.sub(r"\((\w+)\)(\d+)", lambda found: enums[found[1]][int(found[2])], names).splitlines()


def of_built_kernels(test):
    """Marks a test that calls `built`: it needs CUDA in the extension and the tools, and shares what they printed."""
    marks = (
        pytest.mark.slow,
        pytest.mark.xdist_group("machine_code"),
        pytest.mark.skipif(
            native.load_error is not None or not native.cuda_architectures(),
            reason="the extension was built without CUDA",
        ),
        pytest.mark.skipif(
            not (_tool("cuobjdump") and _tool("nvdisasm") and shutil.which("c++filt")),
            reason="needs cuobjdump and nvdisasm, which pip install '.[test]' brings on Linux, and c++filt of binutils",
        ),
    )
    for mark in marks:
        test = mark(test)
    return test


def skip_for_another_nvcc() -> None:
    """Registers and instructions are the compiler's choice, and the tables are those of one."""
    release, of_the_tables = built()[0], RESOURCES.read_text().splitlines()[0].removeprefix("# nvcc ")
    if release != of_the_tables:
        pytest.skip(f"the tables are of nvcc {of_the_tables}, this build of nvcc {release}")
