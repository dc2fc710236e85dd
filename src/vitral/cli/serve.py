"""`vitral serve`: an OpenAI-compatible server on one or more models."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitral.cli.machine import AsJson, KvTypeOption, print_json
from vitral.cli.output import console
from vitral.errors import SettingsError

if TYPE_CHECKING:
    from vitral.serve.remote import RemoteOptions

__all__ = ["serve"]


def serve(
    models: Annotated[list[str] | None, typer.Argument(help="Paths, short names, or hf:owner/name.")] = None,
    host: Annotated[str, typer.Option(help="Off loopback a key is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    new_key: Annotated[str | None, typer.Option(help="Make an API key of this name, print it once, and end.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="With --new-key: it may also load and unload adapters.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Where keys, records and files live.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a LoRA adapter for the first model; MODEL:NAME asks for it.")
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    kv_type: KvTypeOption = "bf16",
    records: Annotated[
        str | None, typer.Option(help="Database of records: sqlite:///FILE or postgresql+psycopg://...")
    ] = None,
    records_bytes: Annotated[
        int | None, typer.Option(min=1 << 16, help="The most that the SQLite file may hold.")
    ] = None,
    content: Annotated[str, typer.Option(help="Token ids in records: ids, hashed, or none.")] = "ids",
    keep_days: Annotated[
        int | None, typer.Option(min=1, help="Days that records' bodies are kept; for ever if not said.")
    ] = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(help="Memory that all models may take, such as 6GB or a number of bytes; no limit if not said."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="NAME=URL of a model that another OpenAI-compatible server computes, such as vLLM."),
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH for each --engine: a model or folder that has its tokenizer and template."),
    ] = None,
    pin: Annotated[list[str] | None, typer.Option(help="With --memory-budget: a model that stays in memory.")] = None,
    traces: Annotated[
        str | None, typer.Option(help="OpenTelemetry collector (OTLP over HTTP) that gets a span for each answer.")
    ] = None,
    semconv: Annotated[
        str, typer.Option(help="With --traces: version of the GenAI conventions, 1.28 or 1.44.")
    ] = "1.44",
    queue_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of work taken on at once; more get 429.")
    ] = None,
    queue_requests: Annotated[int, typer.Option(min=1, help="Answers at work at once; more get 429.")] = 128,
    drain: Annotated[float, typer.Option(min=0, help="Seconds that running answers have when told to stop.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Serve models over HTTP.

    As OpenAI's and Anthropic's clients expect it; docs/how-to/serve.md says how.
    """
    from vitral.serve.access import KeyRing
    from vitral.serve.native_worker import WorkerOptions
    from vitral.serve.server import ServerOptions
    from vitral.serve.server import serve as run
    from vitral.serve.service import Limits
    from vitral.serve.traces import exporting
    from vitral.settings import read_settings, size_of

    folder = folder or read_settings().home / "serve"
    if new_key is not None:
        key = KeyRing(folder / "keys.json").add(new_key, admin=admin)
        if as_json:
            print_json({"name": new_key, "key": key})
        else:
            console.print(f"{key}\n[dim]It is shown this once; only its hash is kept.[/dim]", highlight=False)
        return
    if admin:
        raise SettingsError("--admin goes with --new-key NAME, and with nothing else")
    if content not in ("ids", "hashed", "none"):
        raise SettingsError(f"--content is {content!r}; allowed: ids, hashed, none")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("uvicorn.error", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    adapters = tuple(_adapter(each) for each in adapter or ())
    engines = _engines(engine or (), tokenizer or (), context)
    names = models or ([] if engines else ["smollm2:135m"])
    served = [*names, *(each.name for each in engines)]
    budget = None if memory_budget is None else size_of("--memory-budget", memory_budget)
    pinned = frozenset(pin or ())
    if adapters and not names:
        raise SettingsError("--adapter is for a model of this server, and all models are other servers'")
    if pinned and budget is None:
        raise SettingsError("--pin needs --memory-budget: without one every model stays in memory")
    if not pinned <= set(names):
        raise SettingsError(f"--pin is {min(pinned - set(names))!r}; allowed: the models, {', '.join(names)}")

    def tell(url: str) -> None:
        if as_json:
            print_json({"url": url, "models": served})
        else:
            console.print(_welcome(url, served[0]), highlight=False, markup=False, soft_wrap=True)

    run(
        ServerOptions(
            models=[
                WorkerOptions(
                    name,
                    threads=threads,
                    context_length=context,
                    kv_type=kv_type,
                    adapters=adapters if name == names[0] else (),
                )
                for name in names
            ],
            engines=engines,
            folder=folder,
            host=host,
            port=port,
            records_url=records,
            records_bytes=records_bytes,
            content=content,  # type: ignore[arg-type]
            keep_days=keep_days,
            queue_tokens=queue_tokens,
            queue_requests=queue_requests,
            limits=Limits(drain_s=drain),
            memory_budget=budget,
            pinned=pinned,
            traces=None if traces is None else exporting(traces, semconv),
        ),
        tell,
    )


def _engines(engines: Sequence[str], tokenizers: Sequence[str], context: int | None) -> list[RemoteOptions]:
    """Each --engine with the --tokenizer of its name."""
    from vitral.serve.remote import RemoteOptions
    from vitral.settings import read_settings

    urls = dict(_pair("--engine", text, "NAME=URL") for text in engines)
    paths = dict(_pair("--tokenizer", text, "NAME=PATH") for text in tokenizers)
    if len(urls) != len(engines) or len(paths) != len(tokenizers):
        raise SettingsError("an --engine or --tokenizer of the same name is given twice; give each once")
    if set(urls) != set(paths):
        odd = min(set(urls) ^ set(paths))
        lacks = "--tokenizer" if odd in urls else "--engine"
        raise SettingsError(f"{odd} has no {lacks}; --engine {odd}=URL and --tokenizer {odd}=PATH go together")
    key = read_settings().engine_key
    return [RemoteOptions(name, url, paths[name], context, key) for name, url in urls.items()]


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value or len(name) > 256:
        raise SettingsError(f"{option} is {text!r}; expected {form}")
    return name, value


def _adapter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not path:
        raise SettingsError(f"--adapter is {text!r}; expected NAME=PATH, the name of letters, digits, . _ -")
    return name, path


def _welcome(url: str, model: str) -> str:
    from vitral.serve.models import public_name

    question = '{"role": "user", "content": "What is a prism?"}'
    body = f'{{"model": "{public_name(model)}", "messages": [{question}], "max_tokens": 60}}'
    return (
        f"Vitral serves {public_name(model)} at {url}/v1 - try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n    -d '{body}'\n\n"
        "Ctrl-C stops it."
    )
