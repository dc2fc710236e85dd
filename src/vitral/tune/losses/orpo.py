"""ORPO: learn the answer preferred and widen its odds over the one rejected, without a reference.

Hong et al. 2024, arXiv 2403.07691, equations 4 to 7. A batch holds the n answers preferred, then the n rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["Orpo"]


@dataclass(frozen=True)
class Orpo:
    """`beta` weighs the odds ratio. `prompt_loss`: the likelihood term counts the prompt's tokens too, as TRL's does.

    The likelihood term is the mean over a pair's own tokens, so that pairs weigh alike; TRL takes the mean over
    all tokens of its batch. The two are one where a batch holds one pair, or answers of one length.
    """

    beta: float = 0.1
    prompt_loss: bool = False
    unit: ClassVar[Unit] = "pairs"
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        whole = batch.everywhere()
        logprobs = policy.logprobs(whole if self.prompt_loss else batch)
        if self.prompt_loss:
            likelihood = whole.per_sequence(logprobs) / whole.counts
            logprobs = logprobs[torch.isin(whole.places, batch.places)]
        mean = batch.per_sequence(logprobs) / batch.counts  # (2n,) mean log-probability of a token
        if not self.prompt_loss:
            likelihood = mean
        odds = mean - torch.log(-torch.expm1(mean))  # log p / (1 - p)
        chosen, rejected = odds.chunk(2)
        ratio = F.logsigmoid(chosen - rejected)
        losses = -likelihood.chunk(2)[0] - self.beta * ratio
        margin = (chosen - rejected).detach()
        return losses.sum() / batch.total, {
            "log_odds": float(margin.sum()) / batch.total,
            "accuracy": float((margin > 0).sum()) / batch.total,
        }
