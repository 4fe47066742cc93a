"""Random module configurations against torch.nn with the same parameters: outputs, states, every gradient."""

import random
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from alone import alone_in_any_form
from closeness import assert_within_budget
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn

CONFIGURATIONS = 560
QUICK = 140  # of them are for every change
SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 31, 33, 40)


@dataclass(frozen=True)
class Configuration:
    kind: str
    nonlinearity: str  # of an RNN; "" for its default
    dtype: torch.dtype
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    T: int
    B: int
    form: str  # padded, unbatched, sorted, unsorted, strided
    with_hx: bool
    training: bool
    resets: bool

    @staticmethod
    def random(seed):
        draw = random.Random(seed)
        hidden = draw.choice(SIZES)
        kind = draw.choice(("LSTM", "GRU", "RNN"))
        dtype = draw.choice((torch.float64,) * 4 + (torch.float32, torch.bfloat16))
        layers = draw.randint(1, 3)
        form = draw.choice(("padded", "padded", "unbatched", "sorted", "unsorted", "strided"))
        is_padded = form in ("padded", "unbatched", "strided")
        drawn = Configuration(
            kind=kind,
            # In bfloat16, rounding decides which units of inner layers ReLU passes, and with that the gradients.
            nonlinearity=draw.choice(("tanh", "relu")) if kind == "RNN" and dtype != torch.bfloat16 else "",
            dtype=dtype,
            input_size=draw.choice(SIZES),
            hidden_size=hidden,
            num_layers=layers,
            bias=draw.random() < 0.8,
            batch_first=draw.random() < 0.5,
            dropout=draw.choice((0.0, 0.3)) if layers > 1 else 0.0,
            bidirectional=draw.random() < 0.5,
            proj_size=draw.randint(1, hidden - 1) if kind == "LSTM" and hidden > 1 and draw.random() < 0.15 else 0,
            T=draw.randint(1, 12),
            B=draw.randint(0 if form in ("padded", "strided") else 1, 9),
            form=form,
            with_hx=draw.random() < 0.5,
            training=draw.random() < 0.7,
            resets=is_padded and draw.random() < 0.4,
        )
        has_masks = drawn.dropout > 0 and drawn.training  # which are not the same for every sequence alone
        return replace(drawn, resets=drawn.resets and drawn.B > 0 and not has_masks)

    def __str__(self):
        words = [
            self.kind + self.nonlinearity,
            str(self.dtype).removeprefix("torch."),
            f"T{self.T}-B{self.B}-I{self.input_size}",
        ]
        words += [f"H{self.hidden_size}x{self.num_layers}", self.form]
        flags = ("batch_first", "bidirectional", "with_hx", "training", "resets")
        words += [name for name in flags if getattr(self, name)]
        words += [f"{name}{value}" for name in ("dropout", "proj_size") if (value := getattr(self, name))]
        return "-".join(words + ([] if self.bias else ["nobias"]))

    def module(self, namespace):
        names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        arguments = {name: asdict(self)[name] for name in names} | {"dtype": self.dtype}
        if self.nonlinearity:
            arguments["nonlinearity"] = self.nonlinearity
        if self.proj_size:
            arguments["proj_size"] = self.proj_size
        torch.manual_seed(1)
        return getattr(namespace, self.kind)(**arguments).train(self.training)

    def inputs(self):
        """The data tensor, what makes the module's input of it, and hx; all leaves of autograd, in float64."""
        generator = torch.Generator().manual_seed(2)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype).double()

        rows = 1 if self.form == "unbatched" else self.B
        x = normal(*((rows, self.T) if self.batch_first else (self.T, rows)), self.input_size)
        if self.form == "unbatched":
            x = x.squeeze(0 if self.batch_first else 1)
        if self.form == "strided":
            x = torch.stack([x, x], dim=-2).flatten(-2)[..., : self.input_size]
        lengths = torch.randint(1, self.T + 1, (rows,), generator=generator)
        lengths[0:1] = self.T
        if self.form == "sorted":
            lengths = lengths.sort(descending=True)[0]
        if self.form == "unsorted":
            lengths = lengths[torch.randperm(rows, generator=generator)]
        count = self.num_layers * (2 if self.bidirectional else 1)
        batch = () if self.form == "unbatched" else (rows,)
        states = [normal(count, *batch, self.proj_size or self.hidden_size)]
        if self.kind == "LSTM":
            states.append(normal(count, *batch, self.hidden_size))
        return x, lengths, states if self.with_hx else []


def with_resets(module, x, hx):
    """The results with random resets; those of torch.nn are of every sequence in a call of its own."""
    resets = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(5)) < 0.3
    if isinstance(module, fused_rnn.modules.Layers):
        return module(x, hx, resets=resets)
    return alone_in_any_form(module, x, hx, resets)


def results(configuration, module, dtype):
    """Everything that comes out of the module and all gradients, by name."""
    module = module.to(dtype)
    x, lengths, states = configuration.inputs()
    x = x.to(dtype).requires_grad_()
    states = [state.to(dtype).requires_grad_() for state in states]
    given = x
    if configuration.form in ("sorted", "unsorted"):
        given = pack_padded_sequence(
            x, lengths, configuration.batch_first, enforce_sorted=configuration.form == "sorted"
        )
    hx = None if not states else tuple(states) if configuration.kind == "LSTM" else states[0]
    torch.manual_seed(3)
    output, final = with_resets(module, x, hx) if configuration.resets else module(given, hx)
    out = {}
    if isinstance(given, PackedSequence):
        assert isinstance(output, PackedSequence) and torch.equal(output.batch_sizes, given.batch_sizes)
        assert output.sorted_indices is given.sorted_indices and output.unsorted_indices is given.unsorted_indices
        output = output.data
    assert isinstance(final, tuple) == (configuration.kind == "LSTM")
    out["output"] = output
    out |= dict(zip(("h_n", "c_n"), final if isinstance(final, tuple) else (final,), strict=False))
    generator = torch.Generator().manual_seed(4)
    grads = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype) for y in out.values()]
    leaves = {"x": x, **dict(zip(("hx", "cx"), states, strict=False)), **dict(module.named_parameters())}
    found = torch.autograd.grad(list(out.values()), list(leaves.values()), grads)
    return out | {f"grad of {name}": grad for name, grad in zip(leaves, found, strict=True)}


def marked(seed):
    marks = () if seed < QUICK else pytest.mark.slow
    return pytest.param(seed, id=f"{seed}-{Configuration.random(seed)}", marks=marks)


@pytest.mark.parametrize("seed", [marked(seed) for seed in range(CONFIGURATIONS)])
def test_equals_torch_nn(seed):
    configuration = Configuration.random(seed)
    dtype = configuration.dtype
    ours, theirs = configuration.module(fused_rnn), configuration.module(nn)
    for name, parameter in theirs.named_parameters():  # the same random numbers were drawn
        assert torch.equal(parameter, ours.get_parameter(name))
    got, plain = results(configuration, ours, dtype), results(configuration, theirs, dtype)
    if dtype == torch.float64:
        for name, expected in plain.items():
            assert got[name].shape == expected.shape
            assert got[name].stride() == expected.stride() or name != "output" or configuration.resets
            torch.testing.assert_close(got[name], expected, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    elif configuration.dropout == 0 or not configuration.training:  # the masks of another dtype differ
        truth = results(configuration, theirs, torch.float64)

        # A tensor of one element may be exact in PyTorch by luck: all are put together, each by its own measure.
        def together(results):
            scales = {name: t.abs().max().clamp(min=1e-30) for name, t in truth.items() if t.numel()}
            return torch.cat([(results[name].double() / scale).flatten() for name, scale in scales.items()])

        with fused_rnn.use_backend("reference"):
            by_steps = results(configuration, ours, dtype)
        # One draw of few elements: the strict budget is that of test_recurrence, over many draws and layer by layer.
        # PyTorch's loss is that of its layer or of its single operations, whichever is larger.
        losses = [together(plain), together(by_steps)]
        assert_within_budget("all", [together(got)] * 2, [together(truth)] * 2, losses, dtype=dtype, factor=2)
