"""Tiles of rows of the batch and units: their places in arrays, loads, stores and products, for the kernels."""

import triton
import triton.language as tl


@triton.jit
def tile(row_tile, unit_tile, lengths, T, B, H, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows and units of a tile, the rows' lengths, and which elements exist."""
    rows = row_tile * BLOCK_B + tl.arange(0, BLOCK_B)
    units = unit_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if lengths is not None:
        length = tl.load(lengths + rows, mask=rows < B, other=0).to(tl.int32)
    else:
        length = tl.where(rows < B, T, 0)
    return rows, units, length, (rows < B)[:, None] & (units < H)[None, :]


@triton.jit
def enters(anew, t, rows, length, B):
    """Whether the state of each row enters step t: not where a new sequence begins. [BLOCK_B, 1]."""
    is_row = rows < B
    if anew is not None:
        begins = tl.load(anew + t * B.to(tl.int64) + rows, mask=is_row & (t < length), other=0)
        is_row = is_row & (begins == 0)
    return is_row[:, None]


@triton.jit
def places(rows, units, width):
    """Where the elements of a tile stand in an array whose rows are `width` numbers long."""
    return rows[:, None] * width + units[None, :]


@triton.jit
def load(array, places, mask):
    """A tile in float32; zero where the mask is not, or if there is no array."""
    if array is None:
        tile = tl.zeros_like(places).to(tl.float32)
    else:
        tile = tl.load(array + places, mask=mask, other=0.0).to(tl.float32)
    return tile


@triton.jit
def load_each(array, places, stride, mask, COUNT: tl.constexpr):
    """COUNT tiles, `stride` numbers apart, in the type of the array; zero where the mask is not."""
    tiles = ()
    for k in tl.static_range(COUNT):
        tiles = tiles + (tl.load(array + k * stride + places, mask=mask, other=0.0),)
    return tiles


@triton.jit
def load_bias(bias, units, H, COUNT: tl.constexpr):
    """For every gate its bias, [1, BLOCK_N] in float32; zero if there is none."""
    tiles = ()
    for k in tl.static_range(COUNT):
        tiles = tiles + (load(bias, (k * H + units)[None, :], (units < H)[None, :]),)
    return tiles


@triton.jit
def store_each(array, places, stride, tiles, active, inside, COUNT: tl.constexpr):
    """Stores the first COUNT tiles, `stride` numbers apart; zero where a row is not active."""
    for k in tl.static_range(COUNT):
        chosen = tl.where(active, tiles[k], 0.0).to(array.dtype.element_ty)
        tl.store(array + k * stride + places, chosen, mask=inside)


@triton.jit
def add_each(tiles, others):
    sums = ()
    for k in tl.static_range(len(tiles)):
        sums = sums + (tiles[k] + others[k],)
    return sums


@triton.jit
def choose_each(active, tiles, others):
    """The tiles where a row is active, and elsewhere the others, in the types of these."""
    chosen = ()
    for k in tl.static_range(len(tiles)):
        chosen = chosen + (tl.where(active, tiles[k].to(others[k].dtype), others[k]),)
    return chosen


@triton.jit
def keep_each(where, tiles):
    """The tiles, zero elsewhere."""
    kept = ()
    for k in tl.static_range(len(tiles)):
        kept = kept + (tl.where(where, tiles[k], 0.0).to(tiles[k].dtype),)
    return kept


@triton.jit
def with_first(tiles, first):
    """The tiles with another first one."""
    changed = (first,)
    for k in tl.static_range(1, len(tiles)):
        changed = changed + (tiles[k],)
    return changed


@triton.jit
def load_state(h, c, places, inside):
    """A state of a tile, or its gradients: h in the type of its array, and c in float32 if there is one."""
    state = (tl.load(h + places, mask=inside, other=0.0),)
    if c is not None:
        state = state + (tl.load(c + places, mask=inside, other=0.0),)
    return state


@triton.jit
def store_state(h, c, places, inside, state):
    tl.store(h + places, state[0], mask=inside)
    if c is not None:
        tl.store(c + places, state[1], mask=inside)


@triton.jit
def products(
    left,  # [BLOCK_B, 1] pointers to the rows of the left factor, whose numbers stand side by side
    right,  # [1, BLOCK_N] pointers to the columns of the first right factor
    stride_k,  # from one number of a column to the next
    stride_factor,  # from one right factor to the next
    depth,
    has_row,  # [BLOCK_B, 1]
    has_column,  # [1, BLOCK_N]
    COUNT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A tile of each product of one left factor and COUNT right ones, read from memory BLOCK_K deep at a time."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros((left.shape[0], right.shape[1]), tl.float32),)
    for begin in tl.range(0, depth, BLOCK_K, num_stages=STAGES):
        k = begin + tl.arange(0, BLOCK_K)
        a = tl.load(left + k[None, :], mask=has_row & (k < depth)[None, :], other=0.0)
        b = load_each(right, k[:, None] * stride_k, stride_factor, (k < depth)[:, None] & has_column, COUNT)
        more = ()
        for f in tl.static_range(COUNT):
            more = more + (tl.dot(a, b[f], sums[f], input_precision=PRECISION),)
        sums = more
    return sums
