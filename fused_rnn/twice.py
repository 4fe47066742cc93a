"""Double backward through PyTorch's RNNs where their own gradients cannot be differentiated: those of cuDNN."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import compress

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

MaybeTensors = tuple[Tensor | None, ...]

NODES = {"CudnnRnnBackward0", "MiopenRnnBackward0"}  # what autograd calls the functions without a double backward


def is_needed(output: Tensor) -> bool:
    """Whether autograd made ``output`` by a function whose gradients it cannot differentiate."""
    return output.grad_fn is not None and output.grad_fn.name() in NODES


def differentiate_again(output: Tensor, tensors: Sequence[Tensor], same: Callable[..., tuple[Tensor, ...]]) -> None:
    """Let the gradients of the function that made ``output`` be differentiated.

    In a backward with ``create_graph=True`` they are computed again, from operations that autograd can differentiate.
    Any other backward stays as it is. Call it only where :func:`is_needed`.

    Args:
        tensors: the function's inputs.
        same: the same function of them, whose first result is ``output``.
    """
    node = output.grad_fn
    assert node is not None
    edges = node.next_functions
    # Weak, so that autograd alone decides how long the inputs live: it has saved them.
    kept = [weakref.ref(tensor) for tensor in tensors]

    def hook(grad_inputs: MaybeTensors, grad_outputs: MaybeTensors) -> MaybeTensors | None:
        if not torch.is_grad_enabled():
            return None
        inputs = [tensor for ref in kept if (tensor := ref()) is not None and tensor.requires_grad]
        outputs = same(*(ref() for ref in kept))
        given = [grad is not None for grad in grad_outputs[: len(outputs)]]
        grads = torch.autograd.grad(
            list(compress(outputs, given)),
            inputs,
            list(compress(grad_outputs, given)),
            create_graph=True,
            allow_unused=True,
        )
        by_edge = {tuple(get_gradient_edge(tensor)[:2]): grad for tensor, grad in zip(inputs, grads, strict=True)}
        return tuple(by_edge.get(edge, grad) for edge, grad in zip(edges, grad_inputs, strict=True))

    node.register_hook(hook)
