"""Switches off every barrier and fence of the CUDA kernels, one at a time, and tells whether a test sees it.

    python tests/emu/mutants.py          prints the table of csrc/README.md; exits 1 if one is not seen

A mutant is caught by values (a wrong or missing number in some schedule) or by the race detector. One that survives is
a test that is missing, or a barrier to delete.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import build

SEEDS = range(4)
FLAVOURS = {"plain": "values", "thread": "race detector"}


def cases():
    import test_kernels

    for cell in test_kernels.LOOPS:
        for math in ("float32", "bfloat16"):  # weight_hh in shared memory, in registers
            for tier in ("block", "cluster 1x2x1", "grid 1x2x1"):
                yield test_kernels.Case(cell, math, tier, test_kernels.Size(6, 9, 3, 17), ragged=True)


def sites() -> list[str]:
    """The synchronising calls that the kernels reach."""
    import test_kernels

    test_kernels.load()
    for case in cases():
        test_kernels.check(case)
    return test_kernels.ops.sites().split()


def is_caught(mutant: str) -> bool:
    import test_kernels

    os.environ["EMU_MUTANT"] = mutant
    try:
        for seed in SEEDS:
            os.environ["EMU_SEED"] = str(seed)
            for case in cases():
                test_kernels.check(case)
    except (AssertionError, RuntimeError):
        return True
    finally:
        del os.environ["EMU_MUTANT"], os.environ["EMU_SEED"]
    return False


def caught_in(flavour: str) -> dict[str, bool]:
    """Each mutant, and whether this flavour of the emulator sees it; in a process of its own."""
    environment = build.environment(flavour)
    here = Path(__file__)
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parents[1]), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, str(here), "--in-this-process"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    caught = {column: caught_in(flavour) for flavour, column in FLAVOURS.items()}
    mutants = sorted({name for column in caught.values() for name in column})
    print(f"| switched off | {' | '.join(caught)} |\n|---|{'---|' * len(caught)}")
    for name in mutants:
        print(f"| `{name}` | {' | '.join('caught' if column.get(name) else '' for column in caught.values())} |")
    survivors = [name for name in mutants if not any(column.get(name) for column in caught.values())]
    print(f"\n{len(mutants)} mutants, {len(survivors)} survived{': ' if survivors else ''}{', '.join(survivors)}")
    return bool(survivors) or not mutants


if __name__ == "__main__":
    if "--in-this-process" in sys.argv:
        print(json.dumps({name: is_caught(name) for name in sites()}))
    else:
        sys.exit(main())
