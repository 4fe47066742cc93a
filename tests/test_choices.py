"""For which calls a choice of tune holds: in this process and the next, and no further; and its files."""

import dataclasses
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from tuned_calls import choose, choose_for, file_of, replaced, tune

import fused_rnn
from fused_rnn import backends, choices, native, tuning
from fused_rnn.call import Problem
from fused_rnn.cell import GRU, LSTM
from fused_rnn.choices import Choice

pytestmark = [
    pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}"),
    pytest.mark.usefixtures("choices_folder"),
]
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


# ---- For which calls a choice is ----


def test_the_kind_of_a_call():
    posed = Problem(LSTM, CPU, torch.float32, T=20, B=6, I=5, H=7, training=True)
    kind = choices.kind_of(posed)
    for same in (posed, posed._replace(T=16), posed._replace(T=31, B=7), posed._replace(B=4)):
        assert choices.kind_of(same) == kind
    other = {"T": 32, "B": 8, "I": 6, "H": 8, "cell": GRU, "dtype": torch.float64, "training": False, "layers": 2}
    other |= {
        "directions": 2,
        "ragged": True,
        "packed": True,
        "projection": 3,
        "quantized": torch.int8,
        "step": True,
    }
    for name, value in other.items():
        assert choices.kind_of(posed._replace(**{name: value})) != kind, name
    assert choices.kind_of(posed._replace(T=4096)) == choices.kind_of(posed._replace(T=choices.LONGEST))
    torch.set_num_threads(2)
    try:
        assert choices.kind_of(posed) != kind
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(native.cpu_reduced_rows() == 0, reason="this processor does not multiply bfloat16")
def test_the_kind_knows_reduced_precision(monkeypatch):
    posed = Problem(LSTM, CPU, torch.float32, T=20, B=6, I=5, H=7)
    kind = choices.kind_of(posed)
    monkeypatch.setattr(torch.backends.mkldnn.rnn, "fp32_precision", "bf16")
    assert choices.kind_of(posed) == kind._replace(math="bfloat16")
    assert str(choices.kind_of(posed)).startswith("lstm float32 in bfloat16 T=16.. B=4.. I=5 H=7")


def test_what_no_route_of_the_choice_can_run_runs_as_usual():
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    choose_for(rnn, x, "cpu joined")
    params = dict(rnn.named_parameters())
    torch.func.grad(lambda p: torch.func.functional_call(rnn, p, (x,))[0].sum())(params)
    choose_for(rnn, x, "cpu of another machine")
    assert choose(rnn, x)[0] == "cpu"
    with fused_rnn.use_backend("reference"):
        assert choose(rnn, x)[0] == "reference"


def test_inference_that_is_known_follows_the_choice():
    """Remembered calls skip the look-up of a choice, unless a choice has changed since."""
    rnn, x = fused_rnn.LSTM(200, 200), torch.randn(20, 8, 200)
    with torch.no_grad():
        rnn(x), rnn(x)
        results = {}
        for way in ("joined", "projected", "joined"):
            choose_for(rnn, x, f"cpu {way}")
            results.setdefault(way, []).extend(rnn(x)[0] for _ in range(3))
        assert not torch.equal(results["joined"][0], results["projected"][0])
        assert all(torch.equal(own[0], y) for own in results.values() for y in own)
        choose_for(rnn, x, "torch")
        torch.testing.assert_close(rnn(x)[0], results["joined"][0])


def test_inference_that_is_known_follows_tune(monkeypatch):
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    posed = tuning.calls_of(rnn, (x,), training=False)
    with torch.no_grad():
        rnn(x)
    replaced(monkeypatch, "cpu", lambda call: (time.sleep(0.02), native.run(call))[1])
    found = tuning.tune_call(posed[0], 0.01)
    assert found.choice != "cpu"
    ran = []
    route = backends.ROUTES[found.choice]
    told = dataclasses.replace(route, run=lambda call: ran.append(call) or route.run(call), inference_op=None)
    monkeypatch.setitem(backends.ROUTES, found.choice, told)
    with torch.no_grad():
        rnn(x)
    assert len(ran) == 1


@pytest.mark.skipif(native.cpu_reduced_rows() == 0, reason="this processor does not multiply bfloat16")
def test_inference_that_is_known_follows_the_switch(monkeypatch):
    rnn, x = fused_rnn.LSTM(200, 200), torch.randn(20, 8, 200)
    with torch.no_grad():
        exact = rnn(x)[0]
        rnn(x)
        monkeypatch.setattr(torch.backends.mkldnn.rnn, "fp32_precision", "bf16")
        usual = rnn(x)[0]
        assert not torch.equal(usual, exact)
        choose_for(rnn, x, "cpu avx2")  # which does not multiply bfloat16
        other = rnn(x)[0], rnn(x)[0]
        torch.testing.assert_close(other, (exact, exact))
        monkeypatch.undo()
        assert torch.equal(rnn(x)[0], exact)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("route", ["cpu projected", "torch", "cpu"])
def test_choices_compile(route, dynamic):
    """In one graph, and one graph for all sizes."""
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    choose_for(rnn, x, route)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: rnn(x)[0], fullgraph=True, backend=backend, dynamic=dynamic)
    for T, B in ((9, 3), (10, 3), (70, 5), (300, 2), (33, 16)):
        x = torch.randn(T, B, 5)
        torch.testing.assert_close(compiled(x), rnn(x)[0])
    assert len(graphs) <= 3


@pytest.mark.parametrize("training", [False, True])
def test_graphs_of_symbols(training):
    """torch.fx.experimental.proxy_tensor traces without torch.compile."""
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    with torch.set_grad_enabled(training):
        choose_for(rnn, x, "cpu projected")
        graph = make_fx(lambda x: rnn(x)[0], tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
        for T in (9, 20):
            x = torch.randn(T, 3, 5)
            torch.testing.assert_close(graph(x), rnn(x)[0])


# ---- Files ----

OTHER_PROCESS = """
import sys, torch, fused_rnn
torch.set_num_threads(1)
rnn = fused_rnn.LSTM(5, 7)
explanation = fused_rnn.explain(rnn, torch.randn(9, 3, 5))
rnn(torch.randn(9, 3, 5))
print(fused_rnn.backends.choose(explanation.problem).name, explanation.source, sep="|")
"""


def in_another_process(choices_folder):
    environment = os.environ | {"FUSED_RNN_TUNED": str(choices_folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return *done.stdout.strip().split("|"), done.stderr


def test_the_next_process_finds_the_choice(choices_folder):
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    tune(rnn, x)
    kind = choices.kind_of(fused_rnn.explain(rnn, x).problem)
    choices.keep({kind: Choice("cpu projected", 1.7, "2026-12-01")})
    name, source, errors = in_another_process(choices_folder)
    assert (name, source) == ("cpu projected", "tuned here on 2026-12-01: 1.70 times torch") and not errors
    assert in_another_process(0)[:2] == ("cpu", "by the model")
    damaged = file_of(choices_folder)
    damaged.write_text(damaged.read_text().replace(",5,7,", ",five,7,"))
    name, source, errors = in_another_process(choices_folder)
    assert name == "cpu" and errors.count(str(damaged)) == 1 and "invalid literal for int()" in errors


@pytest.mark.parametrize(
    "text",
    ["", "\0", "a,b\n1,2\n", ",".join(choices.COLUMNS) + "\nx,1\n", ",".join(choices.COLUMNS) + ",\n", b"\xff\xfe\0"],
    ids=["empty", "a zero", "foreign", "short row", "more columns", "no text"],
)
def test_a_damaged_file_is_named_and_ignored(choices_folder, text):
    tune()
    file = file_of(choices_folder)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    told = f"fused_rnn ignores {file}, where choices should be: "
    with pytest.warns(RuntimeWarning, match=re.escape(told)) as caught:
        choices.load()
    assert len(caught) == 1 and not choices.tuned()
    with warnings.catch_warnings(action="ignore"):
        tune()
    choices.load()
    assert len(choices.tuned()) == 1


def test_other_versions_are_other_files(choices_folder, monkeypatch):
    tune()
    file = file_of(choices_folder)
    assert f"-torch-{torch.__version__}-fused_rnn-" in file.name
    monkeypatch.setattr(torch, "__version__", "2.99")
    choices.load()
    assert not choices.tuned()
    tune(fused_rnn.GRU(5, 7))
    assert len([*choices_folder.iterdir()]) == 2
    assert len(choices.clear()) == 2 and not [*choices_folder.iterdir()]


def test_what_another_process_has_written_stays(choices_folder):
    tune(fused_rnn.LSTM(5, 7))
    (before,) = choices.tuned()
    choices._table.clear()  # as in a process that was there before
    tune(fused_rnn.GRU(5, 7))
    choices.load()
    assert len(choices.tuned()) == 2 and before in choices.tuned()


def test_a_file_that_cannot_be_written(choices_folder, monkeypatch):
    choices_folder.write_text("a file in the place of the folder")
    with pytest.raises(OSError, match="choices could not be kept"):
        tune()
    assert not choices.tuned() and choices_folder.read_text().startswith("a file")
    choices_folder.unlink()
    tune()
    text = file_of(choices_folder).read_text()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(choices.csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="No space left"):
        tune(fused_rnn.GRU(5, 7))
    assert file_of(choices_folder).read_text() == text  # the only file, and whole
    assert len(choices.tuned()) == 2


def test_clear_takes_no_other_file(choices_folder):
    tune()
    other = choices_folder / "of the user.csv"
    other.write_text("1,2\n")
    assert len(choices.clear()) == 1 and [*choices_folder.iterdir()] == [other]
    choices.load()


def test_nothing_is_kept_with_0(choices_folder, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TUNED", "0")
    tune()
    assert len(choices.tuned()) == 1 and not choices_folder.exists()
    assert choices.clear() == [] and not choices.tuned()


def test_the_folder_of_the_user(monkeypatch):
    monkeypatch.delenv("FUSED_RNN_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    if sys.platform == "linux":
        assert choices.own_folder() == Path("/somewhere/fused_rnn/tuned")


def test_what_comes_with_the_package(choices_folder, monkeypatch):
    """It is for processors of the same kind, and less than an own measurement."""
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    kind = choices.kind_of(fused_rnn.explain(rnn, x).problem)
    here = choices.processor_kind(choices.processor())
    assert choices.processor_kind("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, amx") == "Intel amx"
    assert choices.processor_kind("Neoverse, neon_dot") == "Neoverse neon_dot"
    for device, expected in (("Intel other_set", "cpu"), (here, "cpu projected")):
        choices._write(choices.SHIPPED, {kind._replace(device=device): Choice("cpu projected", 1.3, "2026-12-01")})
        choices.load()
        name, explained = choose(rnn, x)
        assert name == expected
    assert explained.source == "measured on this kind of processor on 2026-12-01: 1.30 times torch"
    assert not choices.tuned() and str(choices.tuned()) == "nothing is tuned"
    choices.keep({kind: Choice("torch", 1.0, "2026-12-02")})
    choices.load()
    name, explained = choose(rnn, x)
    assert name == explained.backend == "torch" and "tuned here on 2026-12-02" in str(explained)
    assert "cpu projected" not in str(choices.tuned()) and "torch: tuned here" in str(choices.tuned())
    assert choices.clear() and choose(rnn, x)[0] == "cpu projected"
