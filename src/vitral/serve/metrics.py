"""Counters for Prometheus. No prompt, no key, no tenant's name in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from vitral.serve.models import Model, Models

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._events = _Events()
        self.registry.register(self._events)
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
        self.model_loaded = Gauge(
            "vitral_model_loaded", "Whether the model is in memory", ["model"], registry=self.registry
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
        """How the models are now, and what has happened to them. An engine that is not loaded is neither up nor down."""
        self._events.models = models
        self.budget_bytes.set(models.residency.budget_bytes or 0)
        self.engine_up.clear()
        for model in models:
            place = model.place
            if place.is_here:
                self.engine_up.labels(model.name).set(model.engine.is_up)
            self.model_loaded.labels(model.name).set(place.is_here)
            self.model_bytes.labels(model.name).set(place.reserved_bytes)

    def count(self, model: str, usage: tuple[int, int, int], total_s: float) -> None:
        """A finished request's tokens and time."""
        for kind, n in zip(("prompt", "cached", "completion"), usage, strict=True):
            self.tokens.labels(model, kind).inc(n)
        self.duration.labels(model).observe(total_s)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Events(Collector):
    """What has happened to each model since the server began, read where it is counted."""

    _ABOUT: tuple[tuple[str, str, Callable[[Model], int]], ...] = (
        ("vitral_model_loads", "Times that the model was loaded", lambda model: model.place.loads),
        (
            "vitral_model_evictions",
            "Times that the model made room for another",
            lambda model: model.place.evictions,
        ),
        (
            "vitral_engine_deaths",
            "Times that the engine's process ended by itself",
            lambda model: model.engine.deaths,
        ),
    )

    def __init__(self) -> None:
        self.models: Models | None = None

    def collect(self) -> Iterable[CounterMetricFamily]:
        for name, about, count in self._ABOUT:
            family = CounterMetricFamily(name, about, labels=["model"])
            for model in self.models or ():
                family.add_metric([model.name], count(model))
            yield family
