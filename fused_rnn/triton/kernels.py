"""The loops, for any cell. A program has BLOCK_B rows of the batch, and no program reads what another one writes.

block: a program takes its rows through all steps. It has all units, loads weight_hh before the loop and keeps it on
chip; h leaves the chip only as output. The loads of the coming steps run ahead, STAGES deep.
stepwise: one launch a step, one program for each tile of rows and units. h travels in two buffers; c and the gradients
of the state are changed in place, as nobody else touches a program's tile of them. With the reset before the matmul a
step takes two launches, since the second product needs r * h (backward: the candidate's gradient) of all units.

T, B and t do not belong to what a kernel is compiled for, which is: cell, types, tiles, which optional arrays there are
(None or not), and whether H is a multiple of 16. Offsets within a step are 32 bits wide, those of steps 64. Sums over T
are not here: ``ops`` takes them by library matmuls, in a fixed order.

In the shapes, G is the number of gates, K of the numbers that a backward needs, S the type of storage. The first HIDDEN
gates multiply h; if there are more, those multiply r * h. Row b is active at time t iff t < lengths[b]. Where a new
sequence begins inside a row (``reference.starts_anew``), no state enters the step, and no gradient leaves it.
"""

import triton
import triton.language as tl

from . import cells
from .tiles import (
    add_each,
    choose_each,
    enters,
    keep_each,
    load,
    load_bias,
    load_each,
    load_state,
    places,
    products,
    store_each,
    store_state,
    tile,
    with_first,
)

# ---- Forward ----


@triton.jit
def finish_forward(
    CELL: tl.constexpr, x, gates_h, state, active, inside, output, saved, step, rows, units, H, K: tl.constexpr
):
    """Applies the cell and stores what the step leaves, which begins at `step` in output; the state after it."""
    after, kept = cells.forward(CELL, x, gates_h, with_first(state, state[0].to(tl.float32)))
    after = with_first(after, after[0].to(state[0].dtype))
    store_each(output + step, places(rows, units, H), 0, after, active, inside, 1)
    if saved is not None:
        store_each(saved + step * K, places(rows, units, K * H), H, kept, active, inside, K)
    return choose_each(active, after, state)


@triton.jit
def hidden_gates(x, h, weights, bias_h, HIDDEN: tl.constexpr, PRECISION: tl.constexpr):
    """weight_hh h + bias_hh of all gates; from gate HIDDEN on the factor is r * h."""
    gates_h = ()
    left = h
    for k in tl.static_range(len(weights)):
        if k == HIDDEN:
            left = cells.reset(x[0], gates_h[0], h.to(tl.float32)).to(h.dtype)
        gates_h = gates_h + (tl.dot(left, weights[k], input_precision=PRECISION) + bias_h[k],)
    return gates_h


@triton.jit(do_not_specialize=["T", "B"])
def block_forward(
    gates_x,  # [T, B, G*H] float32, without bias_ih
    weight_hh,  # [G*H, H] S
    bias_ih,  # [G*H] S or None
    bias_hh,  # [G*H] S or None
    h,  # [B, H] S; in place, like c
    c,  # [B, H] float32, or None if the state is h alone
    lengths,  # [B] int64 or None
    anew,  # [T, B] uint8 or None: not 0 where the state of a row is zero before that time
    output,  # [T, B, H] S, zero where a row is not active
    saved,  # [T, B, K, H], or None when no backward will come
    T,
    B,
    H,
    CELL: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    HIDDEN: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All steps of BLOCK_B rows."""
    rows, units, length, inside = tile(tl.program_id(0), 0, lengths, T, B, H, BLOCK_B, BLOCK_N)
    square = (units < H)[:, None] & (units < H)[None, :]
    weights = load_each(weight_hh, units[None, :] * H + units[:, None], H * H, square, G)  # [unit of h, of the gate]
    bias_x, bias_h = load_bias(bias_ih, units, H, G), load_bias(bias_hh, units, H, G)
    state = load_state(h, c, places(rows, units, H), inside)
    for i in tl.range(0, T, num_stages=STAGES):
        t = T - 1 - i if REVERSE else i
        step = t * (B.to(tl.int64) * H)
        active = inside & (t < length)[:, None]
        x = add_each(load_each(gates_x + step * G, places(rows, units, G * H), H, active, G), bias_x)
        if anew is not None:
            state = keep_each(enters(anew, t, rows, length, B), state)
        gates_h = hidden_gates(x, state[0], weights, bias_h, HIDDEN, PRECISION)
        state = finish_forward(CELL, x, gates_h, state, active, inside, output, saved, step, rows, units, H, K)
    store_state(h, c, places(rows, units, H), inside, state)


@triton.jit(do_not_specialize=["t", "T", "B"])
def stepwise_reset(
    gates_x,  # as in block_forward, like all that is not named here
    weight_hh,
    bias_ih,
    bias_hh,
    h,  # [B, H] S
    lengths,
    anew,
    gates_h,  # [B, HIDDEN, H] float32: the hidden part of the gates that come before the candidate, with bias_hh
    reset_h,  # [B, H] S: r * h
    t,
    T,
    B,
    H,
    G: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The first launch of a step with the reset before the matmul: the gates that come before the candidate."""
    rows, units, length, inside = tile(tl.program_id(0), tl.program_id(1), lengths, T, B, H, BLOCK_B, BLOCK_N)
    is_kept = enters(anew, t, rows, length, B)
    gates = products(
        h + rows[:, None] * H,
        weight_hh + units[None, :] * H,
        1,
        H * H,
        H,
        is_kept,
        (units < H)[None, :],
        HIDDEN,
        PRECISION,
        BLOCK_K,
        STAGES,
    )
    gates = add_each(gates, load_bias(bias_hh, units, H, HIDDEN))
    active = inside & (t < length)[:, None]
    r_x = load(gates_x + t * (B.to(tl.int64) * H) * G, places(rows, units, G * H), active)
    r_x += load_bias(bias_ih, units, H, 1)[0]
    h_t = load(h, places(rows, units, H), inside & is_kept)
    store_each(gates_h, places(rows, units, HIDDEN * H), H, gates, inside, inside, HIDDEN)
    store_each(reset_h, places(rows, units, H), 0, (cells.reset(r_x, gates[0], h_t),), inside, inside, 1)


@triton.jit(do_not_specialize=["t", "T", "B"])
def stepwise_forward(
    gates_x,  # as in block_forward, like all that is not named here
    weight_hh,
    bias_ih,
    bias_hh,
    h,  # [B, H] S
    h_next,  # [B, H] S
    c,  # [B, H] float32, or None if the state is h alone; in place
    gates_h,  # of stepwise_reset, or None
    reset_h,  # of stepwise_reset, or None
    lengths,
    anew,
    output,
    saved,
    t,
    T,
    B,
    H,
    CELL: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One step of a tile: its product and the cell."""
    rows, units, length, inside = tile(tl.program_id(0), tl.program_id(1), lengths, T, B, H, BLOCK_B, BLOCK_N)
    FIRST: tl.constexpr = 0 if reset_h is None else HIDDEN  # the gates before it have come from stepwise_reset
    left = h if reset_h is None else reset_h
    is_kept = enters(anew, t, rows, length, B)
    gates = products(
        left + rows[:, None] * H,
        weight_hh + FIRST * H * H + units[None, :] * H,
        1,
        H * H,
        H,
        is_kept,
        (units < H)[None, :],
        G - FIRST,
        PRECISION,
        BLOCK_K,
        STAGES,
    )
    bias_h = load_bias(bias_hh, units, H, G)
    if reset_h is None:
        gates = add_each(gates, bias_h)
    else:
        gates = load_each(gates_h, places(rows, units, HIDDEN * H), H, inside, HIDDEN) + (gates[0] + bias_h[HIDDEN],)
    step = t * (B.to(tl.int64) * H)
    active = inside & (t < length)[:, None]
    x = load_each(gates_x + step * G, places(rows, units, G * H), H, active, G)
    x = add_each(x, load_bias(bias_ih, units, H, G))
    state = load_state(h, c, places(rows, units, H), inside & is_kept)
    state = finish_forward(CELL, x, gates, state, active, inside, output, saved, step, rows, units, H, K)
    store_state(h_next, c, places(rows, units, H), inside, state)


# ---- Backward ----


@triton.jit
def load_before(initial, array, width, t, step, rows, units, length, active, B, H, REVERSE: tl.constexpr):
    """h or c before time t, float32: in a row's first step of the initial ones [B, H], else of the array.

    width: the length of the array's rows; step: where time t begins in an array [T, B, H].
    """
    first = length - 1 if REVERSE else length * 0
    is_first = (first == t)[:, None]
    before = step + B.to(tl.int64) * H if REVERSE else step - B.to(tl.int64) * H
    state = load(initial, places(rows, units, H), active & is_first)
    return state + load(array + before * width, places(rows, units, width * H), active & (first != t)[:, None])


@triton.jit
def load_saved(saved, step, rows, units, active, H, K: tl.constexpr):
    """The K values that the forward saved for a step, each a tile in float32."""
    tiles = ()
    for k in tl.static_range(K):
        tiles = tiles + (load(saved + step * K + k * H, places(rows, units, K * H), active),)
    return tiles


@triton.jit
def load_prev(
    hx, cx, output, saved, t, step, rows, units, length, active, B, H, K: tl.constexpr, REVERSE: tl.constexpr
):
    """The state before time t, float32. What was saved of a step ends with its c."""
    prev = (load_before(hx, output, 1, t, step, rows, units, length, active, B, H, REVERSE),)
    if cx is not None:
        c = saved + (K - 1) * H
        prev = prev + (load_before(cx, c, K, t, step, rows, units, length, active, B, H, REVERSE),)
    return prev


@triton.jit
def finish_backward(
    CELL: tl.constexpr,
    grads,  # of the state after the step, with that of output
    kept,  # what was saved of this step
    d_reset,
    prev,  # the state before it
    active,
    inside,
    grads_x,
    grads_h,
    h_before,
    reset_h,
    step,
    rows,
    units,
    H,
    G: tl.constexpr,
    STORED: tl.constexpr,  # gates whose gradients are stored, in their order
):
    """Goes back through the cell and stores what the step leaves.

    Returns the gradients of the state before the step, but for their way by weight_hh, and those of the hidden gates.
    """
    d_x, d_h, d_prev = cells.backward(CELL, grads, kept, prev, d_reset)
    store_each(grads_x + step * G, places(rows, units, G * H), H, d_x, active, inside, STORED)
    if grads_h is not None:
        store_each(grads_h + step * G, places(rows, units, G * H), H, d_h, active, inside, STORED)
    store_each(h_before + step, places(rows, units, H), 0, prev, active, inside, 1)
    if reset_h is not None:
        store_each(reset_h + step, places(rows, units, H), 0, (kept[0] * prev[0],), active, inside, 1)
    return choose_each(active, d_prev, grads), d_h


@triton.jit(do_not_specialize=["T", "B"])
def block_backward(
    grad_output,  # [T, B, H] S or None
    weight_hh,  # [G*H, H] S
    hx,  # [B, H] S
    cx,  # [B, H] S, or None if the state is h alone
    lengths,  # [B] int64 or None
    anew,  # [T, B] uint8 or None: not 0 where the state of a row is zero before that time
    output,  # [T, B, H] S
    saved,  # [T, B, K, H]
    grads_x,  # [T, B, G*H] S: gradients of the gates; this and the next are zero where a row is not active
    grads_h,  # [T, B, G*H] S: of their hidden part, or None where that is the same
    h_before,  # [T, B, H] S: the h that weight_hh multiplied
    reset_h,  # [T, B, H] S: what weight_hn multiplied, or None where that is the same
    dh,  # [B, H] float32: the gradient of the state; in place, like dc
    dc,  # [B, H] float32, or None if the state is h alone
    T,
    B,
    H,
    CELL: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    HIDDEN: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All steps of BLOCK_B rows, last first."""
    rows, units, length, inside = tile(tl.program_id(0), 0, lengths, T, B, H, BLOCK_B, BLOCK_N)
    square = (units < H)[:, None] & (units < H)[None, :]
    weights = load_each(weight_hh, places(units, units, H), H * H, square, G)  # [unit of the gate, of h]
    grads = load_state(dh, dc, places(rows, units, H), inside)
    for i in tl.range(0, T, num_stages=STAGES):
        t = i if REVERSE else T - 1 - i
        step = t * (B.to(tl.int64) * H)
        active = inside & (t < length)[:, None]
        kept = load_saved(saved, step, rows, units, active, H, K)
        is_kept = enters(anew, t, rows, length, B)
        prev = load_prev(hx, cx, output, saved, t, step, rows, units, length, active & is_kept, B, H, K, REVERSE)
        if grad_output is not None:
            grads = with_first(grads, grads[0] + load(grad_output + step, places(rows, units, H), active))
        d_reset = grads[0]
        if reset_h is not None:
            dn = tl.where(active, cells.candidate_grad(grads[0], kept), 0.0).to(weight_hh.dtype.element_ty)
            d_reset = tl.dot(dn, weights[HIDDEN], input_precision=PRECISION)
        grads, d_h = finish_backward(
            CELL,
            grads,
            kept,
            d_reset,
            prev,
            active,
            inside,
            grads_x,
            grads_h,
            h_before,
            reset_h,
            step,
            rows,
            units,
            H,
            G,
            G,
        )
        dh_t = grads[0]
        for k in tl.static_range(HIDDEN):
            d = tl.where(active, d_h[k], 0.0).to(weight_hh.dtype.element_ty)
            dh_t = tl.dot(d, weights[k], dh_t, input_precision=PRECISION)
        grads = with_first(grads, dh_t)
        if anew is not None:
            grads = keep_each(is_kept, grads)
    store_state(dh, dc, places(rows, units, H), inside, grads)


@triton.jit
def state_grad(
    grads,
    weight_hh,
    anew,
    dh,
    grad_output,
    later,
    step,
    depth,
    rows,
    units,
    length,
    active,
    inside,
    B,
    H,
    G: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradient of h after a step: what dh has, its way by the hidden gates of the step after it, and output's.

    grads: [T, B, G*H] S, of which the first `depth` of a row at time `later` are taken.
    """
    by_gates = products(
        grads + later * (B.to(tl.int64) * H) * G + rows[:, None] * (G * H),
        weight_hh + units[None, :],
        H,
        0,
        depth,
        enters(anew, later, rows, length, B),
        (units < H)[None, :],
        1,
        PRECISION,
        BLOCK_K,
        STAGES,
    )
    total = load(dh, places(rows, units, H), inside) + by_gates[0]
    if grad_output is not None:
        total += load(grad_output + step, places(rows, units, H), active)
    return total


@triton.jit(do_not_specialize=["t", "later", "depth", "T", "B"])
def stepwise_candidate(
    grad_output,  # as in block_backward, like all that is not named here
    weight_hh,
    lengths,
    anew,
    saved,
    grads_x,
    dh,  # [B, H] float32; in place
    t,
    later,  # the time of the step after this one
    depth,  # of the product with its gates' gradients: HIDDEN*H, or 0 where there is none
    T,
    B,
    H,
    G: tl.constexpr,
    K: tl.constexpr,
    HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The first launch of a step back with the reset before the matmul: the gradients of h and of the candidate."""
    rows, units, length, inside = tile(tl.program_id(0), tl.program_id(1), lengths, T, B, H, BLOCK_B, BLOCK_N)
    step = t * (B.to(tl.int64) * H)
    active = inside & (t < length)[:, None]
    total = state_grad(
        grads_x,
        weight_hh,
        anew,
        dh,
        grad_output,
        later,
        step,
        depth,
        rows,
        units,
        length,
        active,
        inside,
        B,
        H,
        G,
        PRECISION,
        BLOCK_K,
        STAGES,
    )
    tl.store(dh + places(rows, units, H), total, mask=inside)
    kept = load_saved(saved, step, rows, units, active, H, K)
    dn = cells.candidate_grad(total, kept)
    store_each(grads_x + step * G + HIDDEN * H, places(rows, units, G * H), 0, (dn,), active, inside, 1)


@triton.jit(do_not_specialize=["t", "later", "depth", "T", "B"])
def stepwise_backward(
    grad_output,  # as in block_backward, like all that is not named here
    weight_hh,
    hx,
    cx,
    lengths,
    anew,
    output,
    saved,
    grads_x,
    grads_h,
    h_before,
    reset_h,
    dh,  # [B, H] float32; in place, like dc
    dc,  # None if the state is h alone
    t,
    later,  # the time of the step after this one
    depth,  # of the product with its gates' gradients: HIDDEN*H, or 0 where there is none
    T,
    B,
    H,
    CELL: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    HIDDEN: tl.constexpr,
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One step back of a tile: the gradient of its state, and the cell."""
    rows, units, length, inside = tile(tl.program_id(0), tl.program_id(1), lengths, T, B, H, BLOCK_B, BLOCK_N)
    step = t * (B.to(tl.int64) * H)
    active = inside & (t < length)[:, None]
    if reset_h is not None:  # dh has been made by stepwise_candidate
        total = load(dh, places(rows, units, H), inside)
        d_reset = products(
            grads_x + step * G + rows[:, None] * (G * H) + HIDDEN * H,
            weight_hh + HIDDEN * H * H + units[None, :],
            H,
            0,
            H,
            (rows < B)[:, None],
            (units < H)[None, :],
            1,
            PRECISION,
            BLOCK_K,
            STAGES,
        )[0]
    else:
        total = state_grad(
            grads_x if grads_h is None else grads_h,
            weight_hh,
            anew,
            dh,
            grad_output,
            later,
            step,
            depth,
            rows,
            units,
            length,
            active,
            inside,
            B,
            H,
            G,
            PRECISION,
            BLOCK_K,
            STAGES,
        )
        d_reset = total
    kept = load_saved(saved, step, rows, units, active, H, K)
    is_kept = enters(anew, t, rows, length, B)
    prev = load_prev(hx, cx, output, saved, t, step, rows, units, length, active & is_kept, B, H, K, REVERSE)
    grads, _ = finish_backward(
        CELL,
        with_first(load_state(dh, dc, places(rows, units, H), inside), total),
        kept,
        d_reset,
        prev,
        active,
        inside,
        grads_x,
        grads_h,
        h_before,
        reset_h,
        step,
        rows,
        units,
        H,
        G,
        HIDDEN,
    )
    if anew is not None:
        grads = keep_each(is_kept, grads)
    store_state(dh, dc, places(rows, units, H), inside, grads)
