"""Every backend of the CPU, cell, dtype and problem against the float64 reference: outputs and all gradients.

The cuda backend has the same in tests/emu and, on a GPU, in test_cuda.py; triton in test_triton_interpreted.py.
"""

import pytest
import torch
from closeness import assert_within_budget
from problems import CELLS, DTYPES, LOOPS, NOTHING, SIZES, Layer, Size, comparisons, stock_layer

from fused_rnn import autograd, backends, native, reference
from fused_rnn.call import layer_call, one_layer
from fused_rnn.cell import LSTM, RNN_RELU

TESTED = [backends.by_name("cpu")]
LONG = Size(70, 4, 3, 2)
# These take longest: many draws of many steps, which the reference runs in Python, or large weights.
SLOW = (LONG, Size(3, 300, 2, 3), Size(2, 30, 600, 300), Size(40, 2, 4, 260))
# Its grad_weight_hh alone misses the float32 budget by up to a quarter: 4.4e-6 where 3.6e-6 are allowed.
KNOWN_MISS = ("gru(reset_after=False)", torch.float32, LONG, "avx2")


QUICK_CELLS = [*LOOPS, pytest.param(RNN_RELU, marks=pytest.mark.slow)]


def marked(size):
    return pytest.param(size, marks=pytest.mark.slow) if size in SLOW else size


def plain(cell, x, states, weights, lengths, reverse, resets=None):
    """PyTorch's own layer where it can, and otherwise the reference in the same dtype."""
    T, H = x.size(0), states[-1].size(-1)
    if lengths is None and resets is None and cell.stock and T > 0 and H > 0:
        return stock_layer(cell, x, states, weights, lengths, reverse)
    return reference.run(cell, x, states, weights, lengths, reverse, resets)


def check(backend, cell, dtype, size, *, reverse=False, ragged=False, resets=False, bias=True, projection=0):
    # Small problems are drawn often, so that the largest error of PyTorch is not small by luck.
    count = 30 if size.H < 4 else 2
    if size == LONG and cell is RNN_RELU and dtype == torch.float32:  # its gradients do not fade: luck counts for more
        count = 60
    options = dict(ragged=ragged, resets=resets, bias=bias, projection=projection)
    draws = [Layer.random(cell, dtype, size, **options, seed=seed) for seed in range(count)]
    if reason := backend.why_not(draws[0].call()):
        pytest.skip(reason)
    got = [d.results(one_layer(backend.run), reverse) for d in draws]
    same = [d.results(plain, reverse) for d in draws]
    known_miss = ""
    for name, compared in comparisons(draws, got, same, reverse).items():
        assert all(g[name].dtype == dtype for g in got)
        try:
            assert_within_budget(name, *compared)
        except AssertionError as miss:
            posed = (str(cell), dtype, size, native.cpu_instruction_set())
            if name != "grad_weight_hh" or posed != KNOWN_MISS:
                raise
            known_miss = str(miss)
    if known_miss:
        pytest.xfail(f"the AVX2 backward's sums are not exact enough here: {known_miss}")


@pytest.mark.parametrize("size", [marked(size) for size in SIZES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("backend", TESTED, ids=lambda b: b.name)
def test_forward_and_backward(backend, cell, dtype, size):
    check(backend, cell, dtype, size)


@pytest.mark.parametrize("size", NOTHING, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", QUICK_CELLS, ids=str)
@pytest.mark.parametrize("backend", TESTED, ids=lambda b: b.name)
def test_sizes_of_zero(backend, cell, dtype, size):
    check(backend, cell, dtype, size)


@pytest.mark.parametrize("size", [Size(7, 3, 5, 63), marked(LONG), Size(2, 37, 3, 65)], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("bias", [False, True], ids=["nobias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("cell", QUICK_CELLS, ids=str)
@pytest.mark.parametrize("backend", TESTED, ids=lambda b: b.name)
def test_options(backend, cell, dtype, bias, reverse, ragged, size):
    if cell is RNN_RELU and size == LONG:
        pytest.skip("rnn_tanh shows the same loops over many steps, at a fraction of the draws")
    check(backend, cell, dtype, size, reverse=reverse, ragged=ragged, bias=bias)


RESET_SIZES = (Size(7, 3, 5, 63), Size(9, 50, 2, 130), Size(40, 9, 3, 17))  # slices of rows; chunks of steps


@pytest.mark.parametrize("size", RESET_SIZES, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", QUICK_CELLS, ids=str)
@pytest.mark.parametrize("backend", TESTED, ids=lambda b: b.name)
def test_resets(backend, cell, dtype, reverse, ragged, size):
    check(backend, cell, dtype, size, reverse=reverse, ragged=ragged, resets=True)


PROJECTIONS = {  # proj_size by size
    Size(1, 1, 1, 2): 1,
    Size(1, 3, 64, 64): 16,  # weights that are not packed; the last of two panels
    Size(1, 90, 64, 64): 33,  # panels that are packed late, two and a half
    Size(7, 3, 5, 63): 17,  # no size divides a vector, a tile or a panel
    Size(3, 6, 7, 20): 19,
    Size(2, 32, 16, 48): 16,  # 64 rows and whole vectors: the backward uses the weights where they are
    Size(5, 13, 16, 48): 32,  # one more
    Size(9, 50, 2, 130): 65,  # more rows than go through all steps together
    Size(40, 9, 3, 17): 5,  # chunks of steps
    Size(3, 300, 2, 3): 2,  # one step is more than a chunk of the backward
    Size(12, 16, 80, 200): 64,  # an ordinary layer
}


@pytest.mark.parametrize("size", [marked(size) for size in PROJECTIONS], ids=str)
@pytest.mark.parametrize("rows", ["padded", "ragged, reverse", "resets", "ragged, resets, reverse"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("backend", TESTED, ids=lambda b: b.name)
def test_projections(backend, dtype, rows, size):
    options = {name: name in rows for name in ("ragged", "resets", "reverse")}
    check(backend, LSTM, dtype, size, projection=PROJECTIONS[size], bias="reverse" not in rows, **options)


@pytest.mark.parametrize("B", [1, 5, 70, 300])  # unpacked, packed, and gradients summed in two chunks
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_single_step_from_zeros(cell, dtype, B):
    """Without initial states, results are those from states of zeros, and weight_hh is not read."""
    layer = Layer.random(cell, dtype, Size(1, B, 5, 19))
    unread = layer.weights._replace(weight_hh=torch.full_like(layer.weights.weight_hh, torch.nan).requires_grad_())
    results = []
    for states, weights in ((), unread), (tuple(map(torch.zeros_like, layer.states)), layer.weights):
        outputs = autograd.run(torch.ops.fused_rnn, layer_call(cell, layer.x, states, weights))
        grads = (grad.view_as(y) for grad, y in zip(layer.grads, outputs, strict=True))
        results.append([*outputs, *torch.autograd.grad(outputs, (layer.x, *weights[:4]), list(grads))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    grad_weight_hh = results[0][-3]
    assert grad_weight_hh.shape == layer.weights.weight_hh.shape and not grad_weight_hh.any()
