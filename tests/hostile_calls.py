"""Hostile calls of modules and raw ops as data, and the Hypothesis strategies that draw them, for tests/fuzz.py."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_rnn import autograd, native, panels
from fused_rnn.call import JOINS, PROJECTS, SET, short
from fused_rnn.cell import CELLS, LSTM

# ---- Tensors as data ----

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
    "negative": lambda s: numbers(s.shape, s) if s.dtype == "bool" else torch._neg_view(numbers(s.shape, s)),
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


def specs_in(value: Any) -> list[Spec]:
    """All specs in an argument."""
    if isinstance(value, Packed):
        return specs_in([getattr(value, name) for name in value.__dataclass_fields__])
    if isinstance(value, (list, tuple)):
        return [spec for v in value for spec in specs_in(v)]
    return [value] if isinstance(value, Spec) else []


# ---- Strategies ----

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


QUANTIZED = {short(dtype): flag for dtype, flag in panels.FLAGS.items()}
FLAGS = {name: bit for name, bit in vars(autograd).items() if isinstance(bit, int)} | QUANTIZED  # of the ops
SETS = native.cpu_set_flags().values()
PLANS = (0, 0, JOINS, PROJECTS, *SETS, *(JOINS + flags for flags in SETS))  # how the CPU kernels run a call
FORWARD = ("cell", "input", "weights", "hx", "cx", "lengths", "resets", "masks", "flags")  # the arguments


def panels_of(cell: Any, rows: int, columns: int, dtype: str, is_hidden: bool) -> Spec:
    """Quantised weights as the ops take them."""
    numbers = torch.zeros(rows, columns, dtype=getattr(torch, dtype))
    packed = panels.packed(cell, numbers, is_hidden)
    return Spec(tuple(packed.shape), short(packed.dtype))


@st.composite
def resets_of(draw: Any, shape: tuple[int, ...]) -> Spec | None:
    """Often none."""
    return Spec(shape, "bool", values=tuple(draw(flags) for _ in range(math.prod(shape)))) if draw(flags) else None


@st.composite
def op_calls(draw: Any) -> Call:
    """The ops forward and backward."""
    cell, dtype, backward = draw(st.sampled_from(CELLS)), draw(dtypes), draw(flags)
    step, batched = draw(st.integers(0, 3)) == 0, draw(flags)
    on = {name: draw(flags) for name in FLAGS} | {"STEP": step}
    on["BIDIRECTIONAL"] &= not step
    on["SAVE"] |= backward
    on["PACKED"] &= batched and not step
    quantized = draw(st.sampled_from(["", *QUANTIZED])) if dtype == "float32" and not backward else ""
    on |= {name: name == quantized for name in QUANTIZED}
    on["SAVE"] &= not quantized
    on["BIAS"] |= quantized == "bfloat16"
    on["PROJECTED"] &= cell is LSTM and not quantized
    layers, directions = 1 if step else draw(st.integers(1, 3)), 1 + on["BIDIRECTIONAL"]
    I, H = draw(sizes), draw(sizes)
    on["PROJECTED"] &= H > 0
    P = draw(st.integers(1, H)) if on["PROJECTED"] else H
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
        inputs, rows_of_weights = I if k < directions else directions * P, cell.gates * H
        biases = [tensor(rows_of_weights)] * 2 * on["BIAS"]
        matrices = [tensor(rows_of_weights, inputs), tensor(rows_of_weights, P)]
        if quantized:
            weights += [tensor(rows_of_weights)] * 2 * on["int8"] + biases
            weights += [panels_of(cell, *m.shape, quantized, is_hidden=k == 1) for k, m in enumerate(matrices)]
        else:
            weights += matrices + biases + [tensor(P, H)] * on["PROJECTED"]
    final = [tensor(*(() if step else (count,)), *rows, size) for size in (P, H)]
    states = dict(zip(("hx", "cx"), final[: len(cell.states) * draw(flags)]))
    between = [tensor(*inner, directions * P)] * (layers - 1)
    arguments: dict[str, Any] = dict(
        input=tensor(*form, I),
        weights=weights,
        hx=states.get("hx"),
        cx=states.get("cx"),
        lengths=Spec((len(lengths),), "int64", values=lengths) if on["PACKED"] or draw(flags) else None,
        resets=None if on["PACKED"] or step else draw(resets_of((T, B))),
        masks=list(between) if draw(flags) else [],
    )
    if backward:
        output = tensor(*form, directions * P)
        grads = dict(grad_output=output, grad_hy=final[0], grad_cy=final[1])
        saved = [Spec((*inner, cell.saved, H), "float64" if dtype == "float64" else "float32")] * count
        grads = {n: g if draw(flags) and (n != "grad_output" or not step) else None for n, g in grads.items()}
        arguments = {**grads, "kept": [output, *saved, *between], **arguments}
    arguments, valid = draw(mutated_arguments(arguments, list(arguments)))
    form_flags = sum(bit for name, bit in FLAGS.items() if on[name])
    arguments |= {"cell": cell.name, "flags": form_flags | draw(st.sampled_from(PLANS))}
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
        return {"flags": arguments["flags"] ^ draw(st.sampled_from([*FLAGS.values(), SET, 1 << 40, 1 << 62]))}
    if kind == "absent" and absent:
        name, specs = draw(st.sampled_from(absent)), specs_in(list(arguments.values())) or [Spec(())]
        spec = draw(st.sampled_from(specs))
        return {name: [spec] if name == "masks" else spec}
    return {}


@st.composite
def plan_calls(draw: Any) -> Call:
    """The ops that tell of plans and instruction sets: texts and sizes only."""
    text = st.sampled_from(["lstm", "gru", "gru(reset_after=False)", *WRONG_DTYPES, "H100", "T4", "cuda:0", "cpu", ""])
    names = {"cell": text, "dtype": text, "device": text, "backward": flags, "allow_tf32": flags}
    size = st.sampled_from([1, 0, 64, 1024, -1, 2**31, 2**62, 2**63 - 1, -(2**63)])
    arguments = {name: draw(values) for name, values in (names | dict.fromkeys([*"TBHLD", "projection"], size)).items()}
    layer = {name: arguments[name] for name in ("cell", "T", "B", "H", "projection")}
    layer |= {"I": draw(size), "training": draw(flags)}
    layer |= {"flags": draw(st.sampled_from([*PLANS, *FLAGS.values(), SET * 99, -1]))}
    layer["dtype"] = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    calls = Call("cuda_plan", arguments, valid=False), Call("cpu_plan", layer, valid=False)
    calls += (Call("cpu_panel_layout", {"cell": draw(text), "flags": layer["flags"]}, valid=False),)
    asked = {name: layer[name] for name in ("cell", "dtype", "flags")}
    calls += (Call("cpu_instruction_sets", asked, valid=False),)
    return draw(st.sampled_from([*calls, Call("cpu_instruction_set", {}), Call("cpu_reduced_rows", {})]))


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
def quantized_calls(draw: Any) -> Call:
    """Calls of modules with quantised weights."""

    def can_be(call: Call) -> bool:
        init = call.arguments["init"]
        return init["dtype"] == "float32" and init["hidden_size"] > 0 and "proj_size" not in init

    call = draw(module_calls().filter(can_be))
    return replace(
        call, arguments=call.arguments | {"grad": False, "quantized": draw(st.sampled_from(list(QUANTIZED)))}
    )


@st.composite
def stream_calls(draw: Any) -> Call:
    """Steps of a Stream: `valid` says that each x fits."""
    call = draw(module_calls().filter(lambda call: not call.arguments["init"].get("bidirectional")))
    init, batch = call.arguments["init"], draw(sizes.filter(bool))
    x = Spec((batch, init["input_size"]), init["dtype"])
    arguments, valid = draw(mutated_arguments({"x": x}, ["x"]))
    can_be = init["dtype"] == "float32" and "proj_size" not in init and init["hidden_size"] > 0
    quantized = draw(st.sampled_from(["", *QUANTIZED])) if can_be else ""
    return Call(call.name, {"init": init, "batch": batch, "quantized": quantized, **arguments}, valid)


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
    if not is_cell and not is_packed:
        arguments["resets"] = draw(resets_of(layout))
    arguments, valid = draw(mutated_arguments(arguments, list(arguments)))
    valid = valid and not is_packed and (is_cell or T > 0) and not (form == "unbatched" and "lengths" in arguments)
    return Call(kind, {"init": init, "grad": draw(flags), **arguments}, valid, draw(flags))
