"""The stages of the check. Each takes a Stage and leaves figures and lines for the summary there."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean

from ..rows import precision, task
from . import library as built
from . import parsers
from .runner import ROOT, Failure, Skip, Stage

BENCH, TESTS = ROOT / "bench", ROOT / "tests"
WORDS = TESTS / "data" / "primitives.txt.gz"  # of the primitives, as the emulator gives them

LIMITS = {  # in order of worth, with the limit of each in seconds
    "environment": 15,
    "library": 45,
    "kernels": 30,
    "exchange": 15,
    "tests": 60,
    "speed": 150,
    "profile": 25,
    "primitives": 15,
    "memcheck": 25,
    "racecheck": 20,
    "triton": 20,
}


def environment(stage: Stage) -> None:
    """Device, driver, versions and commit."""
    import torch

    from .. import machine

    stage.figures |= {"torch": torch.__version__, "cuda": torch.version.cuda, "commit": machine.commit()}
    if not stage.dry:
        p = torch.cuda.get_device_properties(0)
        stage.figures |= {
            "device": p.name,
            "capability": [p.major, p.minor],
            "sms": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "shared_bytes_per_block": getattr(p, "shared_memory_per_block_optin", None),
            "cudnn": torch.backends.cudnn.version(),
        }
        _, driver = stage.run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        stage.figures["driver"] = driver.strip()
    stage.lines.append(", ".join(f"{name} {value}" for name, value in stage.figures.items()))


LOADED = """
import torch
from fused_rnn import native
if native.load_error:
    raise SystemExit(native.load_error)
print("library:", native.library)
print("architectures:", torch.ops.fused_rnn.cuda_architectures())
print("why not:", torch.ops.fused_rnn.cuda_why_not(0, "float32"))
"""


def library(stage: Stage) -> None:
    """An extension with code for this GPU, carried, of a wheel, installed or built now; python -m fused_rnn."""
    capability = tuple(stage.before["environment"]["capability"]) if not stage.dry else (9, 0)
    for folder in (*built.candidates(stage.out), None):
        path = [str(folder)] if folder else []
        stage.before = {**stage.before, "library": {"path": path}}
        status, text = stage.python("-c", LOADED)
        found = _after("architectures:", text)
        if status == 0 and (stage.dry or built.has_code(found, capability)):
            break
    else:
        folder, arch = stage.out / "library", built.architecture(capability)
        if stage.dry or built.nvcc() is None:
            raise Failure(f"there is no extension with code for {arch}, and no nvcc to build one.")
        status, _ = stage.run(*built.build_command(folder), **built.build_environment(folder, arch))
        stage.check("the build", status)
        path = [str(folder)]
        stage.before = {**stage.before, "library": {"path": path}}
        status, text = stage.python("-c", LOADED)
        stage.check("loading the extension", status)
    stage.figures |= {name: _after(f"{name}:", text) for name in ("library", "architectures", "why not")}
    stage.figures["path"] = path
    _, stage.figures["report"] = stage.python("-m", "fused_rnn")
    stage.lines.append(f"{stage.figures['library']}, code for {stage.figures['architectures'] or 'no GPU'}")
    if not stage.dry and (reason := stage.figures["why not"]):
        raise Failure(f"the CUDA kernels cannot run here: {reason}.")


def _after(label: str, text: str) -> str:
    return next((line.removeprefix(label).strip() for line in text.splitlines() if line.startswith(label)), "")


def kernels(stage: Stage) -> None:
    """Every cell, type and tier once against float64; streams and graphs."""
    sizes = "T20-B33-I40-H128 or T9-B8-I5-H144 or T6-B20-I7-H300"
    chosen = f"(({sizes}) and padded) or stream or graph or repeat or default"
    _pytest(stage, [TESTS / "test_cuda.py", "-k", chosen], dry=[TESTS / "test_recurrence.py", "-k", "T1-B1-I1-H1"])


def tests(stage: Stage) -> None:
    """All tests of the CUDA kernels, on several processes where pytest-xdist is."""
    several = ["-n", "6"] if importlib.util.find_spec("xdist") else []
    _pytest(stage, [TESTS / "test_cuda.py", *several], dry=[TESTS / "test_recurrence.py", "-k", "T1-B1-I64"])


def triton(stage: Stage) -> None:
    """The Triton kernels, compiled for this GPU."""
    if importlib.util.find_spec("triton") is None:
        raise Skip("Triton is not installed.")
    _pytest(stage, [TESTS / "test_triton.py", "-k", "on_a_gpu"], dry=[TESTS / "test_triton.py", "-k", "no_such_test"])


def _pytest(stage: Stage, arguments: list[Path | str], dry: list[Path | str]) -> None:
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed.")
    report = stage.out / f"{stage.name}.xml"
    options = ["-q", "--color=no", "-p", "no:cacheprovider", f"--junitxml={report}"]
    report.unlink(missing_ok=True)
    status, _ = stage.python("-m", "pytest", *options, *(dry if stage.dry else arguments))
    stage.figures |= parsers.junit(report)
    counted = {name: stage.figures[name] for name in ("passed", "failure", "error", "skipped")}
    stage.lines.append(f"{stage.name}: {', '.join(f'{count} {name}' for name, count in counted.items())}")
    if wrong := counted["failure"] + counted["error"]:
        stage.lines += stage.figures["failures"][:5]
        raise Failure(f"{wrong} tests failed.")
    if status == 5 or not (counted["passed"] or status):  # 5: nothing was collected
        raise Skip("no test ran.")
    stage.check("pytest", status)


def exchange(stage: Stage) -> None:
    """What one exchange between blocks costs."""
    status, text = stage.run(_program(stage, "exchange"))
    stage.figures["rows"] = rows = parsers.json_lines(text)
    stage.check("the program", status)
    if wrong := [row["what"] for row in rows if "stuck_after_spins" in row or "wrong_data" in row]:
        raise Failure(f"a protocol was wrong: {', '.join(wrong)}.")
    groups = defaultdict[str, list[str]](list)
    for row in rows:
        if "us" in row:
            groups[row["what"]].append(f"{row['group']}: {row['us']:.2f}")
    stage.lines += [f"exchange, us by blocks, {what}: {', '.join(times)}" for what, times in groups.items()][:8]


def _program(stage: Stage, name: str) -> Path:
    """A program that was carried here, or else is compiled now."""
    if stage.dry:
        raise Skip("it needs an NVIDIA GPU.")
    if path := built.carried_program(name):
        return path
    if built.nvcc() is None:
        raise Skip(f"{name} was not carried here, and there is no nvcc.")
    target = stage.out / name
    arch = built.architecture(tuple(stage.before["environment"]["capability"]))
    status, _ = stage.run(*built.program_command(name, arch, target))
    stage.check("nvcc", status)
    return target


def speed(stage: Stage) -> None:
    """torch.nn against our kernels over a grid, which kernels torch.nn runs, two layers, both directions, ragged."""
    peers = [] if stage.dry else ["fused_rnn-cuda"]
    seconds = "0.01" if stage.dry else "0.15"
    options = ["--peers", *peers, "--seconds", seconds, "--out", str(stage.out), "--fresh"]
    status, _ = stage.python("-m", "bench", "check", *options)
    rows = [row for path in stage.out.glob("*/layers.csv") for row in csv.DictReader(path.open(newline=""))]
    stage.figures |= {"rows": len(rows), "cut_off": status is None}
    ours = "fused_rnn" if stage.dry else "fused_rnn-cuda"
    stage.lines += speedups(rows, ours)
    if wrong := [row for row in rows if row["system"] == ours and row["note"]]:
        raise Failure(f"{len(wrong)} layers were not timed, the first: {wrong[0]['case']}: {wrong[0]['note']}.")
    if not rows:
        stage.check("python -m bench check", status)
        raise Failure("python -m bench check wrote no rows.")
    if status:
        stage.check("python -m bench check", status)


def speedups(rows: list[dict[str, str]], ours: str) -> list[str]:
    """torch.nn's time by ours, a line for each cell, precision and work: H and the ratios for B in rising order."""
    times = {(*task(row), row["system"]): float(row["us_per_step"]) for row in rows if row["us_per_step"]}
    lines = defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    every = []
    for row in sorted(rows, key=lambda row: (row["cell"], row["dtype"], row["work"], int(row["H"]), int(row["B"]))):
        theirs, own = times.get((*task(row), "torch.nn")), times.get((*task(row), ours))
        if row["system"] == ours and theirs and own:
            every.append(theirs / own)
            what = f"{row['cell']} {precision(row['dtype'], row['tf32'])} {row['work']}"
            lines[what][_place(row)].append(f"{every[-1]:.2f}")
    mean = [f"torch.nn's time by ours, geometric mean of {len(every)}: {geometric_mean(every):.2f}"] if every else []
    for what, places in lines.items():
        mean.append(f"{what}: " + "; ".join(" ".join([place, *ratios]) for place, ratios in places.items()))
    return mean


def _place(row: dict[str, str]) -> str:
    """The name of a row's column in the summary: H, and several layers, both directions or ragged rows."""
    special = ["layers"] * (row["layers"] != "1")
    special += [name for name in ("bidirectional", "ragged") if row[name] == "1"]
    return " ".join([f"H{row['H']}", *special])


METRICS = (
    "gpu__time_duration.sum",
    "sm__cycles_elapsed.max",
    "smsp__inst_executed.sum",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",
)


def profile(stage: Stage) -> None:
    """Cycles and stalls of the persistent kernels, by Nsight Compute."""
    program = (sys.executable, "-m", "bench.gpu_check.profiled", *(["--dry-run"] if stage.dry else []))
    if stage.dry:
        status, text = stage.run(*program)
        stage.check("the program", status)
        raise Skip(f"{text.strip()}; Nsight Compute needs an NVIDIA GPU.")
    ncu = shutil.which("ncu")
    if ncu is None:
        raise Skip("ncu is not on the PATH.")
    options = ("--csv", "--page", "raw", "--clock-control", "none", "--kernel-name", "regex:recurrent_")
    status, text = stage.run(ncu, *options, "--metrics", ",".join(METRICS), *program)
    stage.figures["kernels"] = kernels = parsers.profile(text)
    stage.lines += [_profiled_line(one) for one in kernels[:8]]
    if not kernels:
        stage.check("ncu", status)
        raise Failure("ncu printed no kernels.")


def _profiled_line(row: dict[str, str]) -> str:
    numbers = [f"{name.split('__')[1].split('.')[0]} {row[name]}" for name in METRICS if row.get(name)]
    return f"{row.get('Kernel Name', '')[:40]} {row.get('Grid Size', '')}: {', '.join(numbers)}"


EMULATED = """
import sys
sys.path.insert(0, "tests/emu")
import build
print("program:", build.program("primitives", "plain"))
"""


def primitives(stage: Stage) -> None:
    """Each primitive of the kernels gives the words that the emulator gives."""
    result = stage.out / "primitives.txt"
    if stage.dry:
        status, text = stage.python("-c", EMULATED)
        stage.check("building the emulated program", status)
        program: str | Path = _after("program:", text)
    else:
        program = _program(stage, "primitives")
    status, _ = stage.run(program, result)
    stage.check("the program", status)
    expected = parsers.words(gzip.decompress(WORDS.read_bytes()).decode())
    stage.figures["differing"] = differing = parsers.differing(parsers.words(result.read_text()), expected)
    result.unlink()
    stage.lines += [f"{name}: {what}" for name, what in differing.items()][:4]
    if differing:
        raise Failure(f"GPU and emulator differ in {', '.join(differing)}.")


def memcheck(stage: Stage) -> None:
    """Accesses out of bounds, in all kernels that small layers launch."""
    _sanitized(stage, "memcheck", "--report-api-errors", "no", PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def racecheck(stage: Stage) -> None:
    """Races in shared memory, in our own kernels."""
    _sanitized(stage, "racecheck", "--kernel-name", "kns=fused_rnn")


def _sanitized(stage: Stage, tool: str, *options: str, **environment: str) -> None:
    if stage.dry:
        status, text = stage.python(BENCH / "small_grid.py", "--device=cpu", "--backend=reference", "--seconds=1")
        stage.check("the small grid", status)
        raise Skip(f"{text.splitlines()[-1]}; compute-sanitizer needs an NVIDIA GPU.")
    if not shutil.which("compute-sanitizer"):
        raise Skip("compute-sanitizer is not on the PATH.")
    command = ("compute-sanitizer", "--tool", tool, "--target-processes", "all", "--print-limit", "20", *options)
    seconds = max(5.0, 0.5 * stage.left())  # the last layer, and the summary, come after that
    status, text = stage.run(
        *command, sys.executable, BENCH / "small_grid.py", f"--seconds={seconds:.0f}", **environment
    )
    ran = next((line for line in text.splitlines() if line.endswith(" layers ran")), "")
    stage.figures |= {**parsers.sanitizer(text), "layers": ran}
    if "Device not supported" in text:
        raise Skip("compute-sanitizer does not support this machine's device.")
    stage.lines += [f"{tool}: {ran or 'cut off'}, {stage.figures['errors']} errors", *stage.figures["complaints"][:3]]
    if stage.figures["errors"]:
        raise Failure(f"{tool} found {stage.figures['errors']} errors.")
    stage.check(f"compute-sanitizer {tool}", status)
    if stage.figures["errors"] is None:
        raise Failure("compute-sanitizer printed no summary.")
    if not ran:
        raise Failure("the small grid did not come to its end.")
