"""PPO with a divergence penalty, as InstructGPT (arXiv 2203.02155) and Llama 2 (arXiv 2307.09288) were tuned.

Columns, of each sampled token (N,): `logprob`, `advantage`, `return`, and `value`, all from the time of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.losses.grpo import clipped
from vitral.tune.policy import Policy

__all__ = ["Ppo", "advantages", "token_rewards"]


@dataclass(frozen=True)
class Ppo:
    """`clip` bounds the step of a token's probability and of its value; `value_weight` weighs the value's error."""

    clip: float = 0.2
    value_weight: float = 0.1
    unit: ClassVar[Unit] = "tokens"
    needs_reference: ClassVar[bool] = False  # the penalty is in the rewards already

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        columns = batch.columns
        losses, cut = clipped(policy.logprobs(batch) - columns["logprob"], columns["advantage"], self.clip)
        value, before = policy.scores(batch), columns["value"]
        bounded = before + (value - before).clamp(-self.clip, self.clip)
        error = 0.5 * torch.maximum((value - columns["return"]).square(), (bounded - columns["return"]).square())
        loss = (losses + self.value_weight * error).sum() / batch.total
        return loss, {
            "clipped": float(cut.sum()) / batch.total,
            "value_error": float(error.detach().sum()) / batch.total,
        }


def token_rewards(reward: float, logprob: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Rewards of one answer's tokens (n,): the penalty for leaving the reference everywhere, the reward at the end.

    >>> token_rewards(1.0, torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0]), 0.5).tolist()
    [-0.25, 1.0]
    """
    rewards = -beta * (logprob - reference)
    rewards[-1] += reward
    return rewards


def advantages(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns of one answer's tokens, (n,) each (generalised advantages, arXiv 1506.02438).

    >>> a, r = advantages(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), lam=0.5)
    >>> a.tolist(), r.tolist()
    ([0.25, 0.5], [0.75, 1.0])
    """
    found = torch.zeros_like(rewards)
    later, following = 0.0, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        surprise = float(rewards[t]) + gamma * following - float(values[t])
        later = surprise + gamma * lam * later
        found[t], following = later, float(values[t])
    return found, found + values
