"""tune compares and times every route of a call; what it chooses holds in this process and the next, and no further."""

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
from closeness import assert_within_budget
from problems import LOOPS, SIZES, Layer, Size, comparisons, native_layer
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import fused_rnn
from fused_rnn import __main__ as command
from fused_rnn import autograd, backends, choices, native, timing, tuning
from fused_rnn.call import Problem, one_layer
from fused_rnn.cell import GRU, LSTM
from fused_rnn.choices import Choice

pytestmark = pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}")
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A folder for choices, and none that come with the package; at the end all are forgotten."""
    own = tmp_path / "tuned"
    shipped = tmp_path / "choices.csv"
    shipped.write_text(",".join(choices.COLUMNS) + "\n")
    with monkeypatch.context() as patch:
        patch.setenv("FUSED_RNN_TUNED", str(own))
        patch.setattr(choices, "SHIPPED", shipped)
        choices.load()
        yield own
    backends.forget()
    choices.load()
    assert not choices.tuned()


def tune(rnn=None, x=None, **options):
    x = torch.randn(9, 3, 5) if x is None else x
    return fused_rnn.tune(fused_rnn.LSTM(5, 7) if rnn is None else rnn, x, seconds=0.01, **options)


def file_of(folder):
    (file,) = folder.iterdir()
    return file


def choose(rnn, x):
    explained = fused_rnn.explain(rnn, x)
    return backends.choose(explained.problem).name, explained


# ---- What is measured ----


def test_every_route_is_measured(capsys):
    (found,) = tune()
    sets = {name for name in native.cpu_instruction_sets(LSTM, torch.float32, False) if name} - {"generic"}
    routes = {"cpu", "torch", "cpu joined", "cpu projected", *(f"cpu {name}" for name in sets)}
    assert {*found.microseconds} == routes - {f"cpu {native.cpu_instruction_set()}"}
    assert found.microseconds[found.choice] <= tuning.MARGIN * min(found.microseconds.values())
    assert not found.wrong and found.speedup > 0
    text = capsys.readouterr().out
    assert text.startswith("lstm float32 cpu T=9 B=3 I=5 H=7 training\n")
    assert all(f"{name} " in text for name in found.microseconds)


def test_each_kind_of_call_once():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = fused_rnn.GRU(5, 7, batch_first=True), fused_rnn.GRUCell(7, 7)
            self.norm, self.drop = nn.BatchNorm1d(7), nn.Dropout(0.5)

        def forward(self, x):
            y, _ = self.rnn(x)
            h = self.drop(self.norm(y[:, -1]))
            for _ in range(3):
                h = self.cell(h)
            return self.rnn(x[:, :3])[0]

    model, x = Model().eval(), torch.randn(4, 9, 5)
    model.norm.train()
    before, random = model.norm.running_mean.clone(), torch.random.get_rng_state()
    found = tune(model, x, training=True)
    assert [one.call.split(" cpu ")[1].split(" I=")[0] for one in found] == ["T=9 B=4", "T=1 B=4", "T=3 B=4"]
    assert all("training" in one.call for one in found)
    assert torch.equal(model.norm.running_mean, before) and torch.equal(torch.random.get_rng_state(), random)
    assert not model.training and model.norm.training and not model.drop.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_form(dtype, training):
    x = torch.randn(9, 3, 5, dtype=dtype)
    lengths = torch.tensor([9, 2, 5])
    packed = pack_sequence([x[:4, 0], x[:9, 1]], enforce_sorted=False)
    for rnn, inputs in (
        (fused_rnn.LSTM(5, 7, num_layers=2, bidirectional=True, dropout=0.3, dtype=dtype), (x,)),
        (fused_rnn.GRU(5, 7, dtype=dtype), (x, None, lengths)),
        (fused_rnn.RNN(5, 7, bias=False, dtype=dtype), (packed,)),
        (fused_rnn.LSTM(5, 7, proj_size=3, dtype=dtype), (x[:, 0],)),
        (fused_rnn.GRU(5, 7, dtype=dtype, reset_after=False), (x, torch.randn(1, 3, 7, dtype=dtype))),
        (fused_rnn.LSTMCell(5, 7, dtype=dtype), (x[0],)),
        (fused_rnn.quantize_(nn.Sequential(fused_rnn.LSTM(5, 7)), "bfloat16"), (x.float(),)),
        (fused_rnn.quantize_(nn.Sequential(fused_rnn.LSTM(5, 7))), (x.float(),)),
    ):
        (found,) = fused_rnn.tune(rnn, *inputs, training=training, seconds=0.01)
        assert found.microseconds and not found.wrong, found
        assert ("training" in found.call) == (training and "weights=" not in found.call)


def test_autocast_and_compiled_modules():
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = tune(rnn, x)
    assert found.call.startswith("lstm bfloat16")
    (found,) = tune(torch.compile(rnn, backend="eager"), x)
    assert found.call.startswith("lstm float32")


# ---- Right before fast ----


def replaced(monkeypatch, name, run):
    """The backend of that name with another way to run a call."""
    new = dataclasses.replace(backends.ROUTES[name], run=run)
    monkeypatch.setattr(backends, "BACKENDS", tuple(new if b.name == name else b for b in backends.BACKENDS))
    monkeypatch.setitem(backends.ROUTES, name, new)
    return new.run


def test_a_slow_backend_is_removed(monkeypatch):
    slow_calls = []

    def slow(call):
        slow_calls.append(call)
        time.sleep(0.02)
        return native.run(call)

    replaced(monkeypatch, "cpu", slow)
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    assert choose(rnn, x)[0] == "cpu"
    (found,) = tune(rnn, x)
    assert found.choice != "cpu" and found.gain > 5
    name, explained = choose(rnn, x)
    assert name == found.choice
    slow_calls.clear()
    rnn(x)
    assert not slow_calls
    if found.choice == "torch":
        assert "not cpu: torch was measured to be faster; its plan: " in str(explained)


def test_a_wrong_route_is_out(monkeypatch):
    right = backends.ROUTES["torch"].run

    def wrong(call):
        output, *final = right(call)
        return output * 1.01, *final

    replaced(monkeypatch, "torch", wrong)
    (found,) = tune()
    assert "torch" not in found.microseconds and found.choice != "torch" and found.speedup != found.speedup
    assert found.wrong["torch"].startswith("its results are off by 1.") and "not torch: its results" in str(found)
    assert next(iter(choices.tuned().values())).speedup == 0


def test_a_wrong_gradient_is_out(monkeypatch):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    right = backends.ROUTES["torch"].run
    replaced(
        monkeypatch,
        "torch",
        lambda call: right(call.changed(weights=[Doubled.apply(call.weights[0]), *call.weights[1:]])),
    )
    (found,) = tune(training=True)
    assert "torch" in found.wrong
    (found,) = tune(training=False)
    assert not found.wrong


def test_a_route_that_fails_is_out(monkeypatch):
    def fails(call):
        raise RuntimeError("no memory")

    replaced(monkeypatch, "cpu", fails)
    x = torch.randn(9, 3, 5)
    with fused_rnn.use_backend("torch"):
        posed = tuning.calls_of(fused_rnn.GRU(5, 7), (x,), True)
    found = tuning.measure(posed[0], 0.01)
    assert found.wrong["cpu"] == "it failed: no memory" and found.choice != "cpu"


def test_results_that_are_not_finite():
    with pytest.raises(ValueError, match="are not finite: tune it on inputs as in use"):
        tune(x=torch.full((9, 3, 5), torch.inf))
    assert not choices.tuned()


@pytest.mark.parametrize("way", ["joined", "projected", *native.cpu_set_flags()])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_every_way_is_right(cell, way):
    """As closely as the usual one, at every size, with gradients."""
    plan = backends.ROUTES[f"cpu {way}"].run.keywords["plan"]

    def run_way(*args):
        return one_layer(lambda call: autograd.run(torch.ops.fused_rnn, call, plan))(*args)

    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES[::2] if way in ("joined", "projected") else SIZES[::5]:
            for ragged in (False, True):
                layers = [Layer.random(cell, dtype, size, ragged=ragged, seed=seed) for seed in range(2)]
                got = [layer.results(run_way) for layer in layers]
                usual = [layer.results(native_layer) for layer in layers]
                for name, values in comparisons(layers, got, usual).items():
                    assert_within_budget(f"{way} {size} {name}", *values, factor=2.5)


def test_ways_differ():
    """The flags do something: sums in another order."""
    layer = Layer.random(LSTM, torch.float32, Size(20, 8, 200, 200))

    def output(plan):
        return one_layer(lambda call: autograd.run(torch.ops.fused_rnn, call, plan))(
            LSTM, layer.x, layer.states, layer.weights
        )[0]

    joined, projected = (output(backends.ROUTES[f"cpu {way}"].run.keywords["plan"]) for way in ("joined", "projected"))
    assert not torch.equal(joined, projected)
    torch.testing.assert_close(joined, projected)


def test_a_set_that_is_not_here():
    layer = Layer.random(LSTM, torch.float32, Size(2, 2, 3, 4))
    with pytest.raises(RuntimeError, match="there is no instruction set of number 99 here"):
        autograd.run(torch.ops.fused_rnn, layer.call(), 99 << 18)


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
        "projection": True,
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


def choose_for(rnn, x, route):
    """Put a choice, as if it had been measured."""
    choices.put({choices.kind_of(fused_rnn.explain(rnn, x).problem): Choice(route, 2.0, "2026-12-01")})
    backends.forget()


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
    """A call like one before skips the choice: not when something has changed on which that depends."""
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


def in_another_process(folder):
    environment = os.environ | {"FUSED_RNN_TUNED": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return *done.stdout.strip().split("|"), done.stderr


def test_the_next_process_finds_the_choice(folder):
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    tune(rnn, x)
    kind = choices.kind_of(fused_rnn.explain(rnn, x).problem)
    choices.keep({kind: Choice("cpu projected", 1.7, "2026-12-01")})
    name, source, errors = in_another_process(folder)
    assert (name, source) == ("cpu projected", "tuned here on 2026-12-01: 1.70 times torch") and not errors
    assert in_another_process(0)[:2] == ("cpu", "by the model")
    damaged = file_of(folder)
    damaged.write_text(damaged.read_text().replace(",5,7,", ",five,7,"))
    name, source, errors = in_another_process(folder)
    assert name == "cpu" and errors.count(str(damaged)) == 1 and "invalid literal for int()" in errors


@pytest.mark.parametrize(
    "text",
    ["", "\0", "a,b\n1,2\n", ",".join(choices.COLUMNS) + "\nx,1\n", ",".join(choices.COLUMNS) + ",\n", b"\xff\xfe\0"],
    ids=["empty", "a zero", "foreign", "short row", "more columns", "no text"],
)
def test_a_damaged_file_is_named_and_ignored(folder, text):
    tune()
    file = file_of(folder)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    told = f"fused_rnn ignores {file}, where choices should be: "
    with pytest.warns(RuntimeWarning, match=re.escape(told)) as caught:
        choices.load()
    assert len(caught) == 1 and not choices.tuned()
    with warnings.catch_warnings(action="ignore"):
        tune()
    choices.load()
    assert len(choices.tuned()) == 1


def test_other_versions_are_other_files(folder, monkeypatch):
    tune()
    file = file_of(folder)
    assert f"-torch-{torch.__version__}-fused_rnn-" in file.name
    monkeypatch.setattr(torch, "__version__", "2.99")
    choices.load()
    assert not choices.tuned()
    tune(fused_rnn.GRU(5, 7))
    assert len([*folder.iterdir()]) == 2
    assert len(choices.clear()) == 2 and not [*folder.iterdir()]


def test_what_another_process_has_written_stays(folder):
    tune(fused_rnn.LSTM(5, 7))
    (before,) = choices.tuned()
    choices._table.clear()  # as in a process that was there before
    tune(fused_rnn.GRU(5, 7))
    choices.load()
    assert len(choices.tuned()) == 2 and before in choices.tuned()


def test_a_file_that_cannot_be_written(folder, monkeypatch):
    folder.write_text("a file in the place of the folder")
    with pytest.raises(OSError, match="choices could not be kept"):
        tune()
    assert not choices.tuned() and folder.read_text().startswith("a file")
    folder.unlink()
    tune()
    text = file_of(folder).read_text()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(choices.csv.DictWriter, "writerows", full)
    with pytest.raises(OSError, match="No space left"):
        tune(fused_rnn.GRU(5, 7))
    assert file_of(folder).read_text() == text  # the only file, and whole
    assert len(choices.tuned()) == 2


def test_clear_takes_no_other_file(folder):
    tune()
    other = folder / "of the user.csv"
    other.write_text("1,2\n")
    assert len(choices.clear()) == 1 and [*folder.iterdir()] == [other]
    choices.load()


def test_nothing_is_kept_with_0(folder, monkeypatch):
    monkeypatch.setenv("FUSED_RNN_TUNED", "0")
    tune()
    assert len(choices.tuned()) == 1 and not folder.exists()
    assert choices.clear() == [] and not choices.tuned()


def test_the_folder_of_the_user(monkeypatch):
    monkeypatch.delenv("FUSED_RNN_TUNED")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    if sys.platform == "linux":
        assert choices.own_folder() == Path("/somewhere/fused_rnn/tuned")


def test_what_comes_with_the_package(folder, monkeypatch):
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


# ---- Bad input ----


def test_bad_input(folder):
    rnn, x = fused_rnn.LSTM(5, 7), torch.randn(9, 3, 5)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got function"):
        fused_rnn.tune(test_bad_input, x)
    with pytest.raises(ValueError, match=r"no layer of fused_rnn to tune; fused_rnn\.convert\(module\) makes them"):
        fused_rnn.tune(nn.LSTM(5, 7), x)
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="seconds must be above 0, got"):
            fused_rnn.tune(rnn, x, seconds=seconds)
    with pytest.raises(RuntimeError, match="Expected 5, got 6"):
        fused_rnn.tune(rnn, torch.randn(9, 3, 6))
    with pytest.raises(TypeError):
        fused_rnn.tune(rnn)
    unused = nn.Identity()
    unused.rnn = rnn
    with pytest.raises(ValueError, match="the module called none of its layers"):
        fused_rnn.tune(unused, x)
    with fused_rnn.use_backend("torch"), pytest.raises(ValueError, match="backend 'torch' is forced, so no choice"):
        fused_rnn.tune(rnn, x)
    assert not choices.tuned() and backends._recorder is None
    assert not folder.exists() or not [*folder.iterdir()]
    assert rnn.training


# ---- The command ----


def run_command(*arguments):
    return command.main(["tune", *arguments])


def test_the_command(folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK_SECONDS", 0.01)
    assert run_command("--quick", "--case", "stream64", "tiny16") == 0
    out, err = capsys.readouterr()
    assert out.count(" times torch  [") == 8
    assert "8 kinds of calls measured; " in out and str(folder) in out and "tiny16 GRU training" in err
    assert len(choices.tuned()) == 8
    assert "tuned      8 kinds of calls; in " + str(folder) in command.report()
    assert run_command("--clear") == 0
    assert capsys.readouterr().out.startswith(f"removed {folder}")
    assert run_command("--clear") == 0
    assert capsys.readouterr().out == "nothing was tuned\n"
    assert run_command("--case", "tiny7") == 2
    assert "tune: no case is called 'tiny7'; there are " in capsys.readouterr().err
    with fused_rnn.use_backend("torch"):
        assert run_command("--quick") == 2
    assert "backend 'torch' is forced" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_found(folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK_SECONDS", 0.01)
    calls = []
    measure = tuning.measure

    def measured(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        return measure(*args)

    monkeypatch.setattr(tuning, "measure", measured)
    assert run_command("--quick", "--case", "stream64") == 130
    out, err = capsys.readouterr()
    assert "stopped; what was found is kept" in err and "1 kinds of calls measured; " in out
    assert len(choices.tuned()) == 1 and file_of(folder).exists()


def test_the_clock_knows_what_a_call_takes():
    calls = []

    def call():
        time.sleep(0.0 if len(calls) > 3 else 0.0005)  # the first ones are slow
        calls.append(1)

    assert timing.once(call, CPU) < 0.0004
    calls.clear()
    (times,) = timing.in_turns([call], CPU, 0.0, fewest=3, about=[1.0])
    assert len(times) == len(calls) == 3  # a long call needs none before it
