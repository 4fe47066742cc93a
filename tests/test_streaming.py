"""Modules and cells that run without autograd, step by step or whole: the same bits as with it, and the same errors."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import fused_rnn
from fused_rnn import backends

KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
GRUS = ("GRU", "GRUCell")


def module_and_input(kind, T=3, B=2, **options):
    module = getattr(fused_rnn, kind)(4, 5, **options).eval()
    if kind.endswith("Cell"):
        shape, states = [4], [5]
    else:
        shape, states = [T, 4], [module.num_layers * (1 + module.bidirectional), 5]
    if B is not None:
        shape.insert(0 if module.__dict__.get("batch_first") else len(shape) - 1, B)
        states.insert(len(states) - 1, B)
    state = torch.randn(states)
    return module, torch.randn(shape), (state, torch.randn_like(state)) if kind.startswith("LSTM") else state


def flat(result):
    return [t for part in result for t in flat(part)] if isinstance(result, tuple) else [result]


def check_same(module, *inputs):
    """A call without autograd has the results and strides that it has with it: the first such call and later ones."""
    backends._known.clear()
    recorded = flat(module(*inputs))
    for record in (torch.no_grad, torch.no_grad, torch.inference_mode):
        with record():
            for got, want in zip(flat(module(*inputs)), recorded, strict=True):
                assert torch.equal(got, want) and got.stride() == want.stride()


OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    {"reset_after": False},
]
CASES = [
    pytest.param(kind, options, id=f"{kind}-{'-'.join(options) or 'default'}")
    for kind in KINDS
    for options in OPTIONS
    if ("reset_after" not in options or kind in GRUS)
    and (not kind.endswith("Cell") or options.keys() <= {"bias", "reset_after"})
]


@pytest.mark.parametrize("size", [(3, 2), (1, 2), (3, 1), (3, 0), (3, None)], ids="T{0[0]} B{0[1]}".format)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_same_results(kind, options, size):
    T, B = size
    module, x, hx = module_and_input(kind, T, B, **options)
    check_same(module, x, hx)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_without_hx(kind, options):
    module, x, _ = module_and_input(kind, **options)
    check_same(module, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind, dtype):
    module, x, hx = module_and_input(kind)
    module, x, hx = (
        module.to(dtype),
        x.to(dtype),
        tuple(h.to(dtype) for h in hx) if isinstance(hx, tuple) else hx.to(dtype),
    )
    check_same(module, x, hx)


@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind):
    """Neither the input nor a state nor a weight need be contiguous."""
    module, x, hx = module_and_input(kind)
    for name, parameter in module.named_parameters():
        setattr(module, name, nn.Parameter(torch.stack([parameter, parameter], dim=-1)[..., 0]))
    spread = lambda t: torch.stack([t, t], dim=-1)[..., 1]  # noqa: E731
    hx = tuple(map(spread, hx)) if isinstance(hx, tuple) else spread(hx)
    check_same(module, spread(x), hx)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_computed_weights(kind, name):
    module, x, hx = module_and_input(kind)
    parametrize.register_parametrization(module, name if kind.endswith("Cell") else f"{name}_l0", Doubled())
    check_same(module, x, hx)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_may_change_between_two_steps(kind):
    """In place, by an optimiser, by load_state_dict, by a new tensor: the next step has the new ones."""
    module, x, hx = module_and_input(kind)
    other = getattr(fused_rnn, kind)(4, 5)
    parameters = dict(module.named_parameters())

    def halve():
        for parameter in parameters.values():
            parameter.mul_(0.5)

    def step():
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(module.parameters(), lr=0.1).step()

    def replace():
        for name, parameter in parameters.items():
            setattr(module, name, nn.Parameter(parameter + 1))

    with torch.no_grad():
        module(x, hx)
        before = flat(module(x, hx))
        for change in (halve, step, lambda: module.load_state_dict(other.state_dict()), replace):
            change()
            after = flat(module(x, hx))
            stock = flat(fused_rnn.restore(type(module)(4, 5)).__class__.forward(module, x, hx))
            for a, b, c in zip(before, after, stock, strict=True):
                assert not torch.equal(a, b)
                torch.testing.assert_close(b, c)
            before = after


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_as_ever(kind):
    """Whatever the inference ops refuse or would take too kindly gets the error that it gets with autograd on."""
    module, x, hx = module_and_input(kind)
    states = hx if isinstance(hx, tuple) else (hx,)
    given = tuple if kind.startswith("LSTM") else lambda states: states[0]
    wrong = [
        (x[..., :3], hx),
        (x.double(), hx),
        (x.to(torch.complex64), hx),
        (x.tolist(), hx),
        (x, given([state[..., :1, :] for state in states])),
        (x, given([state[..., :4] for state in states])),
        (x, given([state.double() for state in states])),
        (x, given([state[None] for state in states])),
        (x, states[:1]),
        (x, (None, None)),
    ]
    wrong.append((x, torch.stack(states) if kind.startswith("LSTM") else [hx]))
    with torch.no_grad():
        module(x, hx)  # now its sizes are known
    for inputs in wrong:
        with pytest.raises(Exception) as expected:
            module(*inputs)
        with torch.no_grad(), pytest.raises(type(expected.value)) as got:
            module(*inputs)
        assert str(got.value) == str(expected.value)


@pytest.fixture
def choices(monkeypatch):
    """The names of the backends that were chosen so far, once for each time that the table was asked."""
    made, choose = [], backends.choose

    def watched(call):
        backend = choose(call)
        made.append(backend.name)
        return backend

    monkeypatch.setattr(backends, "choose", watched)
    backends._known.clear()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_asked_once(kind, choices):
    """A second plain call of the same sizes does not ask it; one that differs in what the choice depends on does."""
    module, x, hx = module_and_input(kind)
    bare, *_ = module_and_input(kind, bias=False)
    double, *_ = module_and_input(kind)
    double.double()

    def asked(call):
        before = len(choices)
        results = flat(call())
        return results, choices[before:]

    with torch.no_grad():
        assert asked(lambda: module(x, hx))[1] == ["cpu"]
        assert asked(lambda: module(x + 1))[1] == []
        for other in (lambda: module(x[..., :1, :]), lambda: bare(x), lambda: double(x.double())):
            assert [asked(other)[1] for _ in range(2)] == [["cpu"], []]
        with fused_rnn.use_backend("reference"):
            assert [asked(lambda: module(x))[1] for _ in range(2)] == [["reference"]] * 2
        with torch.autocast("cpu", torch.bfloat16):
            results, chosen = asked(lambda: module(x, hx))
            assert chosen == ["cpu"] and results[0].dtype == torch.bfloat16
        assert asked(lambda: module(x, hx))[1] == []
    assert asked(lambda: module(x, hx))[1] == ["cpu"]  # with autograd


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_known_call_has_neither_lengths_nor_dropout(kind, choices):
    module, x, hx = module_and_input(kind, num_layers=2, dropout=0.5)
    with torch.no_grad():
        whole = flat(module(x, hx))
        known = flat(module(x, hx))
        assert choices == ["cpu"] and all(map(torch.equal, known, whole))
        assert not module(x, hx, lengths=[2, 1])[0][2].any() and len(choices) == 2
        module.train()
        assert not torch.equal(module(x, hx)[0], whole[0]) and len(choices) == 3
        module.eval()
        assert torch.equal(module(x, hx)[0], whole[0]) and len(choices) == 3


def test_known_calls_are_not_kept_for_ever(choices):
    module, x, _ = module_and_input("GRU")
    with torch.no_grad():
        for T in range(1, backends._MOST_KNOWN + 10):
            module(x[:1].expand(T, 2, 4))
    assert len(choices) == backends._MOST_KNOWN + 9 and len(backends._known) < backends._MOST_KNOWN


@pytest.mark.parametrize("kind", KINDS)
def test_modes_see_the_op(kind):
    """A mode of the dispatcher, such as one that counts, is not passed by."""
    module, x, hx = module_and_input(kind)
    seen, ops = [], torch.ops.fused_rnn

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for record in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        seen.clear()
        with record(), Watch():
            module(x, hx)
        assert {getattr(ops, name).default for name in ("forward", "inference", "layer_inference")} & set(seen)
