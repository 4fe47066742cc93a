"""The kernels' tests again in the emulator's other builds: with its race detector, and under ASan and UBSan."""

import subprocess
import sys
from pathlib import Path

import build
import pytest


@pytest.mark.slow(seconds=300)
@pytest.mark.skipif(build.flavour_from_environment() != "plain", reason="this is the process that a test started")
@pytest.mark.parametrize("flavour", ["thread", "address"])
def test_kernels(flavour):
    if reason := build.why_not(flavour):
        pytest.skip(reason)
    build.library(flavour)
    tests = str(Path(__file__).with_name("test_kernels.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = subprocess.run(command, env=build.environment(flavour), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert " passed" in done.stdout
