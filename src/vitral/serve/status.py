"""What the server says of itself: health, readiness, metrics, engine, models."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from vitral.serve.build import version
from vitral.serve.call import Call, json_response
from vitral.serve.models import Model

__all__ = ["engine", "health", "list_models", "metrics", "one_model", "ready"]


async def health(call: Call) -> Response:
    """Whether every engine in memory decodes a canary now."""
    service = call.service
    status = {
        model.name: (await service.canary.ask(model) or "ok") if model.place.is_here else "not loaded"
        for model in service.models
    }
    fine = set(status.values()) <= {"ok", "not loaded"}
    return json_response({"status": "ok" if fine else "failing", "engines": status}, status=200 if fine else 503)


async def ready(call: Call) -> Response:
    """Whether new work is taken."""
    draining = call.service.admission.draining
    up = all(model.engine.is_up for model in call.service.models if model.place.is_here)
    state = "draining" if draining else "ready" if up else "engine restarting"
    return json_response({"status": state}, status=200 if state == "ready" else 503)


async def metrics(call: Call) -> Response:
    """Counters in Prometheus' text format."""
    service = call.service
    service.metrics.tokens_in_flight.set(service.admission.tokens)
    service.metrics.sequences_in_flight.set(service.admission.requests)
    service.metrics.note_models(service.models)
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def engine(call: Call) -> Response:
    """What computes: kernels and why they were chosen, digests, memory, abilities."""
    found: list[dict[str, Any]] = []
    for model in call.service.models:
        facts = model.facts
        found.append(
            {
                "model": model.name,
                "up": model.engine.is_up,
                "loaded": model.place.is_here,
                "pinned": model.place.pinned,
                "loads": model.place.loads,
                "evictions": model.place.evictions,
                "requests": model.place.users,
                "reserved_bytes": model.place.reserved_bytes,
                "fingerprint": model.fingerprint,
                "context_length": facts.context_length,
                "cache_tokens": facts.cache_tokens,
                "can": sorted(facts.can),
                "kernels": dict(facts.kernels),
                "digests": {
                    **facts.digests,
                    "tokenizer": model.tokenizer.digest,
                    "template": model.tokenizer.template_digest,
                },
                "adapters": dict(facts.adapters),
                "adapter_bases": dict(facts.bases),
                "memory_bytes": dict(facts.memory),
            }
        )
    residency = call.service.models.residency
    memory = {"budget_bytes": residency.budget_bytes, "reserved_bytes": residency.used_bytes}
    return json_response({"version": version(), "memory": memory, "engines": found})


async def list_models(call: Call) -> Response:
    """The models that are served."""
    return json_response({"object": "list", "data": [_entry(model) for model in call.service.models.all()]})


async def one_model(call: Call) -> Response:
    """One model."""
    return json_response(_entry(call.service.models.get(call.path["model"])))


def _entry(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "vitral",
        "context_length": model.facts.context_length,
    }
