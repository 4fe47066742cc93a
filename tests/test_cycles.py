"""How many cycles a step takes by the machine code of the CUDA kernels, next to the floor, and against the planner's
model.

    python tests/test_cycles.py --write    rewrites the table of csrc/README.md
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from cuda_kernels import ROOT, Kernel, built, of_built_kernels, skip_for_another_nvcc
from cycles import CLOCK, cycles_of_step, path_of_step
from machine_code import Code, disassembled

from fused_rnn import native

sys.path.append(str(ROOT))
floors = pytest.importorskip("bench.floors", reason="needs the project's sources")
cases = pytest.importorskip("bench.cases")

PAGE = ROOT / "csrc" / "README.md"
ROWS = 16
H = {
    ("16 bits", "block"): 128,
    ("16 bits", "cluster"): 256,
    ("16 bits", "grid"): 1024,
    ("TF32", "block"): 64,
    ("TF32", "cluster"): 256,
    ("TF32", "grid"): 512,
}
MATHS, TIERS = ("16 bits", "TF32"), ("block", "cluster", "grid")
# Cycles of a tile's way into another block, and of a flag's through L2 (sources: bench/floors.py).
WAY = {"block": 0.0, "cluster": 0.20 * CLOCK, "grid": 0.56 * CLOCK}


class TrainingStep(NamedTuple):
    """Of one layer in one direction, 16 rows, on an H100, as the planner divides it."""

    cell: str
    math: str
    backward: bool
    tier: str

    @property
    def H(self) -> int:
        return H[self.math, self.tier]

    @property
    def dtype(self) -> str:
        return "float32" if self.math == "TF32" else "bfloat16"

    def plan(self, T: int = 128) -> str:
        sizes = T, ROWS, self.H, 1, 1
        with mock.patch.dict(os.environ, FUSED_RNN_TIER=self.tier):
            cell = str(cases.CELL_OF[self.cell])
            return torch.ops.fused_rnn.cuda_plan(cell, self.dtype, *sizes, self.backward, True, "H100")[0]

    def kernel(self) -> Kernel:
        skip_for_another_nvcc()
        if "90a" not in native.cuda_architectures().split():
            pytest.skip("the cycles are those of Hopper, and this build has no code for 90a")
        name = "backward" if self.backward else "forward"
        math = "Tf32" if self.math == "TF32" else "BFloat16"
        wanted = rf"recurrent_{name}<{self.cell.title()}Cell, \w+, {math}, [1-9]\d*, \w+, {self.tier.title()}>"
        found = [k for k in built()[1] if k.architecture == "90a" and re.fullmatch(wanted, k.name)]
        assert len(found) == 1, f"{wanted}: {len(found)}"
        return found[0]

    def cycles(self) -> float:
        """Of the multiprocessor's first scheduler."""
        kernel = self.kernel()
        if self.tier == "block":
            return cycles_of_step([path_of_step(kernel.code, {}, True)] * -(-self.H // 64))
        division = re.match(r"\w+ (\d+)x(\d+)x(\d+): .* of (\d+) blocks", self.plan())
        units, slices, row_tiles, blocks = map(int, division.groups())
        depth = -(-self.H // 16 // slices)
        repeats = {
            "depth": max(0, depth - int(kernel.name.split(", ")[3])),
            "row tiles": row_tiles,
            "pairs of blocks": blocks // 2,
            "pairs of slices": -(-slices // 2),
            "flags": -(-2 * depth * row_tiles // 32),
            "late looks": 0,
            "copies": -(-depth * (512 if self.math == "TF32" else 256) // 512),
        }
        path = {applies: path_of_step(kernel.code, repeats, applies) for applies in (True, False)}
        # As in place.cuh: warp i of unit tile u has slice i + 2 u, and the first ones apply the cell.
        slice_of = [(warp + 2 * (warp // slices)) % slices for warp in range(units * slices)]
        return cycles_of_step([path[one < 2 * row_tiles] for one in slice_of[::4]], WAY[self.tier])

    def model(self) -> float:
        """Microseconds by the planner's model, without the start of a launch."""
        few, many = (T * float(re.search(r"([\d.]+) us a step", self.plan(T))[1]) for T in (64, 128))
        return (many - few) / 64

    def floor(self) -> float:
        """In microseconds."""
        case = cases.Case("", 1, ROWS, self.H, self.H)
        task = cases.Task(case, self.cell, "training", self.dtype, tf32=self.math == "TF32")
        return floors.step(task, floors.Gpu.of(task))


STEPS = [TrainingStep(*one) for one in itertools.product(("LSTM", "GRU"), MATHS, (False, True), TIERS)]


@functools.cache
def microseconds(step: TrainingStep) -> float:
    return step.cycles() / CLOCK


def table() -> list[str]:
    sizes = [f"{tier}, H {H['16 bits', tier]}" for tier in TIERS]
    sizes = [f"{size} (TF32: {H['TF32', tier]})" for size, tier in zip(sizes, TIERS)]
    lines = [f"| cycles, us, times the floor | {' | '.join(sizes)} |", "|---" * 4 + "|"]
    for start in range(0, len(STEPS), 3):
        cell, math, backward, _ = STEPS[start]
        figures = [
            f"{us * CLOCK:.0f}, {us:.2f}, {us / step.floor():.1f}"
            for step in STEPS[start : start + 3]
            for us in [microseconds(step)]
        ]
        name = f"{cell}, {math}, {'backward' if backward else 'forward'}"
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def page_with(lines: list[str]) -> str:
    """csrc/README.md with these lines as its table."""
    text = PAGE.read_text()
    found = re.search(r"^\| cycles, us, times the floor .*\n(?:\|.*\n)+", text, re.MULTILINE)
    assert found, f"{PAGE.name} has no such table"
    return text[: found.start()] + "\n".join(lines) + "\n" + text[found.end() :]


def cycles_of(*lines, warps=1, way=0, applies=True, **repeats):
    text = disassembled(".L_1", ("BAR.SYNC", 7, []), *lines, ("@P0 BRA `(.L_1)", 7, []), ("EXIT", 7, []))
    return cycles_of_step([path_of_step(Code(text), repeats, applies)] * warps, way)


LOAD, USE = ("LDG.E R2, desc[UR4][R8.64]", 3, []), ("FADD R3, R2, R2", 7, [3])


def test_the_model_of_a_scheduler():
    nothing = cycles_of()
    assert nothing < 60
    assert cycles_of(LOAD) < nothing + 10  # nothing waits
    assert cycles_of(LOAD, USE) > nothing + 250
    assert cycles_of(LOAD, USE, warps=2) < nothing + 300  # both at once
    fma, mufu = [("FFMA R4, R5, R6, R7", 7, [])] * 100, [("MUFU.EX2 R4, R5", 7, [])] * 100
    assert cycles_of(*fma) == pytest.approx(nothing + 100, abs=10)
    assert cycles_of(*mufu) == pytest.approx(nothing + 800, abs=10)
    assert cycles_of(*mufu, warps=2) == pytest.approx(nothing + 1600, abs=20)


def test_the_way_to_another_block_hides_what_comes_meanwhile():
    receive, send = ("SYNCS.PHASECHK.TRANS64.TRYWAIT P6, [R1+URZ], R2", 0, []), ("STAS [R4.64], R6", 7, [])
    use, meanwhile = ("@!P6 NOP", 7, [0]), [("FFMA R4, R5, R6, R7", 7, [])] * 300
    assert cycles_of(receive, use, send, way=1000) == pytest.approx(1000, abs=20)
    assert cycles_of(receive, use, send, *meanwhile, way=1000) == pytest.approx(1000, abs=20)
    assert cycles_of(receive, use, *meanwhile, send, way=1000) == pytest.approx(1300, abs=20)


def test_the_path_of_a_step():
    tile = [("@!P1 BRA `(.L_3)", 7, []), ".L_2", ("HMMA.16816.F32 R8, R4, R6, R8", 7, [])]
    tile += [("@P2 BRA `(.L_2)", 7, []), ".L_3"]
    cell = [("@!P3 BRA `(.L_4)", 7, []), ("MOVM.16.MT88 R4, R4", 7, []), ".L_4"]
    text = disassembled(".L_1", ("BAR.SYNC", 7, []), *tile, *cell, ("@P0 BRA `(.L_1)", 7, []), ("EXIT", 7, []))

    def names(depth, applies):
        return [step.instruction.name for step in path_of_step(Code(text), {"depth": depth}, applies)]

    assert names(0, True) == ["BAR", "BRA", "BRA", "MOVM", "BRA"]
    assert names(2, True) == ["BAR", "BRA", "HMMA", "BRA", "HMMA", "BRA", "BRA", "MOVM", "BRA"]
    assert names(1, False) == ["BAR", "BRA", "HMMA", "BRA", "BRA", "BRA"]


@of_built_kernels
def test_the_table_of_the_page():
    assert page_with(table()) == PAGE.read_text(), "if it is meant, python tests/test_cycles.py --write"


@of_built_kernels
@pytest.mark.parametrize(("backward", "most"), [(False, 1500), (True, 1900)])
def test_a_block_has_few_cycles(backward, most):
    assert TrainingStep("LSTM", "16 bits", backward, "block").cycles() < most


@of_built_kernels
@pytest.mark.parametrize("step", STEPS, ids=lambda step: "-".join(map(str, step)))
def test_the_planner_knows_them(step):
    """Its model is as close to the machine code as that is to a measurement."""
    assert step.model() == pytest.approx(microseconds(step), rel=0.25)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    PAGE.write_text(page_with(table()))
