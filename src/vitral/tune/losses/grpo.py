"""Policy gradients over sampled answers: GRPO and PPO share the clipped ratio.

GRPO: Shao et al. 2024, arXiv 2402.03300, equation 3 (a token's weight is one over its answer's length); the
divergence is estimated as there, equation 4. PPO: Schulman et al. 2017, arXiv 1707.06347, equation 7.
Columns: `advantage` (B,) of each answer, `logprob` (N,) of each token when it was sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["Grpo", "clipped", "group_advantages"]


@dataclass(frozen=True)
class Grpo:
    """`clip` bounds how far one step moves a token's probability; `beta` weighs the divergence from the reference.

    The metric `moved` is the mean distance of a token's log-probability from that of its sampling: on the first
    step over an answer, how far trainer and engine are apart.
    """

    clip: float = 0.2
    beta: float = 0.04
    unit: ClassVar[Unit] = "sequences"
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        now, then = policy.logprobs(batch), batch.columns["logprob"]
        losses, cut = clipped(now - then, batch.columns["advantage"][batch.owners], self.clip)
        divergence = now.new_zeros(1)
        if self.beta:
            assert reference is not None, "the loop keeps a reference where needs_reference says so"
            with torch.no_grad():
                gap = reference.logprobs(batch)
            gap = gap - now
            divergence = gap.exp() - gap - 1
            losses = losses + self.beta * divergence
        weight = 1 / batch.counts[batch.owners]
        return (losses * weight).sum() / batch.total, {
            "divergence": float((divergence.detach() * weight).sum()) / batch.total,
            "clipped": float((cut * weight).sum()) / batch.total,
            "moved": float(((now - then).detach().abs() * weight).sum()) / batch.total,
        }


def clipped(log_ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Loss of each token, and whether the clip took its gradient away.

    >>> loss, cut = clipped(torch.tensor([0.5, -0.5]), torch.tensor([1.0, 1.0]), 0.2)
    >>> [round(x, 4) for x in loss.tolist()], cut.tolist()
    ([-1.2, -0.6065], [True, False])
    """
    ratio = log_ratio.exp()
    free, bounded = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(free, bounded), bounded < free


def group_advantages(rewards: Tensor, size: int, eps: float = 1e-4) -> Tensor:
    """Rewards (B,) of groups of `size` answers to one prompt, centred and scaled within each group.

    >>> [round(x, 2) for x in group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist()]
    [0.71, -0.71, 0.0, 0.0]
    """
    groups = rewards.view(-1, size)
    spread = groups.std(dim=1, keepdim=True) if size > 1 else torch.zeros_like(groups)
    return ((groups - groups.mean(dim=1, keepdim=True)) / (spread + eps)).flatten()
