"""The short way of modules and cells that run without autograd gives what the long way gives."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn import layer

KINDS = ("LSTM", "GRU", "LSTMCell", "GRUCell")
GRUS = ("GRU", "GRUCell")


def module_and_input(kind, T=3, B=2, **options):
    module = getattr(fused_rnn, kind)(4, 5, **options).eval()
    if kind.endswith("Cell"):
        shape, states = [4], [5]
    else:
        shape, states = [T, 4], [module.num_layers * (1 + module.bidirectional), 5]
    if B is not None:
        shape.insert(0 if module.__dict__.get("batch_first") else len(shape) - 1, B)
        states.insert(len(states) - 1, B)
    state = torch.randn(states)
    return module, torch.randn(shape), (state, torch.randn_like(state)) if kind.startswith("LSTM") else state


def flat(result):
    return [t for part in result for t in flat(part)] if isinstance(result, tuple) else [result]


def both_ways(module, *inputs, monkeypatch):
    """Results of a call that may take the short way, of one that may not, and whether the first did."""
    long_ways = []
    chosen = layer.chosen
    monkeypatch.setattr(layer, "chosen", lambda *args, **kwargs: long_ways.append(args) or chosen(*args, **kwargs))
    with torch.no_grad():
        short = flat(module(*inputs))
        is_short = not long_ways
        monkeypatch.setattr(layer, "is_plain", lambda: False)
        long = flat(module(*inputs))
        assert long_ways
    return short, long, is_short


def assert_same(short, long):
    for a, b in zip(short, long, strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous() == b.is_contiguous()


OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    {"reset_after": False},
]
CASES = [
    pytest.param(kind, options, id=f"{kind}-{'-'.join(options) or 'default'}")
    for kind in KINDS
    for options in OPTIONS
    if ("reset_after" not in options or kind in GRUS)
    and (not kind.endswith("Cell") or options.keys() <= {"bias", "reset_after"})
]


@pytest.mark.parametrize("size", [(3, 2), (1, 2), (3, 1), (3, 0), (3, None)], ids="T{0[0]} B{0[1]}".format)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_same_results(kind, options, size, monkeypatch):
    T, B = size
    module, x, hx = module_and_input(kind, T, B, **options)
    short, long, is_short = both_ways(module, x, hx, monkeypatch=monkeypatch)
    assert is_short
    assert_same(short, long)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_without_hx(kind, options, monkeypatch):
    module, x, _ = module_and_input(kind, **options)
    short, long, is_short = both_ways(module, x, monkeypatch=monkeypatch)
    assert is_short
    assert_same(short, long)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype, monkeypatch):
    module, x, hx = module_and_input(kind)
    module, x, hx = (
        module.to(dtype),
        x.to(dtype),
        tuple(h.to(dtype) for h in hx) if isinstance(hx, tuple) else hx.to(dtype),
    )
    short, long, is_short = both_ways(module, x, hx, monkeypatch=monkeypatch)
    assert is_short
    assert_same(short, long)


@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind, monkeypatch):
    """Neither the input nor a state nor a weight need be contiguous."""
    module, x, hx = module_and_input(kind)
    for name, parameter in module.named_parameters():
        setattr(module, name, nn.Parameter(torch.stack([parameter, parameter], dim=-1)[..., 0]))
    spread = lambda t: torch.stack([t, t], dim=-1)[..., 1]  # noqa: E731
    hx = tuple(map(spread, hx)) if isinstance(hx, tuple) else spread(hx)
    short, long, is_short = both_ways(module, spread(x), hx, monkeypatch=monkeypatch)
    assert is_short
    assert_same(short, long)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_weight_takes_the_long_way(kind, name, monkeypatch):
    module, x, hx = module_and_input(kind)
    parametrize.register_parametrization(module, name if kind.endswith("Cell") else f"{name}_l0", Doubled())
    short, long, is_short = both_ways(module, x, hx, monkeypatch=monkeypatch)
    assert not is_short
    assert_same(short, long)


def test_dropout_and_projections_take_the_long_way(monkeypatch):
    module, x, hx = module_and_input("LSTM", num_layers=2, dropout=1.0)
    short, _, is_short = both_ways(module, x, hx, monkeypatch=monkeypatch)
    assert is_short
    monkeypatch.undo()
    dropped, _, is_short = both_ways(module.train(), x, hx, monkeypatch=monkeypatch)
    assert not is_short
    assert not torch.equal(dropped[0], short[0])
    monkeypatch.undo()
    module = fused_rnn.LSTM(4, 5, proj_size=2)
    assert not both_ways(module, x, monkeypatch=monkeypatch)[2]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_may_change_between_two_steps(kind):
    """In place, by an optimiser, by load_state_dict, by a new tensor: the next step has the new ones."""
    module, x, hx = module_and_input(kind)
    other = getattr(fused_rnn, kind)(4, 5)
    parameters = dict(module.named_parameters())

    def halve():
        for parameter in parameters.values():
            parameter.mul_(0.5)

    def step():
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(module.parameters(), lr=0.1).step()

    def replace():
        for name, parameter in parameters.items():
            setattr(module, name, nn.Parameter(parameter + 1))

    with torch.no_grad():
        before = flat(module(x, hx))
        for change in (halve, step, lambda: module.load_state_dict(other.state_dict()), replace):
            change()
            after = flat(module(x, hx))
            stock = flat(fused_rnn.restore(type(module)(4, 5)).__class__.forward(module, x, hx))
            for a, b, c in zip(before, after, stock, strict=True):
                assert not torch.equal(a, b)
                torch.testing.assert_close(b, c)
            before = after


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_as_ever(kind):
    """Whatever the inference ops refuse or would take too kindly gets the error that it gets with autograd on."""
    module, x, hx = module_and_input(kind)
    states = hx if isinstance(hx, tuple) else (hx,)
    given = tuple if kind.startswith("LSTM") else lambda states: states[0]
    wrong = [
        (x[..., :3], hx),
        (x.double(), hx),
        (x.to(torch.complex64), hx),
        (x.tolist(), hx),
        (x, given([state[..., :1, :] for state in states])),
        (x, given([state[..., :4] for state in states])),
        (x, given([state.double() for state in states])),
        (x, given([state[None] for state in states])),
        (x, states[:1]),
        (x, (None, None)),
    ]
    wrong.append((x, torch.stack(states) if kind.startswith("LSTM") else [hx]))
    for inputs in wrong:
        with pytest.raises(Exception) as expected:
            module(*inputs)
        with torch.no_grad(), pytest.raises(type(expected.value)) as got:
            module(*inputs)
        assert str(got.value) == str(expected.value)


def test_what_is_not_plain():
    assert not layer.is_plain()  # autograd may record
    with torch.inference_mode():
        assert layer.is_plain()
    with torch.no_grad():
        assert layer.is_plain()
        with fused_rnn.use_backend("reference"):
            assert not layer.is_plain()
        with torch.autocast("cpu"):
            assert not layer.is_plain()
        with FlopCounterMode(display=False):
            assert not layer.is_plain()
        torch.func.vmap(lambda x: [x, layer.is_plain() and pytest.fail("inside a transform")][0])(torch.zeros(2))


def test_ops_say_what_they_want():
    x, hx = torch.zeros(1, 1, 3), torch.zeros(1, 1, 2)
    weights = [torch.zeros(8, 3), torch.zeros(8, 2), torch.zeros(8), torch.zeros(8)]

    def run(x=x, weights=weights, hx=hx, cx=hx):
        torch.ops.fused_rnn.lstm_inference(x, weights, hx, cx, True, False, False)

    run()
    for arguments, sentence in (
        ({"x": x[None]}, "input must be 2-D or 3-D, got [1, 1, 1, 3]"),
        ({"x": x[:0]}, "input must have a step, got none"),
        ({"x": x[..., :2]}, "weight_ih must be [8, 2], got [8, 3]"),
        ({"weights": weights[:3]}, "weights must be 4 for each layer and direction, got 3"),
        ({"weights": weights * 2}, "weight_ih must be [8, 2], got [8, 3]"),
        ({"weights": [*weights[:3], torch.zeros(7)]}, "bias_hh must be [8], got [7]"),
        ({"weights": [w.double() for w in weights]}, "weight_ih must have dtype Float like x, got Double"),
        ({"hx": hx[0]}, "hx must be [1, 1, 2], got [1, 2]"),
        ({"cx": None}, "hx and cx must both be given, or neither"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(sentence)):
            run(**arguments)
