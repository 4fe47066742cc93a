"""The equations of every cell, forward and backward, once for all loops: what ``csrc/cells.h`` is to the C++ kernels.

A cell is named by a constexpr string: "lstm" (gates i, f, g, o), "gru" (r, z, n; torch.nn's) or "gru_reset_before" (Cho
et al. 2014). All arguments are tiles of float32 numbers, one for every row of the batch and unit, or tuples of them: of
the gates, or of what the backward needs (``saved``: i, f, g, o, c; r, z, n, n_h; r, z, n).

In all cells: x is ``weight_ih x_t + bias_ih``, h is ``weight_hh h_{t-1} + bias_hh``, h_prev and c_prev are the state
before the step, dh and dc the gradients of the state after it. A GRU has no c and hands back what it was given. 1 - n^2
is written (1 - n) (1 + n): where n is near 1, the rounding of n^2 would be a large part of what is left.
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
def forward(CELL: tl.constexpr, x, h, h_prev, c_prev):
    """One step: the new h, the new c, and what the backward needs."""
    if CELL == "lstm":
        i = tl.sigmoid(x[0] + h[0])
        f = tl.sigmoid(x[1] + h[1])
        g = tanh(x[2] + h[2])
        o = tl.sigmoid(x[3] + h[3])
        c = f * c_prev + i * g
        return o * tanh(c), c, (i, f, g, o, c)
    elif CELL == "gru":
        r = tl.sigmoid(x[0] + h[0])
        z = tl.sigmoid(x[1] + h[1])
        n = tanh(x[2] + r * h[2])
        return n + z * (h_prev - n), c_prev, (r, z, n, h[2])
    else:
        r = tl.sigmoid(x[0] + h[0])
        z = tl.sigmoid(x[1] + h[1])
        n = tanh(x[2] + h[2])
        return n + z * (h_prev - n), c_prev, (r, z, n)


@triton.jit
def reset(r_x, r_h, h_prev):
    """What weight_hn multiplies with the reset before the matmul."""
    return tl.sigmoid(r_x + r_h) * h_prev


@triton.jit
def candidate_grad(dh, saved):
    """The gradient of a GRU's candidate before its tanh; with the reset before the matmul it goes back by weight_hn."""
    return dh * (1.0 - saved[1]) * (1.0 - saved[2]) * (1.0 + saved[2])


@triton.jit
def backward(CELL: tl.constexpr, dh, dc, saved, h_prev, c_prev, d_reset):
    """One step back: the gradients of x and of h, and of h_prev (but for its way by weight_hh) and c_prev.

    d_reset: the gradient of r * h_prev, used with the reset before the matmul only.
    """
    if CELL == "lstm":
        i, f, g, o, c = saved
        tanh_c = tanh(c)
        dc = dc + dh * o * (1.0 - tanh_c) * (1.0 + tanh_c)
        d = (
            dc * g * i * (1.0 - i),
            dc * c_prev * f * (1.0 - f),
            dc * i * (1.0 - g) * (1.0 + g),
            dh * tanh_c * o * (1.0 - o),
        )
        return d, d, tl.zeros_like(dh), dc * f
    elif CELL == "gru":
        r, z, n, n_h = saved
        dn = candidate_grad(dh, saved)
        dr = dn * n_h * r * (1.0 - r)
        dz = dh * (h_prev - n) * z * (1.0 - z)
        return (dr, dz, dn), (dr, dz, dn * r), dh * z, dc
    else:
        r, z, n = saved
        dn = candidate_grad(dh, saved)
        dr = d_reset * h_prev * r * (1.0 - r)
        dz = dh * (h_prev - n) * z * (1.0 - z)
        return (dr, dz, dn), (dr, dz, dn), dh * z + d_reset * r, dc
