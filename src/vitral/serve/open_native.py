"""A model on the native worker: its tokenizer is read here, and what it will take is known before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vitral.engine.memory import PAGE_SIZE, CachePlan, available_bytes, plan_cache
from vitral.errors import HardwareError, SettingsError
from vitral.formats.adapters import read_adapter
from vitral.formats.canonical import Checkpoint
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import admitted
from vitral.loading import tokenizer_of
from vitral.provenance.bases import Base
from vitral.serve.engines import ABILITIES, Facts
from vitral.serve.models import Model, public_name
from vitral.serve.native_worker import NativeWorker, WorkerOptions
from vitral.serve.residency import Residency

__all__ = ["check_budget", "open_native"]


def check_budget(budget_bytes: int) -> None:
    """SettingsError for more than this machine has free."""
    free = available_bytes()
    if budget_bytes > free:
        raise SettingsError(
            f"the memory budget is {budget_bytes / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; choose a smaller one"
        )


def open_native(options: WorkerOptions, residency: Residency, *, pinned: bool = False) -> Model:
    """A model from the store or a path, not loaded yet.

    Under a budget its memory is planned now, as if the budget were all there is, so that what is reserved is what it
    takes at most and its context never depends on what else is loaded. Raises SettingsError for a model that exceeds
    the budget alone, and what opening the file or its adapters raises.
    """
    checkpoint = open_checkpoint(admitted(options.model))
    name, budget = public_name(options.model), residency.budget_bytes
    if budget is None:
        engine = NativeWorker(options)
        reserved: Callable[[], int] = lambda: sum(engine.facts.memory.values())  # noqa: E731
    else:
        try:
            plan = plan_cache(
                checkpoint.spec,
                checkpoint.weights.n_bytes(),
                options.kv_type,
                options.context_length,
                budget,
                expert_bytes=checkpoint.weights.n_bytes(".experts."),
            )
        except HardwareError as error:
            raise SettingsError(f"{name} exceeds the memory budget alone: {error}") from None
        engine = NativeWorker(
            replace(options, context_length=plan.context_length, memory_bytes=budget),
            _expected(checkpoint, options, plan),
        )
        reserved = lambda: plan.total_bytes + _adapter_bytes(engine.facts)  # noqa: E731
    place = residency.add(name, engine, reserved, pinned=pinned)
    return Model(name, tokenizer_of(checkpoint), engine, place, source=options.model)


def _expected(checkpoint: Checkpoint, options: WorkerOptions, plan: CachePlan) -> Facts:
    """What is known of a model that has not been loaded: all but the digest of its weights and the kernels."""
    adapters = {name: read_adapter(Path(path), checkpoint.spec) for name, path in options.adapters}
    base = Base(checkpoint)
    return Facts(
        context_length=plan.context_length,
        vocab_size=checkpoint.spec.vocab_size,
        cache_tokens=plan.n_pages * PAGE_SIZE,
        can=ABILITIES,
        digests={"weights": None},
        kernels={"kv_type": options.kv_type},
        memory={f"adapter:{name}": adapter.n_bytes for name, adapter in adapters.items()},
        adapters={name: adapter.digest for name, adapter in adapters.items()},
        bases={name: base.accept(adapter).as_dict() for name, adapter in adapters.items()},
    )


def _adapter_bytes(facts: Facts) -> int:
    return sum(n for use, n in facts.memory.items() if use.startswith("adapter:"))
