"""float32 layers whose products have factors of bfloat16, where PyTorch's switch for RNNs on a CPU allows it.

Processors with AMX or AVX512-BF16 have such kernels. On others, test_backends.py runs this file with emulated ones.
"""

import contextlib

import pytest
import reduced
import torch
from closeness import assert_within_budget
from problems import CELLS, Layer, Size, comparisons, native_layer

import fused_rnn
from fused_rnn import native
from fused_rnn.call import one_layer
from fused_rnn.cell import LSTM

LEAST = native.cpu_reduced_rows()
pytestmark = pytest.mark.skipif(LEAST == 0, reason=f"{native.cpu_instruction_set()} has no products of bfloat16")


@contextlib.contextmanager
def allowed(precision="bf16"):
    switch = torch.backends.mkldnn.rnn
    before, switch.fp32_precision = switch.fp32_precision, precision
    try:
        yield
    finally:
        switch.fp32_precision = before


run_native = one_layer(native.run)


@pytest.mark.parametrize("options", [{}, {"ragged": True, "bias": False}], ids=["forward", "reverse"])
@pytest.mark.parametrize("size", [Size(5, 13, 5, 20), Size(3, 37, 33, 65), Size(1, 300, 2, 3)], ids=str)
@pytest.mark.parametrize(("cell", "projection"), [*((cell, 0) for cell in CELLS), (LSTM, 2)], ids=str)
def test_loses_no_more_than_the_rounding_of_factors(cell, projection, size, options):
    reverse, projection = bool(options), projection * size.H // 3
    layers = [Layer.random(cell, torch.float32, size, seed=seed, projection=projection, **options) for seed in range(5)]
    with allowed():
        got = [layer.results(run_native, reverse) for layer in layers]
    plain = [layer.results(reduced.in_bfloat16, reverse) for layer in layers]
    for name, compared in comparisons(layers, got, plain, reverse).items():
        assert_within_budget(name, *compared)


def test_is_off_until_it_is_allowed():
    layer = Layer.random(LSTM, torch.float32, Size(8, 16, 32, 48))
    exact = layer.results(native_layer)
    for precision, same in ("none", True), ("ieee", True), ("bf16", False), ("none", True):
        with allowed(precision):
            got = layer.results(run_native)
        assert all(torch.equal(got[name], exact[name]) for name in exact) == same


@pytest.mark.parametrize("T", [1, LEAST - 1, LEAST])
def test_known_calls_ask_each_time(T):
    """Calls of few rows stay exact; longer ones obey the switch at each call, the first and the later ones."""
    rnn, x = fused_rnn.GRU(16, 32), torch.randn(T, 1, 16)
    with torch.no_grad():
        exact, _ = rnn(x)
        for precision in ("none", "bf16", "none", "bf16"):
            with allowed(precision):
                assert torch.equal(rnn(x)[0], exact) == (precision == "none" or T < LEAST)
                assert ("factors of bfloat16" in str(fused_rnn.explain(rnn, x))) == (precision == "bf16" and T >= LEAST)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_is_for_float32(dtype):
    rnn, x = fused_rnn.LSTM(16, 32, dtype=dtype), torch.randn(8, 16, 16, dtype=dtype)
    want, _ = rnn(x)
    with allowed():
        assert torch.equal(rnn(x)[0], want)


def test_stacks_and_packed_sequences():
    """Every layer and direction, with the same bits however the batch is given."""
    rnn, x, lengths = fused_rnn.LSTM(16, 32, num_layers=2, bidirectional=True), torch.randn(6, 20, 16), torch.arange(20)
    lengths = (lengths % 6 + 1).sort(descending=True).values
    with allowed():
        packed, _ = rnn(torch.nn.utils.rnn.pack_padded_sequence(x, lengths))
        padded, _ = rnn(x, lengths=lengths)
    exact, _ = rnn(x, lengths=lengths)
    assert torch.equal(torch.nn.utils.rnn.pad_packed_sequence(packed)[0], padded)
    assert 0 < (padded - exact).abs().max() < 0.02
