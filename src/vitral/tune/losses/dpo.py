"""Direct preference optimisation: the answer preferred becomes likelier than the one rejected, against a reference.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7. IPO: Azar et al. 2023, arXiv 2310.12036, equation 17,
over mean log-probabilities of a token, as its authors confirmed to TRL.
A batch holds the n answers preferred, then the n rejected, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.tune.batch import Batch
from vitral.tune.losses import Metrics, Unit
from vitral.tune.policy import Policy

__all__ = ["Dpo"]


@dataclass(frozen=True)
class Dpo:
    """`beta` ties the policy to the reference: larger is tighter. `kind` is "sigmoid" (DPO) or "ipo"."""

    beta: float = 0.1
    kind: Literal["sigmoid", "ipo"] = "sigmoid"
    unit: ClassVar[Unit] = "pairs"
    needs_reference: ClassVar[bool] = True

    def __call__(self, policy: Policy, reference: Policy | None, batch: Batch) -> tuple[Tensor, Metrics]:
        assert reference is not None, "the loop keeps a reference where needs_reference says so"
        with torch.no_grad():
            before = reference.logprobs(batch)
        gain = batch.per_sequence(policy.logprobs(batch) - before)  # (2n,) log pi / pi_ref
        chosen, rejected = gain.chunk(2)
        if self.kind == "sigmoid":
            losses = -F.logsigmoid(self.beta * (chosen - rejected))
        else:
            mean_chosen, mean_rejected = (gain / batch.counts).chunk(2)
            losses = (mean_chosen - mean_rejected - 1 / (2 * self.beta)).square()
        margin = (self.beta * (chosen - rejected)).detach()
        return losses.sum() / batch.total, {
            "margin": float(margin.sum()) / batch.total,
            "accuracy": float((margin > 0).sum()) / batch.total,
        }
