"""Layers in reduced precision: the reference with the factors of every product rounded, and float32 sums."""

import functools

import torch

from fused_rnn import reference


def to_tf32(x):
    """To the 10 explicit bits of TF32: nearest, halfway cases away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def to_bfloat16(x):
    return x.bfloat16().float()


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, rounded):
        ctx.save_for_backward(x, weight, bias)
        ctx.rounded = rounded
        product = rounded(x) @ rounded(weight).t()
        return product if bias is None else product + bias

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        rounded = ctx.rounded
        rows = grad.flatten(0, -2)
        factors = rounded(rows)
        # The CPU kernels keep the gates' gradients as factors only.
        grad_bias = factors if rounded is to_bfloat16 else rows
        grad_weight = factors.t() @ rounded(x.flatten(0, -2))
        return rounded(grad) @ rounded(weight), grad_weight, None if bias is None else grad_bias.sum(0), None


def run(rounded, *arguments):
    """As :func:`reference.run`; the function `rounded` rounds factors."""
    plain = reference.linear
    reference.linear = lambda x, weight, bias=None: Linear.apply(x, weight, bias, rounded)
    try:
        return reference.run(*arguments)
    finally:
        reference.linear = plain


in_tf32 = functools.partial(run, to_tf32)
in_bfloat16 = functools.partial(run, to_bfloat16)
