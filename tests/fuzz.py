"""Fuzzing: hostile calls to modules and raw ops. Each must raise an exception or give the right answer, never a signal.

    python tests/fuzz.py --seconds 600 [--seed 0] [--target NAME]
    python tests/fuzz.py --replay "Call(...)"

Hypothesis draws the calls in child processes, so that a signal or a sanitizer's report ends only the child. A call is
plain data whose repr makes it again; a child writes it to a file before it runs it. `make fuzz` runs this under ASan
and UBSan.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from fused_rnn import autograd, layered, reference
from fused_rnn.call import NEEDS_INPUT, NEEDS_STATES, NEEDS_WEIGHTS, PACKED, SAVE, STEP
from fused_rnn.cell import CELLS

# ---- Tensors as data ----

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.15, torch.float16: 0.03}
DTYPES = ["float32", "float64", "bfloat16", "float16"]
WRONG_DTYPES = [*DTYPES, "complex64", "bool", "int8", "int32", "int64", "float8_e5m2"]


def numbers(shape: tuple[int, ...], spec: Spec) -> Tensor:
    """A contiguous tensor with the values of a spec: its own numbers, or random ones that the spec determines."""
    dtype = getattr(torch, spec.dtype)
    if not isinstance(spec.values, str):
        return torch.tensor(spec.values, dtype=dtype).reshape(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(repr(spec).encode()))
    tensor = torch.randn(shape, generator=generator) / 2
    if spec.values != "normal" and tensor.numel():
        tensor.view(-1)[torch.randint(tensor.numel(), (), generator=generator)] = float(spec.values)
    return tensor.to(dtype)


def ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * len(shape)


# Layouts that every op takes, then layouts that it may refuse.
HARMLESS: dict[str, Callable[[Spec], Tensor]] = {
    "plain": lambda s: numbers(s.shape, s),
    "expanded": lambda s: numbers(ones(s.shape), s).expand(s.shape),
    "transposed": lambda s: numbers(s.shape[::-1], s).permute(*reversed(range(len(s.shape)))),
    "strided": lambda s: numbers((*s.shape, 2), s)[..., 0],
    "offset": lambda s: numbers((2, *s.shape), s)[1],
    "overlapping": lambda s: numbers((sum(s.shape) + 1,), s).as_strided(s.shape, ones(s.shape)),
    "negative": lambda s: torch._neg_view(numbers(s.shape, s)),
}
HOSTILE: dict[str, Callable[[Spec], Tensor]] = {
    "zero": lambda s: torch._efficientzerotensor(s.shape, dtype=getattr(torch, s.dtype)),
    "meta": lambda s: torch.empty(s.shape, dtype=getattr(torch, s.dtype), device="meta"),
    "sparse": lambda s: numbers(s.shape, s).to_sparse(),
    "mkldnn": lambda s: numbers(s.shape, s).to_mkldnn(),
    "quantised": lambda s: torch.quantize_per_tensor(numbers(s.shape, s).float(), 0.1, 0, torch.qint8),
    "conjugate": lambda s: numbers(s.shape, s).to(torch.complex64).conj(),
    "nested": lambda s: torch.nested.nested_tensor(list(numbers(s.shape, s))),
}
HUGE = {"meta": (2**31 - 1, 2**31, 2**62), "expanded": (2**40, 2**62)}  # expanded: too large to be computed on


@dataclass(frozen=True)
class Spec:
    """A tensor as data. values: "normal", or with one "nan" or "inf" among them, or a tuple of the numbers."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    form: str = "plain"
    values: Any = "normal"

    def __repr__(self) -> str:
        given = {name: getattr(self, name) for name in ("dtype", "form", "values")}
        others = "".join(f", {n}={v!r}" for n, v in given.items() if v != getattr(Spec, n))
        return f"Spec({self.shape}{others})"

    def build(self) -> Tensor:
        return (HARMLESS | HOSTILE)[self.form](self)


def fits_in(value: Any, wanted: Any) -> bool:
    """Whether a call that is valid with `wanted` is with `value` too."""
    if not isinstance(value, Spec) or not isinstance(wanted, Spec):
        return value == wanted
    if not isinstance(wanted.values, str):
        return value == wanted
    return (value.shape, value.dtype) == (wanted.shape, wanted.dtype) and value.form in HARMLESS


@dataclass(frozen=True)
class Packed:
    """The arguments of PackedSequence as data."""

    data: Spec | None
    batch_sizes: Spec
    sorted_indices: Spec | None = None
    unsorted_indices: Spec | None = None

    def orders_fit(self) -> bool:
        """Whether there are as many indices as rows."""
        rows = self.batch_sizes.values[:1]
        return all(order is None or order.shape == rows for order in (self.sorted_indices, self.unsorted_indices))


@dataclass(frozen=True)
class Call:
    """A call as data. valid: it must be accepted. aliased: equal specs are one and the same tensor."""

    name: str
    arguments: dict[str, Any]
    valid: bool = True
    aliased: bool = False

    def build(self) -> dict[str, Any]:
        made: dict[Spec, Tensor] = {}

        def build(value: Any) -> Any:
            if isinstance(value, Spec):
                return made.setdefault(value, value.build()) if self.aliased else value.build()
            if isinstance(value, Packed):
                return PackedSequence(*(build(getattr(value, name)) for name in value.__dataclass_fields__))
            return type(value)(map(build, value)) if isinstance(value, (list, tuple)) else value

        return {name: build(value) for name, value in self.arguments.items()}


# ---- What is drawn ----

sizes = st.sampled_from([2, 1, 3, 5, 17, 0])
flags = st.booleans()


@st.composite
def mutated(draw: Any, spec: Spec) -> Any:
    """A spec with one thing changed; None in place of a tensor."""
    shape, form = list(spec.shape), spec.form
    kind = draw(st.sampled_from(["form", "values", "dtype", "size", "rank", "order", "hostile form", "huge", "none"]))
    if kind == "form":
        return replace(spec, form=draw(st.sampled_from(list(HARMLESS))))
    if kind == "hostile form":
        return replace(spec, form=draw(st.sampled_from(list(HOSTILE))))
    if kind == "values":
        wrong = st.sampled_from(["nan", "inf", "-inf"])
        if not isinstance(spec.values, str):
            wrong = st.lists(integers, min_size=len(spec.values), max_size=len(spec.values)).map(tuple)
        return replace(spec, values=draw(wrong))
    if kind == "dtype":
        return replace(spec, dtype=draw(st.sampled_from(WRONG_DTYPES)))
    if kind == "none":
        return None
    if kind == "rank":
        shape = draw(st.sampled_from([shape[1:], shape[:-1], [1, *shape], [*shape, 1], []]))
    elif kind == "order":
        shape = shape[::-1]
    elif shape:
        at = draw(st.integers(0, len(shape) - 1))
        form = draw(st.sampled_from(list(HUGE))) if kind == "huge" else spec.form
        shape[at] = draw(st.sampled_from(HUGE[form]) if kind == "huge" else sizes)
    values = spec.values if tuple(shape) == spec.shape else "normal"
    return replace(spec, shape=tuple(shape), values=values, form=form)


integers = st.sampled_from([1, 0, 2, 3, -1, 7, 2**31, -(2**31), 2**62])


@st.composite
def mutated_arguments(draw: Any, arguments: dict[str, Any], names: list[str]) -> tuple[dict[str, Any], bool]:
    """Arguments with up to three of them mutated, or with all tensors on meta; whether they are valid still."""
    result, valid = dict(arguments), True
    if draw(st.integers(0, 19)) == 0:
        return {n: replace(v, form="meta") if isinstance(v, Spec) else v for n, v in result.items()}, False
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        value = result[name]
        if isinstance(value, (list, tuple)):
            changed = list(value)
            if not value or draw(st.integers(0, 4)) == 0:
                changed = draw(st.sampled_from([[], changed[1:], changed * 2]))
            else:
                at = draw(st.integers(0, len(value) - 1))
                changed[at] = draw(integers if isinstance(changed[at], int) else mutated(changed[at]))
            fits = len(changed) == len(value) and all(map(fits_in, changed, value))
            result[name] = type(value)(changed)
        elif isinstance(value, Spec):
            result[name] = draw(mutated(value))
            fits = fits_in(result[name], value)
        else:
            continue
        valid = valid and fits
    return result, valid


FLAGS = {name: bit for name, bit in vars(autograd).items() if isinstance(bit, int)}  # of the ops
FORWARD = ("cell", "input", "weights", "hx", "cx", "lengths", "masks", "flags")  # the arguments


@st.composite
def op_calls(draw: Any) -> Call:
    """The ops forward and backward."""
    cell, dtype, backward = draw(st.sampled_from(CELLS)), draw(dtypes), draw(flags)
    step, batched = draw(st.integers(0, 3)) == 0, draw(flags)
    on = {name: draw(flags) for name in FLAGS} | {"STEP": step}
    on["BIDIRECTIONAL"] &= not step
    on["SAVE"] |= backward
    on["PACKED"] &= batched and not step
    layers, directions = 1 if step else draw(st.integers(1, 3)), 1 + on["BIDIRECTIONAL"]
    I, H = draw(sizes), draw(sizes)
    T, B = 1 if step else draw(sizes), draw(sizes) if batched else 1
    rows, steps = (B,) * batched, (T,) * (not step)
    form, count = rows + steps if on["BATCH_FIRST"] else steps + rows, layers * directions
    inner, lengths = (T, B), tuple(draw(st.integers(0, T)) for _ in range(B))
    if on["PACKED"]:  # then lengths are batch_sizes
        rows = (max(B, 1),)
        lengths = rows + tuple(sorted((draw(st.integers(1, *rows)) for _ in range(T - 1)), reverse=True))
        form = inner = (sum(lengths),)

    def tensor(*shape: int) -> Spec:
        return Spec(shape, dtype)

    weights = []
    for k in range(count):
        inputs = I if k < directions else directions * H
        weights += [tensor(cell.gates * H, inputs), tensor(cell.gates * H, H)]
        weights += [tensor(cell.gates * H)] * 2 * on["BIAS"]
    state = tensor(*(() if step else (count,)), *rows, H)
    states = dict(zip(("hx", "cx"), [state] * len(cell.states) * draw(flags)))
    between = [tensor(*inner, directions * H)] * (layers - 1)
    arguments: dict[str, Any] = dict(
        input=tensor(*form, I),
        weights=weights,
        hx=states.get("hx"),
        cx=states.get("cx"),
        lengths=Spec((len(lengths),), "int64", values=lengths) if on["PACKED"] or draw(flags) else None,
        masks=list(between) if draw(flags) else [],
    )
    if backward:
        output = tensor(*form, directions * H)
        grads = dict(grad_output=output, grad_hy=state, grad_cy=state)
        saved = [Spec((*inner, cell.saved, H), "float64" if dtype == "float64" else "float32")] * count
        grads = {n: g if draw(flags) and (n != "grad_output" or not step) else None for n, g in grads.items()}
        arguments = {**grads, "kept": [output, *saved, *between], **arguments}
    arguments, valid = draw(mutated_arguments(arguments, list(arguments)))
    arguments |= {"cell": cell.name, "flags": sum(bit for name, bit in FLAGS.items() if on[name])}
    wrong = draw(wrong_arguments(arguments))
    return Call("backward" if backward else "forward", arguments | wrong, valid and not wrong, draw(flags))


dtypes = st.sampled_from(DTYPES)


@st.composite
def wrong_arguments(draw: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Rarely another cell, other flags or a tensor that was absent."""
    kind = draw(st.sampled_from([*["nothing"] * 20, "cell", "flags", "flag", "absent"]))
    absent = [name for name, value in arguments.items() if value is None]
    if kind == "cell":
        return {"cell": draw(st.sampled_from(["", "rnn", "gru(reset_after=True)", "l\0stm", *map(str, CELLS)]))}
    if kind == "flags":
        return {"flags": draw(integers)}
    if kind == "flag":
        return {"flags": arguments["flags"] ^ draw(st.sampled_from([*FLAGS.values(), 1 << 20, 1 << 40]))}
    if kind == "absent" and absent:
        name, specs = draw(st.sampled_from(absent)), specs_in(list(arguments.values())) or [Spec(())]
        spec = draw(st.sampled_from(specs))
        return {name: [spec] if name == "masks" else spec}
    return {}


@st.composite
def plan_calls(draw: Any) -> Call:
    """cuda_plan, cpu_plan and cpu_instruction_set: texts and sizes only."""
    text = st.sampled_from(["lstm", "gru", "gru(reset_after=False)", *WRONG_DTYPES, "H100", "T4", "cuda:0", "cpu", ""])
    names = {"cell": text, "dtype": text, "device": text, "backward": flags, "allow_tf32": flags}
    size = st.sampled_from([1, 0, 64, 1024, -1, 2**31, 2**62, 2**63 - 1, -(2**63)])
    arguments = {name: draw(values) for name, values in (names | dict.fromkeys("TBHLD", size)).items()}
    layer = {name: arguments[name] for name in ("cell", "T", "B", "H")} | {"I": draw(size), "training": draw(flags)}
    layer["dtype"] = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    calls = Call("cuda_plan", arguments, valid=False), Call("cpu_plan", layer, valid=False)
    return draw(st.sampled_from([*calls, Call("cpu_instruction_set", {})]))


@st.composite
def packed_inputs(draw: Any, T: int, B: int, I: int, dtype: str) -> Packed:
    lengths = sorted((draw(st.integers(1, max(T, 1))) for _ in range(B)), reverse=True)
    steps = tuple(sum(length > t for length in lengths) for t in range(max(lengths, default=0)))
    if draw(st.integers(0, 3)) == 0:
        steps = tuple(draw(st.lists(integers, max_size=4)))
    order = tuple(draw(st.permutations(range(B))))
    index = Spec((B,), "int64", values=order)
    back = Spec((B,), "int64", values=tuple(order.index(k) for k in range(B)))
    indices = (index, back) if draw(flags) else (None, None)
    parts: dict[str, Any] = dict(
        data=Spec((sum(lengths), I), dtype), batch_sizes=Spec((len(steps),), "int64", values=steps)
    )
    parts.update(sorted_indices=indices[0], unsorted_indices=indices[1])
    if draw(flags):
        parts, _ = draw(mutated_arguments(parts, list(parts)))
    return Packed(**parts)


@st.composite
def module_calls(draw: Any) -> Call:
    """Every layer and cell, with and without a backward."""
    kinds = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
    kind, dtype = draw(st.sampled_from(kinds)), draw(dtypes)
    is_lstm, is_cell = kind.startswith("LSTM"), kind.endswith("Cell")
    T, B = draw(sizes), draw(sizes)
    I, H = (draw(sizes.filter(lambda n: n > 0 or is_cell)) for _ in range(2))
    init: dict[str, Any] = dict(input_size=I, hidden_size=H, bias=draw(flags), dtype=dtype)
    layers = directions = 1
    P = H
    if not is_cell:
        layers, bidirectional = draw(st.integers(1, 3)), draw(flags)
        directions += bidirectional
        init.update(num_layers=layers, bidirectional=bidirectional, batch_first=draw(flags))
        if is_lstm and H > 1 and draw(st.integers(0, 3)) == 0:
            P = init["proj_size"] = draw(st.integers(1, H - 1))
    if kind.startswith("GRU") and draw(flags):
        init["reset_after"] = False
    if kind.startswith("RNN"):
        init["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))

    form = draw(st.sampled_from(["batched", "unbatched", "packed"][: 2 if is_cell else 3]))
    rows = () if form == "unbatched" else (B,)
    steps = () if is_cell else (T,)
    layout = rows + steps if init.get("batch_first") else steps + rows
    is_packed = form == "packed"
    input = draw(packed_inputs(T, B, I, dtype)) if is_packed else Spec((*layout, I), dtype)
    lead = rows if is_cell else (layers * directions, *rows)
    hx: Any = (Spec((*lead, P), dtype), Spec((*lead, H), dtype)) if is_lstm else Spec((*lead, H), dtype)
    arguments = {"input": input, "hx": hx if draw(flags) else None}
    if not is_cell and draw(st.integers(0, 3)) == 0:
        values = tuple(draw(st.integers(1, max(T, 1))) for _ in range(B))
        arguments["lengths"] = draw(st.sampled_from([values, list(values), Spec((B,), "int64", values=values)]))
    arguments, valid = draw(mutated_arguments(arguments, list(arguments)))
    valid = valid and not is_packed and (is_cell or T > 0) and not (form == "unbatched" and "lengths" in arguments)
    return Call(kind, {"init": init, "grad": draw(flags), **arguments}, valid, draw(flags))


# ---- What is checked ----

ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, OverflowError)
CPP_SOURCE = re.compile(r"API call failed at|\.(h|cpp|cu|cuh)\b")


def check_error(error: Exception, valid: bool) -> None:
    """An exception is right for a call that is not valid, if its text is for people."""
    if valid:
        raise AssertionError(f"a valid call was refused: {error}") from error
    of_torch = isinstance(error, NotImplementedError) or "DefaultCPUAllocator" in str(error)
    if not of_torch:  # the texts of the dispatcher and of the allocator name files of PyTorch
        assert not CPP_SOURCE.search(str(error)), f"the message has C++ source in it: {error}"


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a result or an argument, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (tuple, list)) else []


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same arguments with every tensor of floating point numbers changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, PackedSequence):
        return PackedSequence(*(changed(part, change) for part in value))
    return type(value)(changed(v, change) for v in value) if isinstance(value, (tuple, list)) else value


def doubled(tensor: Tensor) -> Tensor:
    return tensor.detach().double().resolve_neg().clone()


def check_close(got: list[Tensor], want: list[Tensor], nan: bool = False) -> None:
    """Where both are finite they must be close; with `nan`, NaN must not become a number."""
    assert [t.shape for t in got] == [t.shape for t in want], "the shapes of the results differ"
    for k, (g, w) in enumerate(zip(got, want)):
        finite = g.isfinite() & w.isfinite()
        error = (g.double() - w).abs().where(finite, 0.0)
        assert (error <= TOLERANCE[g.dtype] * (1 + w.abs())).logical_or(~finite).all(), (
            f"result {k} of dtype {g.dtype} is off by {error.max().item():.2e}"
        )
        assert not (nan and (w.isnan() & g.isfinite()).any()), f"result {k} has a number in place of NaN"


def keep_nan(tensors: list[Tensor]) -> bool:
    """Whether results must have NaN where the truth has it: a gate that is not quite 0 times infinity is no NaN."""
    return not any(t.isinf().any() for t in tensors)


def check_unchanged(tensors: list[Tensor], before: list[Tensor]) -> None:
    for tensor, copy in zip(tensors, before):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True, msg="an argument was written to")


def check_meta(tensors: list[Tensor], results: list[Tensor]) -> None:
    """Numbers that are on meta have no numbers as a result."""
    assert not any(t.is_meta for t in tensors) or all(t.is_meta for t in results), "numbers came of a meta tensor"


def is_dense(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor._is_zerotensor():
        return False
    return not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)


def have_truth(tensors: list[Tensor]) -> bool:
    """Whether the reference can compute with them."""
    return all(is_dense(t) and max(t.shape, default=0) < 1000 for t in tensors)


def grows_errors(a: dict[str, Any]) -> bool:
    """Whether rounding may become any difference: ReLU has states without a bound and gradients that jump, and an RNN
    with the weights of the op calls, larger than torch.nn's initial ones, multiplies an error at every step."""
    return a.get("cell") in ("rnn_tanh", "rnn_relu") or a.get("init", {}).get("nonlinearity") == "relu"


def is_honest(packed: PackedSequence) -> bool:
    """Whether its parts fit together. If not, torch.nn reads and writes past the end of its memory."""
    data, batch_sizes = packed[:2]
    if not isinstance(data, Tensor) or not have_truth([batch_sizes]) or data.dim() == 0:
        return False
    steps = batch_sizes.tolist() if batch_sizes.dtype == torch.int64 and batch_sizes.dim() == 1 else []
    return bool(steps) and min(steps) > 0 and steps == sorted(steps, reverse=True) and sum(steps) == data.size(0)


def have_sizes(states: list[Tensor], module: Any, packed: PackedSequence) -> bool:
    """Whether initial states are as large as they must be. With a packed input, torch.nn.LSTM does not look at c_0."""
    B, order = int(packed.batch_sizes[0]), packed.sorted_indices
    if order is not None:
        try:
            states = [state.index_select(1, order) for state in states]  # as torch.nn does before it looks
        except ERRORS:
            return False
    count = module.num_layers * (1 + module.bidirectional)
    widths = (module.proj_size or module.hidden_size, module.hidden_size)
    return all(
        (is_dense(state) or state._is_zerotensor()) and state.shape == (count, B, width)
        for state, width in zip(states, widths)
    )


def built(call: Call) -> dict[str, Any]:
    """The arguments; Hypothesis draws another call if PyTorch cannot make them."""
    try:
        return call.build()
    except Exception:
        hypothesis.reject()


def true_results(a: dict[str, Any]) -> list[Tensor]:
    call = autograd.asked(*(a[name] for name in FORWARD))
    if call.T == 1 and not call.states:  # the reference multiplies weight_hh by zeros, where the op does not read it
        each = 4 if call.form.bias else 2
        weights = [w.nan_to_num(0, 0, 0) if k % each == 1 else w for k, w in enumerate(call.weights)]
        call = call.changed(weights=weights)
    return list(layered.run(call, reference.run))


def true_gradients(a: dict[str, Any]) -> list[Tensor]:
    names = ("input", "weights", "hx", "cx")
    a = a | {name: changed(a[name], Tensor.requires_grad_) for name in names}
    results = true_results(a)
    grads = [a["grad_output"]] * (not a["flags"] & STEP) + [a["grad_hy"], a["grad_cy"]]
    pairs = [(y, g) for y, g in zip(results, grads) if g is not None]
    leaves = tensors_in([a[name] for name in names])
    loss = sum([(y * g).sum() for y, g in pairs], leaves[0].sum() * 0)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    needs = [a["flags"] & NEEDS_INPUT, *[a["flags"] & NEEDS_WEIGHTS] * len(a["weights"])]
    needs += [a["flags"] & NEEDS_STATES] * (len(leaves) - len(needs))
    return [gradient if need else gradient.new_empty(0) for gradient, need in zip(gradients, needs)]


def check_plan(call: Call) -> None:
    try:
        getattr(torch.ops.fused_rnn, call.name)(**call.build())
    except ERRORS as error:
        check_error(error, call.valid)


def check_op(call: Call) -> None:
    a = built(call)
    backward = call.name == "backward"
    inputs = [t for t in tensors_in(list(a.values())) if is_dense(t) and t.numel() < 10**6]
    before = [t.clone() for t in inputs]
    try:
        if backward and call.valid:
            first, *others = torch.ops.fused_rnn.forward(**{name: a[name] for name in FORWARD})
            a["kept"] = [first, *others[1 - len(a["kept"]) :]]
        got = getattr(torch.ops.fused_rnn, call.name)(**a)
    except ERRORS as error:
        return check_error(error, call.valid)
    check_unchanged(inputs, before)
    tensors = tensors_in(list(a.values()))
    check_meta(tensors, got)
    if not have_truth(tensors):
        return None
    check_shapes(got, call.name, a)
    made_up = backward and not call.valid  # an output and saved numbers that are not the forward's
    if grows_errors(a) or made_up:
        return None
    want = (true_gradients if backward else true_results)({name: changed(value, doubled) for name, value in a.items()})
    if not backward and not a["flags"] & SAVE:
        assert len(got) == len(want), "results were saved without a backward"
    return check_close(got if backward else got[: len(want)], want, nan=not backward and keep_nan(tensors))


def check_shapes(got: list[Tensor], name: str, a: dict[str, Any]) -> None:
    """The results are what the fake kernel says."""
    on_meta = {name: changed(value, lambda t: t.to("meta")) for name, value in a.items()}
    on_meta["lengths"] = a["lengths"] if a["flags"] & PACKED else None
    want = getattr(torch.ops.fused_rnn, name)(**on_meta)
    forms = [[(t.shape, t.stride(), t.dtype) for t in results] for results in (got, want)]
    assert forms[0] == forms[1], f"results have shapes, strides and dtypes {forms[0]}, the fake kernel says {forms[1]}"


# Calls of modules where one of torch.nn and we may refuse and the other accept.
DIFFERENCES: dict[str, Callable[[Call], bool]] = {
    "indices of a PackedSequence for another number of rows, with which torch.nn changes the batch": lambda call: (
        isinstance(call.arguments["input"], Packed) and not call.arguments["input"].orders_fit()
    ),
    "hx of more than two tensors, of which nn.LSTMCell ignores the others": lambda call: (
        isinstance(call.arguments["hx"], tuple) and len(call.arguments["hx"]) > 2
    ),
    "hx of another dtype than input, which fails in some combinations in torch.nn": lambda call: any(
        spec.dtype != call.arguments["init"]["dtype"] for spec in specs_in(call.arguments["hx"])
    ),
    "layouts that the matmuls of one happen to take, and tensors on meta beside weights on the CPU": lambda call: any(
        spec.form in HOSTILE for spec in specs_in([call.arguments["input"], call.arguments["hx"]])
    ),
}


def specs_in(value: Any) -> list[Spec]:
    """All specs in an argument."""
    if isinstance(value, Packed):
        return specs_in([getattr(value, name) for name in value.__dataclass_fields__])
    if isinstance(value, (list, tuple)):
        return [spec for v in value for spec in specs_in(v)]
    return [value] if isinstance(value, Spec) else []


def module_results(module: nn.Module, a: dict[str, Any]) -> list[Tensor]:
    """Outputs of a module and, if asked for, the gradients of its inputs and parameters."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().requires_grad_(a["grad"]))
        return leaves[-1]

    input, hx = changed(a["input"], leaf), changed(a["hx"], leaf)
    with torch.set_grad_enabled(a["grad"]):
        results = module(input, hx, **{name: a[name] for name in ("lengths",) if name in a})
    outputs = [y for y in tensors_in(results) if y.is_floating_point()]
    if not a["grad"]:
        return outputs
    loss = sum(y.double().pow(2).sum() for y in outputs)
    leaves += module.parameters()
    return outputs + list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def check_module(call: Call) -> None:
    a = built(call)
    init = a["init"] | {"dtype": getattr(torch, a["init"]["dtype"])}
    torch.manual_seed(0)
    module = getattr(fused_rnn, call.name)(**init)
    has_equivalent = "lengths" not in a and init.pop("reset_after", True)
    is_packed = isinstance(a["input"], PackedSequence)
    if is_packed:
        fits = is_honest(a["input"]) and have_sizes(tensors_in(a["hx"]), module, a["input"])
    else:  # nn.LSTMCell ends the process if input and states differ in rank
        fits = not call.name.endswith("Cell") or len({t.dim() for t in tensors_in([a["input"], a["hx"]])}) == 1
    refusal = None
    stock: Any = None
    # torch.nn reads batch_sizes of any strides as if they were contiguous.
    if has_equivalent and fits and (not is_packed or a["input"].batch_sizes.is_contiguous()):
        stock = getattr(nn, call.name)(**init)
        stock.load_state_dict(module.state_dict())
        try:
            module_results(stock, a)
        except ERRORS as error:
            refusal = error
    may_differ = any(differ(call) for differ in DIFFERENCES.values())
    inputs = [t for t in tensors_in([a["input"], a["hx"]]) if is_dense(t) and t.numel() < 10**6]
    before = [t.clone() for t in inputs]
    try:
        got = module_results(module, a)
    except ERRORS as error:
        return check_error(error, call.valid or (stock is not None and refusal is None and not may_differ))
    assert refusal is None or may_differ, f"torch.nn refuses this call: {refusal}"
    assert fits, "a call with which torch.nn would read past its memory was accepted"
    check_unchanged(inputs, before)
    check_meta(tensors_in([a["input"], a["hx"]]), got)
    if grows_errors(a) or not have_truth(tensors_in([a["input"], a["hx"]])):
        return None
    a = a | {name: changed(a[name], doubled) for name in ("input", "hx")}
    nan = not a["grad"] and keep_nan(inputs)
    if stock is not None and refusal is None:
        return check_close(got, module_results(stock.double(), a), nan)
    with fused_rnn.use_backend("reference"):
        return check_close(got, module_results(module.double(), a), nan)


TARGETS = {
    "modules": (module_calls, check_module),
    "ops": (op_calls, check_op),
    "plans": (plan_calls, check_plan),
}


# ---- Processes ----

MEMORY = 8 << 30  # bytes of a child's address space: what is too large must fail to be allocated
PATIENCE = 60  # seconds that a child may take for its start and its last batch of calls


def fuzz(target: str, seconds: float, seed: int, journal: Path) -> None:
    """Check calls until the time is over, each written to the journal before it runs. Raises what Hypothesis finds."""
    strategy, check = TARGETS[target]

    def check_written(call: Call) -> None:
        journal.write_text(repr(call))
        check(call)

    settings = hypothesis.settings(
        max_examples=200,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which has a limit of its own, and reserves terabytes
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        hypothesis.seed(seed)(settings(hypothesis.given(strategy())(check_written)))()
        seed += 1000  # one for each batch of a run, which has its own range


def run_child(target: str, seconds: float, seed: int, isa: str = "") -> str:
    """Fuzz in a child process; what it found, with the call that shows it, or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "call")
        command = [sys.executable, "-X", "faulthandler", __file__, "--target", target, "--seed", str(seed)]
        command += ["--seconds", str(seconds), "--child", str(journal)]
        # The package that this process would import.
        environment = (
            os.environ
            | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            | ({"FUSED_RNN_ISA": isa} if isa else {})
        )
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, "a call that does not end", "", "")
        if done.returncode == 0:
            return ""
        call = journal.read_text() if journal.exists() else "none"
        how = f"{target}, instruction set {isa or 'chosen'}, status {done.returncode}"
        return f"{done.stdout}{done.stderr}\n{how}, last call:\n{call}"


def run(targets: list[str], seconds: float, seed: int) -> int:
    """Fuzz all targets in turn, on one instruction set after the other, until the time is over; the exit status."""
    from test_backends import instruction_sets

    sets, end, batch = instruction_sets(), time.monotonic() + seconds, 0
    while (left := end - time.monotonic()) > 0:
        target, isa = targets[batch % len(targets)], sets[batch // len(targets) % len(sets)]
        if found := run_child(target, min(20, left), seed + batch, isa):
            print(found)
            return 1
        batch += 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--replay", metavar="CALL", help="check one call, as a finding shows it")
    parser.add_argument("--child", type=Path, metavar="JOURNAL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.replay:
        call = eval(options.replay)
        target = "modules" if call.name in dir(nn) else "ops" if call.name in ("forward", "backward") else "plans"
        TARGETS[target][1](call)
    elif options.child:
        fuzz(options.target, options.seconds, options.seed, options.child)
    else:
        return run([options.target] if options.target else list(TARGETS), options.seconds, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
