"""The GPU check reads what programs print, keeps what came of its stages, and its measurements run on a CPU."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """Imports a file of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


PYTEST = """\
============================= test session starts ==============================
collected 5 items

tests/test_cuda.py::test_rows[lstm a-1] PASSED                           [ 20%]
tests/test_cuda.py::test_rows[gru-1] FAILED                              [ 40%]
tests/test_cuda.py::test_other SKIPPED (needs capability 9.0)            [ 60%]
tests/test_cuda.py::test_setup ERROR                                     [ 80%]
tests/test_cuda.py::test_last PASSED                                     [100%]
"""
PYTEST_END = """\
=================================== FAILURES ===================================
E       AssertionError: output is off by 1.00e-02, budget 1.00e-03
=========================== short test summary info ============================
FAILED tests/test_cuda.py::test_rows[gru-1] - AssertionError: output is off
ERROR tests/test_cuda.py::test_setup - RuntimeError: no
============== 1 failed, 2 passed, 1 skipped, 1 error in 3.21s =================
"""


@pytest.mark.parametrize("text", [PYTEST, PYTEST + PYTEST_END], ids=["stopped", "whole"])
def test_pytest_output(bench, text):
    assert bench("gpu_check").parse_pytest(text) == {
        "passed": 2,
        "failed": 1,
        "error": 1,
        "skipped": 1,
        "failures": ["tests/test_cuda.py::test_rows[gru-1]", "tests/test_cuda.py::test_setup"],
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
def test_sanitizer_output(bench, text, figures):
    assert bench("gpu_check").parse_sanitizer(text) == figures


def test_words_that_differ(bench):
    gpu_check = bench("gpu_check")
    gpu = gpu_check.parse_words("same 00000001 00000002\nbits 00000001 00000003 0a000000\nshort 01\ngpu 00\n")
    emulated = gpu_check.parse_words(
        "same 00000001 00000002\n\nbits 00000001 00000004 0b000000\nshort 01 02\nemulated 00\n"
    )
    assert gpu_check.differing(gpu, gpu) == {}
    assert gpu_check.differing(gpu, emulated) == {
        "bits": "2 of 3 words, first word 1: 00000003 against 00000004",
        "short": "1 words against 2",
        "gpu": "only the first has it",
        "emulated": "only the second has it",
    }


def test_measurements_that_were_cut_off(bench):
    assert bench("gpu_check").parse_json_lines('{"us": 1.5}\nother\n{"us": 2') == [{"us": 1.5}]


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
def test_code_for_a_gpu(bench, architectures, capability, expected):
    assert bench("gpu_check").has_code(architectures, capability) is expected


def test_a_program_that_takes_too_long_is_stopped_and_what_it_printed_is_kept(bench):
    gpu_check = bench("gpu_check")

    def slow(stage):
        status, _ = stage.python("-c", "import time; print('begun'); time.sleep(60)")
        stage.check("the program", status)

    start = time.monotonic()
    entry = gpu_check.outcome(slow, gpu_check.Stage("slow", limit=2, dry=True))
    assert time.monotonic() - start < 30
    assert (entry["status"], entry["output"]) == ("failed", ["begun"])
    assert entry["sentence"] == "the program was stopped at the limit of the stage, 2 s."


def test_every_stage_is_recorded_and_a_later_run_keeps_the_others(bench, monkeypatch, tmp_path):
    gpu_check = bench("gpu_check")
    path = tmp_path / "results" / "gpu_check-x.json"
    seen = []

    def environment(stage):
        stage.figures["sms"] = 132

    def build(stage):
        raise gpu_check.Failure("no compiler.")

    def tests(stage):
        raise AssertionError("must not run after a failed build")

    def exchange(stage):
        seen.append(json.loads(path.read_text()))
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(gpu_check, "STAGES", dict.fromkeys((environment, build, tests, exchange), 9))
    monkeypatch.setattr(gpu_check, "NEED_BUILD", (tests,))
    names = ["environment", "build", "tests", "exchange"]
    assert not gpu_check.check(names, path, "x", dry=True)
    assert list(seen[0]["stages"]) == names[:3]  # written before the next stage began
    stages = json.loads(path.read_text())["stages"]
    assert [stages[name]["status"] for name in names] == ["ok", "failed", "skipped", "failed"]
    assert stages["environment"]["figures"] == {"sms": 132}
    assert stages["exchange"]["sentence"] == "ZeroDivisionError: a mistake"
    assert gpu_check.check(["environment"], path, "x", dry=True)
    assert list(json.loads(path.read_text())["stages"]) == names


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, BENCH / "gpu_check.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check needs an NVIDIA GPU")


def test_small_grid_on_the_cpu(bench, capsys, monkeypatch):
    small_grid = bench("small_grid")
    monkeypatch.setattr(small_grid, "SIZES", ((3, 3, 5, 17),))
    monkeypatch.setattr(sys, "argv", ["small_grid.py", "--device=cpu", "--backend=reference"])
    assert small_grid.main() == 0
    assert capsys.readouterr().out == "18 of 18 layers ran\n"


def test_the_build_stage_asks_what_the_extension_answers(bench):
    gpu_check = bench("gpu_check")
    status, text = gpu_check.Stage("build", limit=60, dry=True).python("-c", gpu_check.LOADED)
    assert status == 0, text
    assert "architectures:" in text and "why not:" in text
