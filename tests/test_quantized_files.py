"""Modules with quantised weights as files, copies and graphs; what compare tells of them; torchao."""

import copy
import io
import pickle

import pytest
import torch
from test_backends import run_python
from test_quantize import both_weights, layers, quantized
from torch import nn

import fused_rnn
from fused_rnn.quantized import QuantizedLSTM

model = pytest.fixture(layers)


@both_weights
def test_state_dict_is_plain(model, weights):
    """Rows, and scales of int8, that stand for the weights, in a file and back."""
    q = quantized(model, weights)
    state = q.state_dict()
    for name, weight in model.named_parameters():
        if "weight" not in name:
            assert torch.equal(state[name], weight)
            continue
        if weights == "bfloat16":
            assert torch.equal(state[name], weight.bfloat16())
            continue
        rows, scale = state[name], state[name.replace("weight", "scale")]
        assert rows.dtype == torch.int8 and rows.shape == weight.shape and rows.abs().amax(1).eq(127).all()
        assert (rows * scale[:, None] - weight).abs().max() <= scale.max() / 2 * 1.001
    assert len(state) == (6 if weights == "int8" else 4) * 4
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = quantized(layers(), weights)
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        assert not torch.equal(other(x)[0], q(x)[0])
        assert str(other.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
        assert torch.equal(other(x)[0], q(x)[0])


def test_wrong_state_dicts(model):
    q = quantized(model)
    with pytest.raises(RuntimeError, match=r"0.weight_ih_l0 must be \[36, 6\] of torch.int8, got .* before quantize_"):
        q.load_state_dict(model.state_dict())
    state = q.state_dict()
    del state["0.weight_hh_l1"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight_hh_l1"):
        q.load_state_dict(state)
    state["0.weight_hh_l1"] = torch.zeros(36, 8, dtype=torch.int8)
    with pytest.raises(RuntimeError, match=r"0.weight_hh_l1 must be \[36, 9\]"):
        q.load_state_dict(state)


@both_weights
def test_copies(model, weights):
    q, x = quantized(model, weights), torch.randn(2, 5, 6)
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    with torch.no_grad():
        want = q(x)[0]
        copies = copy.deepcopy(q), pickle.loads(pickle.dumps(q)), torch.load(file, weights_only=False)
        for other in copies:
            assert torch.equal(other(x)[0], want) and torch.equal(other(x)[0], want)
        copies[0][0].weight_ih_l0.zero_()
        assert torch.equal(q(x)[0], want)
        assert torch.equal(q.float()(x)[0], want) and torch.equal(q.to("cpu")(x)[0], want)
    cell = quantized(nn.GRUCell(3, 4, bias=False), weights)
    assert torch.equal(pickle.loads(pickle.dumps(cell))(torch.ones(2, 3)), cell(torch.ones(2, 3)))
    assert not any("bias" in name for name in cell.state_dict())


@pytest.mark.slow
@both_weights
@pytest.mark.parametrize("name", ["generic"])
def test_a_file_of_another_processor(name, weights, tmp_path):
    q, x = quantized(nn.Sequential(nn.GRU(30, 50), nn.Identity()), weights), torch.randn(3, 2, 30)
    torch.save((q, x), tmp_path / "model.pt")
    code = """import sys, torch, fused_rnn
q, x = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save(q(x)[0], sys.argv[1])"""
    done = run_python("-c", code, str(tmp_path / "model.pt"), FUSED_RNN_ISA=name)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "model.pt"), q(x)[0], rtol=0, atol=2e-6)


@both_weights
def test_memory(weights):
    """A quarter of the floats or half, once."""
    module = fused_rnn.LSTM(256, 512, num_layers=2)
    floats = sum(p.numel() * 4 for p in module.parameters())
    q = fused_rnn.quantize_(module, weights)
    assert not list(q.parameters())
    assert sum(b.numel() * b.element_size() for b in q.buffers()) < (0.26 if weights == "int8" else 0.51) * floats


@pytest.mark.slow(seconds=30)
@both_weights
def test_compiled_and_exported(model, weights):
    q, x = quantized(model, weights), torch.randn(2, 5, 6)
    with torch.no_grad():
        want = q(x)[0]
        assert torch.equal(torch.compile(q, fullgraph=True)(x)[0], want)
        exported = torch.export.export(q, (x,))
        assert torch.equal(exported.module()(x)[0], want)


@both_weights
def test_explain(model, weights):
    told = str(fused_rnn.explain(quantized(model, weights)[0], torch.randn(2, 5, 6)))
    assert "QuantizedLSTM(6, 9" in told and f"{weights} weights" in told


# ---- ONNX ----


def in_onnx_runtime(module, x, path, **options):
    """A module's results in ONNX Runtime, and the names of the graph's nodes."""
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime to run what was exported")
    onnx = pytest.importorskip("onnx", reason="needs onnx to read what was exported")
    pytest.importorskip("onnxscript", reason="needs onnxscript, with which torch.onnx.export writes its graphs")
    torch.onnx.export(module, (x,), dynamo=True, verbose=False, **options).save(path)
    session = ort.InferenceSession(path)
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(r) for r in results], [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]
)
def test_onnx_has_nodes_of_int8(options, tmp_path):
    plain, x = fused_rnn.LSTM(6, 9, **options).eval(), torch.randn(5, 3, 6)
    got, nodes = in_onnx_runtime(quantized(plain), x, tmp_path / "layer.onnx")
    assert nodes.count("DynamicQuantizeLSTM") == plain.num_layers and "Slice" not in nodes
    output, states = plain(x)
    for g, w in zip(got, (output, *states), strict=True):
        assert (g - w).abs().max() < 0.02


@pytest.mark.slow(seconds=20)
def test_onnx_of_a_cell_and_of_any_batch(tmp_path):
    cell, x = fused_rnn.LSTMCell(100, 256), torch.randn(7, 100)
    dynamic = ({0: torch.export.Dim("batch", min=2)},)
    got, nodes = in_onnx_runtime(quantized(cell), x, tmp_path / "cell.onnx", dynamic_shapes=dynamic)
    assert "DynamicQuantizeLSTM" in nodes
    for g, w in zip(got, cell(x), strict=True):
        assert (g - w).abs().max() < 0.02


@pytest.mark.slow(seconds=20)
def test_onnx_has_no_other_small_weights():
    pytest.importorskip("onnxscript", reason="needs onnxscript, with which torch.onnx.export writes its graphs")
    x = torch.randn(5, 3, 6)
    for module, weights, what in (
        (fused_rnn.GRU(6, 9), "int8", "ONNX has no gru with int8 weights"),
        (fused_rnn.LSTM(6, 9), "bfloat16", "ONNX has no lstm with bfloat16 weights"),
    ):
        with pytest.raises(Exception, match=f"{what}, .*restore"):
            torch.onnx.export(quantized(module, weights), (x,), dynamo=True, verbose=False)


# ---- compare ----


def test_compare(capsys):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.cell, self.last = nn.LSTM(6, 9, num_layers=2), nn.GRUCell(9, 5), nn.Linear(5, 2)

        def forward(self, x, scale):
            h = None
            for step in self.encoder(x)[0]:
                h = self.cell(step * scale, h)
            return {"logits": self.last(h)} if scale > 1 else (self.last(h), h)

    net = Net().eval()
    errors = fused_rnn.compare(net, quantized(net), torch.randn(4, 2, 6), 1.0)
    assert list(errors) == ["encoder", "cell", "output"] and all(0 < error < 0.05 for error in errors.values())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(errors) and float(lines[0].split()[1]) > 0
    assert list(fused_rnn.compare(net, quantized(net), torch.randn(4, 2, 6), 2.0)) == ["encoder", "cell"]
    assert fused_rnn.compare(net.encoder, quantized(net.encoder), torch.randn(3, 6))["output"] < 0.05
    assert not net.encoder._forward_hooks
    with pytest.raises(ValueError, match="quantized has no layer that quantize_ has changed"):
        fused_rnn.compare(net, net, torch.randn(4, 2, 6), 1.0)
    with pytest.raises(ValueError, match="module has no encoder, cell"):
        fused_rnn.compare(nn.Linear(1, 1), quantized(net), torch.randn(4, 2, 6), 1.0)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got NoneType"):
        fused_rnn.compare(net, None)


# ---- torchao ----


@pytest.mark.slow
def test_torchao():
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao: its quantize_ is what the test calls")
    net = nn.Sequential(nn.LSTM(6, 9), nn.ModuleList([nn.GRUCell(9, 5), nn.Linear(5, 2)]))
    x = torch.randn(4, 2, 6)
    want = quantized(net[0])
    assert torchao.quantize_(net, fused_rnn.Int8RNNConfig()) is None and type(net[0]) is nn.LSTM
    torchao.quantize_(net, fused_rnn.Int8RNNConfig(), lambda m, name: isinstance(m, (nn.RNNBase, nn.RNNCellBase)))
    assert type(net[0]) is QuantizedLSTM and type(net[1][1]) is nn.Linear and "weights=int8" in repr(net[1][0])
    with torch.no_grad():
        assert torch.equal(net[0](x)[0], want(x)[0])
    with pytest.raises(AttributeError, match="module 'fused_rnn' has no attribute 'Int4RNNConfig'"):
        _ = fused_rnn.Int4RNNConfig
