"""KTO: single answers rated good or bad, no pairs.

Ethayarajh et al. 2024, arXiv 2402.01306, equations 7 and 8. The divergence that gains are compared with is
estimated from answers given to other prompts. A batch holds the n rated rows, then n rows in which the prompt
of each has another's answer; column `good` (n,) has the ratings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["Kto"]


@dataclass(frozen=True)
class Kto:
    """`beta` ties the policy to the reference; `good_weight` and `bad_weight` even out how many there are of each."""

    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0
    unit: ClassVar[Unit] = "sequences"
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        assert reference is not None, "the loop keeps a reference where needs_reference says so"
        good = batch.columns["good"].bool()
        with torch.no_grad():
            before = reference.logprobs(batch)
        gain, mismatched = batch.per_sequence(policy.logprobs(batch) - before).chunk(2)  # (n,), (n,)
        divergence = mismatched.detach().mean().clamp(min=0)
        sign = torch.where(good, 1.0, -1.0)
        weight = torch.where(good, self.good_weight, self.bad_weight)
        losses = weight * (1 - torch.sigmoid(self.beta * sign * (gain - divergence)))
        share = len(good) / batch.total
        return losses.sum() / batch.total, {"divergence": float(divergence) * share}
