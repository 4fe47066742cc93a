"""The ops as PyTorch sees them: opcheck, derivatives of every order, torch.compile, repetition, bad input."""

import sys
from pathlib import Path

import pytest
import torch
from problems import CELLS, CPU_CALLS, DTYPES, LOOPS, Layer, Size, native_layer, on_device, posed, whole_call
from torch._subclasses.fake_tensor import FakeTensorMode

import fused_rnn
from fused_rnn import autograd, layered, reference
from fused_rnn.call import (
    BIAS,
    BIDIRECTIONAL,
    NEEDS_ALL,
    NEEDS_INPUT,
    NEEDS_STATES,
    NEEDS_WEIGHTS,
    PACKED,
    PROJECTED,
    REVERSE,
    SAVE,
    STEP,
    flags_of,
)
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM, Weights

ops = torch.ops.fused_rnn
NAMES = ("cell", "input", "weights", "hx", "cx", "lengths", "resets", "masks", "flags")


def arguments(layer, flags=BIAS | REVERSE | SAVE, **changes):
    """The arguments of the forward op for a layer; `changes` replaces some by name."""
    hx, cx, *_ = *(state.unsqueeze(0) for state in layer.states), None, None
    weights = [weight for weight in layer.weights if weight is not None]
    given = (layer.cell.name, layer.x, weights, hx, cx, layer.lengths, layer.resets, [], flags)
    named = dict(zip(NAMES, given, strict=True))
    assert changes.keys() <= named.keys()
    return tuple((named | changes).values())


def run_native(cell, tensors, lengths, reverse):
    x, *rest = tensors
    states, weights = rest[: len(cell.states)], rest[len(cell.states) :]
    output, final = native_layer(cell, x, tuple(states), Weights(*weights), lengths, reverse)
    return output, *final


def tensors_of(layer):
    return layer.x, *layer.states, *layer.weights[:4]


# ---- Whole calls ----

# Each takes seconds, so each cell has what its states make different, and one of them the rest.
SOME_CALLS = [
    *((LSTM, kind) for kind in ("two layers, both directions", "no biases, no states", "masks, batch first", "a step")),
    *((GRU, kind) for kind in ("two layers, both directions", "a step without states")),
    (GRU_RESET_BEFORE, "reverse"),
    (LSTM, "packed"),
    (GRU, "resets, ragged"),
    *((LSTM, kind) for kind in ("projection", "projection, no biases, no states", "packed, projection")),
]


@pytest.mark.parametrize(("cell", "kind"), posed(CELLS, CPU_CALLS), ids=str)
def test_a_whole_call(cell, kind):
    """Results and gradients are those of the reference, layer by layer; so are second gradients."""
    call, tensors = whole_call(cell, kind)
    results = [autograd.run(ops, call(*tensors)), layered.run(call(*tensors), reference.run)]
    assert [r.shape for r in results[0]] == [r.shape for r in results[1]]
    grads, seconds = [], []
    for got in results:
        first = torch.autograd.grad(sum(r.sin().sum() for r in got), tensors, create_graph=True)
        grads.append(first)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    for got, want in zip((*results[0], *grads[0], *seconds[0]), (*results[1], *grads[1], *seconds[1]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "kind"), SOME_CALLS, ids=str)
def test_a_whole_call_in_one_graph(cell, kind):
    torch._dynamo.reset()
    call, _ = whole_call(cell, kind)

    def run(*tensors):
        return autograd.run(ops, call(*tensors))

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    tensors = whole_call(cell, kind)[1]
    eager, graph = run(*tensors), compiled(*tensors)
    for a, b in zip(eager, graph, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    grads = [torch.autograd.grad(sum(r.sin().sum() for r in results), tensors) for results in (eager, graph)]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize(("cell", "kind"), SOME_CALLS, ids=str)
def test_opcheck(cell, kind):
    call, tensors = whole_call(cell, kind, torch.float32, T=2)
    call = call(*tensors)
    form = call.form
    flags = flags_of(form) | SAVE
    flags, lengths = (flags | PACKED, call.batch_sizes) if call.packed else (flags, call.lengths)
    hx, cx, *_ = *call.states, None, None
    args = (cell.name, call.input, call.weights, hx, cx, lengths, call.resets, call.masks, flags)
    torch.library.opcheck(ops.forward.default, args)

    with torch.no_grad():
        results = ops.forward(*args)
    n = len(cell.states) + (not call.form.step)
    grads = [None, *results[:n]] if call.form.step else results[:n]
    grads = [grad if grad is None else torch.randn_like(grad).requires_grad_() for grad in (*grads, None)[:3]]
    kept = [results[0], *results[n:]]
    if call.packed:  # the derivative of its backward pads it, by numbers that no graph knows
        args = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)
        grads = [grad if grad is None else grad.detach() for grad in grads]
    torch.library.opcheck(ops.backward.default, (*grads, kept, *args[:-1], flags | NEEDS_ALL))


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_saved_has_16_bits_on_a_gpu_only(dtype, device):
    given = arguments(Layer.random(GRU, dtype, Size(2, 3, 4, 5)))
    wanted = torch.float32 if device != "cuda" and dtype.itemsize == 2 else dtype
    assert device != "cpu" or ops.forward(*given)[-1].dtype == wanted
    with FakeTensorMode():
        given = torch.utils._pytree.tree_map_only(
            torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device=device), given
        )
        assert ops.forward(*given)[-1].dtype == wanted


def test_python_calls_of_a_training_forward():
    """What a small call costs is Python: a two-layer bidirectional module makes few calls of functions of its own."""
    rnn, x = native_module(), torch.randn(3, 2, 4)
    rnn(x)
    calls = []
    sys.setprofile(lambda frame, event, arg: event == "call" and calls.append(frame.f_code))
    try:
        rnn(x)
    finally:
        sys.setprofile(None)
    package = str(Path(fused_rnn.__file__).parent)
    own = [code.co_qualname for code in calls if code.co_filename.startswith(package)]
    assert len(own) < 32, own


def native_module():
    return fused_rnn.LSTM(4, 5, num_layers=2, bidirectional=True)


# ---- One layer ----


@pytest.mark.parametrize("reverse", [pytest.param(False, marks=pytest.mark.slow), True], ids=["forward", "reverse"])
@pytest.mark.parametrize("ragged", [pytest.param(False, marks=pytest.mark.slow), True], ids=["padded", "ragged"])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
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


@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_third_derivative(cell):
    """The derivative of the backward op is made of PyTorch's own ops, so it goes on for ever."""
    layer = Layer.random(cell, torch.float64, Size(2, 1, 1, 2))

    def gradient(x):
        output, *_ = run_native(cell, (x, *tensors_of(layer)[1:]), None, False)
        return torch.autograd.grad(output.pow(2).sum(), x, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(gradient, (layer.x,))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_second_backward_is_bit_identical(cell, dtype):
    layer = Layer.random(cell, dtype, Size(20, 5, 7, 33))
    outputs = run_native(cell, tensors_of(layer), None, False)
    first = torch.autograd.grad(outputs, tensors_of(layer), layer.grads, retain_graph=True)
    second = torch.autograd.grad(outputs, tensors_of(layer), layer.grads)
    again = torch.autograd.grad(run_native(cell, tensors_of(layer), None, False), tensors_of(layer), layer.grads)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_a_sequence_in_two_parts(cell, dtype):
    """h is what the storage type holds of it after every step, so a run that is cut anywhere gives the same bits."""
    if cell is LSTM and dtype in (torch.bfloat16, torch.float16):
        pytest.skip("c is float32 within a call and of the storage type between two, so their bits differ")
    layer = Layer.random(cell, dtype, Size(20, 5, 7, 33))
    whole, final = native_layer(cell, layer.x, layer.states, layer.weights, None, False)
    first, states = native_layer(cell, layer.x[:10], layer.states, layer.weights, None, False)
    second, states = native_layer(cell, layer.x[10:], states, layer.weights, None, False)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(torch.equal(a, b) for a, b in zip(states, final, strict=True))


@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_unused_outputs_have_no_gradient(cell):
    """Each output alone: the others' gradients are absent, which must mean zero."""
    layer = Layer.random(cell, torch.float64, Size(3, 2, 2, 3))
    outputs = run_native(cell, tensors_of(layer), None, False)
    together = torch.autograd.grad(outputs, tensors_of(layer), layer.grads, retain_graph=True)
    apart = [torch.autograd.grad(y, tensors_of(layer), g, retain_graph=True) for y, g in zip(outputs, layer.grads)]
    for whole, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("frozen", ["x", "weights", "states"])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_frozen_inputs(cell, frozen):
    layer = Layer.random(cell, torch.float64, Size(3, 2, 2, 3))
    everything = layer.results(native_layer)
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


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_only_gradients_that_are_needed(cell, T):
    """The others are empty, and change no bit of these; so says the fake kernel."""
    layer = Layer.random(cell, torch.float32, Size(T, 2, 2, 3))
    args = arguments(layer)
    *results, saved = [result.detach() for result in ops.forward(*args)]
    grads = [None, torch.randn_like(results[1]), None]
    given = (*grads, [results[0], saved], *args[:-1])
    whole = ops.backward(*given, args[-1] | NEEDS_ALL)
    kinds = [NEEDS_INPUT, *[NEEDS_WEIGHTS] * len(args[2]), *[NEEDS_STATES] * len(cell.states)]
    for need in (0, NEEDS_INPUT, NEEDS_WEIGHTS, NEEDS_STATES):
        part = ops.backward(*given, args[-1] | need)
        for kind, one, all in zip(kinds, part, whole, strict=True):
            assert torch.equal(one, all if kind == need else all.new_empty(0))
        meta = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), given)
        assert [grad.shape for grad in ops.backward(*meta, args[-1] | need)] == [grad.shape for grad in part]


@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_nothing_is_saved_without_a_backward(cell):
    layer = Layer.random(cell, torch.float32, Size(3, 2, 2, 3))
    results = ops.forward(*arguments(layer, flags=BIAS))
    assert len(results) == 1 + len(cell.states)
    with pytest.raises(RuntimeError, match="without the flag SAVE"):
        results[0].sum().backward()


@pytest.mark.parametrize("cell", LOOPS, ids=str)
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


@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_padding_may_hold_anything(cell):
    """What stands in x and in the incoming gradient past a row's end reaches no result."""
    layer = Layer.random(cell, torch.float64, Size(6, 4, 3, 5), ragged=True)
    padding = torch.arange(6)[:, None] >= layer.lengths
    assert padding.any()
    for reverse in (False, True):
        clean = layer.results(native_layer, reverse)
        with torch.no_grad():
            layer.x[padding] = float("nan")
            layer.grads[0][padding] = float("nan")
        dirty = layer.results(native_layer, reverse)
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
    output = native_layer(cell, layer.x, layer.states, layer.weights, None, False)[0]
    assert output[1:, 0].isnan().all() and output[0].isfinite().all() and output[:, 1].isfinite().all()


@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_empty_batch(cell):
    layer = Layer.random(cell, torch.float32, Size(3, 0, 2, 5))
    results = layer.results(native_layer)
    assert results["output"].shape == (3, 0, 5)
    assert all((grad == 0).all() for name, grad in results.items() if "weight" in name or "bias" in name)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
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


@pytest.mark.parametrize(("cell", "kind"), posed(LOOPS, CPU_CALLS), ids=str)
def test_meta_tensors(cell, kind):
    call, tensors = whole_call(cell, kind)
    on_meta = call(*(tensor.detach().to("meta").requires_grad_() for tensor in tensors))
    got, want = autograd.run(ops, on_device(on_meta, "meta")), autograd.run(ops, call(*tensors))
    assert [(t.shape, t.dtype, t.stride()) for t in got] == [(t.shape, t.dtype, t.stride()) for t in want]


# What an op refuses of a layer with T 3, B 2, I 4, H 5, and its words.
WEIGHTS = [torch.zeros(20, 4), torch.zeros(20, 5), torch.zeros(20), torch.zeros(20)]
PROJECTING = [WEIGHTS[0], torch.zeros(20, 2), *WEIGHTS[2:], torch.zeros(2, 5)]
BAD = {
    "cell": (dict(cell="elman"), "cell 'elman' is not one of lstm, gru"),
    "rank of input": (dict(input=torch.zeros(4)), r"input must be \[T, B, I\] or \[T, I\], got \[4\]"),
    "rank of a step": (dict(flags=BIAS | STEP), r"input must be \[B, I\] or \[I\], got \[3, 2, 4\]"),
    "size of input": (dict(input=torch.zeros(3, 2, 9)), r"weight_ih_l0 must be \[20, 9\], got \[20, 4\]"),
    "no weights": (dict(weights=[]), "weights must be 4 for each layer, got 0"),
    "three weights": (dict(weights=WEIGHTS[:3]), "weights must be 4 for each layer, got 3"),
    "second layer": (dict(weights=WEIGHTS * 2), r"weight_ih_l1 must be \[20, 5\], got \[20, 4\]"),
    "second direction": (
        dict(weights=[*WEIGHTS, *WEIGHTS[:3], torch.zeros(7)], flags=BIAS | BIDIRECTIONAL),
        r"bias_hh_l0_reverse must be \[20\], got \[7\]",
    ),
    "two layers of a step": (
        dict(input=torch.zeros(2, 4), weights=WEIGHTS * 2, flags=BIAS | STEP),
        "a single step has one layer and one direction, got 2",
    ),
    "weight_hh": (
        dict(weights=[WEIGHTS[0], torch.zeros(20, 6)], flags=0),
        r"weight_hh_l0 must be \[G\*H, H\] with G = 4, got \[20, 6\]",
    ),
    "projection of a GRU": (
        dict(cell="gru", weights=[torch.zeros(15, 4), torch.zeros(15, 2), torch.zeros(2, 5)], flags=PROJECTED),
        "gru has no projection",
    ),
    "no weight_hr": (dict(weights=PROJECTING[:-1], flags=BIAS | PROJECTED), "weights must be 5 for each layer, got 4"),
    "weight_hh of nothing": (
        dict(weights=[WEIGHTS[0], torch.zeros(20, 0), torch.zeros(0, 5)], flags=PROJECTED),
        r"weight_hh_l0 must be \[G\*H, P\], above 0, with G = 4, got \[20, 0\]",
    ),
    "weight_hr": (
        dict(weights=[*PROJECTING[:-1], torch.zeros(5, 2)], flags=BIAS | PROJECTED),
        r"weight_hr_l0 must be \[2, 5\], got \[5, 2\]",
    ),
    "hx of a projection": (
        dict(weights=PROJECTING, flags=BIAS | PROJECTED),
        r"hx must be \[1, 2, 2\], got \[1, 2, 5\]",
    ),
    "second layer of a projection": (
        dict(weights=[*PROJECTING, torch.zeros(20, 5), *PROJECTING[1:]], flags=BIAS | PROJECTED),
        r"weight_ih_l1 must be \[20, 2\], got \[20, 5\]",
    ),
    "bias_ih": (dict(weights=[*WEIGHTS[:2], torch.zeros(19), WEIGHTS[3]]), r"bias_ih_l0 must be \[20\], got \[19\]"),
    "batch of hx": (dict(hx=torch.zeros(1, 3, 5)), r"hx must be \[1, 2, 5\], got \[1, 3, 5\]"),
    "rank of hx": (dict(hx=torch.zeros(2, 5)), r"hx must be \[1, 2, 5\], got \[2, 5\]"),
    "cx": (dict(cx=torch.zeros(1, 2, 4)), r"cx must be \[1, 2, 5\], got \[1, 2, 4\]"),
    "only hx": (dict(cx=None), "lstm has hx and cx: both or neither must be given"),
    "cx of a GRU": (
        dict(cell="gru", weights=[torch.zeros(15, 4), torch.zeros(15, 5)], flags=0),
        "gru has no cx",
    ),
    "dtype of hx": (
        dict(hx=torch.zeros(1, 2, 5, dtype=torch.float64)),
        "hx must be torch.float32 on cpu like input, got torch.float64 on cpu",
    ),
    "integer input": (
        dict(input=torch.zeros(3, 2, 4, dtype=torch.int64)),
        "weight_ih_l0 must be torch.int64 on cpu like input, got torch.float32 on cpu",
    ),
    "masks": (dict(masks=[torch.zeros(3, 2, 5)]), "masks must be 0, one for each layer but the last, got 1"),
    "shape of lengths": (dict(lengths=torch.tensor([1, 2, 3])), r"lengths must be \[2\], got \[3\]"),
    "dtype of lengths": (dict(lengths=torch.tensor([1.0, 2.0])), "lengths must be torch.int64 on cpu"),
    "long lengths": (dict(lengths=torch.tensor([1, 4])), r"lengths\[1\] must be from 0 to T = 3, got 4"),
    "negative lengths": (dict(lengths=torch.tensor([-1, 2])), r"lengths\[0\] must be from 0 to T = 3, got -1"),
    "shape of resets": (dict(resets=torch.zeros(2, 3, dtype=torch.bool)), r"resets must be \[3, 2\], got \[2, 3\]"),
    "dtype of resets": (dict(resets=torch.zeros(3, 2)), "resets must be torch.bool on cpu like input, got torch.float"),
    "resets of a step": (
        dict(input=torch.zeros(2, 4), hx=None, cx=None, flags=BIAS | STEP, resets=torch.zeros(1, 2, dtype=torch.bool)),
        "resets are for padded sequences, not for a packed one or a single step",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, message = BAD[case]
    layer = Layer.random(LSTM, torch.float32, Size(3, 2, 4, 5))
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        ops.forward(*arguments(layer, **changes))


def test_a_backward_wants_what_the_forward_kept():
    layer = Layer.random(LSTM, torch.float32, Size(3, 2, 4, 5))
    args = arguments(layer)
    with torch.no_grad():
        output, _, _, saved = ops.forward(*args)
        for kept, message in (
            ([output], "kept must be 2 tensors, got 1"),
            ([output, saved[1:]], r"saved must be \[3, 2, 5, 5\], got \[2, 2, 5, 5\]"),
            ([output[..., :3], saved], r"output must be \[3, 2, 5\], got \[3, 2, 3\]"),
        ):
            with pytest.raises(RuntimeError, match=message):
                ops.backward(None, None, None, kept, *args)
