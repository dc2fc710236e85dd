"""Counters for Prometheus. No prompt, no key, no tenant's name in them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vitral.serve.models import Models

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "vitral_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.tokens = Counter("vitral_tokens", "Tokens by model and kind", ["model", "kind"], registry=self.registry)
        self.duration = Histogram(
            "vitral_answer_seconds", "From request to its end", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.first_token = Histogram(
            "vitral_first_token_seconds", "From request to its first token", buckets=_SECONDS, registry=self.registry
        )
        self.engine_up = Gauge(
            "vitral_engine_up", "Whether the engine's process takes work", ["model"], registry=self.registry
        )
        self.engine_deaths = Gauge(
            "vitral_engine_deaths", "Times that the engine's process ended by itself", ["model"], registry=self.registry
        )
        self.model_loaded = Gauge(
            "vitral_model_loaded", "Whether the model is in memory", ["model"], registry=self.registry
        )
        self.model_loads = Gauge(
            "vitral_model_loads", "Times that the model was loaded", ["model"], registry=self.registry
        )
        self.model_evictions = Gauge(
            "vitral_model_evictions", "Times that the model made room for another", ["model"], registry=self.registry
        )
        self.model_bytes = Gauge(
            "vitral_model_reserved_bytes", "Memory that the model takes while loaded", ["model"], registry=self.registry
        )
        self.budget_bytes = Gauge(
            "vitral_memory_budget_bytes", "Memory for all models; 0 for no limit", registry=self.registry
        )
        self.tokens_in_flight = Gauge("vitral_tokens_in_flight", "Tokens of admitted requests", registry=self.registry)
        self.sequences_in_flight = Gauge("vitral_sequences_in_flight", "Admitted sequences", registry=self.registry)
        self.connections = Gauge("vitral_connections", "Open connections", registry=self.registry)

    def note_models(self, models: Models) -> None:
        """How the models are now. An engine that is not loaded is neither up nor down."""
        self.budget_bytes.set(models.residency.budget_bytes or 0)
        self.engine_up.clear()
        for model in models:
            place = model.place
            if place.is_here:
                self.engine_up.labels(model.name).set(model.engine.is_up)
            self.engine_deaths.labels(model.name).set(model.engine.deaths)
            self.model_loaded.labels(model.name).set(place.is_here)
            self.model_loads.labels(model.name).set(place.loads)
            self.model_evictions.labels(model.name).set(place.evictions)
            self.model_bytes.labels(model.name).set(place.reserved_bytes)

    def count(self, model: str, usage: tuple[int, int, int], total_s: float) -> None:
        """A finished request's tokens and time."""
        for kind, n in zip(("prompt", "cached", "completion"), usage, strict=True):
            self.tokens.labels(model, kind).inc(n)
        self.duration.labels(model).observe(total_s)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
