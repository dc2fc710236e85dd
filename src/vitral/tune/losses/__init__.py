"""One small file for each loss: `(policy, reference, batch) -> loss, metrics`.

The loss of a batch is a sum over its units (tokens, sequences or pairs) divided by `batch.total`, the
number of units of the whole step: cutting a step into several batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.policy import Policy

__all__ = ["Loss", "Metrics", "Unit"]

Metrics = Mapping[str, float]
"""Sums over the units of the batch, divided like the loss."""
Unit = Literal["tokens", "sequences", "pairs"]


class Loss(Protocol):
    """What the loop calls. `unit` says what `batch.total` counts; `needs_reference` whether a frozen copy is kept."""

    @property
    def unit(self) -> Unit: ...

    @property
    def needs_reference(self) -> bool: ...

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss to be minimised, a scalar, and what to show beside it."""
        ...
