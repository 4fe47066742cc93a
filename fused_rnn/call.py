"""A call of a recurrent layer or cell: its tensors, the properties that choose a backend, and its standard form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import int8, panels, private
from .cell import Cell, States, Weights

RunLayer = Callable[..., tuple[Tensor, States]]  # with the signature of reference.run

PLAIN = frozenset((Tensor, torch.nn.Parameter))  # classes of tensors without rules of their own
_SUPPORTED = PLAIN | private.TRACED  # by our ops


class Problem(NamedTuple):
    """Everything that the choice of a backend may depend on, and nothing else. A :class:`Call` has the same fields."""

    cell: Cell
    device: torch.device
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    projection: int = 0  # proj_size: numbers of h, where it is projected
    ragged: bool = False  # lengths are given
    packed: bool = False  # input is the data of a PackedSequence
    training: bool = False  # a backward may come
    transformed: bool = False  # inside torch.func or forward-mode differentiation
    subclass: str = ""  # the class of a tensor that is a subclass of Tensor with rules of its own
    layers: int = 1
    directions: int = 1
    quantized: torch.dtype | None = None  # int8 or bfloat16, in which the weights are kept
    step: bool = False  # of a cell
    has_resets: bool = False  # resets are given: sequences may begin inside a row

    def __str__(self) -> str:
        named = ("step", "ragged", "packed", "training", "transformed")
        flags = [f"weights={short(self.quantized)}"] if self.quantized else []
        flags += [f"proj_size={self.projection}"] if self.projection else []
        flags += [name for name in named if getattr(self, name)] + ["resets"] * self.has_resets
        sizes = f"T={self.T} B={self.B} I={self.I} H={self.H}"
        flags += [self.subclass] if self.subclass else []
        flags += [f"layers={self.layers}"] if self.layers > 1 else []
        flags += ["bidirectional"] if self.directions > 1 else []
        return " ".join([str(self.cell), short(self.dtype), str(self.device), sizes, *flags])


def short(dtype: torch.dtype) -> str:
    """The name of a dtype, without its module."""
    return str(dtype).removeprefix("torch.")


# The bits of the ops' argument ``flags``, as in csrc/call.h, where their meaning is.
BIAS, BIDIRECTIONAL, REVERSE, BATCH_FIRST, STEP, REDUCED_PRECISION, SAVE = (1 << k for k in range(7))
NEEDS_INPUT, NEEDS_WEIGHTS, NEEDS_STATES = 128, 256, 1024  # of the backward
NEEDS_ALL = NEEDS_INPUT | NEEDS_WEIGHTS | NEEDS_STATES
PACKED, PROJECTED = 512, 8192
JOINS, PROJECTS, SET = 1 << 16, 1 << 17, 1 << 18  # how the CPU kernels run the call


class Form(NamedTuple):
    """The options of a module that its call depends on, apart from its cell and its sizes."""

    layers: int = 1
    directions: int = 1
    bias: bool = True
    projection: bool = False
    batch_first: bool = False
    step: bool = False  # of a cell
    reverse: bool = False  # the first direction runs from the last step to the first; no module has that
    quantized: torch.dtype | None = None  # of weights in panels


def flags_of(form: Form) -> int:
    """The flags that say what the form does."""
    flags = (BIAS if form.bias else 0) | (BIDIRECTIONAL if form.directions > 1 else 0)
    flags |= (BATCH_FIRST if form.batch_first else 0) | (STEP if form.step else 0)
    flags |= (REVERSE if form.reverse else 0) | (PROJECTED if form.projection else 0)
    return flags | (panels.FLAGS[form.quantized] if form.quantized else 0)


class Call:
    """The tensors and options of one call of a module. Its properties are computed when they are read.

    Args:
        input: [T, B, I]; [B, T, I] with ``batch_first``; [T, I] without a batch; the data [N, I] of a packed sequence;
            of a step [B, I] or [I].
        states: the initial states, each [L*D, B, H] or [L*D, H], layer by layer and in each the forward direction
            first; of a step [B, H] or [H]; () for zeros.
        weights: of all layers and directions in the same order, each as the fields of :class:`Weights`, without those
            that the layer does not have.
        form: of the module.
        check: raises torch.nn's error if the tensors do not fit. The native ops check tensors themselves, so it
            is called only for its message after they have refused; for other backends it is called before they run.
        lengths: [B] int64 on the device of ``input``, or None: row b ends after ``lengths[b]`` steps.
        batch_sizes: of a packed sequence, [T], or None.
        resets: [T, B] bool on the device of ``input``, or None: where true, a new sequence begins at that step.
        dropout: probability of an element of a layer's output, but the last layer's, to be zeroed.
        masks: the random numbers of dropout, [T, B, D*H] for each layer but the last; () for none.

    Attributes:
        subclass: the class of the first tensor that is a subclass of Tensor with rules of its own, or "".

    Raises:
        As ``check`` does, if there is anything but plain tensors: such a thing must not meet an op unchecked.
    """

    __slots__ = (
        "batch_sizes",
        "cell",
        "check",
        "dropout",
        "form",
        "input",
        "lengths",
        "masks",
        "quantized",
        "resets",
        "states",
        "subclass",
        "weights",
    )

    def __init__(
        self,
        cell: Cell,
        input: Tensor,
        states: Sequence[Tensor],
        weights: Sequence[Tensor],
        form: Form = Form(),  # noqa: B008  a constant
        check: Callable[[Call], None] = lambda call: None,
        lengths: Tensor | None = None,
        batch_sizes: Tensor | None = None,
        resets: Tensor | None = None,
        dropout: float = 0.0,
        masks: Sequence[Tensor] = (),
    ) -> None:
        self.cell = cell
        self.input = input
        self.states = states
        self.weights = weights
        self.form = form
        self.quantized = form.quantized  # not a property: every call reads it several times
        self.check = check
        self.lengths = lengths
        self.batch_sizes = batch_sizes
        self.resets = resets
        self.dropout = dropout
        self.masks = masks
        self.subclass = ""
        if not PLAIN.issuperset(map(type, (input, *states, *weights))):
            self.subclass = _subclass_among(input, *states, *weights)
            check(self)

    def changed(self, **changes: Any) -> Call:
        """A copy with other values for some fields."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name not in ("quantized", "subclass")}
        return Call(**(fields | changes))

    # ---- The properties that choose a backend: the fields of a Problem ----

    @property
    def device(self) -> torch.device:
        return self.input.device

    @property
    def dtype(self) -> torch.dtype:
        return self.input.dtype

    @property
    def layers(self) -> int:
        return self.form.layers

    @property
    def directions(self) -> int:
        return self.form.directions

    @property
    def projection(self) -> int:
        return self.weights[1].size(1) if self.form.projection else 0

    @property
    def step(self) -> bool:
        return self.form.step

    @property
    def T(self) -> int:
        if self.batch_sizes is not None:
            return self.batch_sizes.size(0)
        return 1 if self.form.step else self.input.size(1 if self.form.batch_first and self.is_batched else 0)

    @property
    def B(self) -> int:
        if self.batch_sizes is not None:
            return int(self.batch_sizes[0])
        batch_leads = self.form.step or self.form.batch_first
        return self.input.size(0 if batch_leads else 1) if self.is_batched else 1

    @property
    def I(self) -> int:  # noqa: E743  the field's name
        return self.input.size(-1)

    @property
    def H(self) -> int:
        return self.weights[0].size(0) // self.cell.gates

    @property
    def ragged(self) -> bool:
        return self.lengths is not None

    @property
    def has_resets(self) -> bool:
        return self.resets is not None

    @property
    def packed(self) -> bool:
        return self.batch_sizes is not None

    @property
    def training(self) -> bool:
        if torch.is_grad_enabled():
            for tensor in (self.input, *self.states, *self.weights):
                if tensor.requires_grad:
                    return True
        return False

    @property
    def transformed(self) -> bool:
        return private.is_transformed()

    @property
    def problem(self) -> Problem:
        return Problem(*(getattr(self, name) for name in Problem._fields))

    # ---- Forms ----

    @property
    def is_batched(self) -> bool:
        """Whether the input has a dimension for the rows of a batch. A packed sequence has its own form."""
        return self.input.dim() == (2 if self.form.step else 3)

    @property
    def output_size(self) -> int:
        """Size of h: H, or proj_size."""
        return self.projection or self.H

    @property
    def _weight_names(self) -> list[str]:
        """Of one layer in one direction."""
        weights, biases = ["weight_ih", "weight_hh"], ["bias_ih", "bias_hh"] * self.form.bias
        if self.quantized:
            return [*["scale_ih", "scale_hh"] * (self.quantized is torch.int8), *biases, *weights]
        return [*weights, *biases] + ["weight_hr"] * self.form.projection

    def layer_weights(self) -> list[Weights]:
        """The weights of each layer and direction; those of int8 as :class:`int8.Rows`."""
        names, flat, made = self._weight_names, iter(self.weights), []
        for k in range(self.layers * self.directions):
            layer: dict[str, Any] = {name: next(flat) for name in names}
            if self.quantized:
                width = self.I if k < self.directions else self.directions * self.H
                for name, K in (("ih", width), ("hh", self.H)):
                    rows = panels.unpacked(self.cell, layer[f"weight_{name}"], K, self.H, name == "hh")
                    scale = layer.pop(f"scale_{name}", None)
                    layer[f"weight_{name}"] = rows.to(self.dtype) if scale is None else int8.Rows(rows, scale)
            made.append(Weights(**layer))
        return made

    def widened(self) -> Call:
        """The same call where weights of bfloat16 are rows in the input's dtype, for kernels that take no panels."""
        if self.quantized is not torch.bfloat16:
            return self
        rows = [weight for layer in self.layer_weights() for weight in layer if weight is not None]
        return self.changed(weights=rows, form=self.form._replace(quantized=None))

    def names(self) -> list[str]:
        """The names of the states and the weights in torch.nn."""
        names = list(self.cell.states[: len(self.states)])
        for k in range(self.layers * self.directions):
            suffix = "_reverse" if k % self.directions else ""
            suffix = "" if self.form.step else f"_l{k // self.directions}{suffix}"
            names += [name + suffix for name in self._weight_names]
        return names

    def standard(self) -> Call:
        """The same call with an input [T, B, I] (or packed) and states [L*D, B, H] that are there.

        Raises:
            RuntimeError: a state or weight has another dtype or device than the input.
        """
        self.check(self)
        device, dtype = self.device, self.dtype
        for k, tensor in enumerate((*self.states, *self.weights)):
            is_panels = self.quantized and tensor.dtype == panels.STORED[self.quantized]
            if tensor.device != device or not (tensor.dtype == dtype or is_panels):
                name, got = self.names()[k], f"{tensor.dtype} on {tensor.device}"
                raise RuntimeError(f"{name} must be {dtype} on {device} like input, got {got}")
        x, states = self.input, tuple(self.states)
        if not states:
            # not new_zeros, which writes past an mkldnn tensor
            count = () if self.form.step else (self.layers * self.directions,)
            batch = (self.B,) if self.packed or self.is_batched else ()
            sizes = (self.output_size, self.H)[: len(self.cell.states)]
            states = tuple(torch.zeros((*count, *batch, size), dtype=dtype, device=device) for size in sizes)
        if not self.packed:
            if not self.is_batched:
                x = x.unsqueeze(0 if self.form.step else 1)
                states = tuple(state.unsqueeze(-2) for state in states)
            elif self.form.batch_first and not self.form.step:
                x = x.transpose(0, 1)
            if self.form.step:
                x, states = x.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
        plain = self.form._replace(batch_first=False, step=False)
        return self.changed(input=x, states=states, form=plain, check=lambda call: None)

    def as_asked(self, output: Tensor, final: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results of the op for this call, from the output [T, B, D*H] and final states of :meth:`standard`."""
        form, final = self.form, tuple(final)
        if form.step:
            for _ in range(1 if self.is_batched else 2):
                final = tuple(reshaped(state, "squeeze", 0) for state in final)
            return final
        if not self.packed:
            if not self.is_batched:
                output, final = reshaped(output, "squeeze", 1), tuple(reshaped(state, "squeeze", 1) for state in final)
            elif form.batch_first:
                output = reshaped(output, "transpose", 0, 1)
        return output, *final


def _subclass_among(*tensors: object) -> str:
    kinds = (kind for kind in map(type, tensors) if kind not in _SUPPORTED and issubclass(kind, Tensor))
    return next((kind.__name__ for kind in kinds), "")


def time_major(resets: Tensor, input: Tensor, batch_first: bool) -> Tensor:
    """[T, B] of resets as a module gets them: in the form of its input."""
    if input.dim() == 2:
        return resets.unsqueeze(1)
    return resets.t() if batch_first else resets


def layer_call(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Weights,
    lengths: Tensor | None = None,
    reverse: bool = False,
    resets: Tensor | None = None,
) -> Call:
    """The call of one layer in one direction; arguments as of :func:`reference.run`."""
    flat = [weight for weight in weights if weight is not None]
    initial = tuple(state.unsqueeze(0) for state in states)
    layer = Form(bias=weights.bias_ih is not None, projection=weights.weight_hr is not None, reverse=reverse)
    return Call(cell, x, initial, flat, layer, lengths=lengths, resets=resets)


def one_layer(run: Callable[[Call], Sequence[Tensor]]) -> RunLayer:
    """``run``, which takes a call, with the signature of :func:`reference.run`."""

    def run_layer(*args: Any) -> tuple[Tensor, States]:
        output, *final = run(layer_call(*args))
        return output, tuple(state.squeeze(0) for state in final)

    return run_layer


def reshaped(tensor: Tensor, change: str, *dims: int) -> Tensor:
    """``tensor.<change>(*dims)`` of a result that nothing else holds, not as a view if that can be.

    PyTorch refuses ``detach_()`` and some in-place updates of views.

    Args:
        change: "transpose" or "squeeze".
    """
    if torch.compiler.is_compiling() or private.is_func_active():  # these rewrite changes in place
        return getattr(tensor, change)(*dims)
    if tensor.is_inference():  # it has no version
        return getattr(tensor, change + "_")(*dims)
    # The backward saves the values of an output, which do not change: to autograd this is no new version of it.
    version = tensor._version
    getattr(tensor, change + "_")(*dims)
    private.set_version(tensor, version)
    return tensor
