"""`resets` against two libraries that reset recurrent states inside a sequence, where these are installed."""

import pytest
import torch
from torch import nn

import fused_rnn

T, B, I, H = 9, 4, 3, 5


@pytest.fixture
def resets():
    """[T, B]: none in the first row, in others at the first step, one after the other, and at the last step."""
    found = torch.zeros(T, B, dtype=torch.bool)
    found[[0, 3, 4, 8], [1, 2, 2, 3]] = True
    return found


def pair(kind, layers=1):
    torch.manual_seed(0)
    theirs = getattr(nn, kind)(I, H, layers, batch_first=True)
    ours = getattr(fused_rnn, kind)(I, H, layers, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_resets_are_is_init_of_torchrl(kind, layers, resets):
    reason = "TorchRL is not installed: pip install torchrl tensordict"
    modules = pytest.importorskip("torchrl.modules", reason=reason, exc_type=ImportError)
    tensordict = pytest.importorskip("tensordict", reason=reason, exc_type=ImportError)
    theirs, ours = pair(kind, layers)
    x, h, c = torch.randn(B, T, I), torch.randn(layers, B, H), torch.randn(layers, B, H)
    states = {"h": h, "c": c} if kind == "LSTM" else {"h": h}
    # In TorchRL's data every step has the state before it, zeros where an episode begins. Others than the first of an
    # episode are not read.
    goes_on = ~resets.t()[..., None, None]
    given = {name: state.transpose(0, 1)[:, None] * goes_on for name, state in states.items()}
    data = tensordict.TensorDict({"x": x, "is_init": resets.t()[..., None], **given}, [B, T])
    after = [("next", name) for name in states]
    options = {"lstm" if kind == "LSTM" else "gru": theirs}
    module = getattr(modules, f"{kind}Module")(in_keys=["x", *states], out_keys=["y", *after], **options)
    with modules.set_recurrent_mode(True):
        want = module(data)["y"]
    got, _ = ours(x, (h, c) if kind == "LSTM" else h, resets=resets.t())
    torch.testing.assert_close(got, want)


def test_resets_are_episode_starts_of_sb3_contrib(resets):
    reason = "sb3-contrib is not installed: pip install sb3-contrib"
    policies = pytest.importorskip("sb3_contrib.common.recurrent.policies", reason=reason, exc_type=ImportError)
    theirs = nn.LSTM(I, H)
    ours = fused_rnn.LSTM(I, H)
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(T, B, I), (torch.randn(1, B, H), torch.randn(1, B, H))
    process = policies.RecurrentActorCriticPolicy._process_sequence
    want, final = process(x.transpose(0, 1).flatten(0, 1), hx, resets.t().flatten().float(), theirs)
    got, ours_final = ours(x, hx, resets=resets)
    torch.testing.assert_close(got.transpose(0, 1).flatten(0, 1), want)
    torch.testing.assert_close(ours_final, final)
