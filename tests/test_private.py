"""Each undocumented name of PyTorch in fused_rnn/private.py behaves as this package needs it."""

import re
from pathlib import Path

import torch
from torch import nn
from torch.autograd import forward_ad

import fused_rnn
from fused_rnn import private

SOURCES = [path for path in Path(fused_rnn.__file__).parent.rglob("*.py") if path.name != "private.py"]


def test_no_other_file_uses_such_names():
    found = re.compile(r"from torch(\.\w+)*\._|import torch(\.\w+)*\._|\b(torch|forward_ad)(\.\w+)*\._(?!VF\b|_)")
    used = [f"{path.name}: {line}" for path in SOURCES for line in path.read_text().splitlines() if found.search(line)]
    assert not used


def test_tensors_that_trace():
    kinds = set()

    @torch.library.custom_op("fused_rnn_tests::seen", mutates_args=())
    def seen(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @seen.register_fake
    def _(x):
        kinds.add(type(x))
        return torch.empty_like(x)

    torch.compile(seen, backend="aot_eager", fullgraph=True)(torch.zeros(2))
    assert kinds and kinds <= private.TRACED


def test_below_autograd():
    x = torch.zeros(2, requires_grad=True)
    assert (x + 1).requires_grad
    with private.below_autograd():
        assert not (x + 1).requires_grad


def test_transforms():
    seen = []

    def function(x):
        seen.append((private.is_func_active(), private.is_transformed()))
        return x.sum()

    x = torch.zeros(2)
    function(x)
    torch.func.grad(function)(x)
    torch.func.vmap(function)(x[None])
    with forward_ad.dual_level():
        function(x)
    assert seen == [(False, False), (True, True), (True, True), (False, True)]


def test_jit_tracing():
    seen = []

    def function(x):
        seen.append(private.jit_tracing_state() is not None)
        return x + 1

    function(torch.zeros(2))
    torch.jit.trace(function, torch.zeros(2), check_trace=False)
    assert seen == [False, True]


def test_plain():
    """Only where nothing stands between a module and an op."""
    seen = []

    def function(x):
        seen.append(private.is_plain())
        return x + 1

    x = torch.zeros(2)
    function(x)
    with torch.no_grad():
        function(x)
        with torch.autocast("cpu", torch.bfloat16):
            function(x)
        torch.vmap(function)(x[None])
        with forward_ad.dual_level():
            function(x)
        torch.jit.trace(function, x, check_trace=False)
        function(x)
    with torch.inference_mode():
        function(x)
    assert seen == [False, True, *[False] * 4, True, True]


class AsksIfPlain(nn.Module):
    def forward(self, x):
        return x + 1 if private.is_plain() else x + 2


def test_plain_is_no_graph():
    x = torch.zeros(2)
    with torch.no_grad():
        assert AsksIfPlain()(x)[0] == 1
        assert torch.compile(AsksIfPlain(), backend="aot_eager", fullgraph=True)(x)[0] == 2
        for strict in (False, True):
            assert torch.export.export(AsksIfPlain(), (x,), strict=strict).module()(x)[0] == 2


class Asks(nn.Module):
    def forward(self, x):
        return x + 1 if private.is_exporting() else x + 2


def test_exporting():
    x = torch.zeros(2)
    for strict in (False, True):
        assert torch.export.export(Asks(), (x,), strict=strict).module()(x)[0] == 1
    assert Asks()(x)[0] == 2
    assert torch.compile(Asks(), backend="eager", fullgraph=True)(x)[0] == 2


def test_dynamo():
    seen = []

    def backend(graph, inputs):
        seen.append(private.is_dynamo_running())
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2))
    assert seen == [True] and not private.is_dynamo_running()


def test_version():
    x = torch.zeros(2, requires_grad=True)
    y = x.exp()  # autograd saves it
    version = y._version
    with torch.no_grad():
        y.mul_(1)
    assert y._version == version + 1
    private.set_version(y, version)
    assert y._version == version
    y.sum().backward()  # does not raise that y was changed in place
