"""Estimates from a kernel's machine code how many cycles a step takes: a model of one of a multiprocessor's schedulers.

Some warps are in the same loop. One instruction is issued in a cycle, each warp's in their order: by the warp that
issued last if it can, else by the one that has waited longest. An instruction waits for the stall count of the one
before it, in which the compiler puts fixed latencies, for its scoreboards, for its pipe, and at a barrier for all
warps. What comes from other blocks comes when the warps here would have sent it to them: all blocks do the same.

Figures are of Hopper, in cycles:
[1] Huerta et al., MICRO 2025, arXiv 2503.20481, tables 1 and 2: memory instructions on Ampere.
[2] github.com/ahmadsharif1/cuda_study, on an H100: pointer chases in shared memory and L2, and 72 loops of one warp,
    for which this model is off by 1 percent on average and by 8 at most.
[3] CUDA C++ Programming Guide, throughput of arithmetic instructions, compute capability 9.0.
[4] nvcc 13.0: the smallest stall count that it puts between independent instructions.
[5] Guesses.

The model does not know misses of the instruction cache, bank conflicts, divergence, or other blocks' traffic, and
several warps were never compared with a measurement: 25 percent either way.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from machine_code import Code, Instruction, Loop

SENDS = re.compile(r"STAS|STG?\.E\.STRONG")  # to other blocks: tiles, or the flag of a tile
RECEIVES = re.compile(r"SYNCS\.PHASECHK|LDG?\.E\.STRONG")  # waits for what they send

CLOCK = 1850  # cycles of a microsecond on an H100
TAKEN, CONVERGED, NO_STALL = 5, 8, 45  # [2] after a taken branch, after BSYNC; [1] with a stall count of 0
QUEUE, LEAVES = 5, 11  # [1] places of the queue of memory instructions, and cycles until one leaves it
SHARED, L2 = 23, 254  # [2] latencies of loads


class Kind(NamedTuple):
    opcodes: str  # a regular expression
    pipe: str
    held: int  # cycles that an instruction keeps its pipe busy
    result: int = 20  # cycles until its result is there
    read: int = 10  # cycles until its sources have been read [1]


KINDS = (  # of an instruction the first one that matches
    Kind(r"HMMA\.(16816|1688\S*TF32)", "tensor", 6),  # [4]
    Kind(r"HMMA", "tensor", 4),  # [4]
    Kind(r"F(ADD|MUL|FMA)|H(ADD|MUL|FMA)2", "fma", 1),  # [3] [4]
    Kind(r"IMAD|IDP|VIADD", "fma", 2),  # [3] [4]
    Kind(r"MUFU", "special function", 8, 17),  # [2] [3] [4]
    Kind(r"F2F\b|F2I|I2F\b|FRND|POPC|FLO|BREV", "special function", 8, 17),  # [3] [5]
    Kind(r"STAS|SYNCS|MOVM", "memory", 4, SHARED),  # [5]
    Kind(r"LDSM|LDS\S*\.128", "memory", 16, 29, 9),  # [2] [3] 128 bytes a cycle for all four schedulers
    Kind(r"LDS\S*\.64", "memory", 8, SHARED, 9),  # [2] [3]
    Kind(r"LDS\b|SHFL", "memory", 4, SHARED, 9),  # [2] [4]
    Kind(r"STS", "memory", 4, read=12),  # [4]
    Kind(r"LDG?\b", "memory", 4, L2, 11),  # [2] [4]
    Kind(r"STG?\b", "memory", 4, read=14),  # [4]
    Kind(r"LDGSTS|LDGDEPBAR|ATOM|RED\b", "memory", 4, L2, 14),  # [2] [4]
    Kind(r"LDC", "constant", 4, 29),  # [2]
    Kind(r"S2U?R", "special register", 4, 25),  # [5]
    Kind(r"BAR\b(?!\.ARV)", "control", 2, 30),  # [5]
    Kind(r"BAR|BRA|BRX|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|WARPSYNC|YIELD|DEPBAR|NOP", "control", 2),
    Kind(r"U[A-Z]|R2UR", "uniform", 2),  # [4]
    Kind(r"", "integer", 2),  # [3] [4]
)


class Step(NamedTuple):
    """An instruction on the way of a warp."""

    instruction: Instruction
    kind: Kind
    taken: bool  # it is a branch, and goes


@dataclass
class Warp:
    path: list[Step]
    issued: int = 0
    last: float = -1  # cycle of the last issue
    ready: float = 0  # by stall counts, branches and barriers
    busy: list[float] = field(default_factory=lambda: [0.0] * 8)  # until when, of each scoreboard
    received: int = 0  # how often

    @property
    def next(self) -> Step:
        return self.path[self.issued % len(self.path)]


class Scheduler:
    """Warps that each repeat a path."""

    def __init__(self, paths: list[list[Step]], way: float) -> None:
        """The first path is of a warp that sends, if any does. way: cycles from sending until a receiver may go on."""
        self.warps = [Warp(path) for path in paths]
        self.way = way
        self.sent: dict[int, float] = defaultdict(float)  # for each receive, the cycle of the last store that it needs
        self.newest = self.warps[0]
        self.turn = 0.0
        self.free: dict[str, float] = defaultdict(float)  # from when on, each pipe
        self.queue = deque([0.0] * QUEUE, QUEUE)  # when the last memory instructions leave it

    def earliest(self, warp: Warp) -> float:
        step, sender = warp.next, self.warps[0]
        is_sent = sender.received > warp.received or RECEIVES.match(sender.next.instruction.opcode)
        if RECEIVES.match(step.instruction.opcode) and not is_sent:
            return float("inf")
        free = self.queue[0] if step.kind.pipe == "memory" else self.free[step.kind.pipe]
        return max(warp.ready, self.turn, free, *(warp.busy[scoreboard] for scoreboard in step.instruction.waits))

    def issue(self) -> tuple[Warp, float]:
        """Issues the next instruction; its warp and cycle."""
        ahead = [(self.earliest(warp), warp is not self.newest, warp.last, i) for i, warp in enumerate(self.warps)]
        cycle, _, _, chosen = min(ahead)
        warp = self.warps[chosen]
        step = warp.next
        instruction, kind = step.instruction, step.kind
        self.free[kind.pipe] = cycle + kind.held
        queued = 0.0
        if kind.pipe == "memory":
            self.queue.append(max(cycle + LEAVES, self.queue[-1] + kind.held))
            queued = self.queue[-1] - cycle - LEAVES
        result = cycle + kind.result + queued
        if RECEIVES.match(instruction.opcode):
            result = max(result, self.sent[warp.received] + self.way)
            warp.received += 1
        elif SENDS.match(instruction.opcode):
            self.sent[warp.received] = max(self.sent[warp.received], cycle)
        for scoreboard, until in ((instruction.result, result), (instruction.read, cycle + kind.read + queued)):
            warp.busy[scoreboard] = max(warp.busy[scoreboard], until)
        stall = instruction.stall or (NO_STALL if instruction.yields else 1)
        warp.ready = cycle + max(stall, 1 + instruction.yields)
        warp.ready += TAKEN * step.taken + CONVERGED * (instruction.name == "BSYNC")
        warp.issued, warp.last, self.turn, self.newest = warp.issued + 1, cycle, cycle + 1, warp
        if instruction.name == "BAR":
            warp.ready = float("inf")
            if all(other.ready == float("inf") for other in self.warps):
                for other in self.warps:
                    other.ready = cycle + kind.result
        return warp, cycle


def cycles_of_step(paths: list[list[Step]], way: float = 0) -> float:
    """Of warps that share a scheduler, on average of eight steps after four that fill the pipes."""
    skipped, counted = 4, 8
    scheduler = Scheduler(paths, way)
    starts: list[float] = []
    while len(starts) <= skipped + counted:
        warp, cycle = scheduler.issue()
        if warp is scheduler.warps[0] and warp.issued % len(warp.path) == 1:
            starts.append(cycle)
    return (starts[-1] - starts[skipped]) / counted


# Loops of a step, known by an instruction: the count of the innermost loop that has it, and of the loop around it.
REPEATS = {
    "HMMA": ("depth", "row tiles"),
    "FFMA": ("depth", "row tiles"),
    "STAS": ("pairs of blocks", ""),
    "LDGSTS": ("copies", "row tiles"),
    "CCTL": ("late looks", "flags"),
    "LDS": ("pairs of slices", ""),
}
RESETS = "LDG.E.U8"  # the load of a reset: calls without resets skip the code around it


def path_of_step(code: Code, repeats: dict[str, int], applies_cell: bool) -> list[Step]:
    """The instructions of a step in the order of their issue by one warp.

    repeats: how often each of REPEATS. applies_cell: the warp adds up slices, applies the cell and sends what MOVM has
    transposed. The step is of a call without resets.
    """
    step = code.step_loop()
    assert step, "no loop with a barrier of the block"
    inner = [loop for loop in code.loops if step.has(loop)]
    trips, parents = {step: 1}, {}
    for loop in inner:
        inside = any(loop.has(other) for other in inner)
        names = {one.name for one in code[loop]}
        what = next(both for name, both in REPEATS.items() if name in names)[inside]
        trips[loop] = repeats[what] if applies_cell or what != "pairs of slices" else 0
        parents[loop] = max(other for other in [step, *inner] if other.has(loop))

    def is_taken(place: int, target: int) -> bool:
        """Of a conditional branch forward."""
        skipped = Loop(place + 1, target - 1)
        if not step.has(skipped):
            return False  # it would wait for something that is late
        if any(one.opcode == RESETS for one in code[skipped]) and not any(one.name == "MUFU" for one in code[skipped]):
            return True
        around = max(loop for loop in trips if loop.start <= place <= loop.end)
        is_empty = any(
            not trips[loop] and parents[loop] == around and (skipped == loop or skipped.has(loop)) for loop in parents
        )
        is_cell = any(one.name == "MOVM" for one in code[skipped])
        return is_empty or (is_cell and not applies_cell)

    path: list[Step] = []
    rounds: Counter[int] = Counter()
    place = step.start
    while True:
        instruction, target = code.instructions[place], code.branches.get(place, -1)
        taken = target >= 0 and not instruction.is_conditional
        if target > place and not taken:
            taken = is_taken(place, target)
        elif step.start < target <= place:
            rounds[place] += 1
            taken = rounds[place] % trips[Loop(target, place)] > 0
        path.append(Step(instruction, next(k for k in KINDS if re.match(k.opcodes, instruction.opcode)), taken))
        if place == step.end:
            return path
        place = target if taken else place + 1
        assert step.start < place <= step.end, f"{instruction} leaves the step"
