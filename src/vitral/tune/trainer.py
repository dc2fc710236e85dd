"""The one training loop. It knows nothing of files of data or of methods: a source gives batches, a loss a number.

A step is: its batches forwards and backwards one after the other, gradients summed (over processes too), clipped,
one update of AdamW. Everything that decides step s follows from the recipe's seed, from s and from the saved state,
so a run that was interrupted goes on to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vitral.errors import HardwareError, NumericalError
from vitral.tune import distributed
from vitral.tune.batch import Batch
from vitral.tune.losses import Loss
from vitral.tune.policy import Policy
from vitral.tune.routing import balance_loss, router_z_loss
from vitral.tune.sharded import whole

__all__ = ["Plan", "Source", "StepReport", "Trainer", "learning_rate", "memory_watched"]

Schedule = Literal["cosine", "linear", "constant"]


class Source(Protocol):
    """Where batches come from: a data set, or answers that the policy itself gave."""

    def batches(self, step: int) -> Sequence[Batch]:
        """The batches of a step, from 0; this process's share where there are several."""
        ...

    def places(self, step: int) -> str:
        """Where the step's items stand, for an error message."""
        ...


@dataclass(frozen=True)
class Plan:
    """The numbers of the optimisation; see `recipe.RunPart`."""

    steps: int
    learning_rate: float = 2e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    balance: float = 0.0
    router_z: float = 0.0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did. `step` counts from 1; `tokens` are ids read, `supervised` those with loss, by this process."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    supervised: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)


@contextmanager
def memory_watched(where: str) -> Iterator[None]:
    """Turn a refused allocation, torch's too, into a HardwareError that says where and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        raise HardwareError(
            f"out of memory {where}: lower run.piece_tokens or data.context, or set run.recompute = true"
        ) from None


def learning_rate(plan: Plan, step: int) -> float:
    """The rate of a step, from 0: a straight rise over the warm-up, then the schedule down to zero (or none).

    >>> plan = Plan(steps=10, learning_rate=1.0, schedule="linear", warmup=0.2)
    >>> [round(learning_rate(plan, s), 2) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.12]
    """
    rise = round(plan.warmup * plan.steps)
    if step < rise:
        return plan.learning_rate * (step + 1) / rise
    done = (step - rise) / max(plan.steps - rise, 1)
    match plan.schedule:
        case "constant":
            return plan.learning_rate
        case "linear":
            return plan.learning_rate * (1 - done)
        case "cosine":
            return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """A policy, its reference if the loss wants one, and the optimiser over what is trainable.

    `extra` are further modules that train along, such as the head of a reward model.
    """

    def __init__(self, policy: Policy, reference: Policy | None, loss: Loss, plan: Plan) -> None:
        self.policy, self.reference, self.loss, self.plan = policy, reference, loss, plan
        modules = [policy.model, *([policy.head] if policy.head is not None else [])]
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self.step = 0

    def run_step(self, source: Source) -> StepReport:
        """Do the next step. Raises NumericalError before anything is changed if a loss or gradient is not finite."""
        began = time.perf_counter()
        batches = source.batches(self.step)
        passes = self._passes(source, batches)
        self.policy.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total, metrics = 0.0, dict[str, float]()
        with memory_watched(f"in step {self.step + 1}; the last saved step is whole"):
            for number, batch in enumerate(passes):
                loss, more = self._loss(batch)
                if number >= len(batches):  # along with the others, for nothing
                    (loss * 0.0).backward()  # type: ignore[no-untyped-call]
                    continue
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
                for name, value in more.items():
                    metrics[name] = metrics.get(name, 0.0) + value
        total, metrics = distributed.summed(self.parameters, total, metrics)
        if not math.isfinite(total):
            raise NumericalError(
                f"the loss of step {self.step + 1} is not finite, on {source.places(self.step)}; nothing was changed: "
                "lower run.learning_rate or look at these items"
            )
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)))
        if not math.isfinite(norm):
            raise NumericalError(
                f"a gradient of step {self.step + 1} is not finite, on {source.places(self.step)}; nothing was changed: "
                "lower run.learning_rate or look at these items"
            )
        rate = learning_rate(self.plan, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        tokens = sum(len(batch.packed.ids) for batch in batches)
        supervised = sum(len(batch.labels) for batch in batches)
        seconds = time.perf_counter() - began
        return StepReport(self.step, total, rate, norm, tokens, supervised, seconds, metrics)

    def evaluate(
        self, batches: Sequence[Batch], on_batch: Callable[[], object] = lambda: None
    ) -> tuple[float, dict[str, float]]:
        """Loss and metrics of batches whose `total` is that of all of them together; nothing is trained."""
        self.policy.model.eval()
        total, metrics = 0.0, dict[str, float]()
        with torch.no_grad():
            for batch in batches:
                loss, more = self.loss(self.policy, self.reference, batch)
                total += float(loss)
                for name, value in more.items():
                    metrics[name] = metrics.get(name, 0.0) + value
                on_batch()
        return total, metrics

    def _passes(self, source: Source, batches: Sequence[Batch]) -> list[Batch]:
        """The batches; in shares, followed by as many idle ones as the process with the most has more."""
        if not any(isinstance(parameter, DTensor) for parameter in self.parameters):
            return list(batches)
        idle = max(distributed.from_all(len(batches))) - len(batches)
        return [*batches, *([(batches or source.batches(0))[0]] * idle)]

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        loss, shown = self.loss(self.policy, self.reference, batch)
        metrics = dict(shown)
        routing, rerouted = self.policy.routing, self.policy.rerouted
        share = len(batch.labels) / batch.total if self.loss.unit == "tokens" else batch.n_sequences / batch.total
        if rerouted:
            metrics["rerouted"] = sum(rerouted.values()) / len(rerouted) * share
        if routing and (self.plan.balance or self.plan.router_z):
            moe = self.policy.model.spec.moe
            assert moe is not None, "only a mixture has routing"
            balance, z = balance_loss(routing, moe.n_experts_per_token), router_z_loss(routing)
            metrics |= {"balance": float(balance.detach()) * share, "router_z": float(z.detach()) * share}
            loss = loss + share * (self.plan.balance * balance + self.plan.router_z * z)
        return loss, metrics
