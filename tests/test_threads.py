"""Threads and processes: how many there are changes no bit, and nobody waits for ever."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from problems import CELLS, Layer, Size, native_layer

import fused_rnn
from fused_rnn.cell import GRU, LSTM


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Divided among threads by rows; by panels of units, with a meeting every step, the last panel not full; by panels with
# a single row, whose sums are several chains.
DIVIDED = (Size(T=9, B=70, I=40, H=70), Size(T=9, B=20, I=40, H=200), Size(T=9, B=1, I=300, H=300))


@pytest.mark.parametrize("size", DIVIDED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize(("cell", "projects"), [*((cell, False) for cell in CELLS), (LSTM, True)], ids=str)
def test_threads_change_nothing(cell, projects, ragged, dtype, size, threads):
    """A row's results and a weight's gradient are sums in an order that does not depend on who computes them."""
    layer = Layer.random(cell, dtype, size, ragged=ragged, projection=size.H // 2 + 1 if projects else 0)
    results = []
    for n in (1, 2, 3, 5):
        threads(n)
        results.append(layer.results(native_layer))
    for other in results[1:]:
        for name, value in other.items():
            assert torch.equal(value, results[0][name]), name


@pytest.mark.parametrize("T", [1, 9])
@pytest.mark.parametrize("B", [1, 20])
@pytest.mark.parametrize("kind", [fused_rnn.LSTM, fused_rnn.GRU])
def test_directions_at_once(kind, B, T, threads):
    """Where no backward can come, two or three threads take a direction each; here, two layers of them."""
    torch.manual_seed(0)
    module, x = kind(40, 150, num_layers=2, bidirectional=True), torch.randn(T, B, 40)
    threads(1)
    with torch.enable_grad():
        expected = module(x)
    for n in (1, 2, 3, 5):
        threads(n)
        with torch.inference_mode():
            got = module(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_callers_in_several_threads(threads):
    threads(2)
    layer = Layer.random(GRU, torch.float32, Size(T=9, B=70, I=40, H=70))
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: layer.results(native_layer), range(8))
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in first.items())


def test_many_short_threads():
    """Each has scratch memory of its own, which goes with it."""
    layer = Layer.random(LSTM, torch.float32, Size(T=2, B=3, I=4, H=20))
    expected, results = layer.results(native_layer), []
    for _ in range(50):
        thread = threading.Thread(target=lambda: results.append(layer.results(native_layer)))
        thread.start()
        thread.join()
    assert len(results) == 50
    assert all(torch.equal(value, expected[name]) for result in results for name, value in result.items())


# Small enough for PyTorch to compare its tensors in one thread, as it would hang, too.
FORK = """
import os, signal, sys, torch
from problems import Layer, Size, native_layer
from fused_rnn.cell import LSTM

torch.set_num_threads(3)
layer = Layer.random(LSTM, torch.float32, Size(T=5, B=70, I=40, H=70))
expected = layer.results(native_layer) if sys.argv[1] == "used" else None

def check(generations):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a process that waits for ever
        try:
            got = layer.results(native_layer)
            assert expected is None or all(torch.equal(value, expected[name]) for name, value in got.items())
            if generations > 1:
                check(generations - 1)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

check(2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads_before", ["used", "fresh"])
def test_forked_processes(threads_before):
    """A child gets none of its parent's threads. OpenMP would wait for them, as it does in torch.nn.LSTM."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", FORK, threads_before]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
