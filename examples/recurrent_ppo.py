"""Train an agent that must remember, with `resets=` and with a loop over a cell: the same losses, in less time.

    pip install -r examples/requirements.txt
    python examples/recurrent_ppo.py                  # a minute on two CPU cores; draws recurrent_ppo.svg
    python examples/recurrent_ppo.py --help

The task, written here with numpy: the first observation of an episode shows one of four signs, then come 4 to 24 steps
of noise, and when a light goes on the agent must name the sign. Without memory it is right one time in four. A rollout
has 128 steps of 64 environments, in which episodes begin and end anywhere.

The policy is a GRU with two linear heads, trained by PPO (Schulman et al. 2017, arXiv:1707.06347). Two copies of it
learn from every rollout, from the same weights. One runs `fused_rnn.GRU` once over all steps, and `resets=` says where
episodes begin. The other is the usual way without that: it takes the steps one by one, with `torch.nn.GRUCell`, and
sets the states of new episodes to zero.

Expect a share of right answers that rises from 0.25 to 0.9, losses of both copies that agree to six digits, both times,
and the curves as a picture. The exit code is not zero if the losses differ by 1e-4 or more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

import fused_rnn

SIGNS, NOISE = 4, 3
SHORTEST, LONGEST = 4, 24  # steps between the sign and the light
LARGEST_DIFFERENCE = 1e-4


class Memory:
    """Many environments at once: show a sign, wait, ask for it."""

    size = SIGNS + 1 + NOISE  # of an observation: the sign, the light, noise

    def __init__(self, count: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.signs = np.zeros(count, np.int64)
        self.steps = np.zeros(count, np.int64)  # left until the light
        self.is_first = np.ones(count, bool)
        self._begin(self.is_first)

    def _begin(self, which: np.ndarray) -> None:
        count = int(which.sum())
        self.signs[which] = self.random.integers(SIGNS, size=count)
        self.steps[which] = self.random.integers(SHORTEST, LONGEST + 1, size=count)
        self.is_first = which

    def observe(self) -> tuple[Tensor, Tensor]:
        """Observations [B, size], and whether each is the first one of an episode [B]."""
        seen = np.zeros((len(self.signs), self.size), np.float32)
        seen[self.is_first, self.signs[self.is_first]] = 1
        seen[:, SIGNS] = self.steps == 0
        seen[:, SIGNS + 1 :] = self.random.normal(size=(len(self.signs), NOISE))
        return torch.from_numpy(seen), torch.from_numpy(self.is_first.copy())

    def act(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards [B], and which episodes have ended [B]: new ones have begun in their place."""
        ended = self.steps == 0
        rewards = (ended & (actions.numpy() == self.signs)).astype(np.float32)
        self.steps -= 1
        self._begin(ended)
        return torch.from_numpy(rewards), torch.from_numpy(ended)


class Policy(nn.Module):
    """Actions and values of observations [T, B, size], one call for all steps."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = fused_rnn.GRU(Memory.size, hidden)
        self.actor, self.critic = nn.Linear(hidden, SIGNS), nn.Linear(hidden, 1)

    def forward(self, x: Tensor, h: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [T, B, SIGNS], values [T, B] and the last state [1, B, hidden]."""
        y, h = self.rnn(x, h, resets=is_first)
        return self.actor(y), self.critic(y).squeeze(-1), h


class LoopPolicy(Policy):
    """The same, a step at a time."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.rnn = nn.GRUCell(Memory.size, hidden)

    def forward(self, x: Tensor, h: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, keeps, outputs = h[0], (~is_first).unsqueeze(-1), []
        for x_t, keep in zip(x, keeps, strict=True):
            h = self.rnn(x_t, h * keep)
            outputs.append(h)
        y = torch.stack(outputs)
        return self.actor(y), self.critic(y).squeeze(-1), h[None]

    def take_weights(self, policy: Policy) -> None:
        self.load_state_dict({name.removesuffix("_l0"): value for name, value in policy.state_dict().items()})


class Rollout(NamedTuple):
    """Observations, actions and the targets of learning, [T, B, ...], and the state before the first step."""

    seen: Tensor
    is_first: Tensor
    actions: Tensor
    log_likelihoods: Tensor
    advantages: Tensor
    returns: Tensor
    h: Tensor
    right: float  # the share of right answers


@torch.no_grad()
def collect(policy: Policy, memory: Memory, h: Tensor, steps: int) -> tuple[Rollout, Tensor]:
    """A rollout, and the state after it."""
    start, rows = h, []
    for _ in range(steps):
        seen, is_first = memory.observe()
        logits, values, h = policy(seen[None], h, is_first[None])
        actions = torch.distributions.Categorical(logits=logits[0]).sample()
        rewards, ended = memory.act(actions)
        rows.append((seen, is_first, actions, logits[0], values[0], rewards, ended))
    seen, is_first, actions, logits, values, rewards, ended = map(torch.stack, zip(*rows, strict=True))
    last, begins = memory.observe()
    _, after, _ = policy(last[None], h, begins[None])
    advantages = estimate(values, torch.cat([values[1:], after]), rewards, (~ended).float())
    normal = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    right = float(rewards.sum() / ended.sum().clamp(min=1))
    return Rollout(seen, is_first, actions, likelihoods(logits, actions), normal, advantages + values, start, right), h


def likelihoods(logits: Tensor, actions: Tensor) -> Tensor:
    """The logarithms of the likelihoods of actions."""
    return logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)


def estimate(values: Tensor, following: Tensor, rewards: Tensor, goes_on: Tensor) -> Tensor:
    """Advantages: Schulman et al. 2015, arXiv:1506.02438, with gamma 0.99 and lambda 0.95."""
    advantages, advantage = torch.empty_like(values), torch.zeros_like(values[0])
    errors = rewards + 0.99 * goes_on * following - values
    for t in reversed(range(len(values))):
        advantage = errors[t] + 0.99 * 0.95 * goes_on[t] * advantage
        advantages[t] = advantage
    return advantages


class Trainer:
    """A policy in training: its optimizer, its losses and the seconds of each update."""

    def __init__(self, policy: Policy, rate: float, epochs: int) -> None:
        self.policy, self.epochs = policy, epochs
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=rate, eps=1e-5)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def update(self, rollout: Rollout) -> None:
        start = time.perf_counter()
        losses = [self._step(rollout) for _ in range(self.epochs)]
        self.losses.append(torch.stack(losses).mean().item())
        self.seconds.append(time.perf_counter() - start)

    def _step(self, r: Rollout) -> Tensor:
        logits, values, _ = self.policy(r.seen, r.h, r.is_first)
        ratio = (likelihoods(logits, r.actions) - r.log_likelihoods).exp()
        gain = torch.minimum(ratio * r.advantages, ratio.clamp(0.8, 1.2) * r.advantages).mean()
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
        loss = 0.5 * F.mse_loss(values, r.returns) - gain - 0.01 * entropy
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
        self.optimizer.step()
        return loss.detach()


def draw(path: Path, right: Sequence[float], losses: dict[str, Sequence[float]], steps: int) -> None:
    """The learning curve, and the losses of both copies on top of each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = [steps * (i + 1) / 1000 for i in range(len(right))]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 5), constrained_layout=True)
    above.plot(seen, right)
    above.axhline(1 / SIGNS, color="gray", linestyle=":", label="without memory")
    above.set(ylabel="share of right answers", ylim=(0, 1.02))
    above.legend()
    for style, (name, curve) in zip(("-", "--"), losses.items(), strict=True):
        below.plot(seen, curve, style, label=name)
    below.set(ylabel="loss", xlabel="thousand steps of the environments")
    below.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train an agent with memory, with resets= and with a loop over a cell, and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rollouts", type=positive, default=60, help="each is collected, learned from, and dropped")
    parser.add_argument("--steps", type=positive, default=128, help="of a rollout")
    parser.add_argument("--environments", type=positive, default=64, help="side by side")
    parser.add_argument("--hidden", type=positive, default=128, help="units of the GRU")
    parser.add_argument("--epochs", type=positive, default=4, help="updates by each rollout")
    parser.add_argument("--rate", type=float, default=2e-3, help="of learning")
    parser.add_argument("--seed", type=int, default=0, help="of weights, actions and environments")
    parser.add_argument("--picture", type=Path, default=Path("recurrent_ppo.svg"), help="where to draw the curves")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.manual_seed(args.seed)
    memory, policy = Memory(args.environments, args.seed), Policy(args.hidden)
    fused = Trainer(policy, args.rate, args.epochs)
    other = LoopPolicy(args.hidden)
    loop = Trainer(other, args.rate, args.epochs)
    h, right = torch.zeros(1, args.environments, args.hidden), []
    with trange(args.rollouts, unit="rollout", mininterval=0.1 if sys.stderr.isatty() else 10.0) as progress:
        for _ in progress:
            rollout, h = collect(policy, memory, h, args.steps)
            other.take_weights(policy)
            for trainer in (fused, loop):
                trainer.update(rollout)
            right.append(rollout.right)
            progress.set_postfix(right=f"{rollout.right:.2f}", refresh=False)

    print(f"{'rollout':>8}{'right answers':>15}{'loss, resets=':>15}{'loss, loop':>12}{'difference':>12}")
    for i in sorted({(args.rollouts - 1) * row // 9 for row in range(10)}):
        a, b = fused.losses[i], loop.losses[i]
        print(f"{i + 1:8}{right[i]:15.2f}{a:15.5f}{b:12.5f}{abs(a - b):12.1e}")
    difference = max(abs(a - b) for a, b in zip(fused.losses, loop.losses, strict=True))
    ratio = median(b / a for a, b in zip(fused.seconds, loop.seconds, strict=True))
    print(f"\nlargest difference of losses: {difference:.1e}")
    print(f"updates: resets= {sum(fused.seconds):.1f} s, loop {sum(loop.seconds):.1f} s: {ratio:.1f} times as long")
    try:
        draw(args.picture, right, {"resets=": fused.losses, "loop": loop.losses}, args.steps * args.environments)
        print(f"the curves are in {args.picture}")
    except ImportError as error:
        print(f"no picture was drawn: {error}: pip install -r examples/requirements.txt")
    if not difference < LARGEST_DIFFERENCE:  # a NaN fails, too
        sys.exit(f"the losses differ by {difference:.1e}; they must stay below {LARGEST_DIFFERENCE:.0e}")


if __name__ == "__main__":
    main()
