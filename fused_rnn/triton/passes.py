"""Both passes of a layer on the host: library matmuls over all steps, and between them the loop that the plan names.

There are no atomics, and every sum over T is one library matmul, so the same input gives the same bits. Nothing waits
for the device. Scratch memory grows with T: gates_x, [T, B, G*H] float32; in the backward the gradients of the gates.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..cell import Cell
from ..reference import starts_anew
from . import kernels
from .plan import device_of, make_plan

MaybeTensor = Tensor | None


class Pass:
    """One pass of one layer in one direction: its tensors, checked and contiguous, its plan, how kernels are launched.

    Raises:
        RuntimeError: a tensor has not the shape, dtype or device that the others ask for.
    """

    def __init__(
        self,
        cell: Cell,
        x: Tensor,  # [T, B, I]
        weight_ih: Tensor,  # [G*H, I]
        weight_hh: Tensor,  # [G*H, H]
        bias_ih: MaybeTensor,  # [G*H]
        bias_hh: MaybeTensor,  # [G*H]
        states: Sequence[Tensor],  # each [B, H]
        lengths: MaybeTensor,  # [B] int64
        resets: MaybeTensor,  # [T, B] bool
        reverse: bool,
        allow_tf32: bool,
        backward: bool,
    ) -> None:
        if x.dim() != 3:
            raise RuntimeError(f"x must be [T, B, I], got {list(x.shape)}")
        if weight_hh.dim() != 2:
            raise RuntimeError(f"weight_hh must be [G*H, H], got {list(weight_hh.shape)}")
        self.cell, self.reverse, self.backward = cell, reverse, backward
        (self.T, self.B, I), self.H = x.shape, weight_hh.size(1)
        self.G, self.K = cell.gates, cell.saved
        self.resets_before = cell.resets_before
        self.HIDDEN = self.G - self.resets_before  # gates that multiply h, others r * h
        rows = self.G * self.H
        if max(self.T, self.B * self.K * self.H, rows * self.H) >= 2**31:
            sizes = f"T = {self.T}, B = {self.B}, H = {self.H}"
            raise RuntimeError(f"T and the numbers of one step and of weight_hh must be below 2^31, got {sizes}")
        self.x = x
        self.x = self.checked("x", x, x.shape)
        self.weight_ih = self.checked("weight_ih", weight_ih, (rows, I))
        self.weight_hh = self.checked("weight_hh", weight_hh, (rows, self.H))
        self.bias_ih = self.checked_if("bias_ih", bias_ih, (rows,))
        self.bias_hh = self.checked_if("bias_hh", bias_hh, (rows,))
        named = zip(cell.states, states, strict=True)
        self.hx, self.cx, *_ = *(self.checked(name, state, (self.B, self.H)) for name, state in named), None
        self.lengths = self.checked_if("lengths", lengths, (self.B,), torch.int64)
        if self.lengths is not None:
            # A length outside [0, T] would make the kernels read past an array; checking it would wait for the device.
            self.lengths = self.lengths.clamp(0, self.T)
        self.anew = self.checked_if("resets", resets, (self.T, self.B), torch.bool)
        if self.anew is not None:
            starts = starts_anew(self.anew, self.lengths, reverse)
            self.anew = self.checked("resets", starts, starts.shape, torch.bool).view(torch.uint8)
        self.plan = make_plan(cell, x.dtype, self.B, self.H, backward, allow_tf32, device_of(x.device))

    def checked(self, name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, contiguous, at an address where 16 bytes may be loaded at once, as every kernel is compiled for.

        dtype: that of x unless told.
        """
        dtype = dtype or self.x.dtype
        if tensor.shape != torch.Size(shape):
            raise RuntimeError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != dtype or tensor.device != self.x.device:
            got = f"{tensor.dtype} on {tensor.device}"
            raise RuntimeError(f"{name} must be {dtype} on {self.x.device}, got {got}")
        tensor = tensor.contiguous()
        return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()

    def checked_if(
        self, name: str, tensor: MaybeTensor, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> MaybeTensor:
        return None if tensor is None else self.checked(name, tensor, shape, dtype)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.x.new_empty(shape, dtype=dtype or self.x.dtype)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """On x's device, with its float32 library matmuls in TF32 if the plan says so, and not otherwise.

        PyTorch has one switch for the process: matmuls of other threads may see it.
        """
        if self.x.device.type == "cpu":
            yield
            return
        matmul: Any = torch.backends.cuda.matmul
        before, wanted = matmul.fp32_precision, self.plan.precision
        switch = self.x.is_cuda and self.x.dtype == torch.float32 and before != wanted
        with torch.get_device_module(self.x.device).device(self.x.device):
            if switch:
                matmul.fp32_precision = wanted
            try:
                yield
            finally:
                if switch:
                    matmul.fp32_precision = before

    def launcher(self, kernel: Any, **arguments: Any) -> Callable[..., None]:
        """Launches a kernel with what a call gives, ``arguments`` and, of what it asks for besides, this pass's own."""
        tiles = self.plan.tiles
        own = {
            **{
                name: getattr(self, name) for name in ("weight_hh", "bias_ih", "bias_hh", "hx", "cx", "lengths", "anew")
            },
            **{name: getattr(self, name) for name in ("T", "B", "H", "G", "K", "HIDDEN")},
            **{"CELL": self.cell.name, "REVERSE": self.reverse, "PRECISION": self.plan.precision},
            **{"BLOCK_B": tiles.rows, "BLOCK_N": tiles.units, "BLOCK_K": tiles.depth, "STAGES": tiles.stages},
        }
        known = {name: value for name, value in (own | arguments).items() if name in kernel.arg_names}
        units = 1 if self.plan.form == "block" else triton.cdiv(self.H, tiles.units)
        return functools.partial(kernel[(triton.cdiv(self.B, tiles.rows), units)], **known, num_warps=tiles.warps)

    def times(self) -> Sequence[int]:
        """The times of the steps in the order of the pass."""
        return range(self.T) if self.reverse == self.backward else range(self.T)[::-1]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda and torch.version.hip is None and a.numel():
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def forward(layer: Pass, save: bool) -> tuple[Tensor, ...]:
    """output [T, B, H]; the final states, each as the initial one; saved [T, B, K, H] in x's dtype, or [0]."""
    T, B, H = layer.T, layer.B, layer.H
    output = layer.empty(T, B, H)
    saved = layer.empty(*((T, B, layer.K, H) if save else (0,)))
    h, c = layer.hx.clone(), None if layer.cx is None else layer.cx.to(torch.float32, copy=True)
    if T and B and H:
        with layer.running():
            gates_x = product(layer.x.flatten(0, 1), layer.weight_ih.t())
            arrays = {"gates_x": gates_x, "output": output, "saved": saved if save else None, "c": c}
            if layer.plan.form == "block":
                layer.launcher(kernels.block_forward, **arrays, h=h)()
            else:
                h = _forward_steps(layer, arrays, h)
    final = (h,) if c is None else (h, c.to(layer.x.dtype))
    return output, *final, saved


def _forward_steps(layer: Pass, arrays: dict[str, MaybeTensor], h: Tensor) -> Tensor:
    """The stepwise form; the last h."""
    h_next = torch.empty_like(h)
    resets = layer.resets_before
    arrays["gates_h"] = layer.empty(layer.B, layer.HIDDEN, layer.H, dtype=torch.float32) if resets else None
    arrays["reset_h"] = torch.empty_like(h) if resets else None
    reset = layer.launcher(kernels.stepwise_reset, **arrays)
    step = layer.launcher(kernels.stepwise_forward, **arrays)
    for t in layer.times():
        if resets:
            reset(h=h, t=t)
        step(h=h, h_next=h_next, t=t)
        h, h_next = h_next, h
    return h


def backward(
    layer: Pass,
    grads: Sequence[MaybeTensor],  # of output [T, B, H] and the final states
    output: Tensor,  # [T, B, H]
    saved: Tensor,  # [T, B, K, H]
    needs_x: bool,
    needs_weights: bool,
    needs_states: bool,
) -> tuple[Tensor, ...]:
    """The gradients of x, weight_ih, weight_hh, bias_ih, bias_hh and the states; [0] for what is not needed."""
    T, B, H, G = layer.T, layer.B, layer.H, layer.G
    arrays: dict[str, Any] = {
        "grad_output": layer.checked_if("grad_output", grads[0], (T, B, H)),
        "output": layer.checked("output", output, (T, B, H)),
        "saved": layer.checked("saved", saved, (T, B, layer.K, H)),
        "grads_x": layer.empty(T, B, G * H),
        "grads_h": layer.empty(T, B, G * H) if layer.cell.grads_differ else None,
        "h_before": layer.empty(T, B, H),
        "reset_h": layer.empty(T, B, H) if layer.resets_before else None,
        "dh": _start(layer, "grad_hy", grads[1]),
        "dc": _start(layer, "grad_cy", grads[2]) if len(layer.cell.states) > 1 else None,
    }
    with layer.running():
        if not (T and B and H):
            pass  # there is no step
        elif layer.plan.form == "block":
            layer.launcher(kernels.block_backward, **arrays)()
        else:
            _backward_steps(layer, arrays, needs_states)
        sums = _sums(layer, arrays, needs_x, needs_weights)
    states = [grad for grad in (arrays["dh"], arrays["dc"]) if grad is not None]
    return *sums, *(grad.to(layer.x.dtype) if needs_states else layer.empty(0) for grad in states)


def _start(layer: Pass, name: str, grad: MaybeTensor) -> Tensor:
    """The gradient of a final state, in float32, to be changed in place."""
    if grad is None:
        return layer.x.new_zeros((layer.B, layer.H), dtype=torch.float32)
    return layer.checked(name, grad, (layer.B, layer.H)).to(torch.float32, copy=True)


def _backward_steps(layer: Pass, arrays: dict[str, Any], needs_states: bool) -> None:
    """The stepwise form."""
    candidate = layer.launcher(kernels.stepwise_candidate, **arrays)
    step = layer.launcher(kernels.stepwise_backward, **arrays)
    later, depth = 0, 0
    for t in layer.times():
        if layer.resets_before:
            candidate(t=t, later=later, depth=depth)
        step(t=t, later=later, depth=depth)
        later, depth = t, layer.HIDDEN * layer.H
    if depth and needs_states:
        grads = arrays["grads_x" if arrays["grads_h"] is None else "grads_h"][later, :, :depth]
        if layer.anew is not None:
            grads = grads.masked_fill(layer.anew[later].bool()[:, None], 0)
        arrays["dh"] += product(grads, layer.weight_hh[:depth])


def _sums(layer: Pass, arrays: dict[str, Any], needs_x: bool, needs_weights: bool) -> tuple[Tensor, ...]:
    """The gradients of x, the weights and the biases."""
    nothing, dtype, first = layer.empty(0), layer.x.dtype, layer.HIDDEN * layer.H
    grads_x = arrays["grads_x"].flatten(0, 1)
    grads_h = grads_x if arrays["grads_h"] is None else arrays["grads_h"].flatten(0, 1)
    grad_x = (grads_x @ layer.weight_ih).view_as(layer.x) if needs_x else nothing
    if not needs_weights:
        return grad_x, nothing, nothing, nothing, nothing
    x = layer.x
    if layer.lengths is not None:  # what stands in the padding may be NaN, which no zero of grads_x takes away
        x = x.masked_fill((torch.arange(layer.T, device=x.device)[:, None] >= layer.lengths)[..., None], 0)
    grad_weight_ih = product(grads_x.t(), x.flatten(0, 1)).to(dtype)
    grad_weight_hh = product(grads_h[:, :first].t(), arrays["h_before"].flatten(0, 1))
    if layer.resets_before:
        by_reset = product(grads_h[:, first:].t(), arrays["reset_h"].flatten(0, 1))
        grad_weight_hh = torch.cat([grad_weight_hh, by_reset])
    biases = ((layer.bias_ih, grads_x), (layer.bias_hh, grads_h))
    grad_biases = (nothing if bias is None else grads.sum(0) for bias, grads in biases)
    return grad_x, grad_weight_ih, grad_weight_hh.to(dtype), *grad_biases
