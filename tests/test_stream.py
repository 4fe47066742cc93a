"""Stream: the bits of the module's steps, in memory that stays; nothing but its own kind of input gets through."""

import copy
import gc
import pickle

import pytest
import torch
from test_quantize import KINDS, first, made
from torch import nn

import fused_rnn

MODULES = {
    **{kind: lambda kind=kind: made(kind, 9, 20) for kind in KINDS},
    "layers": lambda: fused_rnn.LSTM(9, 20, num_layers=3, dropout=0.5).eval(),
    "no bias": lambda: fused_rnn.GRU(9, 20, bias=False, batch_first=True),
    "stock": lambda: nn.LSTM(9, 20, num_layers=2, batch_first=True),
    "float64": lambda: fused_rnn.GRU(9, 20, dtype=torch.float64),
    "bfloat16": lambda: fused_rnn.LSTM(9, 20, dtype=torch.bfloat16),
    "float16": lambda: fused_rnn.GRU(9, 20, dtype=torch.float16),
    "LSTMCell": lambda: fused_rnn.LSTMCell(9, 20),
    "GRUCell": lambda: nn.GRUCell(9, 20, bias=False),
    "RNNCell": lambda: fused_rnn.RNNCell(9, 20, nonlinearity="relu"),
    "int8": lambda: fused_rnn.quantize_(fused_rnn.LSTM(9, 20, num_layers=2)),
    "int8 cell": lambda: fused_rnn.quantize_(nn.GRUCell(9, 20, bias=False)),
    "bfloat16 weights": lambda: fused_rnn.quantize_(fused_rnn.GRU(9, 20, num_layers=2), "bfloat16"),
    "bfloat16 weights, cell": lambda: fused_rnn.quantize_(nn.LSTMCell(9, 20, bias=False), "bfloat16"),
    "projection": lambda: fused_rnn.LSTM(9, 20, proj_size=7, num_layers=2),
}


def step_of(module, x, states):
    """The output and the states after a step of a module, in our kernels if it is torch.nn's."""
    if isinstance(module, nn.RNNCellBase):
        states = module(x, states)
        return first(states)[0], states
    output, states = module(x.unsqueeze(1 if module.batch_first else 0), states)
    return output.squeeze(1 if module.batch_first else 0), states


def inputs(module, batch, count=4):
    weight = next(iter(module.parameters()), torch.ones(()))
    return [torch.randn(batch, module.input_size).to(weight.dtype) for _ in range(count)]


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("name", MODULES)
def test_bits_of_single_steps(name, batch):
    module = MODULES[name]()
    stream, states = fused_rnn.Stream(module, batch), None
    module = fused_rnn.convert(copy.deepcopy(module))
    outputs = set()
    for x in inputs(module, batch):
        with torch.no_grad():
            if states is None:
                states = copy.deepcopy(stream.state)  # zeros: without any, a module leaves a product out
            want, states = step_of(module, x, states)
        got = stream(x)
        outputs.add(id(got))
        assert torch.equal(got, want) and not got.requires_grad
        for own, wanted in zip(first(stream.state), first(states), strict=True):
            assert torch.equal(own, wanted)
    assert len(outputs) == 1


def test_native_is_what_runs(monkeypatch):
    """On a CPU the module is not called."""
    stream, projected = fused_rnn.Stream(fused_rnn.LSTM(9, 20)), fused_rnn.Stream(fused_rnn.LSTM(9, 20, proj_size=7))
    monkeypatch.setattr(fused_rnn.LSTM, "forward", None)
    assert stream(torch.ones(1, 9)).shape == (1, 20) and projected(torch.ones(1, 9)).shape == (1, 7)
    with fused_rnn.use_backend("reference"):
        other = fused_rnn.Stream(fused_rnn.LSTM(9, 20))
    with pytest.raises(TypeError):
        other(torch.ones(1, 9))


def test_threads():
    module = fused_rnn.GRU(300, 600)
    x, before = torch.randn(40, 300), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            stream = fused_rnn.Stream(module, 40)
            results.append([stream(x).clone() for _ in range(3)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("rows", [1, [0, 2], torch.tensor([2]), torch.tensor([True, False, True]), slice(0, 2), None])
@pytest.mark.parametrize("name", ["layers", "LSTMCell", "int8"])
def test_reset(name, rows):
    """Some rows begin anew, the others go on."""
    module = MODULES[name]()
    stream = fused_rnn.Stream(module, 3)
    xs = inputs(module, 3)
    for x in xs:
        stream(x)
    before = copy.deepcopy(first(stream.state))
    stream.reset(rows)
    is_new = torch.zeros(3, dtype=torch.bool)
    is_new[slice(None) if rows is None else rows] = True
    for state, old in zip(first(stream.state), before, strict=True):
        assert not state[..., is_new, :].any() and torch.equal(state[..., ~is_new, :], old[..., ~is_new, :])
    again, fresh = stream(xs[0]).clone(), fused_rnn.Stream(module, 3)(xs[0])
    assert torch.equal(again[is_new], fresh[is_new])
    with pytest.raises(IndexError):
        stream.reset(3)


def test_state():
    stream = fused_rnn.Stream(fused_rnn.LSTM(3, 4, num_layers=2), 2)
    h, c = stream.state
    assert h.shape == c.shape == (2, 2, 4) and not h.any() and not c.any()
    stream(torch.ones(2, 3))
    assert h.any() and stream.state[0] is h
    kept = tuple(state.clone() for state in stream.state)
    one = stream(torch.ones(2, 3)).clone()
    stream.state = kept
    assert torch.equal(stream(torch.ones(2, 3)), one)
    for wrong, message in (
        ((h,), "state must be 2 tensors, got 1"),
        ((h[0], c), r"state must be \[2, 2, 4\], got \[2, 4\]"),
        ((h, c[:, :1]), r"state must be \[2, 2, 4\], got \[2, 1, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.state = wrong
    assert fused_rnn.Stream(nn.GRUCell(3, 4), 5).state.shape == (5, 4)


def test_made_in_inference_mode():
    with torch.inference_mode():
        stream = fused_rnn.Stream(fused_rnn.GRU(3, 4))
        first_output = stream(torch.ones(1, 3)).clone()
    stream.reset()
    stream.state = stream.state.clone()
    assert torch.equal(stream(torch.ones(1, 3)), first_output)


def test_weights_that_change():
    """In place they count; the module may go, and its weights be replaced."""
    module = fused_rnn.GRU(3, 4)
    stream, x = fused_rnn.Stream(module), torch.ones(1, 3)
    before = stream(x).clone()
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
    stream.reset()
    after = stream(x).clone()
    assert not torch.equal(after, before)
    module.weight_ih_l0.data = torch.zeros(12, 3)
    module.weight_hh_l0 = nn.Parameter(torch.zeros(12, 4))
    del module
    gc.collect()
    stream.reset()
    assert torch.equal(stream(x), after)


WRONG = {
    "shape": (torch.ones(2, 9), ValueError, r"input must be \[1, 9\] of torch.float32 on cpu, got \[2, 9\]"),
    "no batch": (torch.ones(9), ValueError, r"got \[9\] of torch.float32 on cpu"),
    "size": (torch.ones(1, 8), ValueError, r"got \[1, 8\]"),
    "dtype": (torch.ones(1, 9).double(), ValueError, "got .* of torch.float64 on cpu"),
    "device": (torch.ones(1, 9, device="meta"), ValueError, "on meta"),
    "sparse": (torch.ones(1, 9).to_sparse(), ValueError, "torch.sparse_coo"),
    "mkldnn": (torch.ones(1, 9).to_mkldnn(), ValueError, "torch._mkldnn"),
    "list": ([0.0] * 9, TypeError, "input must be a tensor, got list"),
    "none": (None, TypeError, "input must be a tensor, got NoneType"),
    "gradient": (torch.ones(1, 9, requires_grad=True), RuntimeError, "a stream has no gradient"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name):
    stream = fused_rnn.Stream(fused_rnn.LSTM(9, 20))
    stream(torch.ones(1, 9))
    before = copy.deepcopy(stream.state)
    wrong, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        stream(wrong)
    assert all(torch.equal(a, b) for a, b in zip(stream.state, before, strict=True))


def test_other_layouts_of_input():
    module, plain = fused_rnn.LSTM(9, 20), torch.randn(2, 9)
    want = fused_rnn.Stream(module, 2)(plain).clone()
    forms = {
        "transposed": plain.t().contiguous().t(),
        "strided": torch.stack((plain, plain), -1)[..., 0],
        "negative": torch._neg_view(-plain),
        "parameter": nn.Parameter(plain, requires_grad=False),
        "offset": torch.cat((plain, plain))[2:],
    }
    for name, form in forms.items():
        assert torch.equal(fused_rnn.Stream(module, 2)(form), want), name
    with torch.no_grad():
        assert torch.equal(fused_rnn.Stream(module, 2)(plain.clone().requires_grad_()), want)
    zeros = fused_rnn.Stream(module, 2)(torch.zeros(2, 9)).clone()
    assert torch.equal(fused_rnn.Stream(module, 2)(torch._efficientzerotensor((2, 9))), zeros)


def test_refusals():
    for module, message in (
        (nn.LSTM(3, 4, bidirectional=True), "a bidirectional layer needs whole sequences"),
        (nn.LSTM(3, 4, num_layers=2, dropout=0.1), "in training the layer applies dropout"),
    ):
        with pytest.raises(ValueError, match=message):
            fused_rnn.Stream(module)
    for wrong in (nn.Linear(3, 4), nn.Sequential(nn.LSTM(3, 4)), None):
        with pytest.raises(TypeError, match="rnn must be an LSTM, a GRU, an RNN or a cell of these, got"):
            fused_rnn.Stream(wrong)
    for batch, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch must be"):
            fused_rnn.Stream(nn.LSTM(3, 4), batch)
    stream = fused_rnn.Stream(nn.LSTM(3, 4))
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="a stream cannot be copied or saved"):
            copied(stream)
    assert repr(stream) == "Stream(LSTM(3, 4), batch=1)"


def test_raw_op_refuses():
    module = fused_rnn.GRU(3, 4)
    x, outputs, state = torch.ones(1, 2, 3), torch.ones(1, 2, 4), torch.zeros(1, 2, 4)

    def make(x=x, outputs=outputs, state=state, flags=1):
        return torch.ops.fused_rnn.make_stream("gru", x, outputs, module._weights(), state, None, flags)

    for changes, message in (
        ({"x": torch.ones(2, 2, 3)}, "a stream has single steps"),
        ({"x": torch.ones(1, 0, 3), "state": torch.zeros(1, 0, 4)}, "a stream has single steps, and sizes above 0"),
        ({"outputs": torch.ones(1, 2, 5)}, r"outputs must be \[1, 2, 4\], got \[1, 2, 5\]"),
        ({"outputs": torch.ones(1, 4, 2).transpose(1, 2)}, "outputs of a stream must be contiguous"),
        ({"state": torch.zeros(1, 4, 2).transpose(1, 2)}, "states of a stream must be contiguous"),
        ({"flags": 3}, "weights must be 8 for each layer"),
    ):
        with pytest.raises(RuntimeError, match=message):
            make(**changes)
