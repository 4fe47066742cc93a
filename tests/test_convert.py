"""convert and restore: the model stays what it is, and only its recurrent layers change class."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fused_rnn
from fused_rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell


class Net(nn.Module):
    """Every kind of recurrent layer, one of them used twice, one weight tied."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, dropout=0.2)
        self.gru = nn.GRU(12, 6)
        self.rnn = nn.RNN(6, 6, nonlinearity="relu")
        self.same_gru = self.gru
        self.cells = nn.ModuleList([nn.LSTMCell(6, 5), nn.GRUCell(5, 5), nn.RNNCell(5, 5)])
        self.second_cell = nn.GRUCell(5, 5)
        self.second_cell.weight_ih = self.cells[1].weight_ih

    def forward(self, x):
        x, _ = self.rnn(self.gru(self.lstm(x)[0])[0])
        h, _ = self.cells[0](x[-1])
        return self.cells[2](self.second_cell(self.cells[1](h)))


def kinds(module):
    return [type(child) for child in module.modules() if not isinstance(child, (Net, nn.ModuleList))]


def test_every_layer_changes_and_nothing_else():
    net = Net().eval()
    x = torch.randn(3, 2, 4)
    before, parameters, objects = net(x), list(net.named_parameters()), list(net.modules())
    assert fused_rnn.convert(net) is net
    assert kinds(net) == [LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell, GRUCell]
    assert all(a is b for a, b in zip(net.modules(), objects, strict=True))
    for (name, ours), (old_name, old) in zip(net.named_parameters(), parameters, strict=True):
        assert name == old_name and ours is old
    assert net.same_gru is net.gru and net.second_cell.weight_ih is net.cells[1].weight_ih
    assert not net.lstm.training
    torch.testing.assert_close(net(x), before)


def test_there_and_back():
    net = Net().eval()
    x, before = torch.randn(3, 2, 4), kinds(net)
    expected, state = net(x), copy.deepcopy(net.state_dict())
    fused_rnn.restore(fused_rnn.convert(fused_rnn.convert(net)))
    assert kinds(net) == before
    assert torch.equal(net(x), expected)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert "reset_after" not in vars(net.gru)
    assert fused_rnn.restore(net) is net


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_the_root_may_be_a_layer(kind):
    layer = kind(3, 4)
    assert fused_rnn.convert(layer) is layer
    assert type(layer) is getattr(fused_rnn, kind.__name__)
    assert type(fused_rnn.restore(layer)) is kind


def test_an_optimiser_made_before_goes_on():
    torch.manual_seed(0)
    net = Net().eval()
    twin = copy.deepcopy(net)
    optimisers = [torch.optim.Adam(m.parameters()) for m in (net, twin)]
    x = torch.randn(3, 2, 4)
    for step in range(4):
        if step == 2:
            fused_rnn.convert(net)
        for model, optimiser in zip((net, twin), optimisers, strict=True):
            optimiser.zero_grad()
            model(x).pow(2).sum().backward()
            optimiser.step()
    for ours, stock in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


def test_hooks_and_requires_grad_stay():
    net = Net()
    called = []
    net.lstm.register_forward_hook(lambda *_: called.append("forward"))
    net.gru.register_forward_pre_hook(lambda *_: called.append("pre"))
    net.gru.register_full_backward_hook(lambda *_: called.append("backward"))
    net.lstm.weight_hh_l0.requires_grad_(False)
    fused_rnn.convert(net)
    net(torch.randn(3, 2, 4, requires_grad=True)).sum().backward()
    assert called == ["forward", "pre", "backward"]
    assert net.lstm.weight_hh_l0.grad is None and net.lstm.weight_ih_l0.grad is not None


@pytest.mark.parametrize("parametrise", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_parametrised_layers(parametrise):
    layer = nn.LSTM(3, 4)
    parametrise(layer, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    expected = layer(x)[0]
    fused_rnn.convert(layer)
    assert isinstance(layer, LSTM) and type(layer).__name__ == "ParametrizedLSTM"
    torch.testing.assert_close(layer(x)[0], expected)
    layer(x)[0].sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert isinstance(fused_rnn.restore(layer), nn.LSTM)
    torch.testing.assert_close(layer(x)[0], expected)
    torch.nn.utils.parametrize.remove_parametrizations(fused_rnn.convert(layer), "weight_hh_l0")
    assert type(layer) is LSTM
    torch.testing.assert_close(layer(x)[0], expected)


def test_pruned_layers():
    layer = nn.GRU(3, 4)
    prune.random_unstructured(layer, "weight_hh_l0", amount=0.5)
    x = torch.randn(5, 2, 3)
    expected = layer(x)[0]
    fused_rnn.convert(layer)
    torch.testing.assert_close(layer(x)[0], expected)
    prune.remove(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], expected)


def test_subclasses_are_left_alone():
    class Own(nn.LSTM):
        pass

    layer = Own(3, 4)
    assert type(fused_rnn.convert(layer)) is Own


def test_what_torch_cannot_hold_is_refused_by_name():
    net = nn.Sequential(LSTM(3, 4), nn.Sequential(GRU(4, 4, reset_after=False)), GRUCell(4, 4, reset_after=False))
    with pytest.raises(ValueError, match=r"reset_after=False: 1\.0, 2$"):
        fused_rnn.restore(net)
    assert type(net[0]) is LSTM
    with pytest.raises(ValueError, match="the module itself"):
        fused_rnn.restore(net[2])


@pytest.mark.parametrize("function", [fused_rnn.convert, fused_rnn.restore])
def test_only_modules(function):
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got dict"):
        function({})


def test_copies_of_a_converted_model():
    net = fused_rnn.convert(Net().eval())
    x = torch.randn(3, 2, 4)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert kinds(twin) == kinds(net)
        assert torch.equal(twin(x), net(x))
