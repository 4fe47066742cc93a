"""The GPU check reads what programs leave, keeps what came of its stages, and all of it runs on a CPU."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench stands there and is not installed

from bench.gpu_check import library, parsers, runner, stages  # noqa: E402 - the path comes first

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.test_cuda" name="test_rows[lstm a-1]" time="0.1" />
<testcase classname="tests.test_cuda" name="test_rows[gru-1]"><failure message="off by 1e-2">E</failure></testcase>
<testcase classname="tests.test_cuda" name="test_other"><skipped message="needs capability 9.0" /></testcase>
<testcase classname="tests.test_cuda" name="test_setup"><error message="no" /></testcase>
<testcase classname="tests.test_cuda" name="test_last" />
</testsuite></testsuites>"""


def test_pytest_report(tmp_path):
    path = tmp_path / "report.xml"
    assert parsers.junit(path) == {"passed": 0, "failure": 0, "error": 0, "skipped": 0, "failures": []}
    path.write_text(JUNIT)
    assert parsers.junit(path) == {
        "passed": 2,
        "failure": 1,
        "error": 1,
        "skipped": 1,
        "failures": ["tests.test_cuda.test_rows[gru-1]", "tests.test_cuda.test_setup"],
    }


MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void fused_rnn::block_forward<float>(int)+0x2f0
=========     by thread (33,0,0) in block (0,0,0)
=========     Access at 0x7f0d0a000084 is out of bounds
72 of 72 layers ran
========= ERROR SUMMARY: 1 error
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Read access at fused_rnn::block_forward(int)+0x180
=========     and Write access at fused_rnn::block_forward(int)+0xe0 [128 hazards]
========= Error: Race reported between Read access at fused_rnn::block_forward(int)+0x180
=========     and Write access at fused_rnn::block_forward(int)+0xe0 [128 hazards]
========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)
"""
CLEAN = {"errors": 0, "warnings": 0, "complaints": []}


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        (MEMCHECK, {"errors": 1, "warnings": 0, "complaints": ["Invalid __global__ write of size 4 bytes"]}),
        (
            RACECHECK,
            {
                "errors": 2,
                "warnings": 1,
                "complaints": ["Error: Race reported between Read access at fused_rnn::block_forward(int)+0x180"],
            },
        ),
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", CLEAN),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", CLEAN),
        ("========= COMPUTE-SANITIZER\n", {**CLEAN, "errors": None}),
    ],
    ids=["memcheck", "racecheck", "memcheck-clean", "racecheck-clean", "no-summary"],
)
def test_sanitizer_output(text, figures):
    assert parsers.sanitizer(text) == figures


def test_words_that_differ():
    gpu = parsers.words("same 00000001 00000002\nbits 00000001 00000003 0a000000\nshort 01\ngpu 00\n")
    emulated = parsers.words("same 00000001 00000002\n\nbits 00000001 00000004 0b000000\nshort 01 02\nemulated 00\n")
    assert parsers.differing(gpu, gpu) == {}
    assert parsers.differing(gpu, emulated) == {
        "bits": "2 of 3 words, first word 1: 00000003 against 00000004",
        "short": "1 words against 2",
        "gpu": "only the first has it",
        "emulated": "only the second has it",
    }


def test_measurements_that_were_cut_off():
    assert parsers.json_lines('{"us": 1.5}\nother\n{"us": 2') == [{"us": 1.5}]


NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Grid Size","gpu__time_duration.sum"
"","","","","us"
"0","7","void fused_rnn::block_forward<...>(...)","(2, 1, 1)","212.4"
"1","7","void fused_rnn::block_backward<...>(...)","(2, 1, 1)","250.0"
"""


def test_profile_of_kernels():
    rows = parsers.profile(NCU)
    assert [row["gpu__time_duration.sum"] for row in rows] == ["212.4", "250.0"]
    assert "time_duration 212.4" in stages._profiled_line(rows[0])
    assert parsers.profile("==ERROR== no device\n") == []


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80 90a 100", (8, 6), True),
        ("80 90a 100", (9, 0), True),
        ("80 90a 100", (7, 5), False),
        ("80 90a 100", (10, 3), True),
        ("80 90a 100", (12, 0), False),
        ("86 120", (8, 0), False),
        ("86 120", (12, 0), True),
        ("", (9, 0), False),
    ],
)
def test_code_for_a_gpu(architectures, capability, expected):
    assert library.has_code(architectures, capability) is expected


def a_stage(name, tmp_path, limit=60.0):
    return runner.Stage(name, limit, True, tmp_path)


@pytest.mark.alone
def test_a_program_that_takes_too_long_is_interrupted_and_what_it_left_is_kept(tmp_path):
    program = "import time\nprint('begun', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('written')"

    def slow(stage):
        status, _ = stage.python("-c", program)
        stage.check("the program", status)

    start = time.monotonic()
    entry = runner.outcome(slow, a_stage("slow", tmp_path, limit=runner.GRACE + 2))
    assert time.monotonic() - start < 30
    assert (entry["status"], entry["output"]) == ("failed", ["begun", "written"])
    assert entry["sentence"] == f"the program was stopped at the limit of the stage, {runner.GRACE + 2:.0f} s."


def test_every_stage_is_recorded_and_a_later_run_keeps_the_others(tmp_path):
    path, seen = tmp_path / "results" / "check.json", []

    def environment(stage):
        stage.figures["sms"] = 132

    def failing(stage):
        raise runner.Failure("no compiler.")

    def exchange(stage):
        seen.append(json.loads(path.read_text()))
        assert stage.before["environment"] == {"sms": 132}
        raise ZeroDivisionError("a mistake")

    run = {"environment": (environment, 20), "library": (failing, 20), "exchange": (exchange, 20)}
    report = runner.check(run, path.parent, dry=True)
    assert list(seen[0]["stages"]) == ["environment", "library"]  # written before the next stage began
    assert [entry["status"] for entry in report["stages"].values()] == ["ok", "failed", "failed"]
    assert report["stages"]["exchange"]["sentence"] == "ZeroDivisionError: a mistake"
    again = runner.check({"environment": (environment, 20)}, path.parent, dry=True)
    assert list(again["stages"]) == list(run)


def test_the_summary_is_short_and_shows_failures(tmp_path):
    entry = {"seconds": 1.0, "sentence": "", "output": [f"line {k}" for k in range(40)], "lines": ["x" * 200] * 9}
    report = {"stages": {f"stage{k}": {**entry, "status": "failed" if k == 3 else "ok"} for k in range(11)}}
    lines = runner.summary(report)
    assert len(lines) <= runner.SUMMARY_LINES
    assert "  stage3 | line 39" in lines
    assert lines[-1].endswith("lines more are in check.json")


def test_all_stages_fit_into_the_whole():
    assert sum(stages.LIMITS.values()) <= runner.WHOLE == 420


def test_ratios_of_the_grid_are_a_line_for_each_work():
    def row(system, H, B, us, **changes):
        same = dict(cell="LSTM", work="training", dtype="bfloat16", tf32="0", layers="1", bidirectional="0", ragged="0")
        return {**same, "system": system, "case": f"h{H}-b{B}", "H": str(H), "B": str(B), "us_per_step": us, **changes}

    rows = [
        row("torch.nn", 64, 1, "2"),
        row("ours", 64, 1, "1"),
        row("torch.nn", 64, 16, "2"),
        row("ours", 64, 16, "4"),
    ]
    rows += [row("torch.nn", 128, 1, "3", layers="2"), row("ours", 128, 1, "1", layers="2"), row("ours", 9, 9, "")]
    assert stages.speedups(rows, "ours") == [
        "torch.nn's time by ours, geometric mean of 3: 1.44",
        "LSTM bfloat16 training: H64 2.00 0.50; H128 layers 3.00",
    ]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, "-m", "bench.gpu_check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check needs an NVIDIA GPU: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_pytorch_it_says_so(tmp_path):
    """-S and -I: a Python without any package."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bench.gpu_check.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "has no PyTorch" in done.stderr


@pytest.mark.alone
def test_a_dry_run_takes_every_stage(tmp_path):
    command = [sys.executable, "-m", "bench.gpu_check", "--dry-run", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "check.json").read_text())["stages"]
    assert list(report) == list(stages.LIMITS)
    ran = {name for name, entry in report.items() if entry["status"] == "ok"}
    assert ran >= {"environment", "library", "kernels", "tests", "speed", "primitives"}
    assert {entry["status"] for entry in report.values()} <= {"ok", "skipped"}
    (rows,) = tmp_path.glob("*/layers.csv")
    assert {row["case"] for row in csv.DictReader(rows.open(newline=""))} == {"check-cpu"}
    printed = done.stdout.splitlines()
    assert len(printed) - printed.index("summary") <= runner.SUMMARY_LINES


def test_small_grid_on_the_cpu(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import small_grid

    monkeypatch.setattr(small_grid, "SIZES", ((3, 3, 5, 17),))
    monkeypatch.setattr(sys, "argv", ["small_grid.py", "--device=cpu", "--backend=reference"])
    assert small_grid.main() == 0
    assert capsys.readouterr().out == "30 of 30 layers ran\n"


def test_a_wheel_is_unpacked_where_results_are(tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setattr(library, "ROOT", tmp_path)
    monkeypatch.setattr(library, "CARRIED", tmp_path / "carried")
    (tmp_path / "dist").mkdir()
    assert library.candidates(tmp_path / "out") == []
    with zipfile.ZipFile(tmp_path / "dist" / "fused_rnn-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fused_rnn/_C.so", "code")
    (folder,) = library.candidates(tmp_path / "out")
    assert (folder / "fused_rnn" / "_C.so").read_text() == "code"
    (tmp_path / "carried" / "fused_rnn").mkdir(parents=True)
    (tmp_path / "carried" / "fused_rnn" / "_C.so").touch()
    assert library.candidates(tmp_path / "out")[0] == tmp_path / "carried"
