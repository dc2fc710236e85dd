"""Distillation: match the distributions of a larger model with the same vocabulary (arXiv 1503.02531).

The reference is the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["Distil"]


@dataclass(frozen=True)
class Distil:
    """KL(teacher || student) at `temperature`, times its square; `data_weight` adds the plain cross-entropy."""

    temperature: float = 1.0
    data_weight: float = 0.0
    unit: ClassVar[Unit] = "tokens"
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        assert reference is not None, "the loop keeps a reference where needs_reference says so"
        with torch.no_grad():
            teacher = (reference.distributions(batch) / self.temperature).log_softmax(-1)
        plain = policy.distributions(batch)  # (N, V)
        student = (plain / self.temperature).log_softmax(-1)
        gap = (teacher.exp() * (teacher - student)).sum() * self.temperature**2
        data = -plain.gather(-1, batch.labels[:, None]).sum()
        return (gap + self.data_weight * data) / batch.total, {"cross_entropy": float(data.detach()) / batch.total}
