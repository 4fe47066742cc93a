"""The reference against torch.nn, and against the textbook's equations written out."""

import pytest
import torch
from problems import CELLS, Layer, Size, stock_layer

from fused_rnn import reference
from fused_rnn.cell import GRU_RESET_BEFORE, LSTM, Weights


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.stock], ids=str)
def test_equals_torch_nn(cell, reverse):
    layer = Layer.random(cell, torch.float64, Size(5, 3, 4, 7))
    ours, theirs = layer.results(reference.run, reverse), layer.results(stock_layer, reverse)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_differentiates_twice(cell):
    layer = Layer.random(cell, torch.float64, Size(3, 2, 2, 3), ragged=True)
    leaves = layer.leaves()

    def run(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        states = tuple(named.pop(name) for name in cell.states)
        output, final = reference.run(cell, named.pop("x"), states, Weights(**named), layer.lengths, True)
        return output, *final

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()))


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_textbook_lstm():
    """i, f, o = sigmoid(W [h, x] + b), g = tanh(W_g [h, x] + b_g), c' = f c + i g, h' = o tanh(c')."""
    T, B, I, H = 4, 3, 5, 6
    x, h, c = random(T, B, I), random(B, H), random(B, H)
    W = {gate: random(H, H + I) for gate in "ifgo"}
    b = {gate: random(H) for gate in "ifgo"}

    weights = Weights(
        weight_ih=torch.cat([W[gate][:, H:] for gate in "ifgo"]),
        weight_hh=torch.cat([W[gate][:, :H] for gate in "ifgo"]),
        bias_ih=torch.cat([b[gate] for gate in "ifgo"]),
        bias_hh=torch.zeros(4 * H, dtype=torch.float64),
    )
    output, final = reference.run(LSTM, x, (h, c), weights)

    for t in range(T):
        hx = torch.cat([h, x[t]], dim=-1)
        i = torch.sigmoid(hx @ W["i"].T + b["i"])
        f = torch.sigmoid(hx @ W["f"].T + b["f"])
        o = torch.sigmoid(hx @ W["o"].T + b["o"])
        g = torch.tanh(hx @ W["g"].T + b["g"])
        c = f * c + i * g
        h = o * torch.tanh(c)
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(final, (h, c))


def test_textbook_gru():
    """Cho et al. 2014 as it is usually written: r, z = sigmoid(W [h, x] + b), n = tanh(W [r*h, x] + b),
    h' = (1-z) h + z n. With the rows of z negated, reset_after=False computes it: sigmoid(-a) = 1 - sigmoid(a)."""
    T, B, I, H = 4, 3, 5, 6
    x, h = random(T, B, I), random(B, H)
    W = {gate: random(H, H + I) for gate in "rzn"}
    b = {gate: random(H) for gate in "rzn"}

    sign = {"r": 1, "z": -1, "n": 1}
    weights = Weights(
        weight_ih=torch.cat([sign[gate] * W[gate][:, H:] for gate in "rzn"]),
        weight_hh=torch.cat([sign[gate] * W[gate][:, :H] for gate in "rzn"]),
        bias_ih=torch.cat([sign[gate] * b[gate] for gate in "rzn"]),
        bias_hh=torch.zeros(3 * H, dtype=torch.float64),
    )
    output, final = reference.run(GRU_RESET_BEFORE, x, (h,), weights)

    for t in range(T):
        r = torch.sigmoid(torch.cat([h, x[t]], dim=-1) @ W["r"].T + b["r"])
        z = torch.sigmoid(torch.cat([h, x[t]], dim=-1) @ W["z"].T + b["z"])
        n = torch.tanh(torch.cat([r * h, x[t]], dim=-1) @ W["n"].T + b["n"])
        h = (1 - z) * h + z * n
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(final, (h,))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_rows_end_at_their_length(cell):
    """A row alone, cut to its length, gives what it gives inside a ragged batch, in both directions of time."""
    layer = Layer.random(cell, torch.float64, Size(6, 4, 3, 5), ragged=True)
    for reverse in (False, True):
        output, final = reference.run(cell, layer.x, layer.states, layer.weights, layer.lengths, reverse)
        for b, length in enumerate(layer.lengths.tolist()):
            row = slice(b, b + 1)
            alone, alone_final = reference.run(
                cell, layer.x[:length, row], tuple(s[row] for s in layer.states), layer.weights, None, reverse
            )
            torch.testing.assert_close(output[:length, row], alone)
            assert (output[length:, row] == 0).all()
            torch.testing.assert_close(tuple(s[row] for s in final), alone_final)
