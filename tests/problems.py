"""The sizes worth testing, each with its reason, and random layers of those sizes."""

from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from torch.nn.functional import linear

from fused_rnn import autograd, reference, stock
from fused_rnn.call import Call, Form, layer_call, one_layer
from fused_rnn.cell import CELLS as CELLS
from fused_rnn.cell import LSTM, RNN_RELU, Cell, Weights

# Cells that differ in more than the activation of an RNN, for tests of what no activation changes.
LOOPS = tuple(cell for cell in CELLS if cell is not RNN_RELU)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Size:
    T: int
    B: int
    I: int
    H: int

    def __str__(self):
        return f"T{self.T}-B{self.B}-I{self.I}-H{self.H}"


SIZES = (
    Size(T=1, B=1, I=1, H=1),  # nothing to vectorise, nothing to overlap
    Size(T=1, B=1, I=64, H=64),  # a streaming step
    Size(T=7, B=3, I=5, H=63),  # no size divides a vector, a tile or a panel
    Size(T=5, B=2, I=31, H=17),  # one unit more than the widest vector
    Size(T=3, B=13, I=8, H=16),  # exactly one vector; two whole tiles of rows and one row, in one slice or two
    Size(T=2, B=37, I=3, H=65),  # one unit past a whole panel of four vectors
    Size(T=5, B=5, I=7, H=20),  # fewer than 6 rows a step: x is projected for several steps
    Size(T=3, B=6, I=7, H=20),  # 6 rows a step: x and h are multiplied in one tile
    Size(T=1, B=8, I=7, H=20),  # weights are not packed, two tiles of rows; x and h are summed together
    Size(T=3, B=3, I=7, H=20),  # 9 rows, the most for which weights of this size are not packed (float32, float64)
    Size(T=2, B=5, I=7, H=20),  # one more
    Size(T=2, B=30, I=600, H=300),  # 60 rows of long weights: not packed
    Size(T=2, B=32, I=16, H=48),  # 64 rows and whole vectors: the backward uses the weights where they are
    Size(T=5, B=13, I=16, H=48),  # one more
    Size(T=2, B=50, I=2, H=130),  # more rows than go through all steps together, if weights are near
    Size(T=70, B=4, I=3, H=2),  # more rows (step, batch) than one chunk of the backward
    Size(T=3, B=300, I=2, H=3),  # one step is more than a chunk of the backward
    Size(T=40, B=2, I=4, H=260),  # more steps than one chunk of projected input: 256 KiB hold 30 (LSTM, float64: 15)
    Size(T=12, B=16, I=80, H=200),  # an ordinary layer
)


# At least one size is 0: there is nothing to compute, or a product has no terms.
NOTHING = (Size(3, 0, 2, 5), Size(0, 3, 2, 5), Size(3, 2, 0, 5), Size(3, 2, 4, 0), Size(0, 3, 0, 5), Size(0, 0, 0, 0))


# The native ops and PyTorch's layers, each with the signature of reference.run.
native_layer = partial(autograd.run_layer, torch.ops.fused_rnn)


def stock_layer(cell, x, states, weights, lengths=None, reverse=False, resets=None):
    assert lengths is None and resets is None
    output, final = one_layer(stock.run)(cell, x.flip(0) if reverse else x, states, weights)
    return output.flip(0) if reverse else output, final


def rows_on(of, device):
    """The lengths and resets of a layer or call on a device, by name."""
    given = {"lengths": of.lengths, "resets": of.resets}
    return {name: None if tensor is None else tensor.to(device) for name, tensor in given.items()}


@dataclass(frozen=True)
class Layer:
    """A random layer: its tensors and the gradients that come into it."""

    cell: Cell
    x: torch.Tensor
    states: tuple
    weights: Weights
    lengths: torch.Tensor | None
    resets: torch.Tensor | None
    grads: tuple  # for output and each final state

    @staticmethod
    def random(cell, dtype, size, *, ragged=False, resets=False, bias=True, projection=0, seed=0):
        """Inputs of unit variance and torch.nn's initial weights, representable in `dtype`; leaves of autograd.

        projection: numbers of h, or 0 for H and no projection.
        """
        generator = torch.Generator().manual_seed(seed)
        T, B, I, H = size.T, size.B, size.I, size.H
        rows, P = cell.gates * H, projection or H
        sizes = (P, H)[: len(cell.states)]

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        def uniform(*shape):
            values = torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1
            return (values * max(H, 1) ** -0.5).to(dtype).requires_grad_()

        biases = (uniform(rows), uniform(rows)) if bias else (None, None)
        return Layer(
            cell=cell,
            x=normal(T, B, I),
            states=tuple(normal(B, size) for size in sizes),
            weights=Weights(uniform(rows, I), uniform(rows, P), *biases, uniform(P, H) if projection else None),
            lengths=torch.randint(1, T + 1, (B,), generator=generator) if ragged else None,
            resets=torch.rand(T, B, generator=generator) < 0.3 if resets else None,
            grads=tuple(normal(*shape).detach() for shape in ((T, B, P), *((B, size) for size in sizes))),
        )

    def call(self):
        """The call of one layer that this is."""
        return layer_call(self.cell, self.x, self.states, self.weights, self.lengths, resets=self.resets)

    def leaves(self):
        """Every tensor that has a gradient, by name."""
        weights = {name: w for name, w in self.weights._asdict().items() if w is not None}
        return {"x": self.x, **weights, **dict(zip(self.cell.states, self.states, strict=True))}

    def changed(self, change):
        """The same layer with every tensor of numbers changed."""

        def leaf(t):
            return None if t is None else change(t.detach()).requires_grad_()

        return replace(
            self,
            x=leaf(self.x),
            states=tuple(map(leaf, self.states)),
            weights=Weights(*map(leaf, self.weights)),
            grads=tuple(map(change, self.grads)),
        )

    def double(self):
        """The same layer in float64: its results are the truth."""
        return self.changed(torch.Tensor.double)

    def to(self, device):
        """The same layer on another device."""
        return replace(self.changed(lambda t: t.to(device)), **rows_on(self, device))

    def results(self, run, reverse=False):
        """Outputs and all gradients of `run` (with the signature of reference.run), by name."""
        output, states = run(self.cell, self.x, self.states, self.weights, self.lengths, reverse, self.resets)
        final = {f"{name[0]}y": state for name, state in zip(self.cell.states, states, strict=True)}
        leaves = self.leaves()
        # Without a step, the reference does not use every tensor: the gradients of those are zero.
        grads = torch.autograd.grad((output, *states), list(leaves.values()), self.grads, materialize_grads=True)
        named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {"output": output.detach(), **{name: state.detach() for name, state in final.items()}, **named}

    def truth(self, results, reverse=False):
        """The float64 results with which to compare `results`, by name.

        The derivative of ReLU jumps at zero, so a unit that rounding moves across zero rightly has another gradient.
        The true gradients of rnn_relu are therefore those for the units that are above zero in `results`.
        """
        double = self.double()
        truth = double.results(reference.run, reverse)
        if self.cell is RNN_RELU:
            given = double.results(partial(run_with_units, results["output"] > 0), reverse)
            truth.update((name, value) for name, value in given.items() if name.startswith("grad_"))
        return truth


def run_with_units(units, cell, x, states, weights, lengths, reverse, resets):
    """reference.run of an RNN whose activation keeps the units [T, B, H] and sets all others to zero."""
    steps = iter(units.flip(0) if reverse else units)

    def step(gates_x, states, weights):
        return (next(steps) * (gates_x + linear(states[0], weights.weight_hh, weights.bias_hh)),)

    with mock.patch.dict(reference.STEPS, {cell: step}):
        return reference.run(cell, x, states, weights, lengths, reverse, resets)


def comparisons(layers, got, plain, reverse=False):
    """By the name of a result, what assert_within_budget compares.

    got, plain: for each layer, its results under test and those of plain PyTorch in the same dtype.
    """
    truth = [layer.truth(results, reverse) for layer, results in zip(layers, got, strict=True)]
    plain_truth = truth
    if layers[0].cell is RNN_RELU:
        plain_truth = [layer.truth(results, reverse) for layer, results in zip(layers, plain, strict=True)]
    return {name: [[r[name] for r in results] for results in (got, truth, plain, plain_truth)] for name in truth[0]}


# Of everything that a call may have, each at least once.
CALLS = {
    "one layer": dict(),
    "two layers, both directions": dict(layers=2, directions=2),
    "no biases, no states": dict(layers=2, bias=False, states=False),
    "batch first": dict(layers=2, directions=2, batch_first=True),
    "ragged": dict(layers=2, directions=2, ragged=True),
    "resets": dict(layers=2, directions=2, resets=True),
    "resets, ragged": dict(layers=2, directions=2, resets=True, ragged=True, batch_first=True),
    "resets, no states": dict(resets=True, states=False, reverse=True),
    "masks": dict(layers=3, masks=True),
    "masks, batch first": dict(layers=2, directions=2, masks=True, batch_first=True, ragged=True),
    "reverse": dict(reverse=True, layers=2),
    "without a batch": dict(layers=2, directions=2, batched=False),
    "a step": dict(step=True),
    "a step without states": dict(step=True, states=False),
    "a step without a batch": dict(step=True, batched=False, bias=False),
    "projection": dict(layers=2, directions=2, projection=True, ragged=True, resets=True),
    "projection, no biases, no states": dict(layers=2, projection=True, bias=False, states=False, masks=True),
}

# For other devices than the CPU, a packed sequence is padded before any op runs.
CPU_CALLS = CALLS | {
    "packed": dict(layers=2, directions=2, packed=True, masks=True),
    "packed, no states": dict(packed=True, states=False, reverse=True),
    "packed, projection": dict(layers=2, packed=True, projection=True),
}


def posed(cells, kinds):
    """Each cell with each kind of call that it can have."""
    return [(cell, kind) for cell in cells for kind in kinds if cell is LSTM or "projection" not in kind]


def on_device(call, device):
    """The same call, whose input is on that device already, with all else there."""
    return call.changed(**rows_on(call, device), masks=[mask.to(device) for mask in call.masks])


def whole_call(cell, kind, dtype=torch.float64, T=3, B=2, I=3, H=4):
    """A function from tensors to a call of that kind, and random tensors: input, states, weights."""
    asked = CPU_CALLS[kind]
    made = Form(**{name: asked[name] for name in Form._fields if name in asked})
    count, P = made.layers * made.directions, H - 1 if made.projection else H
    rows = [B] if asked.get("batched", True) else []
    steps = rows if made.step else [*rows, T] if made.batch_first else [T, *rows]
    lengths = torch.randint(1, T + 1, (B,)) if asked.get("ragged") else None
    resets = torch.rand(T, B) < 0.5 if asked.get("resets") else None
    batch_sizes = None
    if asked.get("packed"):
        batch_sizes = torch.tensor([B] + [max(1, B - 1)] * (T - 1))
        steps = [int(batch_sizes.sum())]
    leading = [*([] if made.step else [count]), *rows]
    weights = []
    for k in range(count):
        inputs, gates = I if k < made.directions else made.directions * P, cell.gates * H
        shapes = [(gates, inputs), (gates, P), *[(gates,)] * (2 * made.bias), *[(P, H)] * made.projection]
        weights += [torch.randn(shape, dtype=dtype) / 2 for shape in shapes]
    sizes = (P, H)[: len(cell.states)] if asked.get("states", True) else ()
    states = [torch.randn(*leading, size, dtype=dtype) for size in sizes]
    masks = []
    if asked.get("masks"):
        shape = (*(steps if asked.get("packed") else (T, B)), made.directions * P)
        masks = [torch.randint(3, shape).to(dtype) for _ in range(made.layers - 1)]
    tensors = [torch.randn([*steps, I], dtype=dtype), *states, *weights]
    n = 1 + len(states)

    def call(*tensors):
        options = dict(lengths=lengths, batch_sizes=batch_sizes, resets=resets, masks=masks)
        return Call(cell, tensors[0], tensors[1:n], list(tensors[n:]), made, **options)

    return call, [tensor.requires_grad_() for tensor in tensors]
