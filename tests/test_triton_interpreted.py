"""The Triton kernels in Triton's interpreter, through their ops, against the float64 reference.

It needs a process of its own, with TRITON_INTERPRET=1 from its beginning: tests/test_triton.py starts it.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("tests/test_triton.py runs it in a process of its own", allow_module_level=True)

from dataclasses import dataclass, replace
from unittest import mock

import reduced
import torch
import triton
import triton.language as tl
import triton_interpreter  # noqa: F401
from closeness import assert_within_budget
from problems import CALLS, CELLS, LOOPS, NOTHING, Layer, Size, comparisons, stock_layer, whole_call

from fused_rnn import autograd, backends, layered, reference
from fused_rnn.call import BIAS, NEEDS_ALL, REVERSE, SAVE, Call, Form
from fused_rnn.cell import GRU, LSTM, RNN_RELU, Cell
from fused_rnn.triton import ops as implementation  # noqa: F401
from fused_rnn.triton import passes, plan

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")

ops = torch.ops.fused_rnn_triton
MATHS = {  # what products multiply: the storage type, and whether TF32 is allowed
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
FORMS = {"block": plan.INTERPRETED, "stepwise": plan.Device("nvidia", 90, 0)}  # no shared memory: no block fits


@dataclass(frozen=True)
class Case:
    cell: Cell
    math: str
    form: str
    size: Size
    reverse: bool = False
    ragged: bool = False
    bias: bool = True
    resets: bool = False

    def __str__(self):
        flags = [name for name in ("reverse", "ragged", "resets") if getattr(self, name)] + ["nobias"] * (not self.bias)
        return "-".join([str(self.cell), self.math, self.form, str(self.size), *flags])


LARGEST = {"float32": 64, "tf32": 64, "bfloat16": 128, "float16": 128}  # H of the block form


def cases():
    for cell in CELLS:
        for math in MATHS:
            exact = math == "float32"
            for form in FORMS:
                if math in ("float32", "bfloat16"):
                    yield Case(cell, math, form, Size(T=1, B=1, I=1, H=1))
                yield Case(cell, math, form, Size(T=2, B=16, I=5, H=16))  # exactly one tile of either form
                # A second program with one row; stepwise: a second tile with one unit.
                yield Case(cell, math, form, Size(T=3, B=17, I=3, H=17), ragged=True, reverse=not exact)
                if cell in LOOPS and math in ("float32", "bfloat16"):
                    yield Case(cell, math, form, Size(6, 17, 3, 17), reverse=exact, ragged=not exact, resets=True)
                    yield Case(cell, math, form, Size(6, 5, 3, 17), reverse=not exact, ragged=not exact, resets=True)
                if exact and cell in LOOPS:
                    for reverse in (False, True):
                        yield Case(cell, math, form, Size(5, 3, 2, 9), reverse, ragged=reverse, bias=False)
                        yield Case(cell, math, form, Size(5, 3, 2, 9), reverse, ragged=not reverse)
            if cell not in LOOPS:
                continue
            yield Case(cell, math, "stepwise", Size(2, 65, 3, 33), reverse=exact)  # large tiles, one element past each
            yield Case(cell, math, "block", Size(3, 2, 3, LARGEST[math]))
            yield Case(cell, math, "past block", Size(2, 2, 3, LARGEST[math] + 1))


@pytest.fixture(autouse=True)
def library_matmul(monkeypatch):
    """A GPU's library sums in blocks; the CPU's takes one long chain, which alone may lose the error budget."""

    def product(a, b):
        return (a.double() @ b.double()).float()

    monkeypatch.setattr(passes, "product", product)


@pytest.fixture
def form(request, monkeypatch):
    """Makes the planner choose the form."""
    monkeypatch.setattr(passes, "device_of", lambda device: FORMS.get(request.param, plan.INTERPRETED))
    return request.param


def each_form(test):
    return pytest.mark.parametrize("form", FORMS, indirect=True)(test)


def runner(math="float32"):
    def run(*layer):
        return autograd.run_layer(ops, *layer, reduced_precision=MATHS[math][1])

    return run


def plain(case):
    """What PyTorch gives in the same arithmetic: its own layer where it has one, and otherwise the reference."""
    if case.math == "tf32":
        return reduced.in_tf32
    if case.cell is RNN_RELU and case.math == "float32":
        return in_one_chain
    return stock_layer if case.cell.stock and not (case.ragged or case.resets) else reference.run


def in_one_chain(*arguments):
    """reference.run with products summed in order, as the interpreter and GPUs do.

    The CPU's library sums in lanes, which loses less; ReLU passes all of it on, where tanh makes it smaller.
    """

    def linear(x, weight, bias=None):
        terms = [x[..., k, None] * weight[:, k] for k in range(weight.size(1))]
        return sum(terms[1:], terms[0]) + (0 if bias is None else bias)

    with mock.patch.object(reference, "linear", linear):
        return reference.run(*arguments)


@pytest.mark.parametrize(("case", "form"), [(c, c.form) for c in cases()], ids=str, indirect=["form"])
def test_forward_and_backward(case, form, monkeypatch):
    dtype, allow_tf32 = MATHS[case.math]
    chosen = [
        plan.make_plan(case.cell, dtype, case.size.B, case.size.H, backward, allow_tf32, passes.device_of(None)).form
        for backward in (False, True)
    ]
    assert chosen == ["block" if case.form == "block" else "stepwise"] * 2
    # Small problems are drawn often, so that the largest error of PyTorch is not small by luck.
    count = 20 if case.size.H == 1 else 2
    options = dict(ragged=case.ragged, resets=case.resets, bias=case.bias)
    draws = [Layer.random(case.cell, dtype, case.size, **options, seed=s) for s in range(count)]
    got = [d.results(runner(case.math), case.reverse) for d in draws]
    same = [d.results(plain(case), case.reverse) for d in draws]
    for name, compared in comparisons(draws, got, same, case.reverse).items():
        assert all(g[name].dtype == dtype for g in got)
        assert_within_budget(name, *compared)


def tensors_of(drawn):
    return drawn.x, *drawn.states, *drawn.weights[:4]


def arguments_of(cell, tensors, lengths=None, flags=0):
    """Of the forward op."""
    x, *rest = tensors
    states, weights = rest[: len(cell.states)], rest[len(cell.states) :]
    hx, cx, *_ = *(state.unsqueeze(0) for state in states), None
    return cell.name, x, weights, hx, cx, lengths, None, (), BIAS | flags


def run(cell, tensors):
    """Outputs of the op as one tuple."""
    output, *final, _ = ops.forward(*arguments_of(cell, tensors, flags=SAVE))
    return output, *(state.squeeze(0) for state in final)


@each_form
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_second_backward_is_bit_identical(cell, form):
    drawn = Layer.random(cell, torch.bfloat16, Size(3, 5, 2, 18))
    tensors = tensors_of(drawn)
    outputs = run(cell, tensors)
    first = torch.autograd.grad(outputs, tensors, drawn.grads, retain_graph=True)
    second = torch.autograd.grad(outputs, tensors, drawn.grads)
    again = torch.autograd.grad(run(cell, tensors), tensors, drawn.grads)
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@each_form
def test_a_sequence_in_two_parts(form):
    """h is what the storage type holds of it after every step, so a run that is cut anywhere gives the same bits."""
    drawn = Layer.random(GRU, torch.bfloat16, Size(6, 3, 2, 18))
    whole, final = runner()(GRU, drawn.x, drawn.states, drawn.weights, None, False)
    first, states = runner()(GRU, drawn.x[:4], drawn.states, drawn.weights, None, False)
    second, states = runner()(GRU, drawn.x[4:], states, drawn.weights, None, False)
    assert torch.equal(torch.cat([first, second]), whole) and torch.equal(states[0], final[0])


@each_form
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_padding_may_hold_anything(cell, form):
    """What stands in x and in the incoming gradient past a row's end reaches no result."""
    drawn = Layer.random(cell, torch.float32, Size(4, 3, 3, 5), ragged=True)
    padding = torch.arange(4)[:, None] >= drawn.lengths
    assert padding.any()
    for reverse in (False, True):
        results = []
        for content in (1.0, float("nan")):
            with torch.no_grad():
                drawn.x[padding] = content
                drawn.grads[0][padding] = content
            results.append(drawn.results(runner(), reverse))
        for name, value in results[0].items():
            assert torch.equal(results[1][name], value), name


@each_form
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_lengths_out_of_range_are_clamped(cell, form):
    drawn = Layer.random(cell, torch.float32, Size(4, 3, 3, 5), ragged=True)
    for reverse in (False, True):
        wrong = replace(drawn, lengths=torch.tensor([-(2**40), 2, 2**40])).results(runner(), reverse)
        right = replace(drawn, lengths=torch.tensor([0, 2, 4])).results(runner(), reverse)
        assert all(torch.equal(value, right[name]) for name, value in wrong.items())


@each_form
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_nan_is_not_hidden(cell, form):
    drawn = Layer.random(cell, torch.float32, Size(3, 2, 2, 20))
    with torch.no_grad():
        drawn.x[1, 0, 0] = float("nan")
    output = run(cell, tensors_of(drawn))[0]
    assert output[1:, 0].isnan().all() and output[0].isfinite().all() and output[:, 1].isfinite().all()


@each_form
@pytest.mark.parametrize("size", NOTHING, ids=str)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_nothing_to_do(cell, size, form):
    drawn = Layer.random(cell, torch.float32, size)
    got = drawn.results(runner())
    for name, value in drawn.double().results(reference.run).items():
        torch.testing.assert_close(got[name].double(), value, atol=1e-5, rtol=1e-5)


@each_form
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_inputs_of_any_strides_and_places(cell, form):
    drawn = Layer.random(cell, torch.float32, Size(3, 2, 2, 5))

    def strided(t):
        return torch.stack([t, torch.full_like(t, float("nan"))], dim=-1)[..., 0]

    def shifted(t):
        return torch.cat([t.new_full((1,), float("nan")), t.flatten()])[1:].view_as(t)

    same = run(cell, tensors_of(drawn))
    same += torch.autograd.grad(same, tensors_of(drawn), drawn.grads)
    for change in (strided, shifted):
        got = run(cell, tuple(map(change, tensors_of(drawn))))
        got += torch.autograd.grad(got, tensors_of(drawn), tuple(map(change, drawn.grads)))
        assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))


@each_form
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_absent_gradients_and_frozen_inputs(cell, form):
    drawn = Layer.random(cell, torch.float32, Size(3, 2, 2, 5))
    outputs, tensors = run(cell, tensors_of(drawn)), tensors_of(drawn)
    together = torch.autograd.grad(outputs, tensors, drawn.grads, retain_graph=True)
    apart = [torch.autograd.grad(y, tensors, g, retain_graph=True) for y, g in zip(outputs, drawn.grads)]
    for whole, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(sum(parts), whole)
    kinds = {"x": [0], "states": [1, len(cell.states)], "weights": range(1 + len(cell.states), len(tensors))}
    for kind in kinds.values():
        live = [t for i, t in enumerate(tensors) if i in kind]
        for tensor in tensors:
            tensor.requires_grad_(any(tensor is t for t in live))
        grads = torch.autograd.grad(run(cell, tensors), live, drawn.grads)
        wanted = [g for i, g in enumerate(together) if i in kind]
        assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_second_derivative(cell, ragged):
    """It is the reference's, at the same inputs."""
    drawn = Layer.random(cell, torch.float32, Size(3, 2, 2, 3), ragged=ragged)

    def second(first_run):
        output, _ = first_run(cell, drawn.x, drawn.states, drawn.weights, drawn.lengths, False)
        (grad,) = torch.autograd.grad(output.pow(2).sum(), drawn.x, create_graph=True)
        return torch.autograd.grad(grad.pow(2).sum(), list(drawn.leaves().values()))

    for got, want in zip(second(runner()), second(reference.run), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_opcheck(cell):
    drawn = Layer.random(cell, torch.float32, Size(2, 3, 2, 5), ragged=True)
    arguments = arguments_of(cell, tensors_of(drawn), drawn.lengths, SAVE | REVERSE)
    torch.library.opcheck(ops.forward, arguments)
    with torch.no_grad():
        output, *final, saved = ops.forward(*arguments)
        without = ops.forward(*arguments[:-1], BIAS | REVERSE)
    assert all(torch.equal(a, b) for a, b in zip((output, *final), without, strict=True))
    grad_output, *grad_final = (grad.requires_grad_() for grad in drawn.grads)
    grad_hy, grad_cy, *_ = *(grad.detach().unsqueeze(0).requires_grad_() for grad in grad_final), None
    flags = arguments[-1] | NEEDS_ALL
    given = (grad_output, grad_hy, grad_cy, [output, saved], *arguments[:-1], flags)
    torch.library.opcheck(ops.backward, given)


@each_form
@pytest.mark.parametrize("kind", [kind for kind in CALLS if "projection" not in kind])  # which it has no kernel for
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_a_whole_call(cell, kind, form, monkeypatch):
    """Layer by layer, as the backend runs it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    call, tensors = whole_call(cell, kind, torch.float32)
    results = []
    with backends.use_backend("triton"):
        for run in (backends.run, lambda call: layered.run(call, reference.run)):
            outputs = run(call(*tensors))
            results.append((*outputs, *torch.autograd.grad(sum(y.sin().sum() for y in outputs), tensors)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_compiles_in_one_graph(cell, dynamic):
    """From the choice of the backend on, in which the import of Triton's half is."""
    torch._dynamo.reset()

    def forced(tensors, lengths):
        x, *rest = tensors
        states, weights = rest[: len(cell.states)], rest[len(cell.states) :]
        states = tuple(state.unsqueeze(0) for state in states)
        output, *final = backends.run(Call(cell, x, states, weights, Form(reverse=True), lengths=lengths))
        return output, *(state.squeeze(0) for state in final)

    compiled = torch.compile(forced, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with backends.use_backend("triton"):
        for size in (Size(3, 2, 2, 3), Size(2, 4, 2, 3)):
            drawn = Layer.random(cell, torch.float32, size, ragged=True)
            tensors = tensors_of(drawn)
            eager, graph = forced(tensors, drawn.lengths), compiled(tensors, drawn.lengths)
            grads = [torch.autograd.grad(outputs, tensors, drawn.grads) for outputs in (eager, graph)]
            for a, b in zip((*eager, *grads[0]), (*graph, *grads[1]), strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("cell", [LSTM, GRU], ids=str)
def test_the_forced_backend_ran(cell):
    drawn = Layer.random(cell, torch.float32, Size(2, 2, 4, 5))
    with torch.profiler.profile() as profile, backends.use_backend("triton"), torch.no_grad():
        backends.run(drawn.call())
    assert "fused_rnn_triton::inference" in {event.key for event in profile.key_averages()}


def test_another_choice_is_not_changed_by_the_interpreter():
    problem = backends.Problem(LSTM, torch.device("cpu"), torch.float32, T=3, B=2, I=4, H=5)
    assert backends.by_name("triton").why_not(problem) is None
    assert backends.choose(problem).name == "cpu"


BAD = {
    "rank of x": (dict(x=torch.zeros(3, 4)), r"x must be \[T, B, I\], got \[3, 4\]"),
    "size of x": (dict(x=torch.zeros(3, 2, 9)), r"weight_ih must be \[20, 9\], got \[20, 4\]"),
    "rank of weight_hh": (dict(weight_hh=torch.zeros(20)), r"weight_hh must be \[G\*H, H\], got \[20\]"),
    "weight_hh": (dict(weight_hh=torch.zeros(20, 6)), r"weight_ih must be \[24, 4\], got \[20, 4\]"),
    "bias_hh": (dict(bias_hh=torch.zeros(1, 20)), r"bias_hh must be \[20\], got \[1, 20\]"),
    "batch of hx": (dict(hx=torch.zeros(1, 3, 5)), r"hx must be \[2, 5\], got \[3, 5\]"),
    "layers of cx": (dict(cx=torch.zeros(2, 2, 5)), r"a state must be \[1, B, H\], got \[2, 2, 5\]"),
    "rank of hx": (dict(hx=torch.zeros(2, 5)), r"a state must be \[1, B, H\], got \[2, 5\]"),
    "dtype of hx": (
        dict(hx=torch.zeros(1, 2, 5, dtype=torch.float64)),
        "hx must be torch.float32 on cpu, got torch.float64",
    ),
    "shape of lengths": (dict(lengths=torch.tensor([1, 2, 3])), r"lengths must be \[2\], got \[3\]"),
    "dtype of lengths": (
        dict(lengths=torch.tensor([1.0, 2.0])),
        "lengths must be torch.int64 on cpu, got torch.float32",
    ),
    "a state that is not there": (dict(cx=None), "these ops run one layer in one direction"),
    "masks": (dict(masks=[torch.zeros(1)]), "these ops run one layer in one direction"),
    "weights without biases": (dict(flags=0), "these ops run one layer in one direction"),
    **{
        f"flag {name}": (dict(flags=BIAS | getattr(autograd, name)), "these ops run one layer in one direction")
        for name in ("BIDIRECTIONAL", "BATCH_FIRST", "STEP")
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    changes, message = BAD[case]
    drawn = Layer.random(LSTM, torch.float32, Size(3, 2, 4, 5))
    weights = {name: w for name, w in drawn.weights._asdict().items() if w is not None}
    hx, cx = (state.unsqueeze(0) for state in drawn.states)
    named = {
        "x": drawn.x,
        **weights,
        "hx": hx,
        "cx": cx,
        "lengths": None,
        "resets": None,
        "masks": [],
        "flags": BIAS,
    } | changes
    weights = [named.pop(name) for name in weights]
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        ops.forward("lstm", named.pop("x"), weights, *named.values())


# ---- The interpreter itself ----


@triton.jit
def copy(source, target, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < n), mask=at < n)


@triton.jit
def meet(array, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(array + at, tl.load(array + at) + 1)


@triton.jit
def multiply(a, b, c, N: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


def test_the_interpreter_sees_accesses_out_of_bounds():
    source, target = torch.randn(20), torch.zeros(20)
    copy[(2,)](source, target, 20, BLOCK=16)
    assert torch.equal(source, target)
    for arrays in ((source[:19].clone(), target), (source, target[:19].clone())):
        with pytest.raises(Exception, match=r"1 numbers (read|written) out of bounds"):
            copy[(2,)](*arrays, 20, BLOCK=16)


def test_the_interpreter_sees_programs_meet():
    meet[(1,)](torch.zeros(16), BLOCK=16)
    with pytest.raises(Exception, match="16 numbers are written by one program and written by another"):
        meet[(2,)](torch.zeros(16), BLOCK=16)


@pytest.mark.parametrize("math", MATHS)
def test_the_interpreter_multiplies(math):
    dtype, allow_tf32 = MATHS[math]
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype), torch.empty(16, 16)
    multiply[(1,)](a, b, c, N=16, PRECISION="tf32" if allow_tf32 else "ieee")
    a, b = (reduced.to_tf32(t) if allow_tf32 else t for t in (a, b))
    torch.testing.assert_close(c, a.float() @ b.float())
