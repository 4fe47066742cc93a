"""Layers with int8 and bfloat16 weights: exact sums of integers, bounded errors, and clear refusals."""

import copy
import io
import warnings

import pytest
import torch
from test_backends import instruction_sets, run_python
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import native, panels, reference
from fused_rnn.quantized import QuantizedGRU, QuantizedLSTM, QuantizedLSTMCell

KINDS = ["LSTM", "GRU", "RNN", "reset before", "relu"]
both_weights = pytest.mark.parametrize("weights", ["int8", "bfloat16"])


def made(kind, *sizes, **options):
    """A float layer of ours."""
    if kind == "reset before":
        return fused_rnn.GRU(*sizes, reset_after=False, **options)
    if kind == "relu":
        return fused_rnn.RNN(*sizes, nonlinearity="relu", **options)
    return getattr(fused_rnn, kind)(*sizes, **options)


def layers():
    return nn.Sequential(nn.LSTM(6, 9, num_layers=2, bidirectional=True, batch_first=True)).eval()


def quantized(module, weights="int8"):
    return fused_rnn.quantize_(copy.deepcopy(module), weights)


def first(states):
    return states if isinstance(states, tuple) else (states,)


# ---- Values ----


def integers(x):
    """Rows as whole numbers in float64, and what each is multiplied by to give x back."""
    largest = x.abs().amax(-1, keepdim=True)
    return (x * (127 / largest)).round().nan_to_num(0).double(), largest / 127


def exact_linear(x, weight, bias=None):
    """What functional.linear would be: sums of products of integers, and two scales."""
    left, left_scale = integers(x)
    right, right_scale = integers(weight)
    assert max(left.abs().max(), right.abs().max()) <= 127
    product = (left @ right.t()).float() * (left_scale * right_scale.squeeze(-1))
    return product if bias is None else product + bias


def rounded(module):
    """A copy with weights that are bfloat16 numbers in float32."""
    module = copy.deepcopy(module)
    for weight in module.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.bfloat16().float()
    return module


@pytest.fixture
def exact(monkeypatch):
    """The results that a float module must have after quantize_, computed in PyTorch."""

    def run(module, weights, *args, **kwargs):
        with monkeypatch.context() as patch, fused_rnn.use_backend("reference"), torch.no_grad():
            if weights == "int8":
                patch.setattr(reference, "linear", exact_linear)
            else:
                module = rounded(module)
            return module(*args, **kwargs)

    return run


def assert_same(got, want):
    """But for rounding: where h is between two int8, its last bit decides, which is a 127th of an error there."""
    for g, w in zip((got[0], *first(got[1])), (want[0], *first(want[1])), strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=2e-6 * max(1, w.abs().max().item()) if w.numel() else 0)


# Around the lanes of a vector (4, 8, 16), two vectors, four numbers of a word, and tiles of 4 to 8 rows.
SIZES = [(1, 1), (3, 5), (4, 8), (5, 15), (8, 16), (17, 17), (16, 33), (30, 47), (64, 64)]


@both_weights
@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (2, 2), (2, 5), (1, 7), (2, 26), (1, 40)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact(kind, rows, weights, exact):
    T, B = rows
    for I, H in SIZES:
        module = made(kind, I, H)
        x = torch.randn(T, B, I) * 3
        with torch.no_grad():
            assert_same(quantized(module, weights)(x), exact(module, weights, x))


@both_weights
@pytest.mark.parametrize("kind", KINDS)
def test_every_form(kind, weights, exact):
    module = made(kind, 9, 20, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5).eval()
    unbiased = made(kind, 9, 20, bias=False)
    x, lengths = torch.randn(4, 3, 9), torch.tensor([1, 3, 0, 2])
    states = tuple(torch.randn(4, 4, 20) * 2 for _ in range(2 if kind == "LSTM" else 1))  # above 1
    hx = states if len(states) > 1 else states[0]
    q, packed = quantized(module, weights), pack_padded_sequence(x, [3, 2, 2, 1], batch_first=True)
    with torch.no_grad():
        assert_same(q(x), exact(module, weights, x))
        assert_same(q(x, hx), exact(module, weights, x, hx))
        assert_same(q(x, hx, lengths=lengths), exact(module, weights, x, hx, lengths=lengths))
        assert_same(q(x[0]), exact(module, weights, x[0]))
        got, want = q(packed), exact(module, weights, packed)
        assert_same((got[0].data, got[1]), (want[0].data, want[1]))
        assert pad_packed_sequence(got[0], batch_first=True)[0].shape == (4, 3, 40)
        assert_same(quantized(unbiased, weights)(x), exact(unbiased, weights, x))
        for size in ((0, 3, 9), (4, 0, 9)):
            empty = torch.randn(size)
            if size[1]:
                assert q(empty)[0].shape == module(empty)[0].shape
            else:
                with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
                    q(empty)


@both_weights
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(name, bias, weights, exact):
    module = getattr(fused_rnn, name)(7, 19, bias=bias)
    q = quantized(module, weights)
    with torch.no_grad():
        for x in (torch.randn(3, 7), torch.randn(7)):
            want = first(exact(module, weights, x))
            for _ in range(2):  # at first through a Call, then through what is remembered
                assert_same((torch.ones(0), first(q(x))), (torch.ones(0), want))
            states = want if len(want) > 1 else want[0]
            again = first(exact(module, weights, x, states))
            assert_same((torch.ones(0), first(q(x, states))), (torch.ones(0), again))
    assert len(list(q.parameters())) == 0 and f"weights={weights}" in repr(q)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_error_against_float64(kind):
    """In 40 steps on average under 0.004, and under half of what PyTorch's own int8 loses, which has no RNN.

    Weights of bfloat16 lose a quarter of that.
    """
    for seed in range(3):
        torch.manual_seed(seed)
        plain = getattr(nn, kind)(80, 128).eval()
        x = torch.randn(40, 4, 80)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {type(plain)})(x)[0]
            truth = copy.deepcopy(plain).double()(x.double())[0]
            error, of_bfloat16 = ((quantized(plain, w)(x)[0] - truth).abs() for w in ("int8", "bfloat16"))
        assert error.max() < 0.04 and error.mean() < 0.004
        assert of_bfloat16.max() < 0.01 and of_bfloat16.mean() < 0.27 * error.mean()
        assert kind == "RNN" or error.mean() < 0.5 * (theirs - truth).abs().mean()


@both_weights
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent(kind, weights):
    """NaN and infinities stay in their row, as do sizes: a tiny row is as exact as a large one."""
    q = quantized(made(kind, 10, 18), weights)
    x = torch.randn(3, 6, 10)
    with torch.no_grad():
        plain = q(x)[0]
        x[1, 1, 3], x[1, 2, 9] = torch.nan, torch.inf
        x[:, 3], x[:, 4], x[:, 5] = 0, 1e-38, 1e30
        output = q(x)[0]
    assert torch.equal(output[:, 0], plain[:, 0]) and torch.equal(output[0, 1:3], plain[0, 1:3])
    assert not torch.isfinite(output[1:, 1]).any() and (weights == "bfloat16" or not output[2, 2].isfinite().any())
    assert torch.isfinite(output[:, 3:5]).all()
    assert torch.isfinite(output[0, 5]).all() or kind == "relu"


@both_weights
@pytest.mark.parametrize("kind", KINDS)
def test_other_backends(kind, weights):
    q, x = quantized(made(kind, 12, 21, bidirectional=True, bias=kind != "GRU"), weights), torch.randn(4, 3, 12)
    with torch.no_grad():
        got = q(x)
        for name in ("reference", "torch") if weights == "bfloat16" and kind != "reset before" else ("reference",):
            with fused_rnn.use_backend(name):
                assert_same(got, q(x))
        assert q.to("meta")(x.to("meta"))[0].shape == (4, 3, 42)
    for name in ("cuda", "triton", "torch") if weights == "int8" else ():
        with fused_rnn.use_backend(name), pytest.raises(ValueError, match="int8"), torch.no_grad():
            q(x.to("meta") if name == "cuda" else x)
    lstm = fused_rnn.quantize_(fused_rnn.LSTM(6, 9), weights)
    told = str(fused_rnn.explain(lstm, torch.randn(4, 2, 6), gpu="H100"))
    assert ("it has no kernel for int8 weights" in told) == (weights == "int8") and f"weights={weights}" in told


@both_weights
def test_bits_do_not_depend_on_threads(weights):
    q, x = quantized(fused_rnn.LSTM(300, 300), weights), torch.randn(5, 40, 300)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append(q(x)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# Whose products with quantised weights are not those of another set.
OWN = {"amx", "amx_emulated", "avx512_vnni", "avx512", "avx_vnni", "avx2", "neon_dot", "neon", "generic"}


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("name", [name for name in instruction_sets() if name in OWN])
def test_instruction_sets(name):
    if name == native.cpu_instruction_set():
        pytest.skip("all other tests of this file run on this instruction set already")
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-m", "not slow", FUSED_RNN_ISA=name)
    assert done.returncode == 0, done.stdout[-4000:]


@both_weights
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_pieces(kind, weights):
    """A long sequence is projected in chunks; the bits are those of short calls that pass the states on."""
    q = quantized(made(kind, 31, 70), weights)
    x = torch.randn(300, 5, 31)
    with torch.no_grad():
        whole, states = q(x)
        pieces, hx = [], None
        for piece in x.split(7):
            output, hx = q(piece, hx)
            pieces.append(output)
    assert torch.equal(torch.cat(pieces), whole)
    assert all(torch.equal(a, b) for a, b in zip(first(hx), first(states), strict=True))


# ---- Panels ----


@both_weights
@pytest.mark.parametrize("layout", [(16, 1, 4, 128), (16, 2, 2, 128), (8, 1, 2, 0), (4, 2, 2, 0)])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (16, 16), (35, 33)])
def test_panels_hold_every_number_once(layout, sizes, weights):
    (H, K), dtype = sizes, getattr(torch, weights)
    depth, layout = 4 // dtype.itemsize, layout if weights == "int8" else (*layout[:3], 0)
    for cell in fused_rnn.cell.CELLS:
        numbers = torch.randint(-127, 128, (cell.gates * H, K)).to(dtype)
        if cell.gates * layout[1] % layout[2] == 0:
            packed = panels.packed(cell, numbers, True, layout)
            assert packed.dim() == 1 and packed.numel() % (layout[0] * depth) == K % depth
            packed = packed.view(dtype)[: packed.numel() - K % depth]
            shifted = (packed.int() - layout[3] + 128) % 256 - 128  # signed bytes
            assert torch.equal(shifted[shifted != 0].sort()[0], numbers[numbers != 0].int().sort()[0])
        for is_hidden in (False, True):
            packed = panels.packed(cell, numbers, is_hidden)
            assert torch.equal(panels.unpacked(cell, packed, K, H, is_hidden), numbers)


# ---- quantize_ and its way back ----


model = pytest.fixture(layers)


def test_in_place_and_chosen(model):
    net = nn.ModuleDict({"a": model, "b": nn.GRU(3, 4), "c": nn.LSTMCell(3, 4), "d": nn.Linear(3, 4)})
    objects = list(net.modules())
    seen = []

    def choose(module, name):
        seen.append((type(module).__name__, name))
        return name != "b"

    assert fused_rnn.quantize_(net, filter_fn=choose) is net
    assert seen == [("LSTM", "a.0"), ("GRU", "b"), ("LSTMCell", "c")]
    assert all(x is y for x, y in zip(net.modules(), objects, strict=True))
    assert type(net["b"]) is nn.GRU and type(net["d"]) is nn.Linear
    assert type(net["a"][0]) is QuantizedLSTM and type(net["c"]) is QuantizedLSTMCell
    fused_rnn.quantize_(net)
    assert type(net["b"]) is QuantizedGRU and type(net["a"][0]) is QuantizedLSTM
    assert not net["a"].training


@both_weights
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_restore(kind, bias, weights):
    plain = getattr(nn, kind)(5, 6, bias=bias)
    q = quantized(plain, weights)
    with pytest.raises(ValueError, match="the module itself had before quantize_ are gone"):
        fused_rnn.restore(q)
    assert "Quantized" in type(q).__name__
    x = torch.randn(3, 5)
    with torch.no_grad():
        want = first(q(x))[0]
    back = fused_rnn.restore(q, dequantize=True)
    assert type(back) is type(plain) and back.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(dict(back.named_parameters()), dict(plain.named_parameters()), rtol=0, atol=2e-3)
    assert (first(back(x))[0] - want).abs().max() < 0.02
    back(x)[0].sum().backward()
    assert not list(back.buffers()) and weights not in repr(back)
    copy.deepcopy(back).load_state_dict(plain.state_dict())


def test_refusals(model):
    for weights in ("int4", "float32", torch.int8, None):
        with pytest.raises(ValueError, match='weights must be "int8" or "bfloat16", got'):
            fused_rnn.quantize_(model, weights)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got list"):
        fused_rnn.quantize_([model])
    net = nn.ModuleList([nn.LSTM(3, 4), nn.GRU(3, 4)])
    with torch.no_grad():
        net[1].weight_hh_l0[2, 1] = torch.nan
    with pytest.raises(ValueError, match="cannot quantize 1, a GRU: weight_hh_l0 has NaN or infinities"):
        fused_rnn.quantize_(net)
    assert type(net[0]) is nn.LSTM and len(list(net[0].parameters())) == 4
    for module, reason in (
        (nn.LSTM(3, 4, dtype=torch.bfloat16), "it must be float32, and weight_ih_l0 is torch.bfloat16"),
        (nn.LSTM(3, 4, proj_size=2), "it has proj_size"),
        (nn.GRUCell(3, 0), "it has no units"),
        (parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0"), "it is parametrised"),
    ):
        with pytest.raises(ValueError, match=f"cannot quantize the module itself, a .*: {reason}"):
            fused_rnn.quantize_(module)
    huge = nn.RNN(3, 4)
    huge.weight_ih_l0.data[0, 0] = torch.finfo(torch.float32).max
    assert fused_rnn.quantize_(copy.deepcopy(huge), "int8")
    with pytest.raises(ValueError, match="weight_ih_l0 has NaN or infinities in bfloat16"):
        fused_rnn.quantize_(huge, "bfloat16")


def test_no_gradient(model):
    q, x = quantized(model), torch.randn(2, 5, 6, requires_grad=True)
    sentence = "QuantizedLSTM has int8 weights and no gradient, but its input or state requires one"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=sentence):
            q(x)
        with torch.no_grad():
            q(x)
    q.train()
    assert not q(x.detach())[0].requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        q(x.detach())[0].sum().backward()
    cell = quantized(nn.LSTMCell(3, 4))
    with pytest.raises(RuntimeError, match="QuantizedLSTMCell has int8 weights and no gradient"):
        cell(torch.randn(1, 3), (torch.randn(1, 4, requires_grad=True), torch.randn(1, 4)))


def test_wrong_inputs(model):
    q = quantized(model)
    with torch.no_grad():
        for x in (torch.randn(2, 5, 7), torch.randn(2, 5, 6).double(), torch.randn(2, 5, 6).bfloat16(), torch.ones(6)):
            with pytest.raises((RuntimeError, ValueError)) as ours:
                q(x)
            with pytest.raises((RuntimeError, ValueError)) as theirs:
                model(x)
            assert str(ours.value) == str(theirs.value)
        with pytest.raises(RuntimeError, match="Expected hidden"):
            q[0](torch.randn(2, 5, 6), (torch.randn(4, 3, 9), torch.randn(4, 3, 9)))
        with torch.autocast("cpu", torch.bfloat16):
            assert q(torch.randn(2, 5, 6))[0].dtype == torch.float32
        cell = quantized(nn.RNNCell(3, 4))
        with pytest.raises(RuntimeError, match="float32"):
            cell(torch.randn(2, 3).double())


def test_other_graphs(model):
    q = quantized(model)
    with pytest.raises(RuntimeError, match="QuantizedLSTM cannot be scripted, traced or exported"):
        torch.jit.script(q)
    sentence = "quantised weights, lengths, .* cannot be traced or exported|cannot be scripted, traced or exported"
    with pytest.raises(RuntimeError, match=sentence):
        torch.jit.trace(q, torch.randn(2, 5, 6), check_trace=False)
    with pytest.raises(RuntimeError, match=sentence):
        torch.onnx.export(q, (torch.randn(2, 5, 6),), io.BytesIO(), dynamo=False)


def test_raw_op_refuses():
    op, q = torch.ops.fused_rnn.inference, quantized(fused_rnn.GRU(6, 9))
    weights, x, flags = q._weights(), torch.randn(3, 2, 6), 1 | 2048
    assert op("gru", x, weights, None, None, flags)[0].shape == (3, 2, 9)
    for position, wrong, message in (
        (0, weights[0][:-1], r"scale_ih_l0 must be \[27\], got \[26\]"),
        (1, weights[1][:-1], r"scale_hh_l0 must be \[G\*H\] with G = 3, got \[26\]"),
        (2, weights[2].double(), "bias_ih_l0 must be torch.float32"),
        (4, weights[4][:-1], r"weight_ih_l0 must be \[\d+\], got \[\d+\]"),
        (5, weights[5].int(), "weight_hh_l0 must be torch.int8"),
    ):
        changed = [wrong if k == position else weight for k, weight in enumerate(weights)]
        with pytest.raises(RuntimeError, match=message):
            op("gru", x, changed, None, None, flags)
    with pytest.raises(RuntimeError, match="weights must be 6 for each layer, got 4"):
        op("gru", x, weights[:4], None, None, flags)
    with pytest.raises(RuntimeError, match="int8 weights need an input of float32 on cpu, got"):
        op("gru", x.double(), weights, None, None, flags)
    with pytest.raises(RuntimeError, match="int8 weights have no gradient"):
        torch.ops.fused_rnn.forward("gru", x, weights, None, None, None, None, [], flags | 64)
    with pytest.raises(RuntimeError, match=r"int8 weights have at most 131072 columns, got 131073"):
        op("gru", torch.zeros(1, 1, 131073), weights, None, None, flags)
    weights, flags = quantized(fused_rnn.GRU(6, 9), "bfloat16")._weights(), 1 | 4096
    assert op("gru", x, weights, None, None, flags)[0].shape == (3, 2, 9)
    with pytest.raises(RuntimeError, match="bfloat16 weights come with biases"):
        op("gru", x, weights[2:], None, None, 4096)
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 must be torch\.int16"):
        op("gru", x, [*weights[:3], weights[3].view(torch.bfloat16)], None, None, flags)
    with pytest.raises(RuntimeError, match=r"bias_hh_l0 must be \[G\*H\] with G = 3, got \[26\]"):
        op("gru", x, [weights[0], weights[1][:-1], *weights[2:]], None, None, flags)
