"""Layers and cells for inference with weights of int8, which :func:`fused_rnn.quantize_` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import int8
from .call import Call, Form
from .cells import GRUCell, LSTMCell, RNNCell
from .modules import GRU, LSTM, RNN


class Quantized(nn.Module):
    """The differences between a layer or cell with int8 weights and one with float32 weights.

    Its weights are buffers, ``weight_ih_l0`` and so on, which hold the panels that the CPU kernels take.
    ``state_dict`` and pickled modules have plain rows instead, int8 [G*H, K], the same on every machine. The scales of
    these rows are ``scale_ih_l0`` and so on, float32 [G*H].
    """

    _has_stock = False
    _cell: Any
    _buffers: dict[str, Any]
    _columns: dict[str, int]  # of each weight

    def quantize(self, weights: dict[str, Tensor]) -> None:
        """Take these in place of the parameters that the layer had before it became one of this class.

        Args:
            weights: of all layers and directions by their names, in the order of torch.nn.
        """
        self._parameters.clear()
        self._columns = {name: weight.size(1) for name, weight in weights.items() if weight.dim() == 2}
        for name, weight in weights.items():
            if name not in self._columns:
                self.register_buffer(name, weight.detach().clone())
                continue
            rows = int8.rows_of(weight.detach())
            self.register_buffer(_scale(name), rows.scale)
            self.register_buffer(name, self._packed(name, rows.numbers), persistent=False)

    def _packed(self, name: str, numbers: Tensor) -> Tensor:
        return int8.packed(self._cell, numbers, _is_hidden(name))

    def _rows(self, name: str) -> Tensor:
        """The rows of a weight, [G*H, K]."""
        H = self._buffers[_scale(name)].size(0) // self._cell.gates
        return int8.unpacked(self._cell, self._buffers[name], self._columns[name], H, _is_hidden(name))

    def dequantize(self) -> None:
        """Become a layer of float32 weights again: its parameters are the int8 numbers times their scales."""
        buffers = dict(self._buffers)
        for name in self._columns:
            buffers[name] = int8.Rows(self._rows(name), buffers.pop(_scale(name))).floats()
        self._buffers.clear()
        self._non_persistent_buffers_set.clear()
        del self._columns
        self.__class__ = type(self).__bases__[1]
        for name in buffers:
            self.register_parameter(name, nn.Parameter(buffers[name]))

    def _call(self, *args: Any) -> Call:
        call: Call = super()._call(*args)  # type: ignore[misc]
        if call.training:
            raise RuntimeError(
                f"{type(self).__name__} has int8 weights and no gradient, but its input or state requires one: run it "
                "under torch.no_grad(), or train before quantize_"
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
            wanted = [self._buffers[_scale(name)].size(0), columns]
            if rows is None:
                missing.append(prefix + name)
            elif rows.dtype != torch.int8 or list(rows.shape) != wanted:
                got = f"{list(rows.shape)} of {rows.dtype}"
                errors.append(f"{prefix}{name} must be {wanted} of torch.int8, got {got}: load floats before quantize_")
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
        return super().extra_repr() + ", weights=int8"

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What TorchScript asks for before it compiles torch.nn's forward (:func:`capture.scripted_as`)."""
        raise RuntimeError(
            f"{type(self).__name__} cannot be scripted, traced or exported: torch.nn has no int8 weights"
        )


def _scale(name: str) -> str:
    return name.replace("weight", "scale")


def _is_hidden(name: str) -> bool:
    return name.startswith("weight_hh")


def _in_order(names: Sequence[str]) -> list[str]:
    """The buffers of one layer in one direction in the order of Call.weights, from the weights in that of torch.nn."""
    weights, biases = names[:2], names[2:]
    return [*map(_scale, weights), *biases, *weights]


def _set_names(layer: Any, names: list[list[str]]) -> None:
    """Tell nn.RNNBase the names of the weights for each layer and direction."""
    layer._all_weights = names
    layer._flat_weights_names = [name for of_one in names for name in of_one]
    layer._init_flat_weights()


class QuantizedLayers(Quantized):
    """The base of layers with int8 weights."""

    _all_weights: Any
    _flat_weights_names: Any
    _init_flat_weights: Any

    def quantize(self, weights: dict[str, Tensor]) -> None:
        super().quantize(weights)
        _set_names(self, [_in_order(layer) for layer in self._all_weights])

    def dequantize(self) -> None:
        super().dequantize()
        _set_names(self, [[*layer[-2:], *layer[2:-2]] for layer in self._all_weights])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._init_flat_weights()

    def _form(self) -> tuple[Any, ...]:
        return *super()._form()[:-1], True  # type: ignore[misc]

    def _weights(self) -> list[Any]:
        buffers = self._buffers
        return [buffers[name] for name in self._flat_weights_names]


class QuantizedCell(Quantized):
    """The base of cells with int8 weights."""

    bias: bool

    def _own_weights(self) -> Any:
        buffers = self._buffers
        return [buffers[name] for name in (_NAMES if self.bias else _UNBIASED_NAMES)]

    _weights = _own_weights

    def dequantize(self) -> None:
        super().dequantize()
        for name in ("bias_ih", "bias_hh"):
            if name not in self._parameters:
                self.register_parameter(name, None)

    def _form(self, weights: Sequence[Any]) -> Form:
        return _FORM if self.bias else _UNBIASED_FORM


_NAMES = _in_order(["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
_UNBIASED_NAMES = _in_order(["weight_ih", "weight_hh"])
_FORM, _UNBIASED_FORM = Form(step=True, int8=True), Form(bias=False, step=True, int8=True)


class QuantizedLSTM(QuantizedLayers, LSTM):
    """An :class:`LSTM` with int8 weights, which :func:`quantize_` makes."""


class QuantizedGRU(QuantizedLayers, GRU):
    """A :class:`GRU` with int8 weights, which :func:`quantize_` makes."""


class QuantizedRNN(QuantizedLayers, RNN):
    """An :class:`RNN` with int8 weights, which :func:`quantize_` makes."""


class QuantizedLSTMCell(QuantizedCell, LSTMCell):
    """An :class:`LSTMCell` with int8 weights, which :func:`quantize_` makes."""


class QuantizedGRUCell(QuantizedCell, GRUCell):
    """A :class:`GRUCell` with int8 weights, which :func:`quantize_` makes."""


class QuantizedRNNCell(QuantizedCell, RNNCell):
    """An :class:`RNNCell` with int8 weights, which :func:`quantize_` makes."""


QUANTIZED: dict[type[nn.Module], type[Quantized]] = {
    LSTM: QuantizedLSTM,
    GRU: QuantizedGRU,
    RNN: QuantizedRNN,
    LSTMCell: QuantizedLSTMCell,
    GRUCell: QuantizedGRUCell,
    RNNCell: QuantizedRNNCell,
}
