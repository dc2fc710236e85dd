"""A server that keeps its spans in memory, is asked a few things, and prints the spans: `python traced.py MODEL FOLDER VERSION`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vitral.serve.native_worker import WorkerOptions
from vitral.serve.server import ServerOptions, serve
from vitral.serve.traces import Traces, names

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LONG = {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 1.0}


def ask(url: str, told: dict[str, Any]) -> None:
    """Whole, streamed, embedded, refused for its length, and left early; then stop the server."""
    try:
        with httpx.Client(base_url=url, timeout=60) as http:

            def post(path: str, body: dict[str, Any], **headers: str) -> None:
                answer = http.post(path, json={"model": "stories260K.bin", **body}, headers=headers)
                told["answers"].append((answer.status_code, answer.headers.get("x-vitral-record")))

            short = {"prompt": "SECRET words", "max_tokens": 4, "temperature": 0.5, "seed": -1, "n": 2}
            post("/v1/completions", short, traceparent=PARENT)
            post("/v1/completions", {"prompt": "Once", "max_tokens": 3, "stream": True, "stop": "zzz", "top_k": 5})
            post("/v1/embeddings", {"input": "SECRET"})
            post("/v1/completions", {"prompt": "Once", "max_tokens": 100_000})
            body = {"model": "stories260K.bin", **LONG, "stream": True}
            with http.stream("POST", "/v1/completions", json=body) as stream:
                next(stream.iter_lines())
    except Exception as error:
        told["failed"] = repr(error)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def main(model: str, folder: str, version: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    told: dict[str, Any] = {"answers": []}
    options = ServerOptions(
        [WorkerOptions(model, threads=1)], Path(folder), port=0, traces=Traces(provider, names(version))
    )
    serve(options, lambda url: threading.Thread(target=ask, args=(url, told)).start())
    told["spans"] = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
    told["schemas"] = sorted({str(span.instrumentation_scope.schema_url) for span in exporter.get_finished_spans()})
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
