"""OpenTelemetry traces: one span for each answer, from its admission to its record.

Names are OpenTelemetry's conventions for generative AI, which change; all of them stand in semconv.toml, by version.
A span carries the record's id, parameters, counts and times; never a text, a token, a key or a tenant.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vitral.engine.request import SamplingParams
from vitral.errors import SettingsError
from vitral.serve.build import version

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["NEWEST", "AnswerSpan", "Traces", "exporting", "names"]

NEWEST = "1.44"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/inspect": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/score": "score",
    "/v1/rerank": "rerank",
}


@cache
def names(semconv: str) -> Mapping[str, str]:
    """What a version of the conventions calls our facts; SettingsError for one that is not in the table.

    >>> names("1.28")["provider"], names("1.44")["provider"]
    ('gen_ai.system', 'gen_ai.provider.name')
    """
    table = tomllib.loads((files("vitral.serve") / "semconv.toml").read_text("utf-8"))
    if semconv not in table:
        raise SettingsError(f"the conventions {semconv!r} are not known; allowed: {', '.join(table)}")
    return table[semconv]  # type: ignore[no-any-return]


def exporting(url: str, semconv: str = NEWEST) -> Traces:
    """Spans to a collector by OTLP over HTTP, from a thread of their own; `url` is its base, such as http://host:4318.

    Raises SettingsError where the exporter is not installed, or for unknown conventions.
    """
    known = names(semconv)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise SettingsError("traces need the exporter: pip install 'vitral[traces]'") from None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"the collector is {url!r}; expected its base, such as http://127.0.0.1:4318")
    provider = TracerProvider(
        resource=Resource.create({"service.name": "vitral", "service.version": version()}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url.rstrip("/") + "/v1/traces")))
    return Traces(provider, known)


class Traces:
    """Makes spans for one server."""

    def __init__(self, provider: TracerProvider, known: Mapping[str, str]) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._names = provider, known
        self._tracer = provider.get_tracer("vitral.serve", version(), schema_url=known["schema_url"])
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def within(self, headers: Mapping[str, str]) -> Iterator[None]:
        """What begins in the block belongs to the trace that a client names in `traceparent` (W3C)."""
        from opentelemetry import context

        token = context.attach(self._propagator.extract(dict(headers), context.Context()))
        try:
            yield
        finally:
            context.detach(token)

    def here(self) -> Context:
        """The trace that the running request belongs to, for what begins later."""
        from opentelemetry import context

        return context.get_current()

    def begin(
        self,
        route: str,
        model: str,
        record: str,
        params: SamplingParams,
        stops: tuple[str, ...],
        n: int,
        where: Context,
    ) -> AnswerSpan:
        """The span of an answer that begins now."""
        from opentelemetry.trace import SpanKind

        operation = OPERATIONS[route]
        seed = params.seed
        facts: dict[str, Any] = {
            "operation": operation,
            "provider": "vitral",
            "model": model,
            "choices": n if n > 1 else None,
            "seed": None if seed is None else seed - (1 << 64 if seed >= 1 << 63 else 0),  # attributes have 64 bits
            "max_tokens": params.max_tokens,
        }
        if operation in ("chat", "text_completion"):
            facts |= {
                "temperature": params.temperature,
                "top_p": params.top_p,
                "top_k": params.top_k or None,
                "frequency_penalty": params.frequency_penalty,
                "presence_penalty": params.presence_penalty,
                "stops": stops or None,
            }
        span = self._tracer.start_span(
            f"{operation} {model}",
            where,
            SpanKind.SERVER,
            {**self._named(facts), "vitral.record": record},
        )
        return AnswerSpan(span, self._named)

    def close(self) -> None:
        """Send what is left, for at most a few seconds."""
        self._provider.force_flush(3000)
        self._provider.shutdown()

    def _named(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {self._names[k]: v for k, v in facts.items() if v is not None and k in self._names}


class AnswerSpan:
    """One answer's span; `end` may be called again and then changes nothing."""

    def __init__(self, span: Span, named: Any) -> None:
        self._span, self._named = span, named

    def end(
        self,
        model: str,
        usage: tuple[int, int, int],
        finish: Sequence[str],
        first_token_s: float | None,
        error: BaseException | None,
    ) -> None:
        """How it went: tokens of prompts, of those cached, and of answers; why each answer ended; what failed."""
        if not self._span.is_recording():
            return
        from opentelemetry.trace import Status, StatusCode

        prompt, cached, completion = usage
        facts = {
            "answered_by": model,
            "input_tokens": prompt,
            "cached_tokens": cached,
            "output_tokens": completion,
            "finish": list(finish) or None,
            "first_token_s": first_token_s,
            "error": type(error).__name__ if error is not None else None,
        }
        self._span.set_attributes(self._named(facts))
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        self._span.end()
