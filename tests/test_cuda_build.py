"""What the compiler made of the CUDA kernels, read from the built extension: a spilled register, or a product that is
not on the tensor cores, shows without a GPU. And what the build says when it cannot build them.

    python tests/test_cuda_build.py --write    rewrites the table of what every kernel takes
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from machine_code import Code

from fused_rnn import native

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "data" / "cuda_resources.txt"
LIBRARY = native.library

# Tensor cores, transpositions by a warp, copies to shared memory that run on, barriers of a block.
COUNTED = ("HMMA", "MOVM", "LDGSTS", "BAR")
COLUMNS = ("kernel", "arch", "registers", "shared", "stack", *COUNTED)

# For kernels, a regular expression of "name architecture": an instruction, and whether it must be there. There are no
# products of bfloat16 and TF32 on 75, no grid either, and no clusters before 90; no plan runs such a kernel there.
RULES = (
    (r"", "LDL", False),  # local memory
    (r"", "STL", False),
    (r"^recurrent_.* Float16, .*Block", "HMMA", True),
    (r"^recurrent_.* (BFloat16|Tf32), .*Block> (?!75)", "HMMA", True),
    (r"^recurrent_.* (Float16|BFloat16|Tf32), .*Grid> (?!75)", "HMMA", True),
    (r"^recurrent_.* (Float16|BFloat16|Tf32), .*Cluster> (?!75|8)", "HMMA", True),
    (r"^recurrent_.* Float32,", "HMMA", False),  # float32 without TF32 is float32
    (r"^(?!recurrent_)", "HMMA", False),
    (r"^recurrent_.*Block", "MOVM", True),
    (r"^recurrent_.*Block", "BAR", True),
    (r"^recurrent_.*Block", "MEMBAR", False),
    (r"^recurrent_.*Grid> (?!75)", "LDGSTS", True),
    (r"^recurrent_.*Grid> (?!75)", "MEMBAR", True),  # the release of a flag
    (r"^recurrent_.*Grid> (?!75)", "CCTL", True),  # the acquire
    (r"^recurrent_.*Cluster> (?!75|8)", "STAS", True),  # stores into other blocks' shared memory
    (r"^recurrent_.*Cluster> (?!75|8)", "SYNCS", True),  # mbarriers
    (r"^recurrent_.*Cluster> (?!75|8)", "LDGSTS", False),
)


class Kernel(NamedTuple):
    name: str
    architecture: str
    registers: int
    shared: int  # bytes, without what the launch adds
    stack: int  # bytes
    code: Code

    def row(self) -> list[str]:
        return [str(value) for value in self[:-1]] + [str(self.code.counts[name]) for name in COUNTED]


def tool(name: str) -> str | None:
    """A program of the pip packages, or the toolkit's."""
    packages = importlib.util.find_spec("nvidia")
    folders = [f"{place}/cu13/bin" for place in (packages and packages.submodule_search_locations) or ()]
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))


def run(*command: str | Path, cwd: Path | None = None, text: str | None = None) -> str:
    return subprocess.run(command, cwd=cwd, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def readable(mangled: list[str]) -> list[str]:
    """recurrent_forward<LstmCell, float, Tf32, 4, false, Block> for each of the linker's names."""
    header = (ROOT / "csrc" / "cuda" / "layout.h").read_text()
    enums = {
        name: re.findall(r"\bk(\w+)", values) for name, values in re.findall(r"enum class (\w+) \{(.*?)\}", header)
    }
    names = run("c++filt", text="\n".join(mangled))
    names = re.sub(r"^void |fused_rnn::|<fused_rnn::RealOf<\w+> ?>|\([^()]*\)$", "", names, flags=re.MULTILINE)
    return re.sub(r"\((\w+)\)(\d+)", lambda found: enums[found[1]][int(found[2])], names).splitlines()


@functools.cache
def built() -> tuple[str, list[Kernel]]:
    """The release of nvcc that made the extension, and the kernels."""
    releases, kernels = set(), []
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", "all", LIBRARY, cwd=Path(folder))
        for cubin in sorted(Path(folder).glob("*.cubin")):
            releases.update(re.findall(rb"Cuda compilation tools, release ([\d.]+)", cubin.read_bytes()))
            usage = run(tool("cuobjdump"), "-res-usage", cubin)
            functions = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
            sections = re.split(r"^\.text\.(\w+):$", run(tool("nvdisasm"), "-c", "-hex", cubin), flags=re.MULTILINE)
            texts = dict(zip(sections[1::2], sections[2::2]))
            architecture = re.search(r"\.sm_(\w+)\.cubin$", cubin.name)[1]
            for (mangled, registers, stack, shared), name in zip(functions, readable([f[0] for f in functions])):
                kernel = Kernel(name, architecture, int(registers), int(shared), int(stack), Code(texts[mangled]))
                assert kernel.code.counts["EXIT"], f"the code of {name} was not understood"
                kernels.append(kernel)
    return b" and ".join(sorted(releases)).decode(), sorted(
        kernels, key=lambda k: (k.name, int(k.architecture.strip("af")))
    )


def table() -> str:
    release, kernels = built()
    rows = [list(COLUMNS), *(kernel.row() for kernel in kernels)]
    width, *widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(width), *map(str.rjust, row[1:], widths)]) for row in rows]
    return "\n".join([f"# nvcc {release}", *lines]) + "\n"


def rows_of(text: str) -> list[list[str]]:
    """Without the alignment, which depends on all rows."""
    return [re.split(r"  +", line) for line in text.splitlines()[2:]]


needs_cuda = pytest.mark.skipif(
    native.load_error is not None or not native.cuda_architectures(), reason="the extension was built without CUDA"
)
needs_tools = pytest.mark.skipif(
    not (tool("cuobjdump") and tool("nvdisasm") and shutil.which("c++filt")),
    reason="needs cuobjdump and nvdisasm, which pip install '.[test]' brings on Linux, and c++filt of binutils",
)


@pytest.mark.slow
@pytest.mark.xdist_group("machine_code")
@needs_cuda
@needs_tools
def test_architectures_are_those_it_says():
    assert {kernel.architecture for kernel in built()[1]} == set(native.cuda_architectures().split())


@pytest.mark.slow
@pytest.mark.xdist_group("machine_code")
@needs_cuda
@needs_tools
@pytest.mark.parametrize(
    "kernels, instruction, there", RULES, ids=[f"{'needs' if rule[2] else 'no'} {rule[1]} {rule[0]}" for rule in RULES]
)
def test_instructions(kernels, instruction, there):
    concerned = [k for k in built()[1] if re.search(kernels, f"{k.name} {k.architecture}")]
    assert concerned
    wrong = [f"{k.name} for {k.architecture}" for k in concerned if (k.code.counts[instruction] > 0) != there]
    assert not wrong, f"{'no' if there else 'there is'} {instruction} in\n" + "\n".join(wrong)


def disassembled(*lines):
    """What nvdisasm prints: labels, and instructions with the scoreboard that they release and those they wait for."""
    text = []
    for line in lines:
        if isinstance(line, str):
            text.append(f"{line}:")
        else:
            instruction, scoreboard, waits = line
            control = scoreboard << 46 | sum(1 << 52 + one for one in waits)
            text += [f"        /*0010*/    {instruction} ;  /* 0x{0:016x} */", f"      /* 0x{control:016x} */"]
    return "\n".join(text)


@pytest.mark.parametrize("waits_at, found", [("before", 1), ("after", 0), ("for another", 0)])
def test_loads_that_are_waited_for_are_found(waits_at, found):
    text = disassembled(
        ("LDG.E R1, desc[UR4][R8.64]", 2, []),  # before the loop: no load of a step
        ("FADD R1, R1, R1", 7, [2]),
        ".L_x_1",
        ("@P1 LDG.E.U16 R2, desc[UR4][R8.64]", 3, []),
        ("IMAD.U32 R3, R2, 0x10000, RZ", 7, {"before": [3], "for another": [4]}.get(waits_at, [])),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", 7, []),
        ("IMAD.U32 R3, R2, 0x10000, RZ", 7, [3] if waits_at == "after" else []),
        ("@P0 BRA `(.L_x_1)", 7, []),
        ("EXIT", 7, []),
    )
    code = Code(text)
    assert code.step_loop() == (2, 6)
    waits = code.waited_loads()
    assert len(waits) == found
    assert all(load.opcode == "LDG.E.U16" and waiting.opcode == "IMAD.U32" for load, waiting in waits)


@pytest.mark.slow
@pytest.mark.xdist_group("machine_code")
@needs_cuda
@needs_tools
def test_no_step_waits_for_a_load_of_the_next_one():
    """A load of the block tier is used after the barrier of its step, and by then it has arrived.

    Between blocks that does not matter: loads come after what others wait for, and then their warp waits for others.
    """
    blocks = [k for k in built()[1] if "Block" in k.name]
    assert all(k.code.step_loop() != (0, 0) for k in blocks)
    waits = [
        f"{k.name} for {k.architecture}: {load}  <-  {waiting}"
        for k in blocks
        for load, waiting in k.code.waited_loads()
    ]
    assert not waits, "waited for before the barrier:\n" + "\n".join(waits)


@pytest.mark.slow
@pytest.mark.xdist_group("machine_code")
@needs_cuda
@needs_tools
def test_kernels_take_what_the_table_says():
    release, _ = built()
    committed = TABLE.read_text()
    if not committed.startswith(f"# nvcc {release}\n"):
        of_the_table = committed.splitlines()[0].removeprefix("# ")
        pytest.skip(
            f"registers are the compiler's choice: the table is of {of_the_table}, this build of nvcc {release}"
        )
    tables = rows_of(committed), rows_of(table())
    both = set.intersection(*({row[1] for row in rows} for rows in tables))
    lines = [["  ".join(row) for row in rows if row[1] in both] for rows in tables]
    difference = "\n".join(difflib.unified_diff(*lines, TABLE.name, "this build", n=0, lineterm=""))
    assert not difference, f"if it is meant, python tests/test_cuda_build.py --write\n{difference}"


def build(**environment):
    """The build up to the compiler, in the project's own folder: each of these says its sentence before that."""
    command = [sys.executable, "setup.py", "build_ext"]
    clean = {name: value for name, value in os.environ.items() if name not in ("NVCC", "CUDA_HOME")}
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False)


SENTENCES = {
    "no nvcc": (
        dict(FUSED_RNN_CUDA="1", PATH=os.devnull),
        "building the CUDA kernels needs nvcc, and 'nvcc' was found",
    ),
    "nvcc that is not": (
        dict(NVCC="no-such-nvcc"),
        "building the CUDA kernels needs nvcc, and 'no-such-nvcc' was found",
    ),
    "another program": (dict(NVCC="true"), "building the CUDA kernels needs nvcc 12.8 or later, got"),
    "old nvcc": (
        dict(NVCC="echo release 11.8"),
        "building the CUDA kernels needs nvcc 12.8 or later, got release 11.8",
    ),
    "FUSED_RNN_CUDA": (dict(FUSED_RNN_CUDA="yes"), "FUSED_RNN_CUDA must be 0, 1 or empty, got 'yes'"),
}


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the project's sources")
@pytest.mark.parametrize("case", SENTENCES)
def test_build_says_what_it_needs(case):
    environment, sentence = SENTENCES[case]
    done = build(**{"FUSED_RNN_CUDA": "1"} | environment)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the project's sources")
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize("architectures, unknown", [("80 55", "55"), ("80;9.0", "9.0"), ("blackwell", "blackwell")])
def test_build_for_an_unknown_architecture(architectures, unknown):
    done = build(FUSED_RNN_CUDA="1", FUSED_RNN_CUDA_ARCHS=architectures)
    assert done.returncode != 0
    assert f"has no architecture '{unknown}', which FUSED_RNN_CUDA_ARCHS names; it has" in done.stderr
    assert "Traceback" not in done.stderr


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    TABLE.write_text(table())
