"""What holds for every test: fixed seeds, and memory that nobody wrote is full of NaN."""

import os

# Measured choices change no test, nor a process that it starts. This is read when fused_rnn is imported.
os.environ["FUSED_RNN_TUNED"] = "0"

import pytest
import torch

# The threads of two busy processes on few cores wait for each other, spinning, a hundred times longer than they work.
# What more than one thread changes has its own tests.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest tests first: processes that share the tests then end at about the same time."""

    def seconds(item):
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("seconds", 0) if mark else 0

    items.sort(key=seconds, reverse=True)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """A kernel that leaves one element of its output unwritten must fail here, not in training.

    Allocations made in C++ do not pass through Python: `make test` builds the extension with FUSED_RNN_POISON.
    """

    def poisoned(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() and not tensor.is_meta:
                tensor.detach().fill_(float("nan"))
            return tensor

        return allocate_poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def choices_folder(monkeypatch, tmp_path):
    """A folder for choices, and none that come with the package; at the end all are forgotten."""
    from fused_rnn import backends, choices

    own = tmp_path / "tuned"
    shipped = tmp_path / "choices.csv"
    shipped.write_text(",".join(choices.COLUMNS) + "\n")
    with monkeypatch.context() as patch:
        patch.setenv("FUSED_RNN_TUNED", str(own))
        patch.setattr(choices, "SHIPPED", shipped)
        choices.load()
        yield own
    backends.forget()
    choices.load()
    assert not choices.tuned()
