"""A minute of fuzzing; `make fuzz` runs it for longer, and under sanitizers."""

import fuzz
import pytest

pytestmark = pytest.mark.slow(seconds=20)

SECONDS = {"modules": 20, "ops": 35, "quantized": 15, "streams": 10, "plans": 3}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_hostile_calls(target):
    found = fuzz.run_child(target, SECONDS[target], seed=0)
    assert not found, found


def test_a_dead_child_leaves_its_call():
    found = fuzz.run_child("plans", 5, seed=0, isa="none")  # an instruction set that does not exist
    assert "last call:\nCall(name='cpu_instruction_set', arguments={}, " in found
