"""The CUDA kernels on the emulator, through their ops, against the float64 reference: outputs and all gradients.

The ids name cell, arithmetic, tier, sizes and options, and the seed of the schedule. EMU_FLAVOUR chooses the build of
the emulator; the slower ones run the smaller cases (tests/emu/test_flavours.py).
"""

import functools
import os
from dataclasses import dataclass, replace

import build
import pytest
import reduced
import torch
from closeness import assert_within_budget
from problems import CALLS, CELLS, LOOPS, NOTHING, Layer, Size, comparisons, posed, stock_layer, whole_call

from fused_rnn import autograd, layered, reference
from fused_rnn.call import BIAS, SAVE
from fused_rnn.cell import GRU, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH, Cell

ops = torch.ops.fused_rnn_emu


@functools.cache
def load():
    """Builds and loads the emulator. Not at import: collecting tests must be quick."""
    build.load()
    autograd.register("fused_rnn_emu")


@pytest.fixture(autouse=True)
def emulator(monkeypatch):
    load()
    monkeypatch.setenv("FUSED_RNN_TIER", "")  # and whatever `device_for` sets is gone after the test


pytestmark = pytest.mark.slow
PLAIN = os.environ.get("EMU_FLAVOUR", "plain") == "plain"
MATHS = {  # what products multiply: the storage type, and whether TF32 is allowed
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
if not PLAIN:
    del MATHS["float16"]  # the same loads, stores and barriers as bfloat16
# The last H whose passes both fit into an H200's block.
LARGEST_BLOCK = {
    LSTM: {"float32": 96, "tf32": 96, "bfloat16": 160, "float16": 160},
    GRU: {"float32": 128, "tf32": 128, "bfloat16": 176, "float16": 176},
    GRU_RESET_BEFORE: {"float32": 128, "tf32": 128, "bfloat16": 176, "float16": 176},
    RNN_TANH: {"float32": 128, "tf32": 128, "bfloat16": 192, "float16": 192},
    RNN_RELU: {"float32": 128, "tf32": 128, "bfloat16": 192, "float16": 192},
}
# Unit tiles of a block, slices of the depth, row tiles of a group; each with sizes that need it.
DIVISIONS = {
    "1x2x1": Size(6, 9, 3, 17),  # two blocks, two groups; a slice with one unit
    "2x3x1": Size(5, 9, 3, 40),  # a block with one unit tile of two; a warp that applies no cell
    "1x4x2": Size(4, 17, 3, 61),  # a second group with one row
    "1x5x2": Size(4, 25, 3, 70),  # a second group with fewer rows than row tiles
    "2x4x2": Size(4, 25, 3, 100),  # seven unit tiles, spread over four blocks
}
TIERS = ("block", "cluster 1x2x1", "grid 1x2x1", "stepwise")


@dataclass(frozen=True)
class Case:
    cell: Cell
    math: str
    tier: str
    size: Size
    reverse: bool = False
    ragged: bool = False
    bias: bool = True
    resets: bool = False
    projection: int = 0
    chunk: int = 0  # steps of a chunk; 0: all of them
    seed: int = 0
    device: str = "H200"

    def __str__(self):
        flags = [name for name in ("reverse", "ragged", "resets") if getattr(self, name)] + ["nobias"] * (not self.bias)
        flags += [f"proj_size{self.projection}"] if self.projection else []
        chunk = [f"chunk{self.chunk}"] if self.chunk else []
        device = [self.device] if self.device != "H200" else []
        return "-".join(
            [str(self.cell), self.math, self.tier, str(self.size), *device, *flags, *chunk, f"seed{self.seed}"]
        )


SIZES = (
    Size(T=4, B=1, I=1, H=1),  # the fewest steps of the block tier; one unit of a tile of 16, one row of 8
    Size(T=5, B=8, I=5, H=16),  # exactly one tile
    Size(T=5, B=9, I=3, H=17),  # a second block with one row, a second warp with one unit
    Size(T=12, B=7, I=20, H=48),  # three warps
)
# The last H whose weights are all in registers: in one block, and in a cluster with two slices of the depth.
IN_REGISTERS = {"tf32": (64, 128), "bfloat16": (128, 256), "float16": (128, 256)}
FEWEST = Size(6, 9, 3, 17)


def cases():
    for cell in CELLS if PLAIN else LOOPS:
        for math in MATHS:
            for tier in ("block", "stepwise"):
                for size in SIZES:
                    yield Case(cell, math, tier, size)
            for tier in TIERS:
                for reverse in (False, True):
                    for ragged in (False, True):
                        yield Case(cell, math, tier, FEWEST, reverse, ragged, bias=reverse)
                for reverse in (False, True):
                    yield Case(cell, math, tier, Size(7, 9, 3, 17), reverse, ragged=True, chunk=1 + 2 * reverse)
                    if math in ("float32", "bfloat16"):
                        options = dict(ragged=not reverse, resets=True, chunk=1 + 2 * reverse)
                        yield Case(cell, math, tier, Size(7, 9, 3, 17), reverse, **options)
            for P in (1, 9, 16) if cell is LSTM else ():
                options = dict(ragged=True, resets=P > 1, bias=P == 9, projection=P, chunk=2 * (P > 1))
                yield Case(cell, math, "stepwise", Size(5, 9, 3, 17), P == 9, **options)
                yield Case(cell, math, "stepwise", Size(5, 9, 3, 17), P != 9, projection=P)
            for i, (division, size) in enumerate(DIVISIONS.items()):
                for tier in ("cluster", "grid")[division == "1x5x2" :]:  # no cluster has five blocks
                    yield Case(cell, math, f"{tier} {division}", size, reverse=i % 2 == 1, ragged=i % 3 == 0)
            yield Case(cell, math, "grid 1x2x1", Size(4, 60, 3, 17), ragged=True, device="H100 MIG 1g")  # two launches
            yield Case(cell, math, "few steps", Size(1, 9, 3, 17))
            yield Case(cell, math, "few steps", Size(3, 9, 3, 17), reverse=True, ragged=True)
            if PLAIN:
                for tier, last in zip(("block", "cluster 4x2x1"), IN_REGISTERS.get(math, ())):
                    for H in (last, last + 1):
                        yield Case(cell, math, tier, Size(3, 9, 3, H), ragged=last < H)
                H = LARGEST_BLOCK[cell][math]
                yield Case(cell, math, "block", Size(4, 8, 3, H))
                yield Case(cell, math, "", Size(4, 8, 3, H + 1))


def seeded():
    """Every case with one of the seeds 0 to 3 in turn, and one case of every loop with all of them."""
    for i, case in enumerate(cases()):
        every = case.size == FEWEST and case.ragged and case.math in ("float32", "bfloat16")
        for seed in range(4) if every else [i % 4]:
            yield replace(case, seed=seed)


def device_for(case):
    """Sets the device, its chunk, and the tier; of no tier or few steps the planner chooses."""
    T, B, H = case.size.T, case.size.B, case.size.H
    ops.set_device(case.device, True, case.chunk * B * case.cell.gates * H * 4)
    forced = "" if case.tier == "few steps" else case.tier
    os.environ["FUSED_RNN_TIER"] = forced
    if case.tier and not case.projection:
        wanted = "stepwise" if case.tier == "few steps" else case.tier.split(" together")[0]
        assert all(tier_of(case.cell, case.math, T, B, H, backward) == wanted for backward in (False, True))


def tier_of(cell, math, T, B, H, backward):
    return ops.plan(str(cell), math, T, B, H, 1, 1, backward).split(":")[0]


def runner(math):
    _, allow_tf32 = MATHS[math]

    def run(*layer):
        return autograd.run_layer(ops, *layer, reduced_precision=allow_tf32)

    return run


def plain(case):
    """What PyTorch gives in the same arithmetic: its own layer where it has one, and otherwise the reference."""
    if case.math == "tf32":
        return reduced.in_tf32
    return stock_layer if case.cell.stock and not (case.ragged or case.resets) else reference.run


def check(case):
    dtype, _ = MATHS[case.math]
    device_for(case)
    # Small problems are drawn often, so that the largest error of PyTorch is not small by luck.
    count = 100 if case.size.H < 16 else 4 if PLAIN else 1
    options = dict(ragged=case.ragged, resets=case.resets, bias=case.bias, projection=case.projection)
    draws = [Layer.random(case.cell, dtype, case.size, **options, seed=s) for s in range(count)]
    got = [d.results(runner(case.math), case.reverse) for d in draws]
    same = [d.results(plain(case), case.reverse) for d in draws]
    for name, compared in comparisons(draws, got, same, case.reverse).items():
        assert all(g[name].dtype == dtype for g in got)
        assert_within_budget(name, *compared)


@pytest.mark.parametrize("case", list(seeded()), ids=str)
def test_forward_and_backward(case, monkeypatch):
    monkeypatch.setenv("EMU_SEED", str(case.seed))
    check(case)


def results_of(call, tensors, run):
    """All results and gradients."""
    results = run(call(*tensors))
    grads = [torch.linspace(-1, 1, r.numel()).bfloat16().to(r.dtype).view_as(r) for r in results]
    return [*results, *torch.autograd.grad(results, tensors, grads)]


# Layers and directions side by side, or not: with the steps that all their chunks have together.
TOGETHER = {
    "block together 2": 4,
    "cluster 1x2x1 together 3": 6,
    "grid 1x2x1 together 2": 2,
    "grid 1x2x1 together 1": 3,
    "stepwise": 4,
}


@pytest.mark.parametrize(("tier", "chunk"), TOGETHER.items())
@pytest.mark.parametrize(("cell", "kind"), posed(LOOPS, [kind for kind in CALLS if "layers" in CALLS[kind]]), ids=str)
def test_several_layers_side_by_side(cell, kind, tier, chunk):
    only_stepwise_projects(kind, tier)
    check_call(cell, kind, torch.bfloat16, tier, chunk)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("math", ["float32", "bfloat16"] if PLAIN else ["bfloat16"])
@pytest.mark.parametrize(("cell", "kind"), posed(LOOPS, CALLS), ids=str)
def test_a_whole_call(cell, kind, math, tier):
    """Several layers, both directions, masks, absent states, every form of input."""
    only_stepwise_projects(kind, tier)
    check_call(cell, kind, MATHS[math][0], tier, chunk=0)


def only_stepwise_projects(kind, tier):
    if "projection" in kind and tier != "stepwise":
        pytest.skip("a projection is a second matmul in each step, which the stepwise tier alone has")


def check_call(cell, kind, dtype, tier, chunk):
    device_for(replace(one_block(cell), tier=tier, chunk=chunk))
    draws = [whole_call(cell, kind, dtype, T=5, B=9, I=3, H=17) for _ in range(4 if PLAIN else 1)]
    got = [results_of(*draw, lambda call: autograd.run(ops, call)) for draw in draws]
    same = [results_of(*draw, lambda call: layered.run(call, reference.run)) for draw in draws]
    doubled = [(call, [tensor.detach().double().requires_grad_() for tensor in tensors]) for call, tensors in draws]
    truth = [results_of(*draw, lambda call: layered.run(call, reference.run)) for draw in doubled]
    for k in range(len(truth[0])):  # few draws, and more arithmetic in a row than the other tests have
        found = ([r[k] for r in results] for results in (got, truth, same))
        assert_within_budget(f"result {k}", *found, factor=4)


@pytest.mark.parametrize(("tier", "chunk"), TOGETHER.items())
@pytest.mark.parametrize("kind", ["masks", "two layers, both directions"])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_side_by_side_changes_no_bit_of_the_forward(cell, kind, tier, chunk, monkeypatch):
    call, tensors = whole_call(cell, kind, torch.bfloat16, T=5, B=9, I=3, H=17)
    outputs = []
    for together, seed in ((tier, 0), (tier, 1), (tier.split(" together")[0], 0)):
        device_for(replace(one_block(cell), tier=together, chunk=chunk))
        monkeypatch.setenv("EMU_SEED", str(seed))
        with torch.no_grad():
            outputs.append(autograd.run(ops, call(*tensors)))
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, outputs[0], strict=True))


@pytest.mark.parametrize(
    ("tier", "chunk", "layers", "directions", "wanted"),
    [
        ("block together 2", 4, 3, 1, "; 2 layers side by side, each 2 steps behind the one before"),
        ("cluster 1x2x1 together 3", 6, 3, 1, "; 3 layers side by side, each 2 steps behind the one before"),
        ("cluster 1x2x1 together 3", 6, 2, 2, "; both directions side by side"),
        ("grid 1x2x1 together 2", 4, 1, 2, "; both directions side by side"),
        ("grid 1x2x1 together 1", 4, 2, 2, " of shared memory"),
    ],
)
def test_what_is_side_by_side(tier, chunk, layers, directions, wanted):
    device_for(replace(one_block(LSTM), tier=tier, chunk=chunk))
    for backward in (False, True):
        plan = ops.plan("lstm", "bfloat16", 6, 9, 17, layers, directions, backward)
        assert plan.split("; by the model")[0].endswith(wanted)


def one_block(cell, math="bfloat16", **options):
    return Case(cell, math, "block", Size(6, 9, 3, 17), **options)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_no_bit_depends_on_the_schedule(cell, math, tier, monkeypatch):
    case = replace(one_block(cell, math, ragged=True), tier=tier)
    device_for(case)
    layer = Layer.random(cell, MATHS[math][0], case.size, ragged=True)
    results = []
    for seed in range(4):
        monkeypatch.setenv("EMU_SEED", str(seed))
        results.append(layer.results(runner(math)))
    for other in results[1:]:
        assert all(torch.equal(value, results[0][name]) for name, value in other.items())


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_chunks_change_no_bit_of_the_forward(cell, tier):
    """h travels between chunks in the storage type and c in float32, as it does between steps."""
    layer = Layer.random(cell, torch.bfloat16, Size(7, 9, 3, 17))
    outputs = []
    for chunk in (0, 1, 3):
        device_for(Case(cell, "bfloat16", tier, Size(7, 9, 3, 17), chunk=chunk))
        output, states = runner("bfloat16")(cell, layer.x, layer.states, layer.weights, None, False)
        outputs.append((output, *states))
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, outputs[0], strict=True))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_nothing_is_saved_without_a_backward(cell, tier):
    device_for(replace(one_block(cell), tier=tier))
    layer = Layer.random(cell, torch.bfloat16, Size(6, 9, 3, 17))
    hx, cx, *_ = *(state.unsqueeze(0) for state in layer.states), None
    arguments = (cell.name, layer.x, layer.weights[:4], hx, cx, None, None, ())
    with torch.no_grad():
        *results, saved = ops.forward(*arguments, BIAS | SAVE)
        without = ops.forward(*arguments, BIAS)
    assert saved.shape == (6, 9, cell.saved, 17) and saved.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(results, without, strict=True))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_padding_may_hold_anything(cell, tier):
    """What stands in x and in the incoming gradient past a row's end reaches no result."""
    case = replace(one_block(cell, "float32", ragged=True), tier=tier)
    device_for(case)
    layer = Layer.random(cell, torch.float32, case.size, ragged=True)
    padding = torch.arange(case.size.T)[:, None] >= layer.lengths
    assert padding.any()
    clean = layer.results(runner("float32"))
    with torch.no_grad():
        layer.x[padding] = float("nan")
        layer.grads[0][padding] = float("nan")
    for name, value in layer.results(runner("float32")).items():
        assert torch.equal(value.nan_to_num(7.0), clean[name]), name


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_nan_is_not_hidden(cell, tier):
    device_for(replace(one_block(cell), tier=tier))
    layer = Layer.random(cell, torch.bfloat16, Size(6, 9, 3, 17))
    with torch.no_grad():
        layer.x[1, 0, 0] = float("nan")
    output, _ = runner("bfloat16")(cell, layer.x, layer.states, layer.weights, None, False)
    assert output[1:, 0].isnan().all() and output[0].isfinite().all() and output[:, 1:].isfinite().all()


@pytest.mark.parametrize("frozen", ["x", "weights", "biases"])
def test_gradients_that_nobody_needs(frozen):
    case = one_block(LSTM, "float32")
    device_for(case)
    layer = Layer.random(LSTM, torch.float32, case.size)
    everything = layer.results(runner("float32"))
    leaves = layer.leaves()
    kinds = {"x": ("x",), "weights": ("weight", "bias"), "biases": ("bias",)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(not name.startswith(kinds[frozen]))
    output, states = runner("float32")(LSTM, layer.x, layer.states, layer.weights, None, False)
    live = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    grads = torch.autograd.grad((output, *states), list(live.values()), layer.grads)
    for name, grad in zip(live, grads, strict=True):
        assert torch.equal(grad, everything[f"grad_{name}"])


@pytest.mark.skipif(
    os.environ.get("EMU_FLAVOUR") == "thread",
    reason="after giving up nothing orders what is read, which the race detector reports",
)
def test_a_block_that_never_comes(monkeypatch):
    """It is waited for for two seconds; then results are NaN, and the next call says why."""
    case = replace(one_block(LSTM), tier="grid 1x2x1", size=Size(6, 1, 3, 17))
    device_for(case)
    layer = Layer.random(LSTM, torch.bfloat16, case.size)

    def outputs():
        with torch.no_grad():
            return runner("bfloat16")(LSTM, layer.x, layer.states, layer.weights, None, False)[0]

    wanted = outputs()
    monkeypatch.setenv("EMU_RESIDENT", "1")
    assert outputs()[2:].isnan().all()
    monkeypatch.delenv("EMU_RESIDENT")
    with pytest.raises(RuntimeError, match=r"gave up: a block waited for two seconds .* results of that layer are NaN"):
        outputs()
    assert torch.equal(outputs(), wanted)


def test_an_absent_gradient_is_zero():
    case = one_block(GRU, "float32")
    for tier in TIERS:
        device_for(replace(case, tier=tier))
        layer = Layer.random(GRU, torch.float32, case.size)
        output, (h,) = runner("float32")(GRU, layer.x, layer.states, layer.weights, None, False)
        tensors = list(layer.leaves().values())
        apart = [torch.autograd.grad(y, tensors, torch.ones_like(y), retain_graph=True) for y in (output, h)]
        grads = torch.autograd.grad((output, h), tensors, (torch.ones_like(output), torch.ones_like(h)))
        for both, one, other in zip(grads, *apart, strict=True):
            torch.testing.assert_close(one + other, both)


@pytest.mark.parametrize("size", NOTHING, ids=str)
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_sizes_of_zero(cell, size):
    ops.set_device("H200", True, 0)
    layer = Layer.random(cell, torch.bfloat16, size)
    truth = layer.double().results(reference.run)
    for name, value in layer.results(runner("bfloat16")).items():
        torch.testing.assert_close(value.double(), truth[name], atol=0.02, rtol=0.02)


def test_compiles_in_one_graph():
    device_for(one_block(GRU, "float32"))
    torch._dynamo.reset()
    compiled = torch.compile(runner("float32"), fullgraph=True, backend="aot_eager")
    layer = Layer.random(GRU, torch.float32, Size(6, 9, 3, 17))
    for name, value in layer.results(compiled).items():
        assert torch.equal(value, layer.results(runner("float32"))[name])


REFUSED = {
    "float64": (dict(), torch.float64, Size(4, 2, 3, 5), "for float32, bfloat16 and float16, got float64"),
    "bfloat16 on a T4": (dict(name="T4"), torch.bfloat16, Size(4, 2, 3, 5), "bfloat16 needs compute capability 8.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    device, dtype, size, message = REFUSED[case]
    ops.set_device(**({"name": "H200", "cooperative": True, "chunk_bytes": 0} | device))
    layer = Layer.random(LSTM, dtype, size)
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        runner("float32")(LSTM, layer.x, layer.states, layer.weights, None, False)


def test_without_cooperative_launches(monkeypatch):
    """Blocks that need each other are never started one after the other."""
    ops.set_device("H200", False, 0)
    assert tier_of("lstm", "bfloat16", 100, 16, 1024, False) == "stepwise"
    monkeypatch.setenv("FUSED_RNN_TIER", "grid")
    with pytest.raises(RuntimeError, match="cooperative launches, which this GPU does not have"):
        tier_of("lstm", "bfloat16", 100, 16, 1024, False)


def test_a_turing_gpu_computes_in_float32(monkeypatch):
    """TF32 came with compute capability 8.0: where it is allowed but not there, no factor is rounded."""
    monkeypatch.setenv("FUSED_RNN_TIER", "block")
    layer = Layer.random(LSTM, torch.float32, Size(6, 9, 3, 17))
    ops.set_device("T4", True, 0)
    on_t4 = layer.results(runner("tf32"))
    ops.set_device("H200", True, 0)
    assert all(torch.equal(on_t4[name], value) for name, value in layer.results(runner("float32")).items())
    assert not torch.equal(layer.results(runner("tf32"))["output"], on_t4["output"])
