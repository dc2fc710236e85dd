"""The tuned model in our own engine: the same merged weights, ready to answer."""

from __future__ import annotations

from vitral.engine.engine import Engine
from vitral.engine.memory import PAGE_SIZE, plan_cache
from vitral.engine.native import NativeForward, native_model
from vitral.formats.canonical import Checkpoint
from vitral.native import choose

__all__ = ["engine_of"]


def engine_of(checkpoint: Checkpoint, *, threads: int = 1, context_length: int | None = None) -> Engine:
    """An engine over a checkpoint, on disk or in memory (`export.merged_checkpoint`).

    Keys and values are float32, as the trainer's are, so that log-probabilities of rollouts are its own.
    """
    isa = choose(None)
    plan = plan_cache(checkpoint.spec, checkpoint.weights.n_bytes(), "f32", context_length)
    model = native_model(
        checkpoint.spec, checkpoint.weights, threads=threads, isa=isa, context_length=plan.context_length
    )
    cache = model.new_cache(plan.n_pages, PAGE_SIZE, "f32")
    forward = NativeForward(model, cache, checkpoint.spec.vocab_size)
    return Engine(forward, context_length=plan.context_length)
