"""On a GPU our kernels come before PyTorch's where a measurement says that they are faster, and nowhere else."""

import csv

import pytest
import torch

import fused_rnn
from fused_rnn import backends, evidence, native
from fused_rnn.call import Problem
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM
from fused_rnn.evidence import Shape, Work

GPU = "NVIDIA H100 80GB HBM3"
WORK = Work("cuda", "lstm", "bfloat16", training=True, layers=1, directions=1, packed=False)


def measured(*shapes, work=WORK, gpu=GPU):
    return tuple((gpu, work, Shape(*shape)) for shape in shapes)


GRID = [(256, B, H, 2.0) for B in (1, 16) for H in (128, 256)]


@pytest.fixture
def on_gpu(monkeypatch):
    """A machine with one GPU, on which every backend can run, and these measurements of it."""

    def set_up(*rows):
        monkeypatch.setattr(evidence, "measurements", lambda: rows)
        monkeypatch.setattr(evidence, "gpu_name", lambda device_type, index: GPU)
        monkeypatch.setattr(native, "cuda_why_not", lambda index, dtype: None)
        monkeypatch.setattr(native, "load_error", None)
        evidence._measured_shapes.cache_clear()

    yield set_up
    evidence._measured_shapes.cache_clear()


def problem(**changes):
    posed = Problem(LSTM, torch.device("cuda:0"), torch.bfloat16, T=256, B=16, I=128, H=256, training=True)
    return posed._replace(**changes)


@pytest.mark.parametrize(
    ("T", "B", "H", "expected"),
    [
        (256, 16, 256, 2.0),  # measured
        (64, 16, 256, 2.0),  # a quarter of the measured steps
        (63, 16, 256, None),
        (1000, 7, 200, 1.5),  # the slowest of the four around it
        (256, 16, 200, 2.0),  # between two
        (256, 17, 256, None),  # more rows than any
        (256, 16, 100, None),  # fewer units than any
    ],
)
def test_the_measured_shapes_around_a_shape_decide(T, B, H, expected):
    shapes = [Shape(*shape) for shape in GRID] + [Shape(256, 1, 256, 1.5)]
    assert evidence.speedup(shapes, T, B, H) == expected


def test_a_corner_that_is_missing_is_no_evidence():
    assert evidence.speedup([Shape(*shape) for shape in GRID[1:]], 256, 4, 130) is None


def test_without_measurements_pytorch_comes_first(on_gpu):
    on_gpu()
    assert backends.choose(problem()).name == "torch"
    assert backends.by_name("cuda").why_not(problem()) is None  # it can run, if it is forced
    with backends.use_backend("cuda"):
        assert backends.choose(problem()).name == "cuda"


@pytest.mark.parametrize("what", [dict(ragged=True), dict(cell=GRU_RESET_BEFORE), dict(T=0)], ids=str)
def test_what_pytorch_cannot_run_is_ours(on_gpu, what):
    on_gpu()
    assert backends.choose(problem(**what)).name == "cuda"


def test_a_measured_kernel_comes_first_for_its_work_only(on_gpu):
    on_gpu(*measured(*GRID))
    assert backends.choose(problem()).name == "cuda"
    others = (
        dict(cell=GRU),
        dict(dtype=torch.float16),
        dict(training=False),
        dict(layers=2),
        dict(directions=2),
        dict(packed=True),
        dict(H=512),
    )
    for change in others:
        assert backends.choose(problem(**change)).name == "torch", change


def test_a_kernel_that_was_measured_to_be_slower_stays_behind(on_gpu):
    on_gpu(*measured((256, 16, 256, 1.04)))
    assert backends.choose(problem()).name == "torch"
    assert evidence.why_later(problem(), "cuda") == (
        f"measured on this GPU ({GPU}) at 1.04 times the speed of PyTorch's kernels"
    )


def test_another_gpu_is_no_evidence(on_gpu):
    on_gpu(*measured(*GRID, gpu="NVIDIA H200"))
    assert backends.choose(problem()).name == "torch"
    assert evidence.why_later(problem(), "cuda", gpu="H200") is None
    assert evidence.why_later(problem(), "cuda", gpu="H20") is not None


def test_float32_is_tf32_where_pytorch_allows_it(on_gpu, monkeypatch):
    on_gpu(*measured(*GRID, work=WORK._replace(math="tf32")))
    monkeypatch.setattr(native, "allow_tf32", lambda: True)
    assert backends.choose(problem(dtype=torch.float32)).name == "cuda"
    monkeypatch.setattr(native, "allow_tf32", lambda: False)
    assert backends.choose(problem(dtype=torch.float32)).name == "torch"


def test_triton_may_be_measured_too(on_gpu, monkeypatch):
    on_gpu(*measured(*GRID, work=WORK._replace(backend="triton")))
    able = [
        b if b.name != "triton" else backends.Backend("triton", lambda p: None, b.run, later=b.why_later)
        for b in backends.BACKENDS
    ]
    monkeypatch.setattr(backends, "BACKENDS", able)
    assert backends.choose(problem()).name == "triton"


def test_explain_tells_the_truth_about_a_gpu_that_is_not_here(on_gpu):
    rnn, x = fused_rnn.LSTM(128, 256, dtype=torch.bfloat16), torch.zeros(256, 16, 128, dtype=torch.bfloat16)
    on_gpu()
    text = str(fused_rnn.explain(rnn, x, gpu="H100"))
    assert "  torch (on H100)" in text
    assert "not cuda: not measured on this GPU (H100) at such sizes, so PyTorch's kernels come first; its plan:" in text
    assert "  cuda (on H100:" in str(fused_rnn.explain(rnn, x, lengths=torch.full((16,), 9), gpu="H100"))
    on_gpu(*measured(*GRID))
    assert "  cuda (on H100:" in str(fused_rnn.explain(rnn, x, gpu="H100"))
    assert "  torch (on A100)" in str(fused_rnn.explain(rnn, x, gpu="A100"))


def test_a_compiled_layer_is_ours(on_gpu):
    """PyTorch's layer would become a graph of all its steps."""
    on_gpu()

    @torch.compile(fullgraph=True, backend="eager")
    def ask(x):
        return x + (1 if backends.choose(problem()).name == "cuda" else 0)

    assert backends.choose(problem()).name == "torch"
    assert torch.equal(ask(torch.zeros(1)), torch.ones(1))


def test_a_compiled_layer_may_ask(on_gpu):
    on_gpu(*measured(*GRID))

    @torch.compile(fullgraph=True, dynamic=True, backend="eager")
    def ask(x):
        reason = evidence.why_later(problem(B=x.size(0)), "cuda")
        return x + (0 if reason is None else 1)

    assert torch.equal(ask(torch.zeros(16)), torch.zeros(16))
    assert torch.equal(ask(torch.zeros(17)), torch.ones(17))


def test_the_file_has_these_columns():
    with evidence.PATH.open(newline="") as file:
        assert tuple(csv.DictReader(file).fieldnames) == evidence.COLUMNS
    with pytest.raises(ValueError, match="the columns must be gpu, backend"):
        evidence.parsed({"gpu": "x"})
    row = dict(zip(evidence.COLUMNS, (GPU, "cuda", "gru", "tf32", "0", "2", "1", "1", "256", "16", "64", "1.25")))
    assert evidence.parsed(row) == (GPU, Work("cuda", "gru", "tf32", False, 2, 1, True), Shape(256, 16, 64, 1.25))
