"""What people do with nn.LSTM and nn.GRU, by public bug reports and PyTorch's own tests: it works with ours too."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import CELLS, Layer, Size, native_layer
from test_modules import assert_same, flat, pair
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
from fused_rnn import autograd

KINDS = ("LSTM", "GRU", "RNN")
CELL_KINDS = ("LSTMCell", "GRUCell", "RNNCell")


def states(kind, *shape):
    return (torch.randn(shape), torch.randn(shape)) if kind.startswith("LSTM") else torch.randn(shape)


# ---- Sizes of zero ----


@pytest.mark.parametrize(
    "sizes", [(3, 10, 0), (3, 0, 4), (0, 10, 4), (3, 0, 0), (0, 0, 0)], ids="B{0[0]}-I{0[1]}-H{0[2]}".format
)
@pytest.mark.parametrize("kind", CELL_KINDS)
def test_a_cell_with_a_size_of_zero(kind, sizes):
    B, I, H = sizes
    ours, theirs = pair(kind, I, H, dtype=torch.float64)
    results = []
    for module in (ours, theirs):
        x = torch.ones(B, I, dtype=torch.float64, requires_grad=True)
        outputs = flat(module(x))
        grads = torch.autograd.grad(sum(y.sum() for y in outputs), [x, *module.parameters()], materialize_grads=True)
        results.append([*outputs, *grads])
    assert_same(*results)
    with torch.no_grad():
        assert_same(ours(x), theirs(x))


def test_nothing_is_copied_where_there_is_no_unit():
    x = torch.zeros(1, 2).expand(2**40, 2)
    with torch.no_grad():
        assert fused_rnn.GRUCell(2, 0)(x).shape == nn.GRUCell(2, 0)(x).shape == (2**40, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_zero_rows(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2, bidirectional=True)
    results = []
    for module in (ours, theirs):
        x = torch.zeros(5, 0, 3, requires_grad=True)
        output, state = module(x)
        results.append([output, state, *torch.autograd.grad(output.sum(), [x, *module.parameters()])])
    assert_same(*results)
    with torch.no_grad():
        assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0)], ids="I{0[0]}-H{0[1]}".format)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_a_size_of_zero_is_what_it_is_in_torch(kind, sizes):
    """Refused, or with an input_size of 0 in older versions a layer that sees its states alone."""
    x = torch.randn(5, 2, sizes[0])
    try:
        getattr(nn, kind)(*sizes)
    except ValueError as refusal:
        with pytest.raises(ValueError, match=str(refusal)):
            getattr(fused_rnn, kind)(*sizes)
    else:
        ours, theirs = pair(kind, *sizes)
        assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_an_op_with_sizes_of_zero_on_meta_tensors(cell):
    for size in (Size(0, 2, 3, 4), Size(3, 0, 2, 5), Size(3, 2, 0, 4), Size(3, 2, 4, 0)):
        layer = Layer.random(cell, torch.float32, size)
        there, here = layer.changed(lambda t: t.to("meta")).results(native_layer), layer.results(native_layer)
        assert {name: t.shape for name, t in there.items()} == {name: t.shape for name, t in here.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_length_zero(kind):
    module = getattr(fused_rnn, kind)(3, 4, num_layers=2, bidirectional=True)
    x, hx = torch.randn(5, 3, 3), states(kind, 4, 3, 4)
    output, final = module(x, hx, lengths=[2, 0, 5])
    assert (output[:, 1] == 0).all()
    for end, start in zip(flat(final), flat(hx), strict=True):
        assert torch.equal(end[:, 1], start[:, 1])
    others, _ = module(x[:, ::2], torch.utils._pytree.tree_map(lambda h: h[:, ::2], hx), lengths=[2, 5])
    assert_same(output[:, ::2], others)


# ---- Results are changed in place ----


def calls(kind):
    x = torch.randn(5, 2, 3)
    yield "plain", {}, x
    yield "batch first", {"batch_first": True}, x
    yield "without a batch", {}, x[:, 0]
    yield "packed", {}, pack_padded_sequence(x, [5, 3])
    yield "stacked", {"num_layers": 2, "bidirectional": True}, x


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_backpropagation_in_place(kind, backend, grad):
    """No result is a view, so it can be detached and changed in place, and the gradients are right all the same."""
    for name, options, x in calls(kind):
        module = getattr(fused_rnn, kind)(3, 4, **options)
        with fused_rnn.use_backend(backend), torch.set_grad_enabled(grad):
            output, final = module(x)
            expected = None
            if grad:
                data = getattr(output, "data", output) if isinstance(output, PackedSequence) else output
                expected = torch.autograd.grad(data.sum(), module.weight_hh_l0, retain_graph=True)[0]
            for state in flat(final):
                assert not state._is_view(), name
                state.mul_(0)
                state.detach_()
            if grad:
                assert torch.equal(torch.autograd.grad(data.sum(), module.weight_hh_l0)[0], expected)
            if not isinstance(output, PackedSequence) and backend != "torch":
                assert not output._is_view(), name
                output.detach_()


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS)
def test_states_changed_in_place_under_autocast(kind):
    module = getattr(fused_rnn, kind)(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        result = module(torch.randn(2, 3) if kind in CELL_KINDS else torch.randn(5, 2, 3))
    for state in flat(result if kind in CELL_KINDS else result[1]):
        state.zero_()
        state.detach_()


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_output_changed_in_place_before_the_backward_is_an_error(batch_first):
    """As with cuDNN; a wrong gradient would be worse."""
    output, _ = fused_rnn.GRU(3, 4, batch_first=batch_first)(torch.randn(5, 2, 3))
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# ---- Weights from elsewhere ----


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_weight_dropout_by_flat_weights(kind, grad):
    ours, theirs = pair(kind, 3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    with torch.set_grad_enabled(grad):
        for change in (
            lambda m: setattr(m, "_flat_weights", [w * 0.5 for w in m._flat_weights]),
            lambda m: m._flat_weights.__setitem__(1, m._flat_weights[1] * 2),
            lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.ones_like(m.weight_hh_l0))),
            lambda m: m.double().float(),
        ):
            for module in (ours, theirs):
                change(module)
            assert_same(ours(x), theirs(x))
            assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_what_was_set_last_counts(grad):
    module, x = fused_rnn.LSTM(3, 4), torch.randn(5, 2, 3)
    with torch.set_grad_enabled(grad):
        module.weight_ih_l0 = nn.Parameter(torch.ones_like(module.weight_ih_l0))
        module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
        assert (module(x)[0] == 0).all()
        module.bias_ih_l0 = nn.Parameter(torch.ones(16))
        assert (module(x)[0] != 0).all()
        module._flat_weights = module._flat_weights[:3]
        with pytest.raises(RuntimeError, match="_flat_weights must hold 4 tensors, got 3"):
            module(x)


def test_spectral_norm_takes_the_steps_that_it_takes_in_torch():
    ours, theirs = pair("GRU", 3, 4)
    for module in (ours, theirs):
        torch.manual_seed(1)
        parametrizations.spectral_norm(module, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    for _ in range(3):
        assert_same(ours(x), theirs(x))
    assert_same(ours.parametrizations.weight_hh_l0[0]._u, theirs.parametrizations.weight_hh_l0[0]._u)


# ---- Out of memory ----


def test_batch_size_finders_know_out_of_memory():
    module = fused_rnn.GRU(3, 4)
    for run in (module, torch.no_grad()(module)):
        with pytest.raises(RuntimeError, match=r"^DefaultCPUAllocator: can't allocate memory: you tried to") as error:
            run(torch.zeros(1, 1, 3).expand(2**40, 1, 3))
        assert len(error.value.args) == 1 and ".h" not in str(error.value) and "aoti" not in str(error.value)


OUT_OF_SCRATCH = """
import resource, torch, fused_rnn
torch.set_num_threads(1)
module, x = fused_rnn.GRU(8, 8), torch.zeros(100, 2, 8)
module(x)
wide, row = fused_rnn.GRU(2, 3000).requires_grad_(False), torch.zeros(70, 1, 2)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), -1))
try:
    wide(row)
except RuntimeError as error:
    print(error)
module(x)
print("goes on")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to limit the memory of a process")
def test_out_of_memory_inside_a_kernel():
    done = subprocess.run([sys.executable, "-c", OUT_OF_SCRATCH], capture_output=True, text=True)
    assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate" in done.stdout, done.stdout + done.stderr
    assert "for the intermediate results of a layer" in done.stdout
    assert "goes on" in done.stdout


def test_out_of_memory_on_a_gpu_has_torchs_type():
    def op(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 12 bytes, for [3] numbers of dtype Float")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        autograd._below_autograd(op)


# ---- Graphs ----


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS)
def test_drawing_the_graph_of_autograd(kind):
    """Tools walk the graph and take every saved tensor for one."""
    module = getattr(fused_rnn, kind)(3, 4, bias=False)
    output = flat(module(torch.randn(2, 3) if kind in CELL_KINDS else torch.randn(5, 2, 3)))[0]
    names, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        names.add(node.name())
        todo += [other for other, _ in node.next_functions if other is not None]
        assert all(isinstance(t, torch.Tensor) for t in getattr(node, "saved_tensors", ()))
    assert "FusedRnnBackward" in names


IMPORTED_ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1])
assert "fused_rnn" not in sys.modules
print(program.module()(torch.ones(5, 2, 3))[0].sum().item())
"""


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_runs_where_we_are_not(kind, strict, tmp_path):
    module, x = getattr(fused_rnn, kind)(3, 4).eval(), torch.ones(5, 2, 3)
    program = torch.export.export(module, (x,), strict=strict)
    assert "fused_rnn" not in str(program.graph)
    assert_same(program.module()(x), module(x))
    assert "fused_rnn" not in str(program.run_decompositions().graph)
    torch.export.save(program, tmp_path / "program.pt2")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED_ALONE, tmp_path / "program.pt2"], capture_output=True, text=True, cwd=tmp_path
    )
    assert float(done.stdout) == pytest.approx(module(x)[0].sum().item(), rel=1e-5), done.stderr
    with fused_rnn.use_backend("cpu"):
        assert "fused_rnn" in str(torch.export.export(module, (x,), strict=strict).graph)


def test_export_of_what_torch_lacks_keeps_our_op():
    program = torch.export.export(fused_rnn.GRU(3, 4, reset_after=False), (torch.ones(5, 2, 3),))
    assert "fused_rnn" in str(program.graph)


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_has_one_node_of_its_own(kind):
    onnx = pytest.importorskip("onnx", reason="needs onnx to read what was exported")
    saved = io.BytesIO()
    torch.onnx.export(getattr(fused_rnn, kind)(3, 4).eval(), (torch.randn(5, 2, 3),), saved, dynamo=False)
    assert [node.op_type for node in onnx.load_from_string(saved.getvalue()).graph.node].count(kind) == 1


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS)
def test_symbolic_tracing(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(getattr(fused_rnn, kind)(3, 4))

        def forward(self, x, hx):
            return self.inner[0](x, hx=hx)

    net = Net()
    x = torch.randn(2, 3) if kind in CELL_KINDS else torch.randn(5, 2, 3)
    hx = states(kind, 2, 4) if kind in CELL_KINDS else states(kind, 1, 2, 4)
    traced = fx.symbolic_trace(net)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["inner.0"]
    assert_same(traced(x, hx), net(x, hx))


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS)
def test_a_script_module_of_the_old_kind(kind):
    class Net(torch.jit.ScriptModule):
        def __init__(self, module):
            super().__init__()
            self.rnn = module

        @torch.jit.script_method
        def forward(self, x):
            return self.rnn(x)

    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELL_KINDS else torch.randn(5, 2, 3)
    net = Net(ours)
    assert_same(net(x), theirs(x))
    saved = io.BytesIO()
    torch.jit.save(net, saved)
    saved.seek(0)
    assert_same(torch.jit.load(saved)(x), theirs(x))


@pytest.mark.parametrize("kind", ["GRU", "GRUCell"])
def test_what_torch_lacks_is_not_scripted(kind):
    with pytest.raises(RuntimeError, match="reset_after=False"):
        torch.jit.script(nn.Sequential(getattr(fused_rnn, kind)(3, 4, reset_after=False)))


# ---- Code that asks for the class ----


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS)
def test_initialisation_by_class(kind):
    net = nn.Sequential(getattr(fused_rnn, kind)(3, 4))
    for module in net.modules():
        if isinstance(module, getattr(nn, kind)):
            for parameter in module.parameters():
                nn.init.constant_(parameter, 0.5)
    assert all((p == 0.5).all() for p in net.parameters())
    other = nn.GRU if kind.startswith("LSTM") else nn.LSTM
    assert not isinstance(net[0], other) and isinstance(net[0], getattr(fused_rnn, kind))
    assert type(net[0]) is getattr(fused_rnn, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_survives_copies_pickles_and_conversion(kind):
    ours, stock = getattr(fused_rnn, kind), getattr(nn, kind)
    module = ours(3, 4)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    with torch.serialization.safe_globals([ours, stock]):
        safely = torch.load(saved, weights_only=True)
    copies = [copy.copy(module), copy.deepcopy(module), safely]
    copies += [pickle.loads(pickle.dumps(module, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
    for twin in copies:
        assert type(twin) is ours and isinstance(twin, stock)
        assert type(fused_rnn.restore(twin)) is stock
        assert type(fused_rnn.convert(twin)) is ours and isinstance(twin, stock)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_derived_from_the_modules_class_is_derived_from_ours(kind):
    """Parametrisations and FSDP derive a class from ``module.__class__``."""
    module, stock_members = getattr(fused_rnn, kind)(3, 4), set(vars(getattr(nn, kind)))
    parametrizations.weight_norm(module, "weight_hh_l0")
    assert isinstance(module, getattr(fused_rnn, kind)) and type(module).__name__ == f"Parametrized{kind}"
    assert set(vars(getattr(nn, kind))) == stock_members
    assert_same(copy.deepcopy(module)(torch.ones(5, 2, 3)), module(torch.ones(5, 2, 3)))
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is getattr(fused_rnn, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_instances_compile_in_one_graph_all_the_same(kind):
    torch._dynamo.reset()
    net = nn.Sequential(getattr(fused_rnn, kind)(3, 4))
    x = torch.randn(5, 2, 3)
    expected = net(x)
    assert_same(torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected)
    assert isinstance(net[0], getattr(nn, kind))


class Plain(torch.Tensor):
    """A subclass that PyTorch's functions give back."""


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_subclasses(kind):
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(5, 2, 3).as_subclass(Plain)
    results = ours(x), theirs(x)
    assert_same(*results)
    assert [type(t) for t in flat(results[0])] == [type(t) for t in flat(results[1])]
    assert "its ops know plain tensors only, and one is a Plain" in str(fused_rnn.explain(ours, x))
    ours._flat_weights = [w.as_subclass(Plain) for w in ours._flat_weights]
    with pytest.raises(RuntimeError, match="must be positive and never grow"):
        ours(PackedSequence(torch.zeros(3, 3), torch.tensor([2, 0, 1])))


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind, batch_first):
    ours, theirs = pair(kind, 3, 4, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    results = []
    for module in (ours, theirs):
        call = call_for_per_sample_grads(module, batch_size=2, batch_first=batch_first)
        call(x)[0].sum().backward()
        results.append([p.grad_sample for p in module.parameters()])
    assert_same(*results)


# ---- Constructors ----


def test_a_gru_has_no_projection():
    for arguments in ({"proj_size": 2}, {"proj_size": -1}):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            fused_rnn.GRU(3, 4, **arguments)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        fused_rnn.GRU(3, 4, 1, True, False, 0.0, False, 2)
    assert fused_rnn.GRU(3, 4, 1, True, False, 0.0, False, 0, "cpu", torch.float64).weight_ih_l0.dtype == torch.float64
