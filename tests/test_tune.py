"""tune compares and times every route of a call, keeps the fastest that is right, and leaves the module as it was."""

import time
from pathlib import Path

import pytest
import torch
from closeness import assert_within_budget
from problems import LOOPS, SIZES, Layer, Size, comparisons, native_layer
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from tuned_calls import choose, file_of, replaced, tune

import fused_rnn
from fused_rnn import __main__ as command
from fused_rnn import autograd, backends, choices, native, timing, tuning
from fused_rnn.call import one_layer
from fused_rnn.cell import LSTM

pytestmark = [
    pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}"),
    pytest.mark.usefixtures("choices_folder"),
]
ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


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


SETS = [*native.cpu_set_flags()]


@pytest.mark.parametrize("way", ["joined", "projected", *SETS, *(f"joined {name}" for name in SETS)])
@pytest.mark.parametrize("cell", LOOPS, ids=str)
def test_every_way_is_right(cell, way):
    """As closely as the usual one, at every size, with gradients."""
    plan = sum(backends.ROUTES[f"cpu {word}"].run.keywords["plan"] for word in way.split())

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


# ---- Bad input ----


def test_bad_input(choices_folder):
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
    assert not choices_folder.exists() or not [*choices_folder.iterdir()]
    assert rnn.training


# ---- The command ----


def run_command(*arguments):
    return command.main(["tune", *arguments])


def test_the_command(choices_folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK_SECONDS", 0.01)
    assert run_command("--quick", "--case", "stream64", "tiny16") == 0
    out, err = capsys.readouterr()
    assert out.count(" times torch  [") == 8
    assert "8 kinds of calls measured; " in out and str(choices_folder) in out and "tiny16 GRU training" in err
    assert len(choices.tuned()) == 8
    assert "tuned      8 kinds of calls; in " + str(choices_folder) in command.report()
    assert run_command("--clear") == 0
    assert capsys.readouterr().out.startswith(f"removed {choices_folder}")
    assert run_command("--clear") == 0
    assert capsys.readouterr().out == "nothing was tuned\n"
    assert run_command("--case", "tiny7") == 2
    assert "tune: no case is called 'tiny7'; there are " in capsys.readouterr().err
    with fused_rnn.use_backend("torch"):
        assert run_command("--quick") == 2
    assert "backend 'torch' is forced" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_grid_of_the_command(device, quick):
    grid = list(command._grid(torch.device(device), quick, ()))
    assert {cell for _, cell, _ in grid} == {"LSTM", "GRU"} and len(grid) >= 20
    assert max(case.T for case, _, _ in grid) <= choices.LONGEST


def test_ctrl_c_keeps_what_was_found(choices_folder, capsys, monkeypatch):
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
    assert len(choices.tuned()) == 1 and file_of(choices_folder).exists()


def test_the_clock_knows_what_a_call_takes(monkeypatch):
    monkeypatch.setattr(timing, "TURN", 0.05)  # on a busy machine the slow calls alone take longer than a turn
    calls = []

    def call():
        time.sleep(0.0 if len(calls) > 3 else 0.0005)  # the first ones are slow
        calls.append(1)

    assert timing.once(call, CPU) < 0.0004
    calls.clear()
    (times,) = timing.in_turns([call], CPU, 0.0, about=[1.0])
    assert len(times) == len(calls) == timing.FEWEST  # a long call needs none before it
