"""The short way of modules and cells that run without autograd gives what the long way gives."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
from fused_rnn import layer

KINDS = ("LSTM", "GRU", "LSTMCell", "GRUCell")


def module_and_input(kind, B=2, **options):
    module = getattr(fused_rnn, kind)(4, 5, **options)
    shape = (B, 4) if kind.endswith("Cell") else (3, B, 4)
    state = torch.randn(*shape[:-2] and (1,), B, 5)
    return module, torch.randn(*shape), (state, torch.randn_like(state)) if kind.startswith("LSTM") else state


def flat(result):
    return [t for part in result for t in flat(part)] if isinstance(result, tuple) else [result]


def both_ways(module, *inputs, monkeypatch):
    """Results of the short way, which must have been taken, and of the long one."""
    taken = []
    run_plain = fused_rnn.native.run_plain
    monkeypatch.setattr(fused_rnn.native, "run_plain", lambda *args: taken.append(args) or run_plain(*args))
    with torch.no_grad():
        short = flat(module(*inputs))
    long = [t.detach() for t in flat(module(*inputs))]
    return short, long, len(taken)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_results(kind, bias, monkeypatch):
    module, x, hx = module_and_input(kind, bias=bias)
    short, long, taken = both_ways(module, x, hx, monkeypatch=monkeypatch)
    assert taken == 1
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


@pytest.mark.parametrize("options", [{"batch_first": True}, {}], ids=["batch_first", "time_first"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_without_hx(kind, options, monkeypatch):
    module, x, _ = module_and_input(kind, **options)
    short, long, taken = both_ways(module, x, monkeypatch=monkeypatch)
    assert taken == 1
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(short, long, strict=True))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_weight_takes_the_long_way(kind, name, monkeypatch):
    module, x, hx = module_and_input(kind)
    parametrize.register_parametrization(module, name if kind.endswith("Cell") else f"{name}_l0", Doubled())
    short, long, taken = both_ways(module, x, hx, monkeypatch=monkeypatch)
    assert taken == 0
    assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


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


def test_what_is_not_plain():
    x = torch.zeros(2, 3)
    assert not layer.is_plain(x)  # autograd may record
    with torch.no_grad():
        assert layer.is_plain(x, None, torch.zeros(1))
        assert not layer.is_plain(x, torch.zeros(1, dtype=torch.float64))
        assert not layer.is_plain(x.to("meta"))
        assert not layer.is_plain(x.to(torch.complex64))
        with fused_rnn.use_backend("reference"):
            assert not layer.is_plain(x)
        with torch.autocast("cpu"):
            assert not layer.is_plain(x)
        with FlopCounterMode(display=False):
            assert not layer.is_plain(x)
