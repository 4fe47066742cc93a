"""The parts of csrc/ that need no torch, compiled alone by the test."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent / "native"
CXX = os.environ.get("CXX", "c++")

if not shutil.which(CXX):
    pytest.skip(f"needs the compiler {CXX}", allow_module_level=True)


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
def test_vector_arithmetic(vector_bytes, tmp_path):
    """On any processor: the compiler builds vectors that are wider than the processor's from narrower ones."""
    program = tmp_path / "test_vector"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", f"-DFUSED_RNN_VECTOR_BYTES={vector_bytes}"]
    subprocess.run([CXX, *flags, str(NATIVE / "test_vector.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
