"""Reads a kernel's machine code without a GPU: its instructions, their waits, and the loops of a step.

``nvdisasm -c -hex`` prints an instruction as two words of 64 bits. The second one tells the processor when it may issue
the instruction, and the next one:

    bits 41 to 44   cycles until this warp's next instruction
    bit 45          0: another warp goes first
    bits 46 to 48   the scoreboard, 0 to 5, that counts the instruction until its result is there, or 7 for none
    bits 49 to 51   the same until its sources have been read
    bits 52 to 57   the scoreboards that must be at zero first

(Volta and later; found by https://arxiv.org/abs/1804.06826, section 2.1.)
"""

from __future__ import annotations

import itertools
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
    stall: int  # cycles
    yields: bool
    result: int  # the scoreboard that its result releases; 7: none
    read: int  # the scoreboard that is released when its sources have been read; 7: none
    waits: frozenset[int]  # scoreboards that it waits for

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def is_conditional(self) -> bool:
        """Of a branch."""
        return bool(self.guard) or "P" in self.operands.split("`")[0]

    def __str__(self) -> str:
        return f"{self.guard}{self.opcode} {self.operands}"


class Loop(NamedTuple):
    """Places of the first and the last instruction, a branch back to the first one."""

    start: int
    end: int

    def has(self, other: Loop) -> bool:
        return self.start <= other.start and other.end <= self.end and self != other


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
                self.instructions.append(_decoded(found))
        self.counts = Counter(one.name for one in self.instructions)
        self.branches = {  # place to place
            place: labels[label[0]]
            for place, one in enumerate(self.instructions)
            if one.name == "BRA" and "DIV" not in one.opcode and (label := re.search(r"\.L_\w+", one.operands))
        }
        last = {target: place for place, target in sorted(self.branches.items()) if target < place}
        self.loops = [Loop(start, end) for start, end in last.items()]

    def __getitem__(self, loop: Loop) -> list[Instruction]:
        return self.instructions[loop.start : loop.end + 1]

    def step_loop(self) -> Loop | None:
        """The outermost loop with a barrier of the block."""
        return min((loop for loop in self.loops if any(one.name == "BAR" for one in self[loop])), default=None)

    def waited_loads(self) -> list[tuple[Instruction, Instruction]]:
        """Global loads of a step whose result is waited for before the next barrier, each with what waits."""
        step = self[self.step_loop() or Loop(0, -1)]
        found = []
        for place, load in enumerate(step):
            if load.name in ("LDG", "LD"):
                behind = itertools.takewhile(lambda one: one.name != "BAR", step[place + 1 :])
                found += [(load, one) for one in behind if load.result in one.waits][:1]
        return found


def _decoded(found: re.Match[str]) -> Instruction:
    control = int(found["control"], 16)
    waits = {scoreboard for scoreboard in range(6) if control >> (52 + scoreboard) & 1}
    if depbar := re.match(r"SB(\d)", found["operands"] if found["opcode"].startswith("DEPBAR") else ""):
        waits.add(int(depbar[1]))
    return Instruction(
        found["guard"] or "",
        found["opcode"],
        found["operands"],
        stall=control >> 41 & 15,
        yields=not control >> 45 & 1,
        result=control >> 46 & 7,
        read=control >> 49 & 7,
        waits=frozenset(waits),
    )


def disassembled(*lines: str | tuple[str, int, list[int]]) -> str:
    """For tests, what nvdisasm prints: labels, and instructions with a stall count of 1.

    lines: each a label, or an instruction, the scoreboard of its result, and those that it waits for.
    """
    text = []
    for line in lines:
        if isinstance(line, str):
            text.append(f"{line}:")
        else:
            instruction, result, waits = line
            control = 1 << 41 | 1 << 45 | result << 46 | 7 << 49 | sum(1 << 52 + one for one in waits)
            text += [f"        /*0010*/    {instruction} ;  /* 0x{0:016x} */", f"      /* 0x{control:016x} */"]
    return "\n".join(text)
