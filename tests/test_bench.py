"""The benchmark compares before it times, keeps what it measured, and the README shows what the rows say."""

import csv
import importlib.util
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn import native
from fused_rnn.cases import BATCHED, CPU_GRID, ONE_STEP, SINGLE, USES, Case, select

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(native.load_error is not None, reason=f"needs the extension: {native.load_error}"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("tqdm", "matplotlib")),
        reason="needs tqdm and matplotlib: pip install -r bench/requirements.txt",
    ),
]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    """The package, which stands in the checkout and is not installed; one thread afterwards, as before."""
    monkeypatch.syspath_prepend(str(ROOT))
    yield pytest.importorskip("bench")
    torch.set_num_threads(1)


@pytest.fixture
def layers(bench):
    return importlib.import_module("bench.layers")


def load(name):
    return importlib.import_module(f"bench.{name}")


def tiny(cell="LSTM", work="inference", dtype="float32", **sizes):
    cases = load("cases")
    case = replace(Case("tiny", 3, 2, 5, 6), **sizes)
    return cases.Task(case, cell, work, dtype)


def setting(*peers, **options):
    return load("layers").Setting(CPU, 1, load("systems").peers(list(peers), False), 0.0, **options)


def test_cases():
    cases = load("cases")
    for device in ("cpu", "cuda"):
        every = cases.known_cases(device)
        assert len({case.name for case in every}) == len(every)
        done = list(cases.tasks(every, device))
        assert {task.work for task in done} == {
            *SINGLE,
            *BATCHED,
            *(ONE_STEP if device == "cpu" else ()),
        }
        assert {task.cell for task in done} == set(cases.CELLS)
    assert all(case.source for case in USES)
    assert len(CPU_GRID) == 14
    assert {(case.H, case.B) for case in cases.GPU_GRID} >= {(64, 1), (2048, 256)}
    with pytest.raises(ValueError, match="no case is called 'typ7'; there are stream64, "):
        select(CPU_GRID, ["typ*", "typ7"])
    assert [case.name for case in select(CPU_GRID, ["typ*"])] == ["typ256", "typ512"]


def test_flops():
    """Two for each weight and row, three times that with the gradients."""
    for task in (tiny(), tiny("GRU", layers=2, bidirectional=True), tiny("RNN"), tiny(layers=2, proj_size=4)):
        rnn, _, _ = load("layers").inputs(task, torch.device("cpu"))
        numbers = sum(p.numel() for name, p in rnn.named_parameters() if name.startswith("weight"))
        assert task.flops() == 2 * numbers * task.case.B
        assert replace(task, work="training").flops() == 3 * task.flops()


def installed():
    peers = "reference", "onnxruntime", "openvino", "tract", "ncnn", "torch.ao int8"
    return [peer for peer in peers if _is_here(peer)]


def _is_here(name):
    return name == "reference" or importlib.util.find_spec(name.split()[0]) is not None


@pytest.mark.parametrize("work", ["inference", "training", "streaming"])
def test_a_projection_is_compared_with_what_has_one(work, layers):
    task = tiny("LSTM", work, proj_size=4, **({"T": 1} if work == "streaming" else {}))
    assert work in task.case.works()
    rows = layers.measure(task, setting(*installed(), with_memory=False))
    assert [row["system"] for row in rows] == ["fused_rnn", "torch.nn", "reference"]
    assert not any(row["note"] for row in rows)
    assert "proj_size=4" in str(task.case)
    assert {task.cell for task in load("cases").tasks([task.case], "cpu")} == {"LSTM"}


def reduces():
    """Whether the CPU kernels here have float32 in reduced precision."""
    return native.cpu_reduced_rows() > 0


@pytest.mark.parametrize("work", ["inference", "training", "streaming", "cell", "cell training"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", pytest.param("RNN", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "form",
    [
        {},
        pytest.param({"layers": 2, "bidirectional": True}, marks=pytest.mark.slow),
        {"B": 1, "bidirectional": True},
        pytest.param({"ragged": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_system_is_compared_and_timed(cell, work, form, layers):
    if work.startswith("cell"):
        form = {"T": 1}
    elif work == "streaming":
        form = {**form, "T": 1}
    task = tiny(cell, work, **form)
    asked = setting(*installed(), with_memory=False)
    rows = layers.measure(task, asked)
    assert [row["system"] for row in rows] == [system.name for system in layers.systems_for(task, asked)]
    fields = load("rows").FIELDS
    for row in rows:
        assert set(row) <= set(fields)
        assert row["note"] == "", row["system"]
        assert float(row["p10"]) <= float(row["us_per_step"]) <= float(row["p90"])
        assert float(row["ratio"]) > 0 and row["path"] and row["version"] and row["commit"]
    assert rows[0]["ratio"] == "1.000"


def test_no_time_for_a_wrong_result(layers, monkeypatch):
    convert = fused_rnn.convert

    def broken(rnn):
        with torch.no_grad():
            rnn.bias_hh_l0 += 0.01
        return convert(rnn)

    monkeypatch.setattr(fused_rnn, "convert", broken)
    ours, theirs = layers.measure(tiny(), setting())
    assert ours["note"].startswith("output is off by") and ours["note"].endswith("not timed")
    assert "us_per_step" not in ours and "ratio" not in ours
    assert theirs["us_per_step"] and "ratio" not in theirs


def test_no_time_for_a_wrong_gradient(layers, monkeypatch):
    """The output is right, and one gradient is not."""
    compare = load("compare")
    with_gradients = compare._with_gradients
    calls = []

    def wrong_third(layer, x):  # after torch.nn in this dtype and in float64 comes ours
        calls.append(layer)
        found = dict(with_gradients(layer, x))
        if len(calls) == 3:
            found["grad_weight_hh_l0"] = found["grad_weight_hh_l0"] * 1.0001
        return found

    monkeypatch.setattr(compare, "_with_gradients", wrong_third)
    ours, _ = layers.measure(tiny(work="training"), setting(with_memory=False))
    assert ours["note"].startswith("grad_weight_hh_l0 is off by")


def test_a_peer_that_fails_is_a_note_and_the_others_go_on(layers):
    def build(*arguments):
        raise RuntimeError("no such kernel\nand more")

    broken = load("system").System("broken", "torch", lambda task: None, build)
    rows = layers.measure(tiny(), replace(setting(), peers=[broken]))
    assert rows[-1]["note"] == "RuntimeError: no such kernel"
    assert rows[0]["us_per_step"] and rows[1]["ratio"]


def test_peers():
    systems = load("systems")
    assert systems.peers([], False) == []
    with pytest.raises(ValueError, match=r"no peer is called 'cudnn'; there are torch\.compile, "):
        systems.peers(["cudnn"], False)
    if not _is_here("haste_pytorch"):
        with pytest.raises(ValueError, match="the peer 'haste' cannot run: haste_pytorch is not installed"):
            systems.peers(["haste"], False)
    for peer in systems.PEERS:
        sentence = peer.why_not(tiny("GRU", "training", "bfloat16", layers=2, ragged=True))
        assert sentence is None or not sentence.endswith(".")


@pytest.mark.slow
def test_memory(layers):
    """A process of its own sees what a step allocates."""
    memory = load("memory")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak of memory")
    kept = []
    grown = memory.resident_peak(lambda: kept.append(torch.ones(8 << 20)))
    assert memory.STEPS * (32 << 20) * 0.9 < grown < memory.STEPS * (32 << 20) * 1.2
    (task,) = (
        t for t in load("cases").tasks(load("cases").CPU_GRID, "cpu") if str(t) == "tiny32 LSTM training float32"
    )
    saved = 128 * 64 * 5 * 32 * 4  # numbers that the forward keeps
    assert saved < memory.peak_bytes_on_cpu(str(task), "fused_rnn", 1) < 10 * saved


def row(**values):
    about = {"device": "X", "torch": "2", "date": "2026-01-01", "commit": "abc", "tf32": "0", "dtype": "float32"}
    return dict.fromkeys(load("rows").FIELDS, "") | about | values


def test_rows_are_kept(tmp_path):
    rows = load("rows")
    results = rows.Results(tmp_path / "machine" / "layers.csv")
    first, second = row(case="a", system="x", us_per_step="1"), row(case="b", system="x", us_per_step="2")
    results.put([first])
    results.put([second, {**first, "us_per_step": "3"}])
    again = rows.Results(results.path)
    assert [r["us_per_step"] for r in again] == ["3", "2"]
    assert rows.key(first) in again and rows.key(row(case="c")) not in again
    (tmp_path / "other.csv").write_text("case,time\na,1\n")
    with pytest.raises(ValueError, match="has other columns"):
        rows.Results(tmp_path / "other.csv")


def main(*arguments):
    return load("__main__").main([str(argument) for argument in arguments])


def test_a_run_goes_on_where_it_was_stopped(layers, monkeypatch, tmp_path, capsys):
    measured = []

    def measure(task, setting):
        measured.append(str(task))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return [
            dict(zip(load("rows").KEY, layers.key(task, s, setting), strict=True)) | {"note": ""}
            for s in layers.systems_for(task, setting)
        ]

    monkeypatch.setattr(load("__main__").layers, "measure", measure)
    run = ("cpu", "--case", "stream64", "--peers", "--threads", 1, "--out", tmp_path)
    assert main(*run) == 130
    assert "what was measured is in" in capsys.readouterr().err
    assert main(*run) == 0
    cases = load("cases")
    names = [str(task) for task in cases.tasks(select(CPU_GRID, ["stream64"]), "cpu", reduced=reduces())]
    assert len(names) == (12 if reduces() else 8) and measured == [*names[:3], *names[2:]]
    assert main(*run, "--fresh") == 0
    assert measured[len(names) + 1 :] == names


def test_the_whole_way(tmp_path, capsys):
    assert main("cpu", "--case", "stream64", "--peers", "--threads", 1, "--seconds", 0.001, "--out", tmp_path) == 0
    assert "| stream64 LSTM, streaming " in capsys.readouterr().out
    (path,) = tmp_path.glob("*/layers.csv")
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == (24 if reduces() else 16)
    assert main("report", "--out", tmp_path) == 0
    assert "| stream64 |" in (path.parent / "README.md").read_text()
    assert (path.parent / "speedup-float32-1-threads.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("cpu", "--case", "typ7"), "no case is called 'typ7'"),
        (("resets", "--case", "typ7"), "no case is called 'typ7'"),
        (("cpu", "--peers", "cudnn"), "no peer is called 'cudnn'"),
        (("report", "--out", "nowhere"), "there are no rows under"),
        (("gpu",), "gpu needs an NVIDIA GPU"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_a_sentence(arguments, sentence, capsys):
    if arguments == ("gpu",) and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(*arguments) == 2
    assert capsys.readouterr().err.startswith(f"bench: {sentence}")


@pytest.mark.parametrize("quick", [(), ("--quick",)], ids=["full", "quick"])
def test_no_results_of_a_build_for_tests(quick, monkeypatch, capsys):
    monkeypatch.setattr(load("__main__").torch.ops.fused_rnn, "poisoned", lambda: True)
    assert main("cpu", "--case", "stream64", *quick) == 2
    assert "build it without FUSED_RNN_POISON" in capsys.readouterr().err


def test_list(capsys):
    assert main("--list") == 0
    out = capsys.readouterr().out
    assert "voice-activity" in out and "Silero VAD" in out and re.search(r"^onnxruntime ", out, re.MULTILINE)


@pytest.mark.slow
def test_kernels():
    kernels = load("kernels")
    for cell in kernels.CELLS:
        for op in kernels.OPS:
            kernel = kernels.Kernel(cell, op, "float32", 2, 8)
            rows = kernels.measure(kernel, CPU, "", 1, 0.0)
            assert [tuple(r[name] for name in kernels.KEY) for r in rows] == list(kernels.keys(kernel, CPU, "", 1))
            assert all(r["us"] and not r["note"] and set(r) <= set(kernels.FIELDS) for r in rows)


@pytest.mark.slow
def test_a_forced_kernel_is_what_runs(tmp_path):
    command = [sys.executable, "-m", "bench", "kernel", "--quick", "--plan", "generic", "--threads", "1"]
    done = subprocess.run(
        [*command, "--seconds", "0.001", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/kernels.csv")
    with path.open(newline="") as file:
        assert {(row["plan"], row["path"]) for row in csv.DictReader(file)} == {("generic", "generic")}


def test_fitted():
    kernels = load("kernels")
    call, step = kernels.fitted([20 + 3 * T for T in kernels.STEPS], kernels.STEPS)
    assert (call, step) == (pytest.approx(20), pytest.approx(3))


@pytest.mark.slow
def test_lstm_and_gru_side_by_side():
    app = load("app")
    case = Case("tiny", 3, 2, 5, 6)
    rows = list(app.layers_side_by_side([case], CPU, 1, 0.0))
    assert [tuple(r[name] for name in app.KEY) for r in rows] == list(app.layer_keys(case, CPU, 1))
    assert [r["parameters"] for r in rows[:2]] == [str(4 * 6 * (5 + 6 + 2)), str(3 * 6 * (5 + 6 + 2))]
    rows = list(app.language_models(CPU, 1, steps=10, hidden=8))
    assert [(r["cell"], r["work"]) for r in rows[:2]] == [("LSTM", "equal steps"), ("LSTM", "equal time")]
    assert all(set(r) <= set(app.FIELDS) and 0 < float(r["loss"]) < 6 for r in rows)
    lstm, gru = int(rows[0]["parameters"]), int(rows[-1]["parameters"])
    assert abs(lstm - gru) < 0.05 * lstm
    assert next(app.model_keys(CPU, 1)) in [tuple(r[name] for name in app.KEY) for r in rows]


def test_targets():
    """The means and the least of ratios that are put in; a wrong result misses, whatever the others say."""
    targets = load("targets")
    ratios = {case.name: 2.0 + k for k, case in enumerate(CPU_GRID)}
    rows = [
        row(case=name, cell="LSTM", threads="1", system="torch.nn", ratio=str(value),
            work="streaming" if name.startswith("stream") else "inference")
        for name, value in ratios.items()
    ]  # fmt: skip
    (found,) = targets.outcomes(rows, "1")
    assert found.points == 14 and found.least == 2.0 and found.worst == "stream64"
    assert found.mean == pytest.approx(statistics.geometric_mean(ratios.values()))
    assert found.mean_of_batches == pytest.approx(statistics.geometric_mean(list(ratios.values())[3:]))
    assert found.reached()
    wrong = row(case="typ256", cell="LSTM", threads="1", system="fused_rnn", work="inference", note="not timed")
    assert not targets.outcomes([*rows, wrong], "1")[0].reached()
    slow = [{**r, "ratio": "0.99"} if r["case"] == "typ256" else r for r in rows]
    assert not targets.outcomes(slow, "1")[0].reached()
    assert targets.outcomes(rows, "2") == []
    projected = row(case="proj-b1", cell="LSTM", threads="2", system="torch.nn", work="inference", ratio="1.7")
    (found,) = targets.outcomes([projected], "2")  # which are not in the means of other layers
    assert (found.target.layer(), found.points, found.mean) == ("LSTM, proj_size", 1, pytest.approx(1.7))


@pytest.mark.parametrize(
    ("cell", "H", "B", "microseconds"),
    [("LSTM", 128, 16, 0.42), ("LSTM", 256, 16, 0.5), ("LSTM", 512, 16, 0.62), ("LSTM", 1024, 16, 1.07),
     ("LSTM", 1024, 256, 3.65), ("LSTM", 2048, 256, 11.9), ("GRU", 256, 256, 0.67), ("GRU", 1024, 64, 1.55)],
)  # fmt: skip
def test_floors(cell, H, B, microseconds):
    """Close to figures that were worked out by hand for an H200: bfloat16, keeping what a backward needs."""
    floors = load("floors")
    task = tiny(cell, "training", "bfloat16", B=B, H=H)
    assert floors.step(task, floors.Gpu()) == pytest.approx(microseconds, rel=0.1)


@pytest.mark.parametrize(("H", "B", "more"), [(256, 16, 1.0), (1024, 256, 2.0)])
def test_the_floor_of_what_runs_side_by_side(H, B, more):
    """Latency is waited for once; what fills the GPU takes twice as long."""
    floors, cases = load("floors"), load("cases")
    one, both, stacked = (
        floors.floor(cases.Task(Case("", 256, B, H, H, **options), "LSTM", "training", "bfloat16"), floors.Gpu())
        for options in ({}, {"bidirectional": True}, {"layers": 2})
    )
    assert both == pytest.approx(more * one, rel=0.1) and stacked == pytest.approx(both)


@pytest.mark.slow
def test_the_page_of_a_gpu(tmp_path):
    """As if there had been one: absolute figures, a heat map for each precision and pass, the floor."""
    cases, rows, report = load("cases"), load("rows"), load("report")
    results = rows.Results(tmp_path / "gpu" / "layers.csv")
    plan = "; backward: ".join([f"a kernel; by the model of an H100 {us} us a step" for us in ("1.25", "0.50")])
    made = []
    for task in cases.tasks(select(cases.GPU_GRID, ["h64-*", "h256-*"]), "cuda"):
        for system, us in (("fused_rnn", 2.0), ("torch.nn", 5.0)):
            made.append(
                row(case=task.case.name, cell=task.cell, work=task.work, dtype=task.dtype, tf32=str(int(task.tf32)),
                    system=system, us_per_step=str(us), p10=str(us), p90=str(us), ratio=f"{us / 2:.3f}",
                    peak_bytes="1048576", peak_gflops="600000", copy_gbs="3000", note="", path=plan)
            )  # fmt: skip
    results.put(made)
    written = report.write(tmp_path, None)
    names = {path.name for path in written}
    assert {"README.md", "floor.svg", "memory.svg", "speedup-lstm-training-bfloat16.svg"} <= names
    text = (tmp_path / "gpu" / "README.md").read_text()
    assert "us a step" in text and " 2.500 |" in text and " 1.75 |" in text
    (section,) = [report.readme_section(load("recorded").all_recorded(tmp_path), "bench/results")]
    assert "geometric mean" in section and "2.50" in section


def test_rows_of_another_run_are_taken_over_and_choose_kernels(tmp_path):
    """As make gpu-check leaves them: the tables, and what fused_rnn/evidence.py reads."""
    from fused_rnn import evidence

    cases, rows = load("cases"), load("rows")
    made = []
    for task in list(cases.check_tasks("cuda")):
        for system, us in (("fused_rnn", 6.0), ("torch.nn", 6.0), ("fused_rnn-cuda", 4.0)):
            sizes = {name: str(int(getattr(task.case, name))) for name in ("layers", "bidirectional", "ragged")}
            made.append(
                row(case=task.case.name, cell=task.cell, work=task.work, dtype=task.dtype, tf32=str(int(task.tf32)),
                    T=str(task.case.T), B=str(task.case.B), I=str(task.case.I), H=str(task.case.H), **sizes,
                    system=system, us_per_step=str(us), p10=str(us), p90=str(us), ratio=f"{us / 6:.3f}",
                    peak_gflops="600000", copy_gbs="3000", note="", path="a kernel", device="NVIDIA H100, a test")
            )  # fmt: skip
    rows.Results(tmp_path / "came-back" / "gpu" / "layers.csv").put(made)
    assert main("report", "--import", tmp_path / "came-back", "--out", tmp_path / "results") == 0
    assert (tmp_path / "results" / "nvidia-h100-a-test" / "README.md").exists()
    with (tmp_path / "results" / "measured.csv").open(newline="") as file:
        found = [evidence.parsed(one) for one in csv.DictReader(file)]
    assert len(found) == len([one for one in made if one["system"] == "fused_rnn-cuda" and one["ragged"] == "0"])
    assert {gpu for gpu, _, _ in found} == {"NVIDIA H100, a test"}
    assert {shape.speedup for _, _, shape in found} == {1.5}
    work = evidence.Work("cuda", "lstm", "bfloat16", True, 1, 1, False)
    shapes = [shape for _, of, shape in found if of == work]
    assert {(shape.T, shape.B, shape.H) for shape in shapes} == {
        (256, B, H) for B in (1, 16, 64) for H in (64, 128, 256, 512, 1024)
    }
    assert evidence.speedup(shapes, 100, 20, 300) == 1.5


def test_an_empty_folder_is_no_run(tmp_path, capsys):
    assert main("report", "--import", tmp_path, "--out", tmp_path / "results") == 2
    assert "there is no layers.csv with rows under" in capsys.readouterr().err


def test_the_table_that_ships_is_what_the_rows_say():
    from fused_rnn import evidence

    condensed, recorded = load("condensed"), load("recorded")
    assert condensed.text(recorded.all_recorded(ROOT / "bench" / "results")) == evidence.PATH.read_text(), (
        "fused_rnn/measured.csv is not what bench/results says: python -m bench report"
    )


def test_the_choices_that_ship_are_what_the_rows_say():
    from fused_rnn import choices

    condensed, recorded = load("condensed"), load("recorded")
    assert condensed.choices_text(recorded.all_recorded(ROOT / "bench" / "results")) == choices.SHIPPED.read_text(), (
        "fused_rnn/choices.csv is not what bench/results says: python -m bench report"
    )


def test_rows_of_tune(tmp_path):
    """One row for each task and number of threads; condensed, they are what a process loads."""
    from fused_rnn import choices

    tuned, rows = load("tuned"), load("rows")
    tasks = [tiny(), tiny("GRU", "training"), tiny("LSTM", "cell", T=1), tiny(T=300), tiny(ragged=True, layers=2)]
    path = tmp_path / "machine" / "tuned.csv"
    results = rows.Results(path, tuned.FIELDS, tuned.KEY)
    gains = iter(("1.000", "1.200", "0.900", "1.000", "nan", "1.000"))  # as if they had been measured
    for task, threads in [*((task, 1) for task in tasks), (tasks[0], 2)]:
        named = replace(task, case=replace(task.case, name=str(task.case)))
        results.put(row | {"gain": next(gains)} for row in tuned.measure(named, threads, 0.0))
    assert len(list(results)) == 6
    torch.set_num_threads(1)
    condensed, recorded = load("condensed"), load("recorded")
    found = recorded.all_recorded(tmp_path)
    (tmp_path / "choices.csv").write_text(condensed.choices_text([*found, *found]))
    read = choices._read(tmp_path / "choices.csv")
    kinds = {(kind.cell, kind.training, kind.step, kind.T, kind.ragged, kind.threads) for kind in read}
    plain, again = ("lstm", 0, 0, 2, 0, 1), ("lstm", 0, 0, 2, 0, 2)
    others = {("gru", 1, 0, 2, 0, 1), ("lstm", 0, 1, 1, 0, 1), ("lstm", 0, 0, 128, 0, 1), ("lstm", 0, 0, 2, 1, 1)}
    assert kinds == {plain, again, *others}
    assert {kind.device for kind in read} == {choices.processor_kind(choices.processor())}
    small = [row | {"gain": "1.020"} for row in found[0].tuned]
    found[0].tuned, every = small, found[0].tuned
    assert condensed.choices_text(found) == ",".join(choices.COLUMNS) + "\n"
    found[0].tuned = every
    table = load("tables").tuned_table(found[0], "1")
    assert "| lstm, inference, float32 " in table and "| gru, training, float32 " in table


@pytest.mark.parametrize("work", BATCHED)
def test_rows_of_resets(work, tmp_path, monkeypatch):
    """All ways give the same results and have a time; one that ignores resets is found."""
    resets, rows, recorded = load("resets"), load("rows"), load("recorded")
    results = rows.Results(tmp_path / "machine" / "resets.csv", resets.FIELDS, resets.KEY)
    results.put(resets.measure(tiny("GRU", work, T=6), 0.5, 1, 0.0))
    (row,) = results
    assert tuple(row[name] for name in resets.KEY) == resets.key(tiny("GRU", work, T=6), 0.5, 1)
    assert all(float(row[name]) > 0 for name in ("us_per_step", "plain", "packed", "loop"))
    table = load("tables").resets_table(recorded.Recorded(tmp_path / "machine"), "1")
    assert f"GRU, {work}, float32, 0.5 a step" in table
    ours = resets._ours
    given = iter((True, True, False))  # twice to torch.nn, then to ours
    monkeypatch.setattr(resets, "_ours", lambda rnn, where: ours(rnn, where if next(given) else None))
    with pytest.raises(ValueError, match="tiny GRU"):
        next(resets.measure(tiny("GRU", work, T=6), 0.5, 1, 0.0))


def test_readme_and_pages_are_what_the_rows_say():
    recorded, report, pictures = load("recorded"), load("report"), load("pictures")
    results = ROOT / "bench" / "results"
    machines = recorded.all_recorded(results)
    if not machines:
        pytest.skip("no measurement has been committed")
    readme = (ROOT / "README.md").read_text()
    assert report.with_section(readme, report.readme_section(machines, "bench/results")) == readme, (
        "the README's numbers are not those of bench/results: python -m bench report"
    )
    for machine in machines:
        assert report.page(machine) == (machine.folder / "README.md").read_text(), machine.folder
        for name in pictures.pictures(machine):
            drawn = (machine.folder / name).read_text()
            assert f"rows {recorded.digest(machine.layers)}" in drawn, f"{name} is older than its rows"


def test_without_what_it_needs_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("bench.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as end:
        importlib.import_module("bench.__main__")
    assert end.value.code == 2
    assert "pip install -r bench/requirements.txt" in capsys.readouterr().err
