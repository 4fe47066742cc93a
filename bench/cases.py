"""What is measured: layers as real programs use them, and grids of sizes.

A :class:`Case` has the sizes, a :class:`Task` adds what is done with them: which cell, which dtype, which work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product

from fused_rnn.cell import GRU, LSTM, RNN_TANH

CELL_OF = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN_TANH}  # of torch.nn's class
CELLS = ("LSTM", "GRU")  # measured unless told
# inference: forward. training: forward and all gradients. streaming: single steps, the state fed on; cell: the same by
# LSTMCell or GRUCell; cell training: a cell's training.
BATCHED, SINGLE = ("inference", "training"), ("streaming", "cell")
ONE_STEP = ("training", "cell training")


@dataclass(frozen=True)
class Case:
    """The sizes of a layer, input [T, B, I] and H units, and who has such a layer."""

    name: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False  # sequences of T/4 to T steps in one batch
    source: str = ""
    trained: bool = False  # of a single step: it is trained and not streamed

    def works(self) -> tuple[str, ...]:
        """What is done with it."""
        return BATCHED if self.T > 1 else ONE_STEP if self.trained else SINGLE

    def __str__(self) -> str:
        flags = [f"{self.layers} layers"] * (self.layers > 1)
        flags += ["bidirectional"] * self.bidirectional + ["ragged"] * self.ragged
        return ", ".join([f"T={self.T} B={self.B} I={self.I} H={self.H}", *flags])


@dataclass(frozen=True)
class Task:
    """A case, and what is done with it."""

    case: Case
    cell: str  # a key of CELL_OF
    work: str  # of BATCHED, SINGLE or ONE_STEP
    dtype: str = "float32"
    tf32: bool = False  # float32 products may round their factors: to TF32 on a GPU, to bfloat16 on a CPU
    device: str = "cpu"  # or cuda

    def __str__(self) -> str:
        return f"{self.case.name} {self.cell} {self.work} {self.dtype}{' tf32' * self.tf32}"

    @property
    def is_cell(self) -> bool:
        return self.work.startswith("cell")

    @property
    def is_training(self) -> bool:
        return self.work.endswith("training")

    def flops(self) -> float:
        """Of the products of one time step, all layers and directions; training is a forward and twice as much more."""
        case, gates, directions = self.case, CELL_OF[self.cell].gates, 1 + self.case.bidirectional
        inputs = [case.I, *[directions * case.H] * (case.layers - 1)]
        forward = sum(2 * gates * case.H * (size + case.H) * case.B * directions for size in inputs)
        return forward * (3 if self.is_training else 1)


USES = (
    Case("voice-activity", 1, 1, 128, 128, source="Silero VAD (snakers4/silero-vad): one LSTM, a frame at a time"),
    Case(
        "speech-encoder",
        *(200, 16, 512, 256),
        layers=3,
        bidirectional=True,
        ragged=True,
        source="Chan et al. 2016, Listen, Attend and Spell: 3 layers of 256 in each direction",
    ),
    Case(
        "separation",
        *(255, 16, 512, 256),
        layers=3,
        bidirectional=True,
        source="Open-Unmix (sigsep/open-unmix-pytorch): 3 layers of 256 in each direction, 6 s of audio",
    ),
    Case("forecasting", 48, 32, 48, 40, layers=2, source="DeepAR in GluonTS (awslabs/gluonts): 2 layers of 40"),
    Case("ppo-rollout", 1, 8, 64, 256, source="RecurrentPPO (stable-baselines3-contrib): LSTM of 256, 8 environments"),
    Case("ppo-update", 128, 8, 64, 256, source="RecurrentPPO (stable-baselines3-contrib): 128 steps of 8 environments"),
    Case("language-model", 35, 20, 650, 650, layers=2, source="pytorch/examples word_language_model, --nhid 650"),
    Case("basecaller", 833, 16, 384, 384, source="Bonito (nanoporetech/bonito): a layer of 384, 5000 samples a chunk"),
    Case("seq2seq", 40, 64, 512, 512, ragged=True, source="fairseq models/lstm.py: an encoder of 512"),
    Case("loop16", 16, 32, 256, 256, source="the longest loop that torch.compile is asked to unroll"),
)
# Each a regime of its own: bound by calls, by the bandwidth of a cache, by activations, by products.
CPU_GRID = (
    Case("stream64", 1, 1, 64, 64),
    Case("stream256", 1, 1, 256, 256),
    Case("stream512", 1, 1, 512, 512),
    Case("small-b1", 64, 1, 128, 128),
    Case("small-b4", 64, 4, 128, 128),
    Case("small-b8", 64, 8, 256, 256),
    Case("tiny16", 64, 32, 8, 16),
    Case("tiny32", 128, 64, 16, 32),
    Case("odd200", 64, 16, 80, 200),
    Case("long", 4096, 1, 128, 128),
    Case("wideB", 50, 256, 64, 128),
    Case("typ256", 128, 32, 256, 256),
    Case("typ512", 128, 32, 512, 512),
    Case("large1024", 32, 64, 1024, 1024),
)
# One step a call: the overhead of a call is the largest part of its time.
STEP_GRID = tuple(
    Case(f"step-h{H}-b{B}", 1, B, H, H, source="decoders and reinforcement learning: one step a call", trained=True)
    for H, B in product((64, 256, 512), (1, 16, 32, 256, 4096))
)
# The usual batch first, so that a run that is cut off has every size of it.
GPU_GRID = tuple(
    Case(f"h{H}-b{B}", 512, B, H, H) for B, H in product((16, 1, 64, 256, 4), (256, 1024, 64, 128, 512, 2048))
)
# What decides which kernels run on a GPU: the corners of what people use, T long enough that the start costs little.
CHECK_GRID = (
    *(Case(f"check-h{H}-b{B}", 256, B, H, H) for B, H in product((16, 1, 64), (256, 128, 512, 64, 1024))),
    Case("check-layers", 256, 16, 256, 256, layers=2),
    Case("check-directions", 256, 16, 256, 256, bidirectional=True),
    Case("check-ragged", 256, 16, 256, 256, ragged=True),
)
CHECK_CPU = (Case("check-cpu", 8, 2, 8, 16),)  # to see that it works
CPU_QUICK = ("voice-activity", "stream64", "small-b4", "tiny32", "odd200", "typ256", "forecasting")
GPU_QUICK = ("h256-b16", "h1024-b16", "h128-b1", "voice-activity", "separation")
WARM_UP = Case("warm-up", 4, 2, 8, 16)


def cases_for(device_type: str) -> tuple[Case, ...]:
    return (*GPU_GRID, *USES) if device_type == "cuda" else (*CPU_GRID, *STEP_GRID, *USES)


def quick_cases(device_type: str) -> tuple[Case, ...]:
    """A few of each kind; on a CPU the long ones are cut to 64 steps, with names of their own."""
    names = GPU_QUICK if device_type == "cuda" else CPU_QUICK
    chosen = [case for case in cases_for(device_type) if case.name in names]
    if device_type == "cuda":
        return tuple(chosen)
    return tuple(case if case.T <= 64 else replace(case, T=64, name=f"{case.name}-t64") for case in chosen)


def known_cases(device_type: str) -> tuple[Case, ...]:
    """All that may have rows, each once."""
    checked = CHECK_GRID if device_type == "cuda" else CHECK_CPU
    return tuple(dict.fromkeys((*cases_for(device_type), *quick_cases(device_type), *checked)))


def check_tasks(device_type: str) -> Iterator[Task]:
    """The tasks of the grid that decides, LSTM in bfloat16 before everything else, so that a run cut off has those."""
    if device_type != "cuda":
        yield from (Task(case, cell, work) for case in CHECK_CPU for cell, work in product(CELLS, case.works()))
        return
    precisions = (("bfloat16", False), ("float32", True))
    kinds = [*product(("LSTM", "GRU"), precisions), ("LSTM", ("float16", False))]
    for cell, (dtype, tf32) in kinds:
        for case in CHECK_GRID:
            if case.name.startswith("check-h") or dtype != "float16":
                yield from (Task(case, cell, work, dtype, tf32, device_type) for work in case.works())


def select(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose names match one of the patterns, "typ*", in their order.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise ValueError(f"no case is called {pattern!r}; there are {', '.join(case.name for case in cases)}")
    return tuple(case for case in cases if any(fnmatchcase(case.name, pattern) for pattern in patterns))


def tasks(
    cases: Sequence[Case], device_type: str, cells: Sequence[str] = CELLS, reduced: bool = False
) -> Iterator[Task]:
    """All that is done with those cases: the grid in each precision, the uses in the one that is usual there.

    Args:
        reduced: a CPU has float32 in reduced precision.
    """
    precisions = [("bfloat16", False), ("float16", False), ("float32", True), ("float32", False)]
    if device_type != "cuda":
        precisions = [("float32", False), ("bfloat16", False)]
        precisions += [("float32", True)] * reduced
    for case in cases:
        for (dtype, tf32), cell, work in product(precisions[:1] if case.source else precisions, cells, case.works()):
            yield Task(case, cell, work, dtype, tf32, device_type)
