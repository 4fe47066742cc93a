"""Serving a step at a time: states and output stay where they are, and a step passes no dispatcher."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import backends, native
from .call import PLAIN, Form, flags_of
from .cells import OneStep
from .convert import alias_of_ours
from .modules import Layers


class Stream:
    """A recurrent layer or cell that takes a step a call, for serving: the fastest way to run single steps.

    States and output live in memory that each call changes in place. On a CPU, a call checks its input and then runs
    the kernels at once; elsewhere it calls the module. The weights are those that the module has when the stream is
    made: what changes them in place, such as ``load_state_dict``, changes the stream; new tensors in their place do
    not. There is no gradient. A stream is for one thread at a time.

    Args:
        rnn: a layer in one direction or a cell, of ours or of torch.nn, also one of :func:`quantize_`.
        batch: B, the rows of the input, each with a state of its own.

    Raises:
        TypeError: ``rnn`` is no such module, or ``batch`` is no int.
        ValueError: ``rnn`` is bidirectional or would apply dropout, or ``batch`` is below 1.

    Example:
        >>> stream = fused_rnn.Stream(nn.GRU(80, 256).eval())
        >>> for frame in frames:  # each [1, 80]
        ...     y = stream(frame)  # [1, 256], which the next call overwrites
    """

    def __init__(self, rnn: nn.Module, batch: int = 1) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int):
            raise TypeError(f"batch must be an int, got {type(batch).__name__}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        module = alias_of_ours(rnn)
        if not isinstance(module, (Layers, OneStep)):
            raise TypeError(f"rnn must be an LSTM, a GRU, an RNN or a cell of these, got {type(rnn).__name__}")
        weights = [weight.detach() for weight in module._weights()]
        form = Form(*module._form()) if isinstance(module, Layers) else module._form(weights)
        if form.directions > 1:
            raise ValueError("a bidirectional layer needs whole sequences: it has no single steps")
        if module.training and form.layers > 1 and module.dropout:
            raise ValueError("in training the layer applies dropout: call rnn.eval() first")
        self._module, self._form = module, form
        self._shape = torch.Size((batch, module.input_size))
        self._dtype, self._device = weights[0].dtype, weights[0].device
        cell, H = module._cell, module.hidden_size
        sizes = (getattr(module, "proj_size", 0) or H, H)[: len(cell.states)]
        made = functools.partial(torch.zeros, dtype=self._dtype, device=self._device)
        with torch.inference_mode(False):  # its tensors could not be changed outside of it
            self._states = tuple(made(form.layers, batch, size) for size in sizes)
            outputs = made(form.layers, batch, sizes[0])
        self._output = outputs[-1]
        self._step = self._native_step(weights, outputs) if self._is_native(weights) else None

    def __call__(self, x: Tensor) -> Tensor:
        """Take a step.

        Args:
            x: [B, input_size], in the dtype and on the device of the weights.

        Returns:
            The output of the last layer, [B, H] (or proj_size in place of H): always the same tensor.

        Raises:
            TypeError, ValueError: x is not that; nothing has changed.
            RuntimeError: x requires a gradient; or memory does not suffice.
        """
        step = self._step
        if (
            step is None
            or type(x) is not Tensor
            or x.shape != self._shape
            or x.dtype is not self._dtype
            or not x.is_cpu
            or x.requires_grad
            or x.layout is not torch.strided
            or not x.is_contiguous()
            or x.is_neg()
            or x._is_zerotensor()
        ):
            x = self._checked(x)
            if step is None:
                return self._step_of_module(x)
        if not step(x.data_ptr()):
            raise RuntimeError("a step of the stream failed: memory does not suffice")
        return self._output

    @property
    def state(self) -> Any:
        """The states: the pair (h, c) of an LSTM, otherwise h, each [L, B, H] or of a cell [B, H]; not copies.

        What is assigned is copied into them, and must have their form.
        """
        states = tuple(state[0] for state in self._states) if self._form.step else self._states
        return states if len(states) > 1 else states[0]

    @state.setter
    def state(self, value: Any) -> None:
        own = self.state
        given, states = (value, own) if isinstance(own, tuple) else ((value,), (own,))
        if len(given) != len(states):
            raise ValueError(f"state must be {len(states)} tensors, got {len(given)}")
        for new, old in zip(given, states, strict=True):
            if new.shape != old.shape:
                raise ValueError(f"state must be {list(old.shape)}, got {list(new.shape)}")
        with torch.no_grad():
            for new, old in zip(given, states, strict=True):
                old.copy_(new)

    def reset(self, rows: Any = None) -> None:
        """Set the states of some rows to zero.

        Args:
            rows: an index, indices or a mask of rows, as a tensor is indexed; None for all.
        """
        for state in self._states:
            state[:, slice(None) if rows is None else rows] = 0

    def __repr__(self) -> str:
        return f"Stream({self._module!r}, batch={self._shape[0]})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a stream cannot be copied or saved: make another of its module, and assign its state")

    def _is_native(self, weights: Sequence[Tensor]) -> bool:
        """Whether the CPU kernels run the steps."""
        plain = PLAIN.issuperset(map(type, weights)) and self._device.type == "cpu"
        chosen = native.load_error is None and backends.forced() in (None, "cpu")
        return plain and chosen and self._dtype in native.DTYPES and self._output.numel() > 0

    def _native_step(self, weights: list[Tensor], outputs: Tensor) -> Callable[[int], bool]:
        """A function from the address of x to whether the step was made."""
        example = outputs.new_zeros(1, *self._shape)
        hx, cx, *_ = *self._states, None
        flags = flags_of(self._form._replace(step=False, batch_first=False))
        cell = self._module._cell.name
        address = torch.ops.fused_rnn.make_stream(cell, example, outputs, weights, hx, cx, flags)
        step, free = _functions()
        weakref.finalize(self, free, address)
        return functools.partial(step, ctypes.c_void_p(address))

    def _step_of_module(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            results = self._results_of_module(x)
            for state, new in zip((*self._states, self._output), results, strict=True):
                state.copy_(new.view_as(state))
        return self._output

    def _results_of_module(self, x: Tensor) -> tuple[Tensor, ...]:
        """The new states and the output."""
        if self._form.step:
            new = self._module(x, self.state)
            states = new if isinstance(new, tuple) else (new,)
            return *states, states[0]
        output, new = self._module(x.unsqueeze(1 if self._form.batch_first else 0), self.state)
        return *(new if isinstance(new, tuple) else (new,)), output

    def _checked(self, x: Any) -> Tensor:
        """x, contiguous. Raises as :meth:`__call__`."""
        if not isinstance(x, Tensor):
            raise TypeError(f"input must be a tensor, got {type(x).__name__}")
        if x.shape != self._shape or x.dtype != self._dtype or x.device != self._device or x.layout != torch.strided:
            kind = "" if x.layout == torch.strided else f" {x.layout}"
            got = f"{list(x.shape)} of {x.dtype} on {x.device}{kind}"
            raise ValueError(f"input must be {list(self._shape)} of {self._dtype} on {self._device}, got {got}")
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a stream has no gradient, but its input requires one: run it under torch.no_grad()")
        plain = x.detach().resolve_neg()
        return torch.zeros_like(x) if plain._is_zerotensor() else plain.contiguous()


@functools.cache
def _functions() -> tuple[Any, Any]:
    """fused_rnn_step and fused_rnn_free_stream of csrc/cpu/stream.cpp."""
    library = ctypes.CDLL(str(native.library))
    step, free = library.fused_rnn_step, library.fused_rnn_free_stream
    step.argtypes, step.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_bool
    free.argtypes, free.restype = [ctypes.c_void_p], None
    return step, free
