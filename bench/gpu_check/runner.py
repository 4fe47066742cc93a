"""Runs stages one after the other, each with a time limit, and keeps what came of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WHOLE = 420  # seconds for all stages
LAST_LINES = 40  # of a stage's output are kept
SUMMARY_LINES = 60
GRACE = 5.0  # seconds from the interrupt to the end: pytest writes its report then

Figures = dict[str, Any]


class Skip(Exception):
    """A stage cannot run here; the message is a sentence that says why."""


class Failure(Exception):
    """A stage ran and something was wrong; the message is a sentence that says what."""


@dataclass
class Stage:
    """A stage's limits and inputs, its figures and its output.

    Args:
        limit: seconds from now on.
        out: the folder for its results.
        before: the figures of the stages before it, by name.
    """

    name: str
    limit: float
    dry: bool
    out: Path
    before: Mapping[str, Figures] = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # of the summary
    output: list[str] = field(default_factory=list)  # of its programs, in order
    end: float = 0.0

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.limit

    def left(self) -> float:
        """Seconds until the stage's limit."""
        return max(0.0, self.end - time.monotonic())

    def run(self, *command: str | Path, **environment: str) -> tuple[int | None, str]:
        """Run a program in the repository; its exit status, None if it was stopped at the limit, and its output."""
        paths = [str(ROOT), *self.before.get("library", {}).get("path", [])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **environment}
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
                status: int | None = process.wait(max(0.0, self.left() - GRACE))
            except subprocess.TimeoutExpired:
                status = None
                self._stop(process)
            except BaseException:
                self._stop(process)
                raise
            log.seek(0)
            text = log.read()
        self.output += text.splitlines()
        return status, text

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        """Interrupt a program and its children, and kill those that do not end."""
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def python(self, *arguments: str | Path, **environment: str) -> tuple[int | None, str]:
        return self.run(sys.executable, "-W", "ignore::RuntimeWarning", *arguments, **environment)

    def check(self, what: str, status: int | None) -> None:
        if status is None:
            raise Failure(f"{what} was stopped at the limit of the stage, {self.limit:.0f} s.")
        if status:
            raise Failure(f"{what} ended with status {status}.")


def outcome(run: Callable[[Stage], None], stage: Stage) -> Figures:
    """Run one stage; whatever happens in it is its outcome."""
    begin = time.monotonic()
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
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "figures": stage.figures,
        "lines": stage.lines,
        "output": stage.output[-LAST_LINES:],
    }


def check(stages: Mapping[str, tuple[Callable[[Stage], None], float]], out: Path, dry: bool) -> Figures:
    """Run stages, each with its limit in seconds, and write ``check.json`` after each; returns its final content.

    A stage that ran before in the same folder keeps its entry until it runs again.
    """
    end, path = time.monotonic() + WHOLE, out / "check.json"
    out.mkdir(parents=True, exist_ok=True)
    report: Figures = json.loads(path.read_text()) if path.exists() else {"stages": {}}
    for name, (run, limit) in stages.items():
        left = end - time.monotonic()
        before = {other: entry["figures"] for other, entry in report["stages"].items()}
        stage = Stage(name, min(limit, max(left, 0)), dry, out, before)
        if left < 2 * GRACE:
            entry = outcome(_skip(f"the {WHOLE} s of the whole check are over."), stage)
        else:
            print(f"{name} ...", flush=True)
            entry = outcome(run, stage)
        report["stages"][name] = entry
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(_line(name, entry), flush=True)
    return report


def _skip(sentence: str) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        raise Skip(sentence)

    return run


def _line(name: str, entry: Figures) -> str:
    return f"{name}: {entry['status']} in {entry['seconds']} s. {entry['sentence']}".rstrip()


def summary(report: Figures) -> list[str]:
    """What came of all stages, in at most SUMMARY_LINES lines; failures with the end of their output first."""
    entries = report["stages"].items()
    lines = ["", "summary"] + [_line(name, entry)[:160] for name, entry in entries]
    for name, entry in entries:
        if entry["status"] == "failed":
            lines += [f"  {name} | {line}"[:160] for line in entry["output"][-4:]]
    for _, entry in entries:
        lines += [f"  {line}"[:160] for line in entry["lines"]]
    if len(lines) > SUMMARY_LINES:
        lines = [*lines[: SUMMARY_LINES - 1], f"{len(lines) - SUMMARY_LINES + 1} lines more are in check.json"]
    return lines
