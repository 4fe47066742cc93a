"""Reads from a kernel's machine code which loads the processor waits for, without a GPU.

``nvdisasm -c -hex`` prints an instruction as two words of 64 bits. The second one tells the processor when it may issue
the instruction. Bits 46 to 48: the scoreboard, 0 to 5, that counts the instruction until its result is there, or 7 for
none. Bits 52 to 57: the scoreboards that must be at zero first. (Volta and later; found by
https://arxiv.org/abs/1804.06826, section 2.1.)
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"^(?P<label>\.L_\w+):"
    r"|/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z]\S*)\s*(?P<operands>.*?)\s*;"
    r"\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x(?P<control>[0-9a-f]{16}) \*/",
    re.MULTILINE,
)


class Instruction(NamedTuple):
    guard: str  # the predicate that it depends on, or ""
    opcode: str  # with its modifiers
    operands: str
    scoreboard: int  # that its result releases; 7: none
    waits: frozenset[int]  # scoreboards that it waits for

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    def __str__(self) -> str:
        return f"{self.guard}{self.opcode} {self.operands}"


class Code:
    """The instructions of one kernel, in the order of their addresses."""

    def __init__(self, text: str) -> None:
        """text: what nvdisasm prints of one section."""
        self.instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        for found in INSTRUCTION.finditer(text):
            if found["label"]:
                labels[found["label"]] = len(self.instructions)
            else:
                control = int(found["control"], 16)
                waits = {s for s in range(6) if control >> (52 + s) & 1}
                if depbar := re.match(r"SB(\d)", found["operands"] if found["opcode"].startswith("DEPBAR") else ""):
                    waits.add(int(depbar[1]))
                what = (found["guard"] or "", found["opcode"], found["operands"])
                self.instructions.append(Instruction(*what, control >> 46 & 7, frozenset(waits)))
        self.counts = Counter(one.name for one in self.instructions)
        self.branches = {  # place to place
            place: labels[label[0]]
            for place, one in enumerate(self.instructions)
            if one.name == "BRA" and (label := re.search(r"\.L_\w+", one.operands))
        }

    def step_loop(self) -> tuple[int, int]:
        """First and last place of the outermost loop with a barrier of the block; (0, 0): there is none."""
        loops = {target: place for place, target in sorted(self.branches.items()) if target < place}
        with_barrier = [(start, end) for start, end in loops.items() if self._barriers(start, end)]
        return min(with_barrier, default=(0, 0))

    def _barriers(self, start: int, end: int) -> list[int]:
        return [place for place in range(start, end + 1) if self.instructions[place].name == "BAR"]

    def waited_loads(self) -> list[tuple[Instruction, Instruction]]:
        """Global loads of a step whose result is waited for before the next barrier, each with what waits."""
        start, end = self.step_loop()
        barriers = self._barriers(start, end)
        found = []
        for place in range(start, end):
            load = self.instructions[place]
            if load.name in ("LDG", "LD"):
                until = next((barrier for barrier in barriers if barrier > place), end)
                waiting = (one for one in self.instructions[place + 1 : until] if load.scoreboard in one.waits)
                found += [(load, one) for one in list(waiting)[:1]]
        return found
