"""Gradients of PyTorch's RNNs can be differentiated where their own backward cannot, which is cuDNN's.

On a CPU the function of oneDNN stands in for it: autograd has one node for a whole layer, too.
"""

import gc
import weakref

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn import backends, layered, stock, twice
from fused_rnn.call import Call

ONEDNN = "MkldnnRnnLayerBackward0"


@pytest.fixture
def without_double_backward(monkeypatch):
    monkeypatch.setattr(twice, "NODES", {ONEDNN})
    with backends.use_backend("torch"):
        yield


def second_gradients(rnn, x):
    output, _ = rnn(x)
    tensors = [x, *rnn.parameters()]
    first = torch.autograd.grad(output.sin().sum(), tensors, create_graph=True)
    return torch.autograd.grad(sum(grad.square().sum() for grad in first), tensors)


def a_layer(**options):
    torch.manual_seed(0)
    return fused_rnn.LSTM(4, 6, **options), torch.randn(5, 3, 4, requires_grad=True)


def test_double_backward(without_double_backward, monkeypatch):
    rnn, x = a_layer()
    assert rnn(x)[0].grad_fn.name() == ONEDNN
    runs = []
    run = layered.run
    monkeypatch.setattr(layered, "run", lambda *arguments: runs.append(1) or run(*arguments))
    got = second_gradients(rnn, x)
    assert len(runs) == 1  # the gradients came from there
    with backends.use_backend("reference"):
        wanted = second_gradients(rnn.double(), x.detach().double().requires_grad_())
    for g, w in zip(got, wanted, strict=True):
        assert (g.double() - w).abs().max() <= 1e-5 * w.abs().max()


def test_a_single_backward_is_pytorchs_own(without_double_backward):
    rnn, x = a_layer()
    theirs = nn.LSTM(4, 6)
    theirs.load_state_dict(rnn.state_dict())
    grads = [torch.autograd.grad(module(x)[0].sin().sum(), [x, *module.parameters()]) for module in (rnn, theirs)]
    assert all(torch.equal(ours, other) for ours, other in zip(*grads, strict=True))


def test_the_input_lives_as_long_as_autograd_needs_it(without_double_backward):
    rnn, x = a_layer()
    hidden = x * 2
    input_ = weakref.ref(hidden)
    loss = rnn(hidden)[0].sum()
    del hidden
    gc.collect()
    assert input_() is not None
    loss.backward()
    gc.collect()
    assert input_() is None


def test_dropout_whose_masks_are_not_known(without_double_backward):
    rnn, x = a_layer()
    output, *_ = stock.run(Call(rnn._cell, x, (), rnn._flat_weights, dropout=0.5))
    with pytest.raises(RuntimeError, match="double backward needs dropout=0"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


def test_what_autograd_can_differentiate_is_left_alone():
    x = torch.ones(3, requires_grad=True)
    assert not twice.is_needed(x.exp())
    assert not twice.is_needed(x)
