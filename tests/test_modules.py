"""The surface of torch.nn's modules, one promise a test, and what ours can do beyond it."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import GRU, LSTM, GRUCell, LSTMCell

KINDS = ["LSTM", "GRU", "RNN"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]


def pair(kind, *arguments, **options):
    """Ours and torch.nn's, with the same parameters."""
    torch.manual_seed(0)
    ours = getattr(fused_rnn, kind)(*arguments, **options)
    torch.manual_seed(0)
    return ours, getattr(nn, kind)(*arguments, **options)


def flat(result):
    """The tensors in a module's result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# ---- The swap ----


def test_bidirectional_dropout_model_with_a_packed_sequence():
    ours, theirs = pair("LSTM", 5, 7, num_layers=2, bidirectional=True, dropout=0.4, dtype=torch.float64)
    lengths = torch.tensor([3, 6, 1, 6])
    results = []
    for module in (ours, theirs):
        x = torch.randn(6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(2)
        output, (h, c) = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        (output.data.pow(2).sum() + h.sum() + c.pow(3).sum()).backward()
        results.append([output.data, h, c, x.grad, *(p.grad for p in module.parameters())])
    assert_same(*results, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_both_ways(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    nn.init.uniform_(ours.weight_hh_l1_reverse)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    nn.init.uniform_(theirs.weight_ih_l0)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = torch.randn(5, 2, 3)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("kind", KINDS)
def test_positional_arguments(kind):
    proj_size = 2 if kind == "LSTM" else 0
    more = ["relu"] if kind == "RNN" else []
    module, theirs = pair(kind, 3, 4, 2, *more, False, True, 0.1, True, proj_size, "cpu", torch.float64)
    got = (module.input_size, module.hidden_size, module.num_layers, module.bias, module.batch_first)
    assert got == (3, 4, 2, False, True)
    assert (module.dropout, module.bidirectional, module.proj_size) == (0.1, True, proj_size)
    assert module.weight_hh_l0.dtype == torch.float64 and module.mode == theirs.mode


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_and_repr(kind):
    ours, theirs = pair(kind, 3, 4, num_layers=2, bidirectional=True, dropout=0.5)
    assert repr(ours) == repr(theirs)
    assert [[w.shape for w in layer] for layer in ours.all_weights] == [
        [w.shape for w in layer] for layer in theirs.all_weights
    ]
    assert all(a is b for layer in ours.all_weights for a in layer for b in ours.parameters() if torch.equal(a, b))
    assert set(vars(theirs)) - set(vars(ours)) == set()
    assert ours.flatten_parameters() is None
    assert type(ours).__name__ == kind


def test_changed_options_take_effect():
    ours, theirs = pair("GRU", 3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    for module in (ours, theirs):
        module.batch_first = True
    assert_same(ours(x), theirs(x))
    for module in (ours, theirs):
        module.dropout = 0.5
    results = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        results.append(module(x))
    assert_same(*results)


@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_without_a_batch(kind):
    ours, theirs = pair(kind, 3, 4)
    x = torch.randn(3) if kind in CELLS else torch.randn(5, 3)
    state = torch.randn(4) if kind in CELLS else torch.randn(1, 4)
    hx = (state, state + 1) if kind.startswith("LSTM") else state
    assert_same(ours(x), theirs(x))
    assert_same(ours(x, hx), theirs(x, hx))


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_cells(kind, bias):
    ours, theirs = pair(kind, 3, 4, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (ours, theirs):
        hx = (state, state.exp()) if kind == "LSTMCell" else state
        outputs = flat(module(x, hx))
        loss = sum(y.pow(2).sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, (x, state, *module.parameters()))])
    assert_same(*results, rtol=0, atol=1e-12)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("options", [{}, dict(num_layers=2, bidirectional=True, bias=False, batch_first=True)], ids=len)
def test_nonlinearity(nonlinearity, options):
    options = options | dict(nonlinearity=nonlinearity, dtype=torch.float64)
    ours, theirs = pair("RNN", 3, 4, **options)
    assert repr(ours) == repr(theirs) and ours.nonlinearity == theirs.nonlinearity and ours.mode == theirs.mode
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (ours, theirs):
        output, h = module(x)
        loss = output.pow(2).sum() + h.sum()
        results.append([output, h, *torch.autograd.grad(loss, (x, *module.parameters()))])
    assert_same(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nonlinearity_of_a_cell(nonlinearity):
    ours, theirs = pair("RNNCell", 3, 4, nonlinearity=nonlinearity)
    assert repr(ours) == repr(theirs)
    x = torch.randn(2, 3)
    assert_same(ours(x), theirs(x))
    ours.nonlinearity = theirs.nonlinearity = "relu"  # it counts at each call
    assert_same(ours(x), theirs(x))
    ours.nonlinearity = theirs.nonlinearity = "sigmoid"
    for module in (ours, theirs):
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: sigmoid"):
            module(x)


def test_types_of_results():
    x = torch.randn(5, 2, 3)
    output, state = LSTM(3, 4)(x, [torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)])
    assert isinstance(output, torch.Tensor) and type(state) is tuple and len(state) == 2
    assert isinstance(GRU(3, 4)(x)[1], torch.Tensor)
    assert type(LSTMCell(3, 4)(x[0])) is tuple and isinstance(GRUCell(3, 4)(x[0]), torch.Tensor)


def test_batch_first_has_the_strides_of_torch():
    output, _ = LSTM(3, 4, batch_first=True)(torch.randn(2, 5, 3))
    assert output.shape == (2, 5, 4) and output.stride() == (4, 8, 1)


def test_states_are_not_views_of_the_output():
    output, h = GRU(3, 4)(torch.randn(5, 2, 3))
    with torch.no_grad():
        h.zero_()
    assert (output[-1] != 0).all()


# ---- Parameters that are not plain ----


def train_a_step(module, x):
    module(x)[0].pow(2).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "weight_hh_l0_reverse"])
def test_parametrisation_of_any_weight(name):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    results = []
    for module in pair("LSTM", 3, 4, bidirectional=True):
        nn.utils.parametrize.register_parametrization(module, name, Double())
        x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
        train_a_step(module, x)
        results.append(module(x))
    assert_same(*results)


@pytest.mark.parametrize(
    "parametrise",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.parametrizations.spectral_norm,
    ],
)
def test_torchs_parametrisations(parametrise):
    results = []
    for module in pair("GRU", 3, 4):
        torch.manual_seed(5)
        parametrise(module, "weight_hh_l0")
        x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
        train_a_step(module, x)
        results.append(module.eval()(x))
    assert_same(*results)


def test_pruning():
    ours, theirs = pair("LSTM", 3, 4)
    for module in (ours, theirs):
        torch.manual_seed(1)
        prune.random_unstructured(module, "weight_hh_l0", amount=0.5)
    x = torch.randn(5, 2, 3)
    assert_same(ours(x), theirs(x))
    prune.remove(ours, "weight_hh_l0")
    assert_same(ours(x), theirs(x))


def test_weight_drop():
    """AWD-LSTM deletes the Parameter and sets a tensor before each forward."""
    ours, theirs = pair("LSTM", 3, 4)
    x = torch.randn(5, 2, 3)
    for module in (ours, theirs):
        raw = module.weight_hh_l0
        del module.weight_hh_l0
        module.register_parameter("weight_hh_l0_raw", nn.Parameter(raw.data))
        module.weight_hh_l0 = module.weight_hh_l0_raw * 0.5
    assert_same(ours(x), theirs(x))
    ours(x)[0].sum().backward()
    assert ours.weight_hh_l0_raw.grad is not None


def test_new_data_in_old_parameters():
    ours, theirs = pair("GRU", 3, 4)
    x = torch.randn(5, 2, 3)
    ours(x)
    new = torch.randn(12, 4)
    for module in (ours, theirs):
        module.weight_hh_l0.data = new
        module.bias_ih_l0 = nn.Parameter(torch.ones(12))
    assert_same(ours(x), theirs(x))
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight_hh_l0.mul_(0.5)
    assert_same(ours(x), theirs(x))


def test_functional_call():
    ours, theirs = pair("LSTM", 3, 4)
    x = torch.randn(5, 2, 3)
    weights = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    assert_same(torch.func.functional_call(ours, weights, (x,)), torch.func.functional_call(theirs, weights, (x,)))


@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_copies(kind):
    module = getattr(fused_rnn, kind)(3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    expected = module(x)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    for twin in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert type(twin) is type(module)
        assert_same(twin(x), expected, rtol=0, atol=0)


def test_pickles_of_a_torch_before_1_8():
    module = pickle.loads(pickle.dumps(LSTM(3, 4)))
    state = module.__getstate__()
    del state["proj_size"]
    old = LSTM.__new__(LSTM)
    old.__setstate__(state)
    x = torch.randn(5, 2, 3)
    assert_same(old(x), module(x))


def test_shared_memory_and_data_parallel_replicas():
    module = GRU(3, 4)
    x = torch.randn(5, 2, 3)
    expected = module(x)
    module.share_memory()
    assert all(p.is_shared() for p in module.parameters())
    assert_same(module(x), expected)
    replica = module._replicate_for_data_parallel()
    for name, parameter in module.named_parameters():  # as nn.parallel.replicate does: copies that are no Parameters
        setattr(replica, name, parameter * 1)
    assert_same(replica(x), expected)


def test_meta_and_fake_tensors():
    module = LSTM(3, 4, num_layers=2, bidirectional=True, device="meta")
    output, (h, c) = module(torch.empty(5, 2, 3, device="meta"))
    assert output.shape == (5, 2, 8) and h.shape == c.shape == (4, 2, 4) and output.is_meta
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.zeros(5, 2, 3))[0].isfinite().all()
    assert nn.utils.skip_init(GRU, 3, 4)(torch.zeros(5, 2, 3))[0].shape == (5, 2, 4)
    with torch._subclasses.FakeTensorMode():
        module = GRU(3, 4)
        output, h = module(torch.zeros(5, 2, 3))
        output.sum().backward()
        assert output.shape == (5, 2, 4) and module.weight_hh_l0.grad.shape == (12, 4)


@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_conversion_of_dtype(kind):
    module = getattr(fused_rnn, kind)(3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert all(y.dtype == dtype for y in flat(module.to(dtype)(x.to(dtype))))


def test_any_dtype_of_torch():
    ours, theirs = pair("GRU", 3, 4, dtype=torch.complex64)
    x = torch.randn(5, 2, 3, dtype=torch.complex64)
    assert_same(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_autocast(kind, dtype):
    """Inputs and weights in the autocast dtype, outputs in it, gradients of the parameters in their own."""
    module = getattr(fused_rnn, kind)(3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype):
        outputs = flat(module(x))
    assert {y.dtype for y in outputs} == {dtype}
    sum(y.float().sum() for y in outputs).backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    expected = flat(copy.deepcopy(module).to(dtype)(x.to(dtype)))
    assert_same(outputs, expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype):
        assert flat(module.double()(x.double()))[0].dtype == torch.float64


# ---- More than torch.nn ----


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_packing_and_padding(kind, batch_first, bidirectional):
    options = {"num_layers": 2, "batch_first": batch_first, "bidirectional": bidirectional, "dtype": torch.float64}
    ours, theirs = pair(kind, 3, 4, **options)
    lengths = torch.tensor([2, 5, 1, 4])
    x = torch.randn(4, 6, 3, dtype=torch.float64) if batch_first else torch.randn(6, 4, 3, dtype=torch.float64)
    x.requires_grad_()
    state = torch.randn(4 if bidirectional else 2, 4, 4, dtype=torch.float64, requires_grad=True)
    hx = (state, 2 * state.detach()) if kind == "LSTM" else state

    output, final = ours(x, hx, lengths=lengths)
    packed, expected_final = theirs(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False), hx)
    expected, _ = pad_packed_sequence(packed, batch_first, total_length=6)
    assert_same([output, final], [expected, expected_final], rtol=0, atol=1e-10)

    inputs = [x, state]
    grads = [
        torch.autograd.grad(sum(y.pow(3).sum() for y in flat(results)), [*inputs, *module.parameters()])
        for results, module in (((output, final), ours), ((expected, expected_final), theirs))
    ]
    assert_same(*grads, rtol=0, atol=1e-10)
    for other in (lengths.tolist(), lengths.int()):
        assert_same(ours(x, hx, lengths=other), [output, final], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_in_eval_mode(kind):
    module = getattr(fused_rnn, kind)(3, 4, num_layers=2, dropout=0.5).eval()
    x = torch.randn(5, 2, 3, requires_grad=True)
    module(x)[0].sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{}, {"reset_after": False}], ids=["reset_after", "reset_before"])
def test_derivatives_of_a_whole_module(options):
    module = GRU(2, 2, num_layers=2, bidirectional=True, dtype=torch.float64, **options)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x, lengths=[3, 1]), (x,))
    assert torch.autograd.gradgradcheck(lambda x: module(x, lengths=[3, 1]), (x,))


def test_second_derivative_through_a_packed_sequence():
    module = LSTM(2, 2, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x):
        output, (h, c) = module(pack_padded_sequence(x, torch.tensor([3, 2])))
        return output.data, h, c

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


@pytest.mark.parametrize("kind", ["LSTM", pytest.param("GRU", marks=pytest.mark.slow)])
def test_compiles_in_one_graph(kind):
    torch._dynamo.reset()
    module = getattr(fused_rnn, kind)(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    state = torch.randn(4, 2, 4)
    hx = (state, state) if kind == "LSTM" else state
    x = torch.randn(2, 5, 3, requires_grad=True)
    for arguments, options in (((x,), {}), ((x, hx), {}), ((x,), {"lengths": torch.tensor([2, 5])})):
        results = []
        for run in (module, compiled):
            outputs = flat(run(*arguments, **options))
            loss = sum(y.pow(2).sum() for y in outputs)
            results.append([*outputs, *torch.autograd.grad(loss, (x, *module.parameters()))])
        assert_same(*results)


@pytest.mark.parametrize("kind", CELLS)
def test_cells_compile_in_one_graph(kind):
    torch._dynamo.reset()
    module = getattr(fused_rnn, kind)(3, 4)
    x = torch.randn(2, 3)
    assert_same(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


def test_torch_func():
    """Transforms run on the reference: vmap over inputs, which torch.nn cannot, jvp, jacrev, per-sample gradients."""
    module = LSTM(3, 4, dtype=torch.float64)
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64)
    assert_same(torch.vmap(lambda x: module(x)[0])(x), torch.stack([module(one)[0] for one in x]))

    def loss(weights, x):
        return torch.func.functional_call(module, weights, (x,))[0].pow(2).sum()

    weights = {name: p.detach() for name, p in module.named_parameters()}
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for k, one in enumerate(x):
        module.zero_grad()
        module(one)[0].pow(2).sum().backward()
        assert_same([grad[k] for grad in each.values()], [p.grad for p in module.parameters()])

    _, tangent = torch.func.jvp(lambda x: module(x)[0], (x[0],), (torch.ones_like(x[0]),))
    jacobian = torch.func.jacrev(lambda x: module(x)[0])(x[0])
    assert_same(tangent, jacobian.sum((3, 4, 5)))


def test_checkpointing_and_saved_tensor_hooks():
    module = GRU(3, 4)
    x = torch.randn(5, 2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    for reentrant in (False, True):
        output, _ = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=reentrant)
        assert_same(torch.autograd.grad(output.sum(), x) if not reentrant else expected, expected)
    with torch.autograd.graph.save_on_cpu():
        output = module(x)[0]
    assert_same(torch.autograd.grad(output.sum(), x), [expected])


# ---- Where torch.nn's own graph is wanted ----


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS + CELLS)
def test_script_and_trace(kind):
    module = getattr(fused_rnn, kind)(3, 4).eval()
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, (x,))
        scripted = torch.jit.script(nn.ModuleDict({"rnn": module})["rnn"] if kind in CELLS else Wrapped(module))
    assert_same(traced(x), module(x))
    assert_same(scripted(x), module(x))
    if kind in KINDS:  # cells have no node of their own
        assert f"aten::{kind.lower()}" in str(traced.inlined_graph)
    saved = io.BytesIO()
    torch.jit.save(traced, saved)


class Wrapped(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor):
        return self.rnn(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_torch_cannot_hold_is_not_traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="reset_after=False cannot be traced"):
            torch.jit.trace(GRU(3, 4, reset_after=False), (torch.zeros(5, 2, 3),))
        with pytest.raises(RuntimeError, match="no GRU with reset_after=False"):
            torch.jit.script(Wrapped(GRU(3, 4, reset_after=False)))


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind):
    module = getattr(fused_rnn, kind)(3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    program = torch.export.export(module, (x,))
    assert_same(program.module()(x), module(x))
