"""What only a GPU can show: streams, graphs, devices, no waiting; and the numbers once more, on real hardware."""

import copy
import warnings

import pytest
import reduced
import torch
from closeness import assert_within_budget
from problems import CALLS, CELLS, SIZES, Layer, Size, comparisons, on_device, posed, whole_call

import fused_rnn
from fused_rnn import backends, layered, native, reference
from fused_rnn.call import one_layer
from fused_rnn.cell import LSTM

POSED = backends.Problem(LSTM, torch.device("cuda:0"), torch.float32, T=4, B=2, I=3, H=5)
REASON = backends.by_name("cuda").why_not(POSED)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

MATHS = {  # what products multiply: the storage type, and whether TF32 is allowed
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
BOUNDARIES = (  # of the plan, and shapes that fill more than one block
    Size(40, 64, 32, 64),
    Size(20, 33, 40, 128),
    Size(9, 8, 5, 144),
    Size(6, 20, 7, 300),
    Size(30, 70, 7, 520),
)
TIERS = ("block", "cluster", "cluster 1x6x2", "grid", "grid 1x6x3", "grid 2x3x1", "stepwise")  # FUSED_RNN_TIER


@pytest.fixture(autouse=True)
def our_kernels():
    with backends.use_backend("cuda"):
        yield


def draws_of(size, math):
    """How many layers: small ones often, so that the largest error of PyTorch is not small by luck."""
    if math == "float32":  # as many as keep right kernels, with functions of 1 ulp, within the budget
        return 50 if size.H < 16 else 8 if size.H < 64 else 4
    return 4 if size.H < 16 else 2


@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("size", (*SIZES, *BOUNDARIES), ids=str)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_against_float64(cell, math, size, ragged, monkeypatch):
    check(cell, math, size, ragged, monkeypatch)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_tier(cell, math, tier, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TIER", tier)
    check(cell, math, Size(20, 33, 40, 96), True, monkeypatch)


def check(cell, math, size, ragged, monkeypatch):
    dtype, allow_tf32 = MATHS[math]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allow_tf32)
    count = draws_of(size, math)
    draws = [Layer.random(cell, dtype, size, ragged=ragged, seed=seed) for seed in range(count)]
    on_gpu = [draw.to("cuda") for draw in draws]
    got = [on_cpu(d.results(one_layer(native.run), ragged)) for d in on_gpu]
    # What PyTorch loses, with the functions of the processor and with those of the GPU.
    plain = reduced.in_tf32 if math == "tf32" else reference.run
    same = [d.results(plain, ragged) for d in draws]
    same_on_gpu = [on_cpu(d.results(plain, ragged)) for d in on_gpu]
    for name, compared in comparisons(draws * 2, got * 2, same + same_on_gpu, ragged).items():
        assert all(g[name].dtype == dtype for g in got)
        assert_within_budget(name, *compared)


def on_cpu(results):
    return {name: value.cpu() for name, value in results.items()}


@pytest.mark.parametrize(("cell", "kind"), posed(CELLS, CALLS), ids=str)
def test_a_whole_call(cell, kind, monkeypatch):
    """Several layers, both directions, masks, absent states, every form of input."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    call, tensors = whole_call(cell, kind, torch.float32, T=5, B=9, I=3, H=17)
    results = []
    for device, dtype, run in (("cuda", torch.float32, native.run), ("cpu", torch.float64, by_reference)):
        moved = [tensor.detach().to(device, dtype).requires_grad_() for tensor in tensors]
        outputs = run(on_device(call(*moved), device))
        grads = torch.autograd.grad(sum(y.sin().sum() for y in outputs), moved)
        results.append([value.double().cpu() for value in (*outputs, *grads)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def by_reference(call):
    return layered.run(call, reference.run)


def test_the_current_stream_and_no_waiting():
    rnn, x = fused_rnn.LSTM(32, 64, device="cuda"), torch.randn(50, 8, 32, device="cuda")
    rows = {"lengths": torch.full((8,), 40, device="cuda"), "resets": torch.rand(50, 8, device="cuda") < 0.1}
    wanted = rnn(x, **rows)[0]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            output, _ = rnn(x, **rows)
            output.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(output, wanted)


@pytest.mark.parametrize("tier", TIERS)
def test_graph_capture_and_replay(tier, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TIER", tier)
    rnn, x = fused_rnn.GRU(32, 96, device="cuda"), torch.randn(20, 8, 32, device="cuda")
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


@pytest.mark.parametrize("tier", TIERS)
def test_bits_repeat(tier, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TIER", tier)
    drawn = Layer.random(LSTM, torch.bfloat16, Size(40, 64, 32, 96)).to("cuda")
    first, second = drawn.results(one_layer(native.run)), drawn.results(one_layer(native.run))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one():
    rnn, x = fused_rnn.LSTM(32, 64, device="cuda:1"), torch.randn(50, 8, 32, device="cuda:1")
    assert torch.cuda.current_device() == 0
    assert rnn(x)[0].device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0


def test_out_of_memory_is_a_sentence():
    rnn = fused_rnn.LSTM(1, 4096, device="cuda")
    with pytest.raises(RuntimeError, match="out of memory"):
        rnn(torch.zeros(1 << 22, 1, 1, device="cuda"))


# What users get, which is PyTorch's kernels where ours were not measured to be faster.


@pytest.fixture
def nothing_forced(our_kernels, monkeypatch):
    monkeypatch.setattr(backends, "_forced", None)
    monkeypatch.setattr(fused_rnn.evidence, "measurements", lambda: ())
    fused_rnn.evidence._measured_shapes.cache_clear()
    yield
    fused_rnn.evidence._measured_shapes.cache_clear()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_the_default_is_pytorchs_own_call(nothing_forced, autocast, packed):
    """The same bits as torch.nn, and no warning of weights that are not in one piece."""
    theirs = torch.nn.LSTM(16, 32, num_layers=2, bidirectional=True, device="cuda")
    ours = fused_rnn.convert(copy.deepcopy(theirs))
    x = torch.randn(9, 4, 16, device="cuda", requires_grad=True)
    given = torch.nn.utils.rnn.pack_padded_sequence(x, [9, 7, 7, 2]) if packed else x
    with warnings.catch_warnings(), torch.autocast("cuda", torch.float16, enabled=autocast):
        warnings.simplefilter("error")
        outputs = [rnn(given)[0] for rnn in (ours, theirs)]
    first, second = (output.data if packed else output for output in outputs)
    assert torch.equal(first, second) and first.dtype == second.dtype
    grads = [
        torch.autograd.grad(y.float().sum(), [x, *rnn.parameters()]) for y, rnn in ((first, ours), (second, theirs))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_default_has_double_backward_and_backward_in_eval_mode(nothing_forced):
    rnn = fused_rnn.GRU(4, 6, num_layers=2, bidirectional=True, device="cuda").eval()
    x = torch.randn(5, 3, 4, device="cuda", requires_grad=True)
    tensors = [x, *rnn.parameters()]

    def second_gradients():
        first = torch.autograd.grad(rnn(x)[0].sin().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        got = second_gradients()
    with backends.use_backend("reference"):
        wanted = second_gradients()
    for g, w in zip(got, wanted, strict=True):
        assert (g - w).abs().max() <= 1e-4 * w.abs().max()
