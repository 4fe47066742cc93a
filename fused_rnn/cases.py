"""Layers as programs have them: what ``python -m fused_rnn tune`` and the benchmark measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

import torch
from torch import nn

from . import cells, modules

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
    proj_size: int = 0  # of an LSTM

    def works(self) -> tuple[str, ...]:
        """The kinds of work that are measured."""
        if self.T > 1:
            return BATCHED
        return ONE_STEP if self.trained else SINGLE[:1] if self.proj_size else SINGLE  # no cell projects

    def __str__(self) -> str:
        flags = [f"proj_size={self.proj_size}"] * bool(self.proj_size) + [f"{self.layers} layers"] * (self.layers > 1)
        flags += ["bidirectional"] * self.bidirectional + ["ragged"] * self.ragged
        return ", ".join([f"T={self.T} B={self.B} I={self.I} H={self.H}", *flags])


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
CPU_QUICK = ("voice-activity", "stream64", "small-b4", "tiny32", "odd200", "typ256", "forecasting")
# One step a call: the overhead of a call is the largest part of its time.
STEP_GRID = tuple(
    Case(f"step-h{H}-b{B}", 1, B, H, H, source="decoders and reinforcement learning: one step a call", trained=True)
    for H, B in product((64, 256, 512), (1, 16, 32, 256, 4096))
)
_SAK = "Sak et al. 2014, LSTM for large scale acoustic modeling: 800 cells projected to 512, sequences of 20 steps"
_HE = "He et al. 2019, streaming end-to-end speech recognition: 2048 cells projected to 640, a frame at a time"
PROJECTIONS = (
    Case("proj-acoustic", 20, 64, 40, 800, proj_size=512, source=_SAK),
    Case("proj-stream", 1, 1, 640, 2048, proj_size=640, source=_HE),
    Case("proj-stream256", 1, 1, 80, 256, proj_size=64),
    Case("proj-b1", 64, 1, 128, 128, proj_size=64),
    Case("proj-small", 64, 8, 64, 128, proj_size=32),
    Case("proj-tiny", 128, 64, 16, 32, proj_size=16),
    Case("proj-odd", 64, 16, 80, 200, proj_size=72),
    Case("proj-typ512", 128, 32, 512, 512, proj_size=128),
)
# What decides which kernels run on a GPU: the corners of what people use, T long enough that the start costs little.
CHECK_GRID = (
    *(Case(f"check-h{H}-b{B}", 256, B, H, H) for B, H in product((16, 1, 64), (256, 128, 512, 64, 1024))),
    Case("check-layers", 256, 16, 256, 256, layers=2),
    Case("check-directions", 256, 16, 256, 256, bidirectional=True),
    Case("check-ragged", 256, 16, 256, 256, ragged=True),
)


def select(cases: Sequence[Case], patterns: Sequence[str]) -> tuple[Case, ...]:
    """The cases whose names match one of the patterns, "typ*", in their order.

    Raises:
        ValueError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(case.name, pattern) for case in cases):
            raise ValueError(f"no case is called {pattern!r}; there are {', '.join(case.name for case in cases)}")
    return tuple(case for case in cases if any(fnmatchcase(case.name, pattern) for pattern in patterns))


def layer(
    case: Case, cell: str, work: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, tuple[Any, ...]]:
    """A layer or cell of this package and its inputs, with the same numbers in every call.

    Args:
        cell: LSTM, GRU or RNN.
        work: one of ``case.works()``.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    wanted = {**options, "requires_grad": work.endswith("training")}
    if work.startswith("cell"):
        return getattr(cells, f"{cell}Cell")(case.I, case.H, **options), (torch.randn(case.B, case.I, **wanted),)
    options |= {"bidirectional": case.bidirectional, "proj_size": case.proj_size}
    rnn = getattr(modules, cell)(case.I, case.H, case.layers, **options)
    x = torch.randn(case.T, case.B, case.I, **wanted)
    lengths = torch.randint(max(1, case.T // 4), case.T + 1, (case.B,), device=device) if case.ragged else None
    return rnn, (x, None, lengths)
