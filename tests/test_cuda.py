"""What only a GPU can show: streams, graphs, devices, no waiting; and the numbers once more, on real hardware."""

import pytest
import torch
from closeness import assert_within_budget
from problems import CELLS, SIZES, Layer, Size

import fused_rnn
from fused_rnn import backends, layer, reference
from fused_rnn.cell import LSTM

POSED = backends.Problem(LSTM, torch.device("cuda:0"), torch.float32, T=4, B=2, I=3, H=5)
REASON = backends.by_name("cuda").why_not(POSED)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BOUNDARIES = (  # of the plan, and shapes that fill more than one block
    Size(40, 64, 32, 64),
    Size(20, 33, 40, 128),
    Size(9, 8, 5, 144),
    Size(6, 20, 7, 300),
)


def run(*arguments):
    with backends.use_backend("cuda"):
        return layer.run(*arguments)


@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("size", (*SIZES, *BOUNDARIES), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_against_float64(cell, dtype, size, ragged, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    drawn = Layer.random(cell, dtype, size, ragged=ragged)
    got = {name: value.cpu() for name, value in drawn.to("cuda").results(run, reverse=ragged).items()}
    truth = drawn.double().results(reference.run, ragged)
    same = drawn.results(reference.run, ragged)
    for name in truth:
        assert_within_budget(name, [got[name]], [truth[name]], [same[name]])


def test_the_current_stream_and_no_waiting():
    rnn, x = fused_rnn.LSTM(32, 64, device="cuda"), torch.randn(50, 8, 32, device="cuda")
    lengths = torch.full((8,), 40, device="cuda")
    wanted = rnn(x, lengths=lengths)[0]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            output, _ = rnn(x, lengths=lengths)
            output.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(output, wanted)


@pytest.mark.parametrize("H", [64, 300], ids=["block", "stepwise"])
def test_graph_capture_and_replay(H):
    rnn, x = fused_rnn.GRU(32, H, device="cuda"), torch.randn(20, 8, 32, device="cuda")
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            rnn(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = rnn(x)
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert torch.equal(output, rnn(x)[0])


def test_bits_repeat():
    drawn = Layer.random(LSTM, torch.bfloat16, Size(40, 64, 32, 64)).to("cuda")
    first, second = drawn.results(run), drawn.results(run)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    rnn, x = fused_rnn.LSTM(32, 64, device="cuda:1"), torch.randn(50, 8, 32, device="cuda:1")
    assert torch.cuda.current_device() == 0
    with backends.use_backend("cuda"):
        assert rnn(x)[0].device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0


def test_out_of_memory_is_a_sentence():
    rnn = fused_rnn.LSTM(1, 4096, device="cuda")
    with pytest.raises(RuntimeError, match="out of memory"):
        rnn(torch.zeros(1 << 22, 1, 1, device="cuda"))
