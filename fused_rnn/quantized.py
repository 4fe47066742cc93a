"""Layers and cells for inference with weights of int8 or bfloat16, which :func:`fused_rnn.quantize_` makes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import int8, panels
from .call import Call, Form, short
from .cells import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN


class Quantized(nn.Module):
    """The differences between a layer or cell with quantised weights and one with float32 weights.

    Its weights are buffers, ``weight_ih_l0`` and so on, which hold the panels that the CPU kernels take.
    ``state_dict`` and pickled modules have plain rows instead, int8 or bfloat16 [G*H, K], the same on every machine.
    The scales of rows of int8 are ``scale_ih_l0`` and so on, float32 [G*H].
    """

    _has_stock = False
    _cell: Any
    bias: bool
    hidden_size: int
    _buffers: dict[str, Any]
    _quantized: torch.dtype  # of the weights
    _columns: dict[str, int]  # of each weight

    def quantize(self, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Take these in place of the parameters that the layer had before it became one of this class.

        Args:
            weights: of all layers and directions by their names, in the order of torch.nn.
            dtype: torch.int8 or torch.bfloat16.
        """
        self._parameters.clear()
        self._quantized = dtype
        self._columns = {name: weight.size(1) for name, weight in weights.items() if weight.dim() == 2}
        for name, weight in weights.items():
            if name not in self._columns:
                self.register_buffer(name, weight.detach().clone())
                continue
            if dtype is torch.int8:
                numbers, scale = int8.rows_of(weight.detach())
                self.register_buffer(_scale(name), scale)
            else:
                numbers = weight.detach().to(dtype)
                if not self.bias:  # the kernels see the number of units by the biases
                    self.register_buffer(_bias(name), weight.new_zeros(weight.size(0)), persistent=False)
            self.register_buffer(name, self._packed(name, numbers), persistent=False)

    def _packed(self, name: str, numbers: Tensor) -> Tensor:
        return panels.packed(self._cell, numbers, _is_hidden(name))

    def _rows(self, name: str) -> Tensor:
        """The rows of a weight, [G*H, K]."""
        return panels.unpacked(self._cell, self._buffers[name], self._columns[name], self.hidden_size, _is_hidden(name))

    def dequantize(self) -> None:
        """Become a layer with float32 parameters again, which have the values of the quantised weights."""
        buffers = {name: buffer for name, buffer in self._buffers.items() if self.bias or not name.startswith("bias")}
        for name in self._columns:
            rows = self._rows(name)
            is_int8 = self._quantized is torch.int8
            buffers[name] = int8.Rows(rows, buffers.pop(_scale(name))).floats() if is_int8 else rows.float()
        self._buffers.clear()
        self._non_persistent_buffers_set.clear()
        del self._columns, self._quantized
        self.__class__ = type(self).__bases__[1]
        for name in buffers:
            self.register_parameter(name, nn.Parameter(buffers[name]))

    def _call(self, *args: Any) -> Call:
        call: Call = super()._call(*args)  # type: ignore[misc]
        if call.training:
            raise RuntimeError(
                f"{type(self).__name__} has {short(self._quantized)} weights and no gradient, but its input or state "
                "requires one: run it under torch.no_grad(), or train before quantize_"
            )
        return call

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: self._rows(name) for name in self._columns})

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        others = dict(state_dict)
        for name, columns in self._columns.items():
            rows = others.pop(prefix + name, None)
            wanted = [self._cell.gates * self.hidden_size, columns]
            if rows is None:
                missing.append(prefix + name)
            elif rows.dtype != self._quantized or list(rows.shape) != wanted:
                needs, got = f"{wanted} of {self._quantized}", f"{list(rows.shape)} of {rows.dtype}"
                errors.append(f"{prefix}{name} must be {needs}, got {got}: load floats before quantize_")
            else:
                self._buffers[name].copy_(self._packed(name, rows))
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, unexpected, errors)

    def __getstate__(self) -> dict[str, Any]:
        get: Any = getattr(super(), "__getstate__", self.__dict__.copy)
        state: dict[str, Any] = get()
        rows = {name: self._rows(name) for name in self._columns}
        return state | {"_buffers": self._buffers | rows, "_flat_weights": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        buffers = dict(state["_buffers"])
        super().__setstate__(state | {"_buffers": buffers})
        for name in self._columns:
            buffers[name] = self._packed(name, buffers[name])

    def extra_repr(self) -> str:
        return super().extra_repr() + f", weights={short(self._quantized)}"

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What TorchScript asks for before it compiles torch.nn's forward (:func:`capture.scripted_as`)."""
        raise RuntimeError(
            f"{type(self).__name__} cannot be scripted, traced or exported: torch.nn has no quantised weights"
        )


def _scale(name: str) -> str:
    return name.replace("weight", "scale")


def _bias(name: str) -> str:
    return name.replace("weight", "bias")


def _is_hidden(name: str) -> bool:
    return name.startswith("weight_hh")


def _in_order(names: Sequence[str], dtype: torch.dtype) -> list[str]:
    """The buffers of one layer in one direction in the order of Call.weights, from torch.nn's names."""
    weights, biases = names[:2], names[2:]
    if dtype is torch.int8:
        return [*map(_scale, weights), *biases, *weights]
    return [*map(_bias, weights), *weights]


def _set_names(layer: Any, names: list[list[str]]) -> None:
    """Tell nn.RNNBase the names of the weights for each layer and direction."""
    layer._all_weights = names
    layer._flat_weights_names = [name for of_one in names for name in of_one]
    layer._init_flat_weights()


class QuantizedLayers(Quantized):
    """The base of layers with quantised weights."""

    _all_weights: Any
    _flat_weights_names: Any
    _init_flat_weights: Any

    def quantize(self, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
        super().quantize(weights, dtype)
        _set_names(self, [_in_order(layer, dtype) for layer in self._all_weights])

    def dequantize(self) -> None:
        super().dequantize()
        _set_names(self, [[*layer[-2:], *layer[-4:-2] * self.bias] for layer in self._all_weights])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._init_flat_weights()

    def _form(self) -> tuple[Any, ...]:
        layers, directions, bias, *others, _ = super()._form()  # type: ignore[misc]
        return layers, directions, bias or self._quantized is torch.bfloat16, *others, self._quantized

    def _weights(self) -> list[Any]:
        buffers = self._buffers
        return [buffers[name] for name in self._flat_weights_names]


class QuantizedCell(Quantized):
    """The base of cells with quantised weights."""

    def _own_weights(self) -> Any:
        buffers = self._buffers
        return [buffers[name] for name in _CELL_NAMES[self._quantized, self.bias]]

    _weights = _own_weights

    def dequantize(self) -> None:
        super().dequantize()
        for name in ("bias_ih", "bias_hh"):
            if name not in self._parameters:
                self.register_parameter(name, None)

    def _form(self, weights: Sequence[Any]) -> Form:
        return _CELL_FORMS[self._quantized, self.bias]


_CELL_KINDS = list(itertools.product(panels.FLAGS, (True, False)))  # each dtype, with biases and without
_CELL_NAMES = {
    (dtype, bias): _in_order(["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if bias else 2], dtype)
    for dtype, bias in _CELL_KINDS
}
_CELL_FORMS = {
    (dtype, bias): Form(bias=bias or dtype is torch.bfloat16, step=True, quantized=dtype) for dtype, bias in _CELL_KINDS
}


class QuantizedLSTM(QuantizedLayers, LSTM):
    """An :class:`LSTM` with quantised weights, which :func:`quantize_` makes."""


class QuantizedGRU(QuantizedLayers, GRU):
    """A :class:`GRU` with quantised weights, which :func:`quantize_` makes."""


class QuantizedRNN(QuantizedLayers, RNN):
    """An :class:`RNN` with quantised weights, which :func:`quantize_` makes."""


class QuantizedLSTMCell(QuantizedCell, LSTMCell):
    """An :class:`LSTMCell` with quantised weights, which :func:`quantize_` makes."""


class QuantizedGRUCell(QuantizedCell, GRUCell):
    """A :class:`GRUCell` with quantised weights, which :func:`quantize_` makes."""


class QuantizedRNNCell(QuantizedCell, RNNCell):
    """An :class:`RNNCell` with quantised weights, which :func:`quantize_` makes."""


QUANTIZED: dict[type[nn.Module], type[Quantized]] = {
    LSTM: QuantizedLSTM,
    GRU: QuantizedGRU,
    RNN: QuantizedRNN,
    LSTMCell: QuantizedLSTMCell,
    GRUCell: QuantizedGRUCell,
    RNNCell: QuantizedRNNCell,
}
