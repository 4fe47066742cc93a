"""What programs leave behind, as figures."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def junit(path: Path) -> dict[str, Any]:
    """Counts and the names of failures from ``pytest --junitxml``; zeros if it came to no report."""
    counts, failures = Counter[str](), []
    for case in ElementTree.parse(path).iter("testcase") if path.exists() else ():
        kind = next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed")
        counts[kind] += 1
        if kind in ("failure", "error"):
            failures.append(f"{case.get('classname')}.{case.get('name')}")
    return {name: counts[name] for name in ("passed", "failure", "error", "skipped")} | {"failures": sorted(failures)}


def sanitizer(text: str) -> dict[str, Any]:
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


def words(text: str) -> dict[str, list[str]]:
    """The named words of the primitives' program: a name and hexadecimal words on each line."""
    return {name: rest for name, *rest in map(str.split, filter(str.strip, text.splitlines()))}


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


def json_lines(text: str) -> list[Any]:
    """Complete lines of JSON among others."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def profile(text: str) -> list[dict[str, str]]:
    """The kernels of ``ncu --csv --page raw``: name and metrics of each launch, by the names that ncu gives them."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    return [row for row in csv.DictReader(lines[start:]) if row.get("ID")]  # without the row of units
