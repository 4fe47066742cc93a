"""The example runs, agrees with torch.nn, and notices when it does not."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import fused_rnn

EXAMPLE = Path(__file__).parents[1] / "examples" / "char_lm.py"
SMALL = ["--steps", "6", "--hidden", "16", "--batch", "4", "--length", "16", "--sample", "20"]


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(EXAMPLE))["main"]


def test_both_cells_agree_with_torch_nn(main, capsys):
    main(SMALL)  # a failure raises SystemExit
    table = capsys.readouterr().out.split("final loss\n")[1]
    rows = re.findall(r"^(\w+) +\S+ s +\S+ s +\S+ +(\S+) +\S+$", table, re.MULTILINE)
    assert [cell for cell, _ in rows] == ["LSTM", "GRU"]
    assert all(float(difference) < 1e-3 for _, difference in rows)


def test_curves_that_part_are_a_failure(main, monkeypatch):
    def convert_badly(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        return model

    monkeypatch.setattr(fused_rnn, "convert", convert_badly)
    with pytest.raises(SystemExit, match=r"GRU: the losses of torch\.nn and fused_rnn differ by"):
        main([*SMALL, "--cell", "gru"])


def test_unusable_device_is_a_sentence(main, capsys):
    with pytest.raises(SystemExit):
        main(["--device", "abacus"])
    assert "PyTorch cannot use 'abacus' here" in capsys.readouterr().err
