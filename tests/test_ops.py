"""The ops as PyTorch sees them: opcheck, derivatives of every order, torch.compile, repetition, bad input."""

import pytest
import torch
from problems import CELLS, DTYPES, Layer, Size

from fused_rnn import autograd, native
from fused_rnn.cell import LSTM, Weights

ops = torch.ops.fused_rnn


def arguments(layer, reverse=True, save=True, **changes):
    """The arguments of the forward op for a layer; `changes` replaces some by name."""
    cell = layer.cell
    named = {"x": layer.x, **layer.weights._asdict(), **dict(zip(cell.states, layer.states, strict=True))}
    del named["weight_hr"]
    named["lengths"] = layer.lengths
    if cell.name == "gru":
        named["reset_after"] = cell.reset_after
    named.update(reverse=reverse, allow_tf32=False, save=save)
    assert changes.keys() <= named.keys()
    return tuple((named | changes).values())


def forward_op(cell):
    return ops.lstm_forward if cell is LSTM else ops.gru_forward


def run_native(cell, tensors, lengths, reverse):
    x, *rest = tensors
    states, weights = rest[: len(cell.states)], rest[len(cell.states) :]
    output, final = native.run(cell, x, tuple(states), Weights(*weights), lengths, reverse)
    return output, *final


def tensors_of(layer):
    return layer.x, *layer.states, *layer.weights[:4]


@pytest.mark.slow
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_opcheck(cell, ragged):
    layer = Layer.random(cell, torch.float32, Size(4, 3, 2, 5), ragged=ragged)
    args = arguments(layer)
    torch.library.opcheck(forward_op(cell), args)

    with torch.no_grad():
        output, *_, saved = forward_op(cell)(*args)
    tensors, (lengths, *flags, _) = args[: 5 + len(cell.states)], args[5 + len(cell.states) :]
    grads = tuple(grad.requires_grad_() for grad in layer.grads)
    backward_op = ops.lstm_backward if cell is LSTM else ops.gru_backward
    torch.library.opcheck(backward_op, (*grads, *tensors, output, saved, lengths, *flags, True, True))


@pytest.mark.parametrize("reverse", [pytest.param(False, marks=pytest.mark.slow), True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [pytest.param(False, marks=pytest.mark.slow), True], ids=["padded", "ragged"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_first_and_second_derivatives(cell, ragged, reverse):
    layer = Layer.random(cell, torch.float64, Size(3, 2, 2, 3), ragged=ragged)

    def run(*tensors):
        return run_native(cell, tensors, layer.lengths, reverse)

    assert torch.autograd.gradcheck(run, tensors_of(layer))
    assert torch.autograd.gradgradcheck(run, tensors_of(layer))


def test_second_derivative_of_shared_tensors():
    """One tensor in two places (hx and cx, both weights) gets the sum of both second derivatives."""
    H = 3
    layer = Layer.random(LSTM, torch.float64, Size(2, 2, H, H))

    def run(x, state, weight):
        return run_native(LSTM, (x, state, state, weight, weight, None, None), None, False)

    inputs = (layer.x, layer.states[0], layer.weights.weight_hh)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_third_derivative(cell):
    """The derivative of the backward op is made of PyTorch's own ops, so it goes on for ever."""
    layer = Layer.random(cell, torch.float64, Size(2, 1, 1, 2))

    def gradient(x):
        output, *_ = run_native(cell, (x, *tensors_of(layer)[1:]), None, False)
        return torch.autograd.grad(output.pow(2).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, (layer.x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_second_backward_is_bit_identical(cell, dtype):
    layer = Layer.random(cell, dtype, Size(20, 5, 7, 33))
    outputs = run_native(cell, tensors_of(layer), None, False)
    first = torch.autograd.grad(outputs, tensors_of(layer), layer.grads, retain_graph=True)
    second = torch.autograd.grad(outputs, tensors_of(layer), layer.grads)
    again = torch.autograd.grad(run_native(cell, tensors_of(layer), None, False), tensors_of(layer), layer.grads)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_sequence_in_two_parts(cell, dtype):
    """h is what the storage type holds of it after every step, so a run that is cut anywhere gives the same bits."""
    if cell is LSTM and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("c is float32 within a call and of the storage type between two, so their bits differ")
    layer = Layer.random(cell, dtype, Size(20, 5, 7, 33))
    whole, final = native.run(cell, layer.x, layer.states, layer.weights, None, False)
    first, states = native.run(cell, layer.x[:10], layer.states, layer.weights, None, False)
    second, states = native.run(cell, layer.x[10:], states, layer.weights, None, False)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(states, final, strict=True))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_unused_outputs_have_no_gradient(cell):
    """Each output alone: the others' gradients are absent, which must mean zero."""
    layer = Layer.random(cell, torch.float64, Size(3, 2, 2, 3))
    outputs = run_native(cell, tensors_of(layer), None, False)
    together = torch.autograd.grad(outputs, tensors_of(layer), layer.grads, retain_graph=True)
    apart = [torch.autograd.grad(y, tensors_of(layer), g, retain_graph=True) for y, g in zip(outputs, layer.grads)]
    for whole, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("frozen", ["x", "weights", "states"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_frozen_inputs(cell, frozen):
    layer = Layer.random(cell, torch.float64, Size(3, 2, 2, 3))
    everything = layer.results(native.run)
    leaves = layer.leaves()
    kinds = {
        "x": ["x"],
        "states": list(cell.states),
        "weights": [n for n in leaves if n.startswith(("weight", "bias"))],
    }
    for name in kinds[frozen]:
        leaves[name].requires_grad_(False)
    outputs = run_native(cell, tensors_of(layer), None, False)
    live = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    for name, grad in zip(live, torch.autograd.grad(outputs, list(live.values()), layer.grads), strict=True):
        assert torch.equal(grad, everything[f"grad_{name}"])


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_nothing_is_saved_without_a_backward(cell):
    layer = Layer.random(cell, torch.float32, Size(3, 2, 2, 3))
    *results, saved = forward_op(cell)(*arguments(layer, save=False))
    assert saved.numel() == 0
    with pytest.raises(RuntimeError, match="save=False"):
        results[0].sum().backward()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_inputs_of_any_strides(cell):
    layer = Layer.random(cell, torch.float64, Size(4, 3, 2, 5))

    def strided(t):
        return torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]

    tensors = tuple(strided(t) for t in tensors_of(layer))
    grads = tuple(strided(g) for g in layer.grads)
    outputs, same = run_native(cell, tensors, None, True), run_native(cell, tensors_of(layer), None, True)
    assert all(torch.equal(a, b) for a, b in zip(outputs, same, strict=True))
    for a, b in zip(
        torch.autograd.grad(outputs, tensors_of(layer), grads),
        torch.autograd.grad(same, tensors_of(layer), layer.grads),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_padding_may_hold_anything(cell):
    """What stands in x and in the incoming gradient past a row's end reaches no result."""
    layer = Layer.random(cell, torch.float64, Size(6, 4, 3, 5), ragged=True)
    padding = torch.arange(6)[:, None] >= layer.lengths
    assert padding.any()
    for reverse in (False, True):
        clean = layer.results(native.run, reverse)
        with torch.no_grad():
            layer.x[padding] = float("nan")
            layer.grads[0][padding] = float("nan")
        dirty = layer.results(native.run, reverse)
        with torch.no_grad():
            layer.x[padding] = 1.0
            layer.grads[0][padding] = 1.0
        for name, value in clean.items():
            torch.testing.assert_close(dirty[name], value, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_nan_is_not_hidden(cell):
    layer = Layer.random(cell, torch.float32, Size(3, 2, 2, 20))
    with torch.no_grad():
        layer.x[1, 0, 0] = float("nan")
    output = native.run(cell, layer.x, layer.states, layer.weights, None, False)[0]
    assert output[1:, 0].isnan().all() and output[0].isfinite().all() and output[:, 1].isfinite().all()


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_empty_batch(cell):
    layer = Layer.random(cell, torch.float32, Size(3, 0, 2, 5))
    results = layer.results(native.run)
    assert results["output"].shape == (3, 0, 5)
    assert all((grad == 0).all() for name, grad in results.items() if "weight" in name or "bias" in name)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_compiles_in_one_graph(cell, dynamic):
    torch._dynamo.reset()

    def run(tensors, lengths):
        return run_native(cell, tensors, lengths, True)

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (Size(3, 2, 2, 3), Size(5, 4, 2, 3)):
        layer = Layer.random(cell, torch.float64, size, ragged=True)
        eager, graph = run(tensors_of(layer), layer.lengths), compiled(tensors_of(layer), layer.lengths)
        for a, b in zip(eager, graph, strict=True):
            assert torch.equal(a, b)
        grads = [torch.autograd.grad(outputs, tensors_of(layer), layer.grads) for outputs in (eager, graph)]
        for a, b in zip(*grads, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_meta_tensors(cell):
    layer = Layer.random(cell, torch.float32, Size(3, 2, 4, 5))
    on_meta = tuple(a.detach().to("meta") if isinstance(a, torch.Tensor) else a for a in arguments(layer))
    got, want = forward_op(cell)(*on_meta), forward_op(cell)(*arguments(layer))
    assert [(t.shape, t.dtype, t.stride()) for t in got] == [(t.shape, t.dtype, t.stride()) for t in want]


BAD = {
    "rank of x": (dict(x=torch.zeros(3, 4)), r"x must be \[T, B, I\], got \[3, 4\]"),
    "size of x": (dict(x=torch.zeros(3, 2, 9)), r"weight_ih must be \[20, 9\], got \[20, 4\]"),
    "weight_hh": (dict(weight_hh=torch.zeros(20, 6)), r"weight_hh must be \[G\*H, H\] with G = 4, got \[20, 6\]"),
    "bias_ih": (dict(bias_ih=torch.zeros(19)), r"bias_ih must be \[20\], got \[19\]"),
    "bias_hh": (dict(bias_hh=torch.zeros(1, 20)), r"bias_hh must be \[20\], got \[1, 20\]"),
    "batch of hx": (dict(hx=torch.zeros(3, 5)), r"hx must be \[2, 5\], got \[3, 5\]"),
    "cx": (dict(cx=torch.zeros(2, 4)), r"cx must be \[2, 5\], got \[2, 4\]"),
    "dtype of hx": (dict(hx=torch.zeros(2, 5, dtype=torch.float64)), "hx must have dtype Float like x, got Double"),
    "integer x": (dict(x=torch.zeros(3, 2, 4, dtype=torch.int64)), "must have dtype Long like x, got Float"),
    "shape of lengths": (dict(lengths=torch.tensor([1, 2, 3])), r"lengths must be \[2\], got \[3\]"),
    "dtype of lengths": (dict(lengths=torch.tensor([1.0, 2.0])), "lengths must have dtype int64, got Float"),
    "long lengths": (dict(lengths=torch.tensor([1, 4])), r"lengths\[1\] must be from 0 to T = 3, got 4"),
    "negative lengths": (dict(lengths=torch.tensor([-1, 2])), r"lengths\[0\] must be from 0 to T = 3, got -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, message = BAD[case]
    layer = Layer.random(LSTM, torch.float32, Size(3, 2, 4, 5))
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        ops.lstm_forward(*arguments(layer, **changes))


def test_fake_kernels_know_what_is_saved():
    for cell in CELLS:
        saved = forward_op(cell)(*arguments(Layer.random(cell, torch.bfloat16, Size(2, 3, 4, 5))))[-1]
        assert saved.shape == (2, 3, autograd.saved_per_unit(cell), 5)
        assert saved.dtype == torch.float32
