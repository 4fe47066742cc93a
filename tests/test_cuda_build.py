"""What the compiler made of the CUDA kernels, read from the built extension: a spilled register, or a product that is
not on the tensor cores, shows without a GPU. And what the build says when it cannot build them.

    python tests/test_cuda_build.py --write    rewrites the table of what every kernel takes
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys

import pytest
from cuda_kernels import RESOURCES, ROOT, Kernel, built, of_built_kernels, skip_for_another_nvcc
from cycles import RESETS
from machine_code import Code, Loop, disassembled

from fused_rnn import native

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


def row(kernel: Kernel) -> list[str]:
    counts = (kernel.code.counts[name] for name in COUNTED)
    return [*map(str, kernel[:-1]), *map(str, counts)]


def table() -> str:
    release, kernels = built()
    rows = [list(COLUMNS), *map(row, kernels)]
    width, *widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(width), *map(str.rjust, row[1:], widths)]) for row in rows]
    return "\n".join([f"# nvcc {release}", *lines]) + "\n"


def rows_of(text: str) -> list[list[str]]:
    """Without the alignment, which depends on all rows."""
    return [re.split(r"  +", line) for line in text.splitlines()[2:]]


@of_built_kernels
def test_architectures_are_those_it_says():
    assert {kernel.architecture for kernel in built()[1]} == set(native.cuda_architectures().split())


@of_built_kernels
@pytest.mark.parametrize(
    "kernels, instruction, there", RULES, ids=[f"{'needs' if rule[2] else 'no'} {rule[1]} {rule[0]}" for rule in RULES]
)
def test_instructions(kernels, instruction, there):
    concerned = [k for k in built()[1] if re.search(kernels, f"{k.name} {k.architecture}")]
    assert concerned
    wrong = [f"{k.name} for {k.architecture}" for k in concerned if (k.code.counts[instruction] > 0) != there]
    assert not wrong, f"{'no' if there else 'there is'} {instruction} in\n" + "\n".join(wrong)


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
    assert code.step_loop() == Loop(2, 6)
    waits = code.waited_loads()
    assert len(waits) == found
    assert all(load.opcode == "LDG.E.U16" and waiting.opcode == "IMAD.U32" for load, waiting in waits)


@of_built_kernels
def test_no_step_waits_for_a_load_of_the_next_one():
    """A load of the block tier is used after the barrier of its step, and by then it has arrived.

    Between blocks that does not matter: loads come after what others wait for, and then their warp waits for others.
    The two bytes of a step with resets are no part of this: there is no scoreboard left for them.
    """
    blocks = [k for k in built()[1] if "Block" in k.name]
    assert all(k.code.step_loop() for k in blocks)
    waits = [
        f"{k.name} for {k.architecture}: {load}  <-  {waiting}"
        for k in blocks
        for load, waiting in k.code.waited_loads()
        if load.opcode != RESETS
    ]
    assert not waits, "waited for before the barrier:\n" + "\n".join(waits)


@of_built_kernels
def test_kernels_take_what_the_table_says():
    skip_for_another_nvcc()
    tables = rows_of(RESOURCES.read_text()), rows_of(table())
    both = set.intersection(*({row[1] for row in rows} for rows in tables))
    lines = [["  ".join(row) for row in rows if row[1] in both] for rows in tables]
    difference = "\n".join(difflib.unified_diff(*lines, RESOURCES.name, "this build", n=0, lineterm=""))
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
    RESOURCES.write_text(table())
