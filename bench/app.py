"""LSTM or GRU? The same sizes side by side, and a language model of each for equal time and for equal parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from statistics import mean, median

import torch
from torch import nn

import fused_rnn
from examples.char_lm import CharLM, Trainer, Vocabulary, batches_of, manual
from fused_rnn.cases import Case
from fused_rnn.timing import in_turns, ratios, spread

from . import machine, memory, systems
from .cases import CELLS, Task
from .layers import STREAMED, inputs, work_of
from .rows import Row

KEY = ("what", "case", "cell", "work", "threads")
FIELDS = (
    *KEY,
    # of a layer: its parameters, float operations and microseconds a step, memory of a training step, and its time by
    # the LSTM's in the same round; of a model: its units, its loss and the steps and seconds to it
    *("H", "parameters", "flops", "us_per_step", "by_lstm", "peak_bytes"),
    *("steps", "seconds", "loss"),
    *("torch", "device", "date", "commit"),
)
COMPARED = {"cpu": ("small-b1", "typ256", "ppo-update", "separation"), "cuda": ("h256-b16", "h1024-b16")}
STEPS, QUICK_STEPS = 400, 40
TURN = 10  # training steps before the next model's turn
LAST = 20  # steps over which a loss is averaged


def layers_side_by_side(cases: Sequence[Case], device: torch.device, threads: int, seconds: float) -> Iterator[Row]:
    """Both cells of our package at the same sizes, in turns."""
    torch.set_num_threads(threads)
    for case in cases:
        for work in _works(case):
            tasks = [Task(case, cell, work, "float32", False, device.type) for cell in CELLS]
            calls = [_our_call(task, device) for task in tasks]
            times = in_turns(calls, device, seconds)
            for task, call, own in zip(tasks, calls, times, strict=True):
                row = {"what": "layer", "case": case.name, "cell": task.cell, "work": work, "H": str(case.H)}
                us = f"{spread(own)[0] / (STREAMED if work == 'streaming' else case.T):.4g}"
                row |= {"parameters": str(parameters(inputs(task, device)[0])), "flops": f"{task.flops():.0f}"}
                row |= {"us_per_step": us, "by_lstm": f"{spread(ratios(own, times[0]))[0]:.3f}"}
                if work == "training":
                    row["peak_bytes"] = _peak(task, call, device, threads)
                yield row | _where(device, threads)


def layer_keys(case: Case, device: torch.device, threads: int) -> Iterator[tuple[str, ...]]:
    """The keys of the rows that :func:`layers_side_by_side` makes of a case."""
    for work in _works(case):
        for cell in CELLS:
            yield "layer", case.name, cell, work, _where(device, threads)["threads"]


def model_keys(device: torch.device, threads: int) -> Iterator[tuple[str, ...]]:
    """The keys of some rows that :func:`language_models` makes."""
    yield "model", "char_lm", "LSTM", "equal time", _where(device, threads)["threads"]


def _works(case: Case) -> tuple[str, ...]:
    return case.works()[:1] if case.T == 1 else case.works()


def _our_call(task: Task, device: torch.device) -> Callable[[], object]:
    rnn, x, lengths = inputs(task, device)
    return work_of(task, systems.OURS.build(task, rnn, x, lengths), x)


def _peak(task: Task, call: Callable[[], object], device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return str(memory.peak_bytes_on_gpu(call))
    found = memory.peak_bytes_on_cpu(str(task), systems.OURS.name, threads)
    return "" if found is None else str(found)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _where(device: torch.device, threads: int) -> Row:
    return {"threads": "" if device.type == "cuda" else str(threads)} | machine.about(device)


def language_models(device: torch.device, threads: int, steps: int, hidden: int = 128) -> Iterator[Row]:
    """The character model of examples/char_lm.py: an LSTM, a GRU of as many units, and one of as many parameters.

    All read the same batches in turns. A model's loss after ``steps`` steps is the one for equal steps; the one for
    equal time is that after as many as take the LSTM's time, by the medians of their turns.
    """
    torch.set_num_threads(threads)
    vocabulary = Vocabulary(manual())
    ids = vocabulary.encode(manual()).to(device)

    def trainer(cell: str, hidden: int) -> Trainer:
        torch.manual_seed(0)
        return Trainer(fused_rnn.convert(CharLM(cell, len(vocabulary.characters), hidden)).to(device))

    wanted = parameters(CharLM("lstm", len(vocabulary.characters), hidden))
    same = min(range(hidden, 2 * hidden), key=lambda H: abs(_size("gru", vocabulary, H) - wanted))
    models = [("LSTM", "lstm", hidden), ("GRU", "gru", hidden), ("GRU, as many parameters", "gru", same)]
    trainers = [trainer(cell, H) for _, cell, H in models]
    streams = [batches_of(ids, batch=32, length=32) for _ in models]
    for own, stream in zip(trainers, streams, strict=True):
        own.train(list(islice(stream, TURN)))  # warm-up, for all alike
        own.seconds.clear()
        own.losses.clear()
    for _ in range(math.ceil(steps / TURN)):
        for own, stream in zip(trainers, streams, strict=True):
            own.train(list(islice(stream, TURN)))
    turn = median(trainers[0].seconds)
    for (name, _, H), own, stream in zip(models, trainers, streams, strict=True):
        about = {"case": "char_lm", "cell": name, "H": str(H), "parameters": str(parameters(own.model))}
        about |= {"what": "model", **_where(device, threads)}
        own_turn, turns = median(own.seconds), len(own.seconds)
        yield about | {"work": "equal steps"} | _loss(own, turns, own_turn)
        in_time = max(1, round(turns * turn / own_turn))
        while len(own.seconds) < in_time:
            own.train(list(islice(stream, TURN)))
        yield about | {"work": "equal time"} | _loss(own, in_time, own_turn)


def _size(cell: str, vocabulary: Vocabulary, hidden: int) -> int:
    return parameters(CharLM(cell, len(vocabulary.characters), hidden))


def _loss(trainer: Trainer, turns: int, turn: float) -> Row:
    """What was reached after so many turns, each of which takes ``turn`` seconds."""
    steps = turns * TURN
    loss = mean(trainer.losses[max(0, steps - LAST) : steps])
    return {"steps": str(steps), "seconds": f"{turns * turn:.2f}", "loss": f"{loss:.4f}"}
