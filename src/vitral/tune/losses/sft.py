"""Supervised fine-tuning: cross-entropy of the supervised tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["Sft"]


@dataclass(frozen=True)
class Sft:
    """Mean negative log-likelihood (nats) over all supervised tokens of the step."""

    unit: ClassVar[Unit] = "tokens"
    needs_reference: ClassVar[bool] = False

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        return -policy.logprobs(batch).sum() / batch.total, {}
