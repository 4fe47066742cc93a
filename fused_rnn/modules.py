"""LSTM, GRU and RNN: torch.nn's constructors, parameters, results and errors, on our kernels.

They derive from ``nn.RNNBase`` and only answer ``isinstance`` as ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``
(:mod:`fused_rnn.stock_class`), because torch.compile refuses every instance of those.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import _VF, Tensor, nn  # noqa: F401  TorchScript looks for _VF here: see capture.scripted_as
from torch.nn.utils.rnn import PackedSequence

from . import backends, capture, cell, checks, private
from .call import Call, Form, time_major
from .cell import Cell
from .checks import Lengths
from .stock_class import StockClass


class Layers(StockClass, nn.RNNBase):
    """The base of LSTM, GRU and RNN: from every form of input to a call, and back."""

    _stock: type[nn.RNNBase]  # the class of torch.nn that this one replaces
    __jit_unused_properties__ = capture.UNUSED_PROPERTIES

    @property
    def _cell(self) -> Cell:
        raise NotImplementedError

    def _forward(self, input: Any, hx: Any, lengths: Lengths | None, resets: Tensor | None) -> Any:
        results: Any = None
        is_plain = lengths is None and private.is_plain() and not (self.training and self.dropout)
        if is_plain:
            results = backends.run_again(self._cell, self._form(), self.hidden_size, input, self._weights(), hx, resets)
        if results is None:
            if (taken := capture.taken(self, input, hx, lengths, resets)) is not None:
                return taken
            call = self._call(input, hx, lengths, resets)
            if call.subclass and not (call.ragged or call.has_resets) and self._has_stock and backends.forced() is None:
                return self._stock.forward(self, input, hx)  # some subclasses support little more than torch.nn uses
            results = backends.run(call, remember=is_plain)
            if call.batch_sizes is not None:
                output = PackedSequence(results[0], call.batch_sizes, input.sorted_indices, input.unsorted_indices)
                results = output, *_permuted(results[1:], input.unsorted_indices)
        return results[0], results[1] if len(results) == 2 else (results[1], results[2])

    def _call(self, input: Any, hx: Any, lengths: Lengths | None = None, resets: Tensor | None = None) -> Call:
        """The call of this module.

        Raises:
            RuntimeError, ValueError, TypeError, AttributeError: as torch.nn, where :meth:`_check` would not find it.
        """
        weights = self._weights()
        states = () if hx is None else checks.checked_hx(type(self).__name__, self._cell, hx)
        batch_sizes = None
        if isinstance(input, PackedSequence):
            batch_sizes = checks.checked_packed(*input)
            states = _permuted(states, input.sorted_indices)
            input = input.data
        form, dropout = Form(*self._form()), self.dropout if self.training else 0.0
        call = Call(self._cell, input, states, weights, form, self._check, batch_sizes=batch_sizes, dropout=dropout)
        if lengths is not None or resets is not None:
            self._take_rows(call, lengths, resets)
        elif not input.numel():
            self._check(call)
        return call

    def _take_rows(self, call: Call, lengths: Lengths | None, resets: Tensor | None) -> None:
        """Make lengths and resets of a module those of its call."""
        if call.packed:
            raise ValueError("lengths and resets are for padded input, got a PackedSequence, which has its own lengths")
        input = call.input
        error = None if resets is None else checks.resets_error(resets, input)
        if lengths is not None or error or not input.numel():
            self._check(call)
        if lengths is not None:
            if not call.is_batched:
                raise ValueError("lengths need a batch: input must be 3-D, got 2-D")
            call.lengths = checks.checked_lengths(lengths, call.T, call.B, call.device)
        if error:
            raise error
        if resets is not None:
            call.resets = time_major(resets, input, self.batch_first)

    def _form(self) -> tuple[Any, ...]:
        """The fields of this module's Form, without one: a streaming step has no time for it."""
        directions = 2 if self.bidirectional else 1
        return self.num_layers, directions, self.bias, self.proj_size > 0, self.batch_first, False, False, None

    @property
    def _has_stock(self) -> bool:
        """Whether torch.nn has what this module computes."""
        return bool(self._cell.stock)

    def _weights(self) -> list[Tensor]:
        """``_flat_weights``, made anew by RNNBase where an attribute has changed."""
        weights: Any = self._flat_weights
        parameters = self._parameters
        if len(weights) == len(parameters) and all(map(operator.is_, weights, parameters.values())):
            return weights
        if not self._are_flat_weights_current():
            self._update_flat_weights()
        self._check_flat_weights()
        return self._flat_weights  # type: ignore[return-value]  # just checked

    def _check(self, call: Call) -> None:
        """Raise torch.nn's error if the input or the states have the wrong shape or dtype."""
        input, states = call.input, tuple(call.states)
        is_batched = call.packed or call.is_batched
        if not call.packed and input.dim() not in (2, 3):
            raise ValueError(f"{self._stock.__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        wanted = 3 if is_batched else 2
        if any(state.dim() != wanted for state in states):
            names = " and ".join(self._cell.states)
            got = ", ".join(f"{state.dim()}-D" for state in states)
            kind = "batched 3-D" if is_batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, {names} should also be {wanted}-D but got ({got}) tensors")
        if not is_batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            states = tuple(state.unsqueeze(1) for state in states)
        if not states:
            count = self.num_layers * (2 if self.bidirectional else 1)
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: len(self._cell.states)]
            zero = torch.zeros((), dtype=input.dtype, device=input.device)
            states = tuple(zero.expand(count, call.B, size) for size in sizes)
        hx: Any = states if len(states) > 1 else states[0]
        self.check_forward_args(input, hx, call.batch_sizes)
        if call.T == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

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

    def _check_flat_weights(self) -> None:
        names, weights = self._flat_weights_names, self._flat_weights
        if len(weights) != len(names):
            raise RuntimeError(f"_flat_weights must hold {len(names)} tensors, got {len(weights)}")
        for name, weight in zip(names, weights, strict=True):
            if not isinstance(weight, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(weight).__name__}")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_flat_weights" and len(self._flat_weight_refs) == len(value):
            # RNNBase lets an attribute win that is not the tensor it was when the references were made. With new
            # references, a list of weights wins over the attributes that were set before it.
            parameters = (self._parameters.get(name) for name in self._flat_weights_names)
            self._flat_weight_refs = [None if p is None else weakref.ref(p) for p in parameters]


def _permuted(states: Sequence[Tensor], order: Tensor | None) -> tuple[Tensor, ...]:
    """The rows of states, each [L*D, B, H], in another order."""
    return tuple(states) if order is None else tuple(state.index_select(1, order) for state in states)


class LSTM(Layers):
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
        proj_size: if not 0, h is projected to this size after each step: h' = W_hr (o * tanh(c')), Sak et al. 2014,
            arXiv:1402.1128.
        device, dtype: of the parameters; float32, float64, bfloat16 and float16 have kernels.

    Raises:
        TypeError, ValueError: arguments of the wrong type or range, as torch.nn.
    """

    _stock = nn.LSTM
    _cell = cell.LSTM
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
    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None, resets: Tensor | None = None) -> Any:
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
            resets: bool on the device of ``input``: [T, B], [B, T] with ``batch_first``, or [T] without a batch. Where
                true, a new sequence begins in the row, such as an episode of reinforcement learning. The state before
                that step is zero in every layer, and no gradient goes back from it; in the reverse direction nothing
                crosses the same boundary the other way. So the results are those of each sequence alone. hx is for a
                row's first one (in the reverse direction the last), unless that begins with True.

        Returns:
            output, in the form of ``input`` with D*H in place of input_size, and the final states (h_n, c_n), in the
            form of ``hx``.

        Raises:
            RuntimeError, ValueError: as torch.nn does, before any kernel runs; also if lengths or resets do not fit, or
                come with a ``PackedSequence``.

        Example:
            >>> done = torch.tensor([[False, False, True, False]])  # [B, T]: an episode ended before the third step
            >>> rnn = fused_rnn.LSTM(8, 16, batch_first=True)
            >>> output, (h_n, c_n) = rnn(torch.randn(1, 4, 8), resets=done)
        """
        return self._forward(input, hx, lengths, resets)


class GruMixin(nn.Module):
    """What GRU and GRUCell share: on which side of the matmul the reset gate acts."""

    reset_after = True  # of modules that were converted, or pickled by torch.nn

    @property
    def _cell(self) -> Cell:
        return cell.GRU if self.reset_after else cell.GRU_RESET_BEFORE

    @property
    def __jit_ignored_attributes__(self) -> list[str]:
        """What TorchScript asks for before it compiles torch.nn's forward (:func:`capture.scripted_as`)."""
        if not self.reset_after:
            raise RuntimeError(f"torch.nn has no {type(self).__name__} with reset_after=False")
        return []

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")


class GRU(GruMixin, Layers):
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
        checks.check_no_projection(proj_size)
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__("GRU", *sizes, device=device, dtype=dtype)
        self.reset_after = checks.checked_flag("reset_after", reset_after)

    @capture.scripted_as(nn.GRU.forward)
    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None, resets: Tensor | None = None) -> Any:
        """Run all layers over a batch of sequences: as :meth:`LSTM.forward`, with the one state h_0 for hx, and h_n."""
        return self._forward(input, hx, lengths, resets)


class RNN(Layers):
    """A drop-in for ``torch.nn.RNN``: same arguments, parameters, ``state_dict``, results and errors.

    At each step (PyTorch's documentation of ``torch.nn.RNN`` is the definition)::

        h' = tanh(W x + b + U h + d)        or relu

    Args:
        nonlinearity: "tanh" or "relu".
        proj_size: must be 0; it stands here because torch.nn.RNN has it in this place.
        others: as of :class:`LSTM`.

    Raises:
        TypeError, ValueError: arguments of the wrong type or range, as torch.nn.
    """

    _stock = nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_no_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__(f"RNN_{nonlinearity.upper()}", *sizes, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    @property
    def _cell(self) -> Cell:
        return cell.named(self.mode.lower())  # what nn.RNN runs, whatever nonlinearity has become

    @capture.scripted_as(nn.RNN.forward)
    def forward(self, input: Any, hx: Any = None, lengths: Lengths | None = None, resets: Tensor | None = None) -> Any:
        """Run all layers over a batch of sequences: as :meth:`LSTM.forward`, with the one state h_0 for hx, and h_n."""
        return self._forward(input, hx, lengths, resets)
