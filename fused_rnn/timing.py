"""The clock: calls in turns, on the device's own time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

FEWEST, MOST = 7, 200  # rounds
PAUSE = 0.01  # seconds before a turn on a CPU: threads of the one before wait for work, spinning, after its last call
TURN = 0.003  # seconds of calls in one turn, at least one call
LONG = 0.1  # seconds of a call whose warm-up makes no difference


def in_turns(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    seconds: float,
    about: Sequence[float] = (),
) -> list[list[float]]:
    """How long each call takes, in microseconds: for each of ``calls`` its time in every round.

    The calls take turns, A B A B, so that what else the machine does falls on all alike. On a CPU a turn is a pause,
    one call that does not count unless it is ``LONG``, and short calls several times. On a GPU the events of all rounds
    are recorded before the host waits: a call starts when the last one ends, unless the host is too slow for that, and
    then this is what it costs.

    Args:
        seconds: about how long to measure, warm-up not counted; never fewer rounds than ``FEWEST``.
        about: the result of :func:`once` for each call, if known.
    """
    about = about or [once(call, device) for call in calls]
    if device.type == "cuda":
        return _rounds_on_gpu(calls, _rounds(seconds, sum(about)))
    counts = [max(1, int(TURN / max(own, 1e-9))) for own in about]
    turns = (PAUSE + own * ((own < LONG) + count) for own, count in zip(about, counts, strict=True))
    return _rounds_on_host(calls, about, counts, _rounds(seconds, sum(turns)))


def once(call: Callable[[], object], device: torch.device) -> float:
    """The seconds of a single call: the first if it is ``LONG``, else the least of the calls in one turn."""
    start, first = time.perf_counter(), _seconds(call, device)
    if first >= LONG:
        return first
    least = _seconds(call, device)
    while time.perf_counter() - start < TURN:  # a slow first call would give a turn too few calls
        least = min(least, _seconds(call, device))
    return least


def _rounds(seconds: float, of_one: float) -> int:
    return max(FEWEST, min(MOST, int(seconds / max(of_one, 1e-9))))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rounds_on_gpu(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    marks: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, marks, strict=True):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            own.append((start, end))
    torch.cuda.synchronize()
    return [[start.elapsed_time(end) * 1e3 for start, end in own] for own in marks]


def _rounds_on_host(
    calls: Sequence[Callable[[], object]], about: Sequence[float], counts: Sequence[int], rounds: int
) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, seconds, count, own in zip(calls, about, counts, times, strict=True):
            time.sleep(PAUSE)
            if seconds < LONG:
                call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            own.append((time.perf_counter() - start) / count * 1e6)
    return times


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile, in the unit of ``values``."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), deciles[0], deciles[-1]


def ratios(these: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Round by round, how many times as long these took."""
    return [a / b for a, b in zip(these, ours, strict=True)]
