"""explain and the environment report say what runs, and why nothing better does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fused_rnn
from fused_rnn import __main__ as report
from fused_rnn import evidence, native


def test_a_stack_is_explained_as_a_whole():
    rnn = fused_rnn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    explanation = fused_rnn.explain(rnn, torch.zeros(2, 5, 3))
    posed = explanation.problem
    assert explanation.backend == "cpu"
    assert (posed.layers, posed.directions, posed.T, posed.B, posed.I, posed.H) == (2, 2, 5, 2, 3, 4)
    assert posed.training and not posed.ragged
    assert native.cpu_instruction_set() in str(explanation)


def test_what_runs_is_what_is_explained(monkeypatch):
    posed = []
    choose = fused_rnn.backends.choose
    monkeypatch.setattr(
        fused_rnn.backends, "choose", lambda call: posed.append(getattr(call, "problem", call)) or choose(call)
    )
    packed = pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)])
    projected = fused_rnn.LSTM(3, 4, num_layers=2, proj_size=2)
    for rnn, x, options in (
        (fused_rnn.GRU(3, 4, num_layers=2, bidirectional=True), torch.zeros(5, 2, 3), {}),
        (fused_rnn.GRU(3, 4, num_layers=2, batch_first=True), torch.zeros(2, 5, 3), {"lengths": [3, 5]}),
        (fused_rnn.LSTM(3, 4), torch.zeros(5, 3), {}),
        (fused_rnn.LSTM(3, 4).requires_grad_(False), packed, {}),
        (projected, packed, {}),
        (fused_rnn.GRUCell(3, 4, reset_after=False), torch.zeros(2, 3), {}),
        (fused_rnn.LSTMCell(3, 4), torch.zeros(3), {}),
    ):
        posed.clear()
        rnn(x, **options)
        problem, *_ = posed
        assert fused_rnn.explain(rnn, x, **options).problem == problem
    with torch.autocast("cpu", torch.bfloat16):
        posed.clear()
        projected(torch.zeros(5, 2, 3))
        problem, *_ = posed
        assert fused_rnn.explain(projected, torch.zeros(5, 2, 3)).problem == problem


def test_refusals_are_sentences():
    rnn = fused_rnn.LSTM(3, 4, dtype=torch.complex64)
    text = str(fused_rnn.explain(rnn, torch.zeros(5, 2, 3, dtype=torch.complex64)))
    assert "  torch" in text
    assert "not cpu: it has no kernel for torch.complex64" in text


def test_a_projection_is_explained():
    explained = fused_rnn.explain(fused_rnn.LSTM(3, 4, proj_size=2), torch.zeros(5, 2, 3))
    assert explained.backend == "cpu" and "proj_size=2" in str(explained)


def test_a_forced_backend_is_named():
    with fused_rnn.use_backend("reference"):
        text = str(fused_rnn.explain(fused_rnn.GRU(3, 4), torch.zeros(5, 2, 3)))
    assert "  reference, forced" in text
    assert "not cpu: reference is forced" in text
    with fused_rnn.use_backend("cpu"), pytest.raises(ValueError, match="complex64"):
        fused_rnn.explain(fused_rnn.LSTM(3, 4, dtype=torch.complex64), torch.zeros(5, 2, 3, dtype=torch.complex64))


def test_only_our_modules():
    with pytest.raises(TypeError, match=r"got LSTM; fused_rnn\.convert makes one"):
        fused_rnn.explain(nn.LSTM(3, 4), torch.zeros(5, 2, 3))


def test_environment_report(monkeypatch):
    text = report.report()
    assert f"torch      {torch.__version__}" in text
    assert "cpu        yes" in text
    monkeypatch.setattr(native, "load_error", "a reason")
    assert "cpu        no: the extension could not be loaded: a reason" in report.report()
    assert subprocess.run([sys.executable, "-m", "fused_rnn"], check=True, capture_output=True).stdout


def test_a_gpu_that_is_not_here(monkeypatch):
    """What was measured on a GPU is in test_evidence.py; this is what the kernels themselves say."""
    monkeypatch.setattr(evidence, "why_later", lambda problem, backend, gpu=None: None)
    x = torch.zeros(50, 8, 32)
    text = str(fused_rnn.explain(fused_rnn.LSTM(32, 16), x, gpu="H100"))
    assert "  cuda (on H100: block: 1 block of 32 threads and 8 rows; weight_hh" in text
    assert "backward: block:" in text
    assert re.search(r"; by the model of an H100 0\.\d\d us a step; backward.* H100 0\.\d\d us a step", text)
    both = str(fused_rnn.explain(fused_rnn.LSTM(32, 64, num_layers=2, bidirectional=True), x, gpu="H100"))
    assert both.count("; both directions side by side") == 2
    medium = str(fused_rnn.explain(fused_rnn.GRU(32, 700, dtype=torch.bfloat16), x.bfloat16(), gpu="H200"))
    assert re.search(r"cuda \(on H200: grid \S+: 1 group of \d+ blocks of .* and 8 rows;.*backward: grid ", medium)
    large = fused_rnn.explain(fused_rnn.GRU(32, 4000, dtype=torch.bfloat16), x.bfloat16(), gpu="H200")
    assert "stepwise" in str(large) and "does not fit in 128 blocks of 227 KiB" in str(large)
    turing = fused_rnn.explain(fused_rnn.GRU(32, 70, dtype=torch.bfloat16), x.bfloat16(), gpu="T4")
    assert turing.backend == "torch"
    assert "not cuda: bfloat16 needs compute capability 8.0 or later, and this GPU has 7.5" in str(turing)
    projected = fused_rnn.explain(fused_rnn.LSTM(32, 70, proj_size=5), x, gpu="A100")
    assert "cuda (on A100: stepwise: two matmuls and two kernels a step, because no persistent kernel" in str(projected)
    with pytest.raises(RuntimeError, match="'Voodoo' is neither here nor one of T4, A100"):
        fused_rnn.explain(fused_rnn.LSTM(32, 64), x, gpu="Voodoo")


USED_THREADS = """
import os, sys, time, torch, fused_rnn
torch.set_num_threads(2)
T, B, H, training = map(int, sys.argv[1:])
rnn, x = fused_rnn.LSTM(H, H).requires_grad_(bool(training)), torch.randn(T, B, H)

def call():
    output, _ = rnn(x)
    if training:
        output.sum().backward()

def spent():
    return {t: int(open(f"/proc/self/task/{t}/schedstat").read().split()[0]) for t in os.listdir("/proc/self/task")}

call()
before, end = spent(), time.monotonic() + 0.3
while time.monotonic() < end:
    call()
times = sorted((time - before.get(thread, 0) for thread, time in spent().items()), reverse=True)
print(sum(time > times[0] / 10 for time in times))
print(fused_rnn.explain(rnn, x).plan)
"""


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux to see what a thread has computed")
@pytest.mark.skipif(os.cpu_count() == 1, reason="needs two processors")
@pytest.mark.parametrize(
    ("T", "B", "H", "training", "threads", "plan"),
    [
        (64, 1, 1024, False, 2, ", 2 threads"),  # one row, whose units are divided
        (1, 2, 4, False, 1, ", 1 thread"),  # too little work to divide
        (64, 64, 64, True, 2, ", 2 threads"),
        (64, 8, 32, True, 2, ", 1 thread; backward: 2"),
    ],
)
def test_the_threads_that_run_are_those_explained(T, B, H, training, threads, plan):
    # Passive: a thread that waits for the next parallel region does not spin.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", USED_THREADS, *map(str, (T, B, H, int(training)))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, explained = done.stdout.splitlines()
    assert explained.endswith(plan)
    assert int(used) == threads
