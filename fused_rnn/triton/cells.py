"""The equations of every cell, forward and backward, once for all loops: what ``csrc/cells.h`` is to the C++ kernels.

CELL is the name of a :class:`fused_rnn.cell.Cell`, which says in which order its gates, states and saved numbers are.
Arguments are tiles of float32 numbers, one for every row of the batch and unit, or tuples of them.

In all cells: x is ``weight_ih x_t + bias_ih``, h is ``weight_hh h_{t-1} + bias_hh``, prev the state before the step,
grads the gradients of the state after it. 1 - n^2 is written (1 - n) (1 + n): where n is near 1, the rounding of n^2
would be a large part of what is left.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh within 2 ulp: up to 0.6 an odd polynomial, fitted for the least relative error, and from there on by exp."""
    z = x * x
    p = 0.13331924378871918 + z * (-0.053783826529979706 + z * (0.02079595997929573 + z * -0.005895144771784544))
    small = x + x * (z * (-0.33333298563957214 + z * p))
    large = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.6, small, tl.where(x < 0.0, -large, large))


@triton.jit
def forward(CELL: tl.constexpr, x, h, prev):
    """One step: the new state, and the numbers that are saved for the backward."""
    if CELL == "lstm":
        i = tl.sigmoid(x[0] + h[0])
        f = tl.sigmoid(x[1] + h[1])
        g = tanh(x[2] + h[2])
        o = tl.sigmoid(x[3] + h[3])
        c = f * prev[1] + i * g
        return (o * tanh(c), c), (i, f, g, o, c)
    elif CELL == "gru":
        r = tl.sigmoid(x[0] + h[0])
        z = tl.sigmoid(x[1] + h[1])
        n = tanh(x[2] + r * h[2])
        return (n + z * (prev[0] - n),), (r, z, n, h[2])
    elif CELL == "gru(reset_after=False)":
        r = tl.sigmoid(x[0] + h[0])
        z = tl.sigmoid(x[1] + h[1])
        n = tanh(x[2] + h[2])
        return (n + z * (prev[0] - n),), (r, z, n)
    elif CELL == "rnn_tanh":
        y = tanh(x[0] + h[0])
        return (y,), (y,)
    else:
        tl.static_assert(CELL == "rnn_relu")
        y = rectified(x[0] + h[0], x[0] + h[0])
        return (y,), (y,)


@triton.jit
def rectified(value, by):
    """value, and 0 where ``by`` is not above 0: the ReLU of x is rectified(x, x). NaN in either comes through."""
    return tl.where(by <= 0.0, 0.0, value)


@triton.jit
def reset(r_x, r_h, h_prev):
    """What weight_hn multiplies with the reset before the matmul."""
    return tl.sigmoid(r_x + r_h) * h_prev


@triton.jit
def candidate_grad(dh, saved):
    """The gradient of a GRU's candidate before its tanh; with the reset before the matmul it goes back by weight_hn."""
    return dh * (1.0 - saved[1]) * (1.0 - saved[2]) * (1.0 + saved[2])


@triton.jit
def backward(CELL: tl.constexpr, grads, saved, prev, d_reset):
    """One step back: the gradients of x and of h, and of the state before, but for the way of h by weight_hh.

    d_reset: the gradient of r * h_prev, used with the reset before the matmul only.
    """
    dh = grads[0]
    if CELL == "lstm":
        i, f, g, o, c = saved
        tanh_c = tanh(c)
        dc = grads[1] + dh * o * (1.0 - tanh_c) * (1.0 + tanh_c)
        d = (
            dc * g * i * (1.0 - i),
            dc * prev[1] * f * (1.0 - f),
            dc * i * (1.0 - g) * (1.0 + g),
            dh * tanh_c * o * (1.0 - o),
        )
        return d, d, (tl.zeros_like(dh), dc * f)
    elif CELL == "gru":
        r, z, n, n_h = saved
        dn = candidate_grad(dh, saved)
        dr = dn * n_h * r * (1.0 - r)
        dz = dh * (prev[0] - n) * z * (1.0 - z)
        return (dr, dz, dn), (dr, dz, dn * r), (dh * z,)
    elif CELL == "gru(reset_after=False)":
        r, z, n = saved
        dn = candidate_grad(dh, saved)
        dr = d_reset * prev[0] * r * (1.0 - r)
        dz = dh * (prev[0] - n) * z * (1.0 - z)
        return (dr, dz, dn), (dr, dz, dn), (dh * z + d_reset * r,)
    elif CELL == "rnn_tanh":
        d = (dh * (1.0 - saved[0]) * (1.0 + saved[0]),)
        return d, d, (tl.zeros_like(dh),)
    else:
        tl.static_assert(CELL == "rnn_relu")
        d = (rectified(dh, saved[0]),)
        return d, d, (tl.zeros_like(dh),)
