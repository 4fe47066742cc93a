#!/usr/bin/env python3
"""Everything that needs an NVIDIA GPU, in one command and without a network, in eight minutes at most.

    make gpu-check                                     # or: python bench/gpu_check.py
    python bench/gpu_check.py --out DIR --only tests speed
    python bench/gpu_check.py --list
    python bench/gpu_check.py --dry-run                # on a CPU, with tiny sizes: only to see that it works

The stages run in order of worth, each with its own time limit. What came of them is in one JSON file, written after
every stage: ``gpu_check-<device>.json``. A stage that runs again replaces its entry there. Each stage is a process of
its own, because a kernel that fails leaves its process without a GPU. Exit status: 0 if no stage failed, 1 if one did,
2 without an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
BUILT = ROOT / "build" / "bench"  # programs, and the results of a dry run
WHOLE = 480.0  # seconds for all stages
LAST_LINES = 40

Figures = dict[str, Any]


class Skip(Exception):
    """A stage cannot run here; the message is a sentence that says why."""


class Failure(Exception):
    """A stage ran and something was wrong; the message is a sentence that says what."""


# ---- What programs print ----


def parse_pytest(text: str) -> Figures:
    """Counts and the names of failures from ``pytest -v``, also when it was stopped in the middle."""
    ended = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", text, re.MULTILINE)
    counts = Counter(outcome.lower() for _, outcome in ended)
    failures = sorted({name for name, outcome in ended if outcome in ("FAILED", "ERROR")})
    return {**{name: counts[name] for name in ("passed", "failed", "error", "skipped")}, "failures": failures}


def parse_sanitizer(text: str) -> Figures:
    """Errors and warnings of compute-sanitizer's summary, None where there is none, and the first complaints."""
    memory = re.search(r"ERROR SUMMARY: (\d+) error", text)
    races = re.search(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)", text)
    found = races or memory
    complaints = re.findall(r"^========= (?!COMPUTE-SANITIZER|\s|.*SUMMARY)(\S.*)$", text, re.MULTILINE)
    return {
        "errors": int(found[1]) if found else None,
        "warnings": int(races[2]) if races else 0,
        "complaints": list(dict.fromkeys(complaints))[:20],
    }


def parse_words(text: str) -> dict[str, list[str]]:
    """The named words of the primitives' program: a name and hexadecimal words on each line."""
    return {name: words for name, *words in map(str.split, filter(str.strip, text.splitlines()))}


def differing(a: dict[str, list[str]], b: dict[str, list[str]]) -> dict[str, str]:
    """For each name whose words are not the same: how many differ and where the first one is, or who has none."""
    found = {}
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            found[name] = f"only the {'first' if name in a else 'second'} has it"
        elif len(a[name]) != len(b[name]):
            found[name] = f"{len(a[name])} words against {len(b[name])}"
        elif wrong := [i for i, pair in enumerate(zip(a[name], b[name], strict=True)) if len(set(pair)) > 1]:
            i = wrong[0]
            found[name] = f"{len(wrong)} of {len(a[name])} words, first word {i}: {a[name][i]} against {b[name][i]}"
    return found


def parse_json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def has_code(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for such architectures, "80 90a 100", runs on a GPU of that capability.

    Code runs on its own and higher minor versions of its major version; with an "a", on its own alone.
    """
    for major, minor, only in re.findall(r"\b(\d+)(\d)(a?)\b", architectures):
        if int(major) == capability[0] and (int(minor) == capability[1] if only else int(minor) <= capability[1]):
            return True
    return False


def architecture(capability: tuple[int, int]) -> str:
    """The architecture to build for: with the features of its own for Hopper."""
    name = f"{capability[0]}{capability[1]}"
    return f"{name}a" if name == "90" else name


# ---- Running a stage ----


@dataclass
class Stage:
    """What a stage may ask, and what it leaves behind."""

    name: str
    limit: float  # seconds
    dry: bool
    figures: Figures = field(default_factory=dict)
    output: list[str] = field(default_factory=list)  # of its programs, in order
    end: float = 0.0

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.limit

    def left(self) -> float:
        """Seconds until the stage's limit."""
        return max(0.0, self.end - time.monotonic())

    def run(self, *command: str | Path, **environment: str) -> tuple[int | None, str]:
        """Run a program in the repository; its exit status, None if it was stopped at the limit, and its output."""
        own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=os.environ | own,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(self.left())
            except subprocess.TimeoutExpired:
                status = None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its own children too: they are in its group
                    process.wait()
            log.seek(0)
            text = log.read()
        self.output += text.splitlines()
        return status, text

    def python(self, *arguments: str | Path, **environment: str) -> tuple[int | None, str]:
        return self.run(sys.executable, "-W", "ignore::RuntimeWarning", *arguments, **environment)

    def check(self, what: str, status: int | None) -> None:
        if status is None:
            raise Failure(f"{what} was stopped at the limit of the stage, {self.limit:.0f} s.")
        if status:
            raise Failure(f"{what} ended with status {status}.")

    def compiled(self, source: Path) -> Path:
        """A program built by nvcc for this GPU, or in a dry run for a Hopper."""
        if not shutil.which("nvcc"):
            raise Skip("nvcc is not on the PATH.")
        BUILT.mkdir(parents=True, exist_ok=True)
        arch, target = architecture((9, 0) if self.dry else capability()), BUILT / source.stem
        code = f"arch=compute_{arch},code=sm_{arch}"
        status, _ = self.run("nvcc", "-std=c++17", "-O3", "-gencode", code, source, "-o", target)
        self.check("nvcc", status)
        if self.dry:
            raise Skip(f"{source.name} was compiled; running it needs an NVIDIA GPU.")
        return target


def capability() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def commit() -> str:
    """The commit of the checkout, with -dirty if files differ, or "unknown"."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- The stages ----


def environment(stage: Stage) -> None:
    """What is here: device, driver, versions, commit, and the report of python -m fused_rnn."""
    import torch

    stage.figures |= {"torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit()}
    if not stage.dry:
        p = torch.cuda.get_device_properties(0)
        stage.figures |= {
            "device": p.name,
            "capability": f"{p.major}.{p.minor}",
            "sms": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "shared_bytes_per_block": getattr(p, "shared_memory_per_block_optin", None),
            "cudnn": torch.backends.cudnn.version(),
        }
        _, driver = stage.run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        stage.figures["driver"] = driver.strip()
    status, stage.figures["report"] = stage.python("-m", "fused_rnn")
    stage.check("python -m fused_rnn", status)


LOADED = """
import torch
from fused_rnn import native
if native.load_error:
    raise SystemExit(native.load_error)
print("architectures:", torch.ops.fused_rnn.cuda_architectures())
print("why not:", torch.ops.fused_rnn.cuda_why_not(0, "float32"))
"""


def build(stage: Stage) -> None:
    """An extension with code for this GPU: the one that is there, or else fused_rnn/_C.so, built now."""
    status, text = stage.python("-c", LOADED)
    architectures = _after("architectures:", text)
    stage.figures |= {"architectures": architectures, "built_here": False}
    if stage.dry:
        raise Skip("a dry run builds nothing." if status else "the extension loads; a dry run has no GPU to match.")
    if status != 0 or not has_code(architectures, capability()):
        archs = architecture(capability())
        status, _ = stage.python("setup.py", "build_ext", "--inplace", FUSED_RNN_CUDA="1", FUSED_RNN_CUDA_ARCHS=archs)
        stage.check("the build", status)
        status, text = stage.python("-c", LOADED)
        stage.check("loading the extension", status)
        stage.figures |= {"architectures": _after("architectures:", text), "built_here": True}
    if reason := _after("why not:", text):
        raise Failure(f"the CUDA kernels cannot run here: {reason}.")


def _after(label: str, text: str) -> str:
    return next((line.removeprefix(label).strip() for line in text.splitlines() if line.startswith(label)), "")


def tests(stage: Stage) -> None:
    """The tests of the CUDA kernels, and of every backend against float64."""
    if stage.dry:
        tested(stage, "tests/test_recurrence.py", "-k", "T1-B1")
    else:
        tested(stage, "tests/test_cuda.py", "tests/test_recurrence.py")


def triton(stage: Stage) -> None:
    """The tests of the Triton kernels, compiled for this GPU."""
    if importlib.util.find_spec("triton") is None:
        raise Skip("Triton is not installed.")
    tested(stage, "tests/test_triton.py", "-k", "on_a_gpu")


def tested(stage: Stage, *which: str) -> None:
    status, text = stage.python("-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", *which)
    stage.figures |= parse_pytest(text)
    if wrong := stage.figures["failed"] + stage.figures["error"]:
        raise Failure(f"{wrong} tests failed: {', '.join(stage.figures['failures'][:5])}.")
    stage.check("pytest", status)
    if not stage.figures["passed"]:
        raise Skip("no test ran: all were skipped.")


EMULATED = """
import sys
sys.path.insert(0, "tests/emu")
import build
print("program:", build.program("primitives", "plain"))
"""


def primitives(stage: Stage) -> None:
    """Each primitive of the kernels on the GPU and in the emulator: the same bits."""
    status, text = stage.python("-c", EMULATED)
    stage.check("building the emulated program", status)
    results = [BUILT / "primitives-gpu.txt", BUILT / "primitives-emulated.txt"]
    BUILT.mkdir(parents=True, exist_ok=True)
    status, _ = stage.run(_after("program:", text), results[1])
    stage.check("the emulated program", status)
    status, _ = stage.run(stage.compiled(ROOT / "tests" / "emu" / "primitives.cu"), results[0])
    stage.check("the program on the GPU", status)
    gpu, emulated = (parse_words(path.read_text()) for path in results)
    stage.figures |= {"names": len(gpu), "differing": differing(gpu, emulated)}
    if names := stage.figures["differing"]:
        raise Failure(f"GPU and emulator differ in {', '.join(names)}.")


def memcheck(stage: Stage) -> None:
    """Accesses out of bounds, in all kernels that small layers launch."""
    sanitized(stage, "memcheck", "--report-api-errors", "no", PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def racecheck(stage: Stage) -> None:
    """Races in shared memory, in our own kernels."""
    sanitized(stage, "racecheck", "--kernel-name", "kns=fused_rnn")


def sanitized(stage: Stage, tool: str, *options: str, **environment: str) -> None:
    if stage.dry:
        status, text = stage.python(BENCH / "small_grid.py", "--device=cpu", "--backend=reference", "--seconds=3")
        stage.check("the small grid", status)
        raise Skip(f"{text.splitlines()[-1]}; compute-sanitizer needs an NVIDIA GPU.")
    if not shutil.which("compute-sanitizer"):
        raise Skip("compute-sanitizer is not on the PATH.")
    tool_command = ("compute-sanitizer", "--tool", tool, "--target-processes", "all", "--print-limit", "20", *options)
    seconds = max(5.0, 0.6 * stage.left())  # the last layer, and the summary, come after that
    grid = (sys.executable, BENCH / "small_grid.py", f"--seconds={seconds:.0f}")
    status, text = stage.run(*tool_command, *grid, **environment)
    stage.figures |= {**parse_sanitizer(text), "layers": "".join(re.findall(r"^\d+ of \d+ layers ran$", text, re.M))}
    if "Device not supported" in text:
        raise Skip("compute-sanitizer does not support this machine's device.")
    if stage.figures["errors"]:
        raise Failure(f"{tool} found {stage.figures['errors']} errors in {stage.figures['layers'] or 'a cut-off run'}.")
    stage.check(f"compute-sanitizer {tool}", status)
    if stage.figures["errors"] is None:
        raise Failure("compute-sanitizer printed no summary.")
    if not stage.figures["layers"]:
        raise Failure("the small grid did not come to its end.")


def exchange(stage: Stage) -> None:
    """What one exchange between blocks costs."""
    status, text = stage.run(stage.compiled(BENCH / "exchange.cu"))
    stage.figures["rows"] = rows = parse_json_lines(text)
    stage.check("the program", status)
    if wrong := [row["what"] for row in rows if "stuck_after_spins" in row or "wrong_data" in row]:
        raise Failure(f"a protocol was wrong: {', '.join(wrong)}.")


def speed(stage: Stage) -> None:
    """Our layers, Triton's too, against torch.nn's, and which kernels torch.nn runs. What is cut off keeps its rows."""
    out = BUILT / "gpu_check"
    shutil.rmtree(out, ignore_errors=True)
    what = ["cpu", "--case", "stream64", "--seconds", "0.01"] if stage.dry else ["gpu", "--quick"]
    peers = [] if stage.dry else ["fused_rnn-cuda"]
    peers += [] if stage.dry or importlib.util.find_spec("triton") is None else ["fused_rnn-triton"]
    status, _ = stage.python("-m", "bench", *what, "--peers", *peers, "--out", out)
    rows = [row for path in out.glob("*/layers.csv") for row in csv.DictReader(path.open(newline=""))]
    stage.figures |= {"rows": rows, "cut_off": status is None}
    if wrong := [row["note"] for row in rows if row["system"] == "fused_rnn" and row["note"]]:
        raise Failure(f"{len(wrong)} layers were not timed, the first: {wrong[0]}.")
    if status or not rows:
        stage.check("python -m bench", status)
        raise Failure("python -m bench wrote no rows.")


STAGES: dict[Callable[[Stage], None], float] = {  # in order of worth, with the limit of each in seconds
    environment: 40,
    build: 150,
    tests: 110,
    primitives: 60,
    memcheck: 50,
    racecheck: 50,
    exchange: 30,
    speed: 145,
    triton: 60,
}
NEED_BUILD = (tests, memcheck, racecheck, speed)


# ---- All of them ----


def outcome(run: Callable[[Stage], None], stage: Stage) -> Figures:
    """Run one stage; whatever happens in it is its outcome."""
    started, begin = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic()
    try:
        run(stage)
        status, sentence = "ok", ""
    except Skip as reason:
        status, sentence = "skipped", str(reason)
    except Failure as reason:
        status, sentence = "failed", str(reason)
    except Exception as error:  # a mistake of ours must not cost the stages after it
        status, sentence = "failed", f"{type(error).__name__}: {error}"
    return {
        "status": status,
        "sentence": sentence,
        "seconds": round(time.monotonic() - begin, 1),
        "started": started,
        "commit": commit(),
        "figures": stage.figures,
        "output": stage.output[-LAST_LINES:],
    }


def check(names: Iterable[str], path: Path, device: str, dry: bool) -> bool:
    """Run the stages of those names and write ``path`` after each; whether none failed."""
    end = time.monotonic() + WHOLE
    report: Figures = {"device": device, "stages": {}}
    if path.exists():
        report["stages"] = json.loads(path.read_text())["stages"]
    wanted, statuses = set(names), dict[str, str]()
    path.parent.mkdir(parents=True, exist_ok=True)
    for run, limit in STAGES.items():
        name = run.__name__
        if name not in wanted:
            continue
        left = end - time.monotonic()
        stage = Stage(name, min(limit, max(left, 0)), dry)
        if left < 5:
            entry = outcome(_skip(f"the {WHOLE:.0f} s of the whole check are over."), stage)
        elif run in NEED_BUILD and statuses.get("build") == "failed":
            entry = outcome(_skip("the build failed."), stage)
        else:
            print(f"{name} ...", flush=True)
            entry = outcome(run, stage)
        statuses[name] = entry["status"]
        report["stages"][name] = entry
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{name}: {entry['status']} in {entry['seconds']} s. {entry['sentence']}", flush=True)
        if entry["status"] == "failed":
            print("".join(f"    {line}\n" for line in entry["output"][-15:]), flush=True)
    return "failed" not in statuses.values()


def _skip(sentence: str) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        raise Skip(sentence)

    return run


def device_name(dry: bool) -> str:
    """The GPU's name; an empty string without one."""
    if dry:
        return "dry run"
    import torch

    return torch.cuda.get_device_name(0) if torch.version.cuda and torch.cuda.is_available() else ""


def main() -> int:
    names = [run.__name__ for run in STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder of the JSON file; bench/results unless told")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE")
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if args.list:
        for run, limit in STAGES.items():
            print(f"{run.__name__:<12} {limit:>4.0f} s at most  {run.__doc__}")
        return 0
    device = device_name(args.dry_run)
    if not device:
        print(
            "gpu_check needs an NVIDIA GPU and a PyTorch with CUDA; --dry-run shows the stages without.",
            file=sys.stderr,
        )
        return 2
    folder = args.out or (BUILT if args.dry_run else BENCH / "results")
    path = folder / f"gpu_check-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.json"
    well = check(args.only, path, device, args.dry_run)
    print(path)
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
