"""`resets` begin new sequences inside a row: results and gradients are those of each sequence run alone."""

import pytest
import torch
from alone import alone, as_tuple
from problems import DTYPES
from torch import nn

import fused_rnn
from fused_rnn import backends

KINDS = ("LSTM", "GRU", "RNN", "GRU(reset_after=False)")
BACKENDS = ("cpu", "segments", "reference")


def module_of(kind, *sizes, **options):
    torch.manual_seed(0)
    if kind == "GRU(reset_after=False)":
        return fused_rnn.GRU(*sizes, **options, reset_after=False)
    return getattr(fused_rnn, kind)(*sizes, **options)


def states_of(kind, shape, proj_size=0, dtype=torch.float64):
    h = torch.randn(*shape[:-1], proj_size or shape[-1], dtype=dtype)
    return (h, torch.randn(shape, dtype=dtype)) if kind == "LSTM" else h


def gradients(results, leaves):
    loss = sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in results)
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both directions"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_resets_are_sequences_alone(kind, rate, bidirectional, ragged, backend):
    module = module_of(kind, 3, 5, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    T, B, count = 9, 6, 4 if bidirectional else 2
    x, hx = torch.randn(T, B, 3, dtype=torch.float64, requires_grad=True), states_of(kind, (count, B, 5))
    hx = tuple(h.requires_grad_() for h in hx) if kind == "LSTM" else hx.requires_grad_()
    resets = torch.rand(T, B) < rate
    lengths = torch.tensor([4, 9, 0, 1, 7, 9]) if ragged else None
    leaves = [x, *as_tuple(hx), *module.parameters()]
    want = alone(module, x, hx, lengths, resets)
    with fused_rnn.use_backend(backend):
        try:
            output, final = module(x, hx, lengths=lengths, resets=resets)
        except ValueError as reason:
            assert backend == "segments" and "torch.nn has no gru(reset_after=False)" in str(reason)
            return
    got = output, *as_tuple(final)
    for a, b in zip((*got, *gradients(got, leaves)), (*want, *gradients(want, leaves)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_resets_in_every_form_of_input(kind):
    """Batch first, without a batch, without hx, with an input of no gradient."""
    module = module_of(kind, 3, 5, num_layers=2, dtype=torch.float64)
    first = module_of(kind, 3, 5, num_layers=2, batch_first=True, dtype=torch.float64)
    x, resets = torch.randn(7, 4, 3, dtype=torch.float64), torch.rand(7, 4) < 0.3
    output, final = module(x, resets=resets)
    with torch.no_grad():
        other, other_final = first(x.transpose(0, 1), resets=resets.t())
    torch.testing.assert_close(other.transpose(0, 1), output, rtol=0, atol=0)
    torch.testing.assert_close(other_final, final, rtol=0, atol=0)
    row, _ = module(x[:, 1], resets=resets[:, 1])
    torch.testing.assert_close(row, output[:, 1])
    torch.testing.assert_close(module(x, None, None, resets)[0], output, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_resets_hide_what_was_before(kind, dtype):
    """Neither NaN in hx nor in an earlier sequence of the row reaches a later one, in results or gradients."""
    module = module_of(kind, 3, 20, num_layers=2, bidirectional=True, dtype=dtype)
    x, resets = torch.randn(8, 7, 3, dtype=dtype), torch.zeros(8, 7, dtype=torch.bool)
    resets[3] = True
    clean, _ = module(x, resets=resets)
    x[1, 2] = float("nan")
    leaf = x.clone().requires_grad_()
    output, _ = module(leaf, resets=resets)
    assert output[:3, 2].isnan().any() and not output[3:].isnan().any()
    assert torch.equal(output[3:], clean[3:])
    (grad,) = torch.autograd.grad(output[3:].sum(), leaf)
    assert not grad[3:].isnan().any() and not grad[:3, [0, 1, 3, 4, 5, 6]].any()
    resets[0] = True
    hx = states_of(kind, (4, 7, 20), dtype=dtype)
    for state in as_tuple(hx):
        state[0::2] = float("nan")  # of the forward directions
    assert not module(torch.randn(8, 7, 3, dtype=dtype), hx, resets=resets)[0].isnan().any()


def test_resets_take_gradients_of_hx_that_is_not_used():
    module = module_of("LSTM", 3, 5)
    hx = tuple(state.requires_grad_() for state in states_of("LSTM", (1, 2, 5), dtype=torch.float32))
    resets = torch.tensor([[True, False], [False, False]])
    output, _ = module(torch.randn(2, 2, 3), hx, resets=resets)
    for grad in torch.autograd.grad(output.sum(), hx):
        assert not grad[:, 0].any() and grad[:, 1].all()


@pytest.mark.parametrize("kind", KINDS)
def test_resets_differentiate_twice(kind):
    module = module_of(kind, 2, 3, num_layers=2, bidirectional=True, dtype=torch.float64)
    resets = torch.rand(4, 2) < 0.4

    def run(x, *hx):
        output, final = module(x, hx if kind == "LSTM" else hx[0], lengths=[4, 3], resets=resets)
        return output, *as_tuple(final)

    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    hx = [state.requires_grad_() for state in as_tuple(states_of(kind, (4, 2, 3)))]
    assert torch.autograd.gradcheck(run, (x, *hx))
    assert torch.autograd.gradgradcheck(run, (x, *hx))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_resets_under_torch_func(kind):
    """vmap over resets and forward mode: on the reference, with the same results."""
    module = module_of(kind, 3, 5, dtype=torch.float64)
    x, resets = torch.randn(4, 2, 3, dtype=torch.float64), torch.rand(3, 4, 2) < 0.4
    many = torch.func.vmap(lambda r: module(x, resets=r)[0])(resets)
    for one, r in zip(many, resets, strict=True):
        torch.testing.assert_close(one, module(x, resets=r)[0])
    tangent = torch.randn_like(x)
    _, along = torch.func.jvp(lambda x: module(x, resets=resets[0])[0], (x,), (tangent,))
    _, wanted = torch.autograd.functional.jvp(lambda x: module(x, resets=resets[0])[0], x, tangent)
    torch.testing.assert_close(along, wanted)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU(reset_after=False)"])
def test_resets_compile_in_one_graph(kind, dynamic):
    torch._dynamo.reset()
    module = module_of(kind, 3, 5, num_layers=2, bidirectional=True, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for B in (4, 5):
        x, resets = torch.randn(B, 6, 3, requires_grad=True), torch.rand(B, 6) < 0.3
        for lengths in (None, torch.arange(B) + 1):
            got, want = compiled(x, lengths=lengths, resets=resets)[0], module(x, lengths=lengths, resets=resets)[0]
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (got, want)))


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_resets_of_quantised_layers(kind, weights):
    """In the kernels as in the reference, which computes with the same weights."""
    module = fused_rnn.quantize_(module_of(kind, 9, 33, num_layers=2, bidirectional=True), weights)
    x, resets, lengths = torch.randn(8, 5, 9), torch.rand(8, 5) < 0.3, torch.tensor([8, 3, 0, 8, 7])
    output, _ = module(x, lengths=lengths, resets=resets)
    with fused_rnn.use_backend("reference"):
        want, _ = module(x, lengths=lengths, resets=resets)
    torch.testing.assert_close(output, want, rtol=0, atol=0.02 if weights == "int8" else 1e-5)


def test_resets_with_dropout_draw_the_masks_of_a_call_without():
    module = module_of("GRU", 3, 5, num_layers=3, dropout=0.5)
    x, nowhere = torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)
    outputs = []
    for options in ({}, {"resets": nowhere}):
        torch.manual_seed(7)
        outputs.append(module(x, **options)[0])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("autocast", [False, True])
def test_resets_with_autocast_and_inference_mode(autocast):
    module, x, resets = module_of("LSTM", 3, 5), torch.randn(6, 4, 3), torch.rand(6, 4) < 0.3
    want, _ = module(x, resets=resets)
    with torch.inference_mode(), torch.autocast("cpu", enabled=autocast):
        got, _ = module(x, resets=resets)
    assert got.dtype == (torch.bfloat16 if autocast else torch.float32)
    torch.testing.assert_close(got.float(), want, rtol=0.02, atol=0.02)


BAD = {
    "a list": ([[True]], TypeError, "resets must be a tensor of torch.bool, got a list"),
    "floating": (torch.zeros(5, 2), RuntimeError, "resets must have dtype torch.bool, got torch.float32"),
    "transposed": (
        torch.zeros(2, 5, dtype=torch.bool),
        RuntimeError,
        r"resets must be \[5, 2\], one for each step of a row, got \[2, 5\]",
    ),
    "of a row": (torch.zeros(5, dtype=torch.bool), RuntimeError, r"resets must be \[5, 2\], .* got \[5\]"),
    "on another device": (
        torch.zeros(5, 2, dtype=torch.bool, device="meta"),
        RuntimeError,
        "resets must be on cpu like input, got meta",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_resets(case):
    resets, error, message = BAD[case]
    for module in (module_of("LSTM", 3, 5), module_of("LSTM", 3, 5, proj_size=2)):
        with pytest.raises(error, match=message):
            module(torch.zeros(5, 2, 3), resets=resets)


def test_resets_are_for_padded_input():
    packed = nn.utils.rnn.pack_sequence([torch.zeros(4, 3)])
    with pytest.raises(ValueError, match="lengths and resets are for padded input, got a PackedSequence"):
        module_of("GRU", 3, 5)(packed, resets=torch.zeros(4, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match="resets"):
        fused_rnn.GRUCell(3, 5)(torch.zeros(1, 3), resets=torch.zeros(1, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="lengths, resets and reset_after=False cannot be traced or exported"):
        gru = module_of("GRU", 3, 5)
        torch.jit.trace(lambda x, r: gru(x, resets=r), (torch.zeros(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)))


def test_resets_are_explained():
    """The kernels take them; torch.nn's layers cannot, and their fallback says so."""
    x, resets = torch.zeros(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
    told = fused_rnn.explain(module_of("GRU", 3, 5), x, resets=resets)
    assert told.backend == "cpu" and "resets" in str(told.problem)
    problem = told.problem._replace(device=torch.device("cuda"), dtype=torch.float64)
    names = [backend.name for backend in backends.BACKENDS if backend.why_not(problem) is None]
    assert names == ["segments", "reference"]
    assert backends.by_name("torch").why_not(problem) == "torch.nn has no resets inside a sequence"
    assert backends.by_name("segments").why_not(problem._replace(has_resets=False)) == "it is for calls with resets"


def test_resets_of_a_recorded_graph():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.GRU(3, 5)

        def forward(self, x, resets):
            return self.rnn(x, resets=resets)[0]

    model, x, resets = Model(), torch.randn(4, 2, 3), torch.rand(4, 2) < 0.5
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(x, resets), model(x, resets))
    exported = torch.export.export(model, (x, resets)).module()
    assert torch.equal(exported(x, resets), model(x, resets))
