"""LSTM, GRU, LSTMCell and GRUCell: torch.nn's constructors, parameters, results and errors, on our kernels.

``LSTM`` and ``GRU`` derive from ``nn.RNNBase`` and only answer ``isinstance`` as ``nn.LSTM`` and ``nn.GRU``
(:mod:`fused_rnn.stock_class`), because torch.compile refuses every instance of those.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import _VF, Tensor, nn  # noqa: F401  TorchScript looks for _VF here: see capture.scripted_as
from torch.nn.utils.rnn import PackedSequence

from . import backends, capture, checks, layer, stack
from . import cell as cells
from .cell import Cell, States, Weights
from .stock_class import StockClass


class _Layers(StockClass, nn.RNNBase):
    """What LSTM and GRU share: from every form of input to [T, B, I], through the stack, and back."""

    _stock: type[nn.RNNBase]  # the class of torch.nn that this one stands for
    __jit_unused_properties__ = capture.UNUSED_PROPERTIES

    @property
    def _cell(self) -> Cell:
        raise NotImplementedError

    def _forward(self, input: Any, hx: Any, lengths: Tensor | Sequence[int] | None) -> Any:
        if lengths is None and layer.is_plain() and (result := self._infer(input, hx)) is not None:
            return result
        if (proxy := capture.proxy_among(input, hx, lengths)) is not None:
            return capture.record(proxy, self, input, hx, lengths=lengths)
        has_equivalent = lengths is None and self._cell.reset_after
        if capture.wants_torch_nn(has_equivalent):
            return self._stock.forward(self, input, hx)
        if not self._are_flat_weights_current():
            self._update_flat_weights()
        is_packed = isinstance(input, PackedSequence)
        if has_equivalent and backends.forced() is None and layer.subclass_among(input, *self._flat_weights):
            if is_packed:
                checks.checked_packed(*input)
            return self._stock.forward(self, input, hx)  # some subclasses support little more than torch.nn uses
        return self._run_packed(input, hx, lengths) if is_packed else self._run_padded(input, hx, lengths)

    def _infer(self, input: Any, hx: Any) -> Any:
        """The result of :meth:`_forward` from the inference op, where :func:`layer.is_plain`; None where it cannot run.

        The caller then takes the general path, which raises torch.nn's error if there is one.
        """
        if type(input) is not Tensor or not input.is_cpu or self.proj_size or (self.training and self.dropout):
            return None
        if not self._are_flat_weights_current():
            if not self._parameters.keys() >= set(self._flat_weights_names):
                return None  # some are computed, at every look
            self._update_flat_weights()
        try:
            return self._inference(input, self._flat_weights, hx)
        except (RuntimeError, TypeError):
            return None

    def _are_flat_weights_current(self) -> bool:
        """Whether each weight is the Parameter that it was when ``_flat_weights`` was made.

        If not, RNNBase makes it anew if an attribute has changed, and computes the weights of parametrisations. Its own
        check takes several times as long.
        """
        parameters = self._parameters
        for ref, name in zip(self._flat_weight_refs, self._flat_weights_names):
            if ref is None or ref() is not parameters.get(name):
                return False
        return True

    def _inference(self, input: Tensor, weights: list[Any], hx: Any) -> Any:
        """The inference op of this module; None if hx is not what it takes."""
        raise NotImplementedError

    def _run_padded(self, input: Tensor, hx: Any, lengths: Tensor | Sequence[int] | None) -> Any:
        if input.dim() not in (2, 3):
            raise ValueError(f"{self.mode}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batch_dim = 0 if self.batch_first else 1
        batched = input.dim() == 3
        if not batched:
            if lengths is not None:
                raise ValueError("lengths need a batch: input must be 3-D, got 2-D")
            input = input.unsqueeze(batch_dim)
        states = self._initial(input, input.size(batch_dim), hx, batched)
        self.check_forward_args(input, self._as_hx(states), None)
        x = input.transpose(0, 1) if self.batch_first else input
        if x.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if lengths is not None:
            lengths = checks.checked_lengths(lengths, x)
        output, final = self._run(x, states, lengths=lengths)
        if not batched:
            output = stack.reshaped(output, "squeeze", 1)
            final = tuple(stack.reshaped(state, "squeeze", 1) for state in final)
        elif self.batch_first:
            output = stack.reshaped(output, "transpose", 0, 1)
        return output, self._as_hx(final)

    def _run_packed(self, input: PackedSequence, hx: Any, lengths: Any) -> Any:
        if lengths is not None:
            raise ValueError("lengths are for padded input: a PackedSequence has its own")
        data, batch_sizes, sorted_indices, unsorted_indices = input
        batch_sizes, B = checks.checked_packed(data, batch_sizes, sorted_indices, unsorted_indices)
        states = self._initial(data, B, hx, batched=True)
        self.check_forward_args(data, self._as_hx(states), batch_sizes)
        if hx is not None:
            states = stack.permuted(states, sorted_indices)
        output, final = self._run(data, states, batch_sizes=batch_sizes)
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self._as_hx(stack.permuted(final, unsorted_indices))

    def _run(self, x: Tensor, states: States, **options: Any) -> tuple[Tensor, States]:
        return stack.run(
            self._cell,
            x,
            states,
            self._layer_weights(),
            directions=2 if self.bidirectional else 1,
            dropout=self.dropout if self.training else 0.0,
            **options,
        )

    def _layer_weights(self) -> list[Weights]:
        names, weights = self._flat_weights_names, self._flat_weights
        if len(weights) != len(names):
            raise RuntimeError(f"_flat_weights must hold {len(names)} tensors, got {len(weights)}")
        for name, weight in zip(names, weights, strict=True):
            if not isinstance(weight, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(weight).__name__}")
        flat: Iterator[Any] = iter(weights)
        return [Weights(**{name[: name.rindex("_l")]: next(flat) for name in layer}) for layer in self._all_weights]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_flat_weights" and len(self._flat_weight_refs) == len(value):
            # RNNBase lets an attribute win that is not the tensor it was when the references were made. With new
            # references, a list of weights wins over the attributes that were set before it.
            parameters = (self._parameters.get(name) for name in self._flat_weights_names)
            self._flat_weight_refs = [None if p is None else weakref.ref(p) for p in parameters]

    def _initial(self, input: Tensor, batch: int, hx: Any, batched: bool) -> States:
        """The initial states, each [L*D, B, H]."""
        if hx is not None:
            states = self._from_hx(hx)
            self._check_rank(states, batched)
            return states if batched else tuple(state.unsqueeze(1) for state in states)
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        zeros = partial(torch.zeros, dtype=input.dtype, device=input.device)  # new_zeros writes past an mkldnn tensor
        return tuple(zeros(count, batch, size) for _, size in zip(self._cell.states, sizes, strict=False))

    def _check_rank(self, states: States, batched: bool) -> None:
        wanted = 3 if batched else 2
        if any(state.dim() != wanted for state in states):
            names = " and ".join(self._cell.states)
            got = ", ".join(f"{state.dim()}-D" for state in states)
            form = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {form} input, {names} should also be {wanted}-D but got ({got}) tensors")

    def _from_hx(self, hx: Any) -> States:
        raise NotImplementedError

    def _as_hx(self, states: States) -> Any:
        raise NotImplementedError


class LSTM(_Layers):
    """A drop-in for ``torch.nn.LSTM``: same arguments, parameters, ``state_dict``, results and errors.

    At each step, with PyTorch's gate order (its documentation of ``torch.nn.LSTM`` is the definition)::

        i, f, o = sigmoid(W_i x + b_i + U_i h + d_i), ...      g = tanh(W_g x + b_g + U_g h + d_g)
        c' = f * c + i * g                                     h' = o * tanh(c')

    Args:
        input_size: size of x at a step.
        hidden_size: size of h, H.
        num_layers: layers on top of each other.
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are [B, T, ...] instead of [T, B, ...]; states are not affected.
        dropout: probability of an element of a layer's output, but the last layer's, to be zeroed in training.
        bidirectional: a second set of layers runs from the last step to the first; outputs are concatenated.
        proj_size: if not 0, h is projected to this size after each step.
        device, dtype: of the parameters; float32, float64, bfloat16 and float16 have kernels.

    Raises:
        TypeError, ValueError: arguments of the wrong type or range, as torch.nn.
    """

    _stock = nn.LSTM
    _cell = cells.LSTM
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__("LSTM", *sizes, device=device, dtype=dtype)

    @capture.scripted_as(nn.LSTM.forward)
    def forward(self, input: Any, hx: Any = None, lengths: Tensor | Sequence[int] | None = None) -> Any:
        """Run all layers over a batch of sequences.

        Args:
            input: [T, B, input_size], or [B, T, input_size] with ``batch_first``, or [T, input_size] without a batch,
                or a ``PackedSequence``; in the dtype of the weights.
            hx: initial states, zeros if None: the pair (h_0, c_0), each [L*D, B, H], or [L*D, H] without a batch; h_0
                with proj_size in place of H if that is not 0.
            lengths: [B], int64 on the device of ``input``, each from 0 to T, in any order: row b ends after lengths[b]
                steps. Past its end the output is zero; its final state is that of its last step, and the reverse
                direction starts there: what packing with ``enforce_sorted=False`` and padding again would give. The
                final state of a row of length 0 is its initial state.

        Returns:
            output, in the form of ``input`` with D*H in place of input_size, and the final states (h_n, c_n), in the
            form of ``hx``.

        Raises:
            RuntimeError, ValueError: as torch.nn does, before any kernel runs.
        """
        return self._forward(input, hx, lengths)

    def _inference(self, input: Tensor, weights: list[Any], hx: Any) -> Any:
        if hx is None:
            hx = None, None
        elif not _is_states(hx):
            return None
        flags = self.bias, self.bidirectional, self.batch_first
        output, h, c = torch.ops.fused_rnn.lstm_inference.default(input, weights, *hx, *flags)
        return output, (h, c)

    def _from_hx(self, hx: Any) -> States:
        return checks.checked_lstm_hx("LSTM", hx)

    def _as_hx(self, states: States) -> tuple[Tensor, Tensor]:
        h, c = states
        return h, c


class _Gru(nn.Module):
    """What GRU and GRUCell share: on which side of the matmul the reset gate acts."""

    reset_after = True  # of modules that were converted, or pickled by torch.nn
    __jit_unused_properties__ = capture.UNUSED_PROPERTIES

    @property
    def _cell(self) -> Cell:
        return cells.GRU if self.reset_after else cells.GRU_RESET_BEFORE

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What TorchScript asks for before it compiles torch.nn's forward (:func:`capture.scripted_as`)."""
        if not self.reset_after:
            raise RuntimeError(f"torch.nn has no {type(self).__name__} with reset_after=False")
        return []

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class GRU(_Gru, _Layers):
    """A drop-in for ``torch.nn.GRU``: same arguments, parameters, ``state_dict``, results and errors.

    At each step, with PyTorch's gate order (its documentation of ``torch.nn.GRU`` is the definition)::

        r, z = sigmoid(W_r x + b_r + U_r h + d_r), ...
        n = tanh(W_n x + b_n + r * (U_n h + d_n))        reset_after=True
        n = tanh(W_n x + b_n + U_n (r * h) + d_n)        reset_after=False: Cho et al. 2014, arXiv:1406.1078
        h' = (1 - z) * n + z * h

    The textbooks' ``h' = (1 - z) * h + z * n`` is the same function with z's rows of all weights and biases negated.

    Args:
        reset_after: whether the reset gate acts after the matmul, as in torch.nn, cuDNN and Keras, or before it.
        proj_size: must be 0; it stands here because torch.nn.GRU has it in this place.
        others: as of :class:`LSTM`.

    Raises:
        TypeError, ValueError: arguments of the wrong type or range, as torch.nn.
    """

    _stock = nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
    ) -> None:
        if isinstance(proj_size, int) and proj_size != 0:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__("GRU", *sizes, device=device, dtype=dtype)
        self.reset_after = checks.checked_flag("reset_after", reset_after)

    @capture.scripted_as(nn.GRU.forward)
    def forward(self, input: Any, hx: Any = None, lengths: Tensor | Sequence[int] | None = None) -> Any:
        """Run all layers over a batch of sequences: as :meth:`LSTM.forward`, with the one state h_0 for hx, and h_n."""
        return self._forward(input, hx, lengths)

    def _inference(self, input: Tensor, weights: list[Any], hx: Any) -> Any:
        if hx is not None and not isinstance(hx, Tensor):
            return None
        flags = self.reset_after, self.bias, self.bidirectional, self.batch_first
        return torch.ops.fused_rnn.gru_inference.default(input, weights, hx, *flags)

    def _from_hx(self, hx: Any) -> States:
        return (checks.checked_gru_hx(hx),)

    def _as_hx(self, states: States) -> Tensor:
        (h,) = states
        return h


class LSTMCell(nn.LSTMCell):
    """A drop-in for ``torch.nn.LSTMCell``: one step of :class:`LSTM`, input [B, input_size] or [input_size].

    Args and errors: as of ``torch.nn.LSTMCell``.
    """

    _cell = cells.LSTM

    @capture.scripted_as(nn.LSTMCell.forward)
    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The new (h, c), each [B, hidden_size] or [hidden_size]; hx: the old ones, zeros if None."""
        if layer.is_plain() and (hx is None or _is_states(hx)):
            op = torch.ops.fused_rnn.lstm_cell_inference.default
            if (result := _infer_cell(self, op, input, *(hx or (None, None)))) is not None:
                return result
        if (proxy := capture.proxy_among(input, hx)) is not None:
            return capture.record(proxy, self, input, hx)
        if capture.wants_torch_nn(has_equivalent=True):
            return super().forward(input, hx)
        h, c = _run_cell(self, input, None if hx is None else checks.checked_lstm_hx("LSTMCell", hx))
        return h, c


class GRUCell(_Gru, nn.GRUCell):
    """A drop-in for ``torch.nn.GRUCell``: one step of :class:`GRU`, input [B, input_size] or [input_size].

    Args and errors: as of ``torch.nn.GRUCell``; ``reset_after`` as of :class:`GRU`.
    """

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
        if layer.is_plain() and (hx is None or isinstance(hx, Tensor)):
            op = torch.ops.fused_rnn.gru_cell_inference.default
            if (result := _infer_cell(self, op, input, hx, self.reset_after)) is not None:
                return result
        if (proxy := capture.proxy_among(input, hx)) is not None:
            return capture.record(proxy, self, input, hx)
        if self.reset_after and capture.wants_torch_nn(has_equivalent=True):
            return super().forward(input, hx)
        (h,) = _run_cell(self, input, None if hx is None else (checks.checked_gru_hx(hx),))
        return h


def _infer_cell(module: Any, op: Any, input: Any, *rest: Any) -> Any:
    """What a cell gives where :func:`layer.is_plain`, by its inference op; None as :meth:`_Layers._infer`."""
    if type(input) is not Tensor or not input.is_cpu:
        return None
    p = module._parameters
    try:
        return op(input, p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"], *rest)
    except (KeyError, RuntimeError, TypeError):
        return None


def _is_states(hx: Any) -> bool:
    """Whether hx is the pair of tensors that an LSTM takes."""
    return type(hx) is tuple and len(hx) == 2 and isinstance(hx[0], Tensor) and isinstance(hx[1], Tensor)


def _run_cell(module: Any, input: Tensor, states: States | None) -> States:
    cell: Cell = module._cell
    kind = {"lstm": "LSTMCell", "gru": "GRUCell"}[cell.name]
    if input.dim() not in (1, 2):
        raise ValueError(f"{kind}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if states is None:
        states = (torch.zeros(x.size(0), module.hidden_size, dtype=x.dtype, device=x.device),) * len(cell.states)
    else:
        for k, state in enumerate(states):
            if state.dim() not in (1, 2):
                name = f"hx[{k}]" if len(states) > 1 else "hidden"
                raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
            if state.dim() != input.dim():
                form = f"{'batched' if batched else 'unbatched'} {input.dim()}-D"
                raise RuntimeError(f"For {form} input, hx should also be {input.dim()}-D but got {state.dim()}-D")
        states = states if batched else tuple(state.unsqueeze(0) for state in states)
        checks.check_cell_states(x, states, module.hidden_size)
    if x.size(1) != module.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {x.size(1)} expected {module.input_size}")
    weights = Weights(module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    _, final = layer.run(cell, x.unsqueeze(0), states, weights)
    return final if batched else tuple(stack.reshaped(state, "squeeze", 0) for state in final)
