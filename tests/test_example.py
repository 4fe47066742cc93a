"""The examples run, agree with torch.nn, and notice when they do not."""

import copy
import re
import runpy
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

import fused_rnn

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "char_lm.py"
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


@pytest.fixture
def small_agent(tmp_path):
    picture = tmp_path / "curves.svg"
    arguments = ["--rollouts", "3", "--steps", "40", "--environments", "8", "--hidden", "8", "--picture", str(picture)]
    main = runpy.run_path(str(EXAMPLES / "recurrent_ppo.py"))["main"]
    return lambda: main(arguments), picture


def test_resets_train_an_agent_as_a_loop_does(small_agent, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib draws the picture: pip install -r examples/requirements.txt")
    train, picture = small_agent
    train()  # a failure raises SystemExit
    assert float(re.search(r"largest difference of losses: (\S+)", capsys.readouterr().out)[1]) < 1e-5
    assert "share of right answers" in picture.read_text()


def test_an_agent_whose_memory_crosses_episodes_is_a_failure(small_agent, monkeypatch):
    forward = fused_rnn.GRU.forward
    monkeypatch.setattr(fused_rnn.GRU, "forward", lambda self, x, h, resets: forward(self, x, h))
    with pytest.raises(SystemExit, match=r"the losses differ by \S+; they must stay below 1e-04"):
        small_agent[0]()


@pytest.mark.slow(seconds=60)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_quantised_weights_cost_next_to_nothing(cell):
    """The loss on text that the model has not seen rises by at most 0.5 percent with int8, 0.05 with bfloat16."""
    example = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))
    torch.manual_seed(0)
    text = example.manual()[:200_000]
    vocabulary = example.Vocabulary(text)
    read, unseen = vocabulary.encode(text).split([180_000, 20_000])
    trainer = example.Trainer(fused_rnn.convert(example.CharLM(cell, len(vocabulary.characters), 96)))
    trainer.train(list(islice(example.batches_of(read, 32, 64), 200)))

    @torch.no_grad()
    def loss(model):
        logits, _ = model.eval()(unseen[:-1].view(-1, 1))
        return functional.cross_entropy(logits[:, 0], unseen[1:]).item()

    plain = loss(trainer.model)
    assert plain < 2.6  # it has learned something: at first it is 4.6
    for weights, rise in (("int8", 0.005), ("bfloat16", 0.0005)):
        quantized = fused_rnn.quantize_(copy.deepcopy(trainer.model), weights)
        assert loss(quantized) < plain * (1 + rise)
