"""LSTMCell, GRUCell and RNNCell: torch.nn's constructors, parameters, results and errors, on our kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor, nn  # noqa: F401  TorchScript looks for _VF here: see capture.scripted_as

from . import backends, capture, cell, checks, private
from .call import Call, Form
from .cell import Cell
from .modules import GruMixin

_BIASED, _UNBIASED = Form(step=True), Form(bias=False, step=True)


class OneStep(nn.RNNCellBase):
    """The base of the cells: from the arguments of a module to a call, and back."""

    _stock: type[nn.RNNCellBase]  # the class of torch.nn that this one replaces
    _cell: Any
    __jit_unused_properties__ = capture.UNUSED_PROPERTIES

    def _forward(self, input: Any, hx: Any) -> Any:
        final: Any = None
        weights = self._own_weights() if private.is_plain() else ()
        if weights:
            final = backends.run_again(self._cell, self._form(weights), self.hidden_size, input, weights, hx)
        if final is None:
            if (taken := capture.taken(self, input, hx)) is not None:
                return taken
            final = backends.run(self._call(input, hx), remember=bool(weights))
        return final[0] if len(final) == 1 else (final[0], final[1])

    def _call(self, input: Any, hx: Any) -> Call:
        """The call of this cell.

        Raises:
            RuntimeError, ValueError, TypeError, AttributeError: as torch.nn, where :meth:`_check` would not find it.
        """
        states = () if hx is None else checks.checked_hx(type(self).__name__, self._cell, hx)
        weights = self._weights()
        return Call(self._cell, input, states, weights, self._form(weights), self._check)

    def _form(self, weights: Sequence[Any]) -> Form:
        return _BIASED if len(weights) > 2 and weights[2] is not None else _UNBIASED

    @property
    def _has_stock(self) -> bool:
        """Whether torch.nn has what this module computes."""
        return bool(self._cell.stock)

    def _check(self, call: Call) -> None:
        """Raise torch.nn's error if the input or the states have the wrong shape."""
        checks.check_cell_input(type(self).__name__, call.input, call.states, self.input_size, self.hidden_size)

    def _own_weights(self) -> tuple[Any, ...]:
        """All four weights as they are; () where some are computed, at every look."""
        p = self._parameters
        try:
            return p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]
        except KeyError:
            return ()

    def _weights(self) -> list[Tensor]:
        """The weights without those that are not there; if one bias is not there, zeros in its place."""
        weights: Any = self._own_weights() or (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if weights[2] is not None and weights[3] is not None:
            return list(weights)
        if weights[2] is weights[3]:
            return list(weights[:2])
        return [torch.zeros_like(weights[5 - k]) if w is None else w for k, w in enumerate(weights)]


class LSTMCell(OneStep, nn.LSTMCell):
    """A drop-in for ``torch.nn.LSTMCell``: one step of :class:`LSTM`, input [B, input_size] or [input_size].

    Args and errors: as of ``torch.nn.LSTMCell``.
    """

    _stock = nn.LSTMCell
    _cell = cell.LSTM

    @capture.scripted_as(nn.LSTMCell.forward)
    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The new (h, c), each [B, hidden_size] or [hidden_size]; hx: the old ones, zeros if None."""
        return self._forward(input, hx)


class GRUCell(GruMixin, OneStep, nn.GRUCell):
    """A drop-in for ``torch.nn.GRUCell``: one step of :class:`GRU`, input [B, input_size] or [input_size].

    Args and errors: as of ``torch.nn.GRUCell``; ``reset_after`` as of :class:`GRU`.
    """

    _stock = nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self.reset_after = checks.checked_flag("reset_after", reset_after)

    @capture.scripted_as(nn.GRUCell.forward)
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The new h, [B, hidden_size] or [hidden_size]; hx: the old one, zeros if None."""
        return self._forward(input, hx)


class RNNCell(OneStep, nn.RNNCell):
    """A drop-in for ``torch.nn.RNNCell``: one step of :class:`RNN`, input [B, input_size] or [input_size].

    Args and errors: as of ``torch.nn.RNNCell``.
    """

    _stock = nn.RNNCell

    @property
    def _cell(self) -> Cell:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}. Select from 'tanh' or 'relu'.")
        return cell.named(f"rnn_{self.nonlinearity}")

    @capture.scripted_as(nn.RNNCell.forward)
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The new h, [B, hidden_size] or [hidden_size]; hx: the old one, zeros if None."""
        return self._forward(input, hx)
