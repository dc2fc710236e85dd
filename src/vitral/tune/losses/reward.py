"""Reward model: the answer preferred scores higher (Llama 2, arXiv 2307.09288, section 3.2.2).

A batch holds the n answers preferred, then the n rejected; column `margin` (n,), if there, says by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["RewardRanking"]


@dataclass(frozen=True)
class RewardRanking:
    """The policy's head scores the last token of each sequence. `centre` pulls scores to zero (arXiv 2312.09244)."""

    centre: float = 0.0
    unit: ClassVar[Unit] = "pairs"
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        chosen, rejected = policy.last_scores(batch).chunk(2)
        difference = chosen - rejected
        losses = -F.logsigmoid(difference - batch.columns.get("margin", difference.new_zeros(1)))
        losses = losses + self.centre * (chosen + rejected).square()
        return losses.sum() / batch.total, {
            "accuracy": float((difference > 0).sum()) / batch.total,
            "margin": float(difference.detach().sum()) / batch.total,
        }
