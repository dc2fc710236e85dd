"""`vitral replay`: run a recorded answer again and compare every step."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vitral.cli.output import AsJson, console, facts, print_json
from vitral.errors import RequestError

__all__ = ["check_adapter", "find_record", "replay"]


def replay(
    record: Annotated[str, typer.Argument(help="A record's id, or a file with its JSON.")],
    model: Annotated[str | None, typer.Option(help="The model to run it on; the record's name if not said.")] = None,
    records: Annotated[str | None, typer.Option(help="Database of records, as for 'vitral serve'.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter that made the answer.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recorded answer again and compare every step.

    EXACT, or the first step that differs (exit code 1).
    """
    from vitral.serve.proof import opened
    from vitral.serve.replay import replay_here

    found = find_record(record, records)
    check_adapter(found, adapter)
    name = model or found["model"]["name"]
    with opened(name, found["model"]["kernels"]["kv_type"], adapter=adapter, threads=threads) as on:
        check_adapter(found, adapter, on.identity["adapter"])
        report = replay_here(on.loaded, found, {**on.identity, "name": found["model"]["name"]}, on.adapter)
    if as_json:
        print_json(report.as_dict())
    else:
        console.print(f"[bold]{report.verdict}[/bold]  {report.steps} steps of {report.record}", highlight=False)
        if report.difference is not None:
            d = report.difference
            facts(
                "first difference",
                {"sequence": d.sequence, "step": d.step, d.what: f"{d.recorded} then, {d.found} now"},
            )
        if report.environment:
            facts(
                "not as it was", {name: f"{then} then, {now} now" for name, (then, now) in report.environment.items()}
            )
    if not report.exact:
        raise typer.Exit(1)


def check_adapter(record: dict[str, Any], path: Path | None, digest: str | None = None) -> None:
    """RequestError unless the adapter at hand is the one that made the answer, or there is none on both sides.

    digest: of the adapter that was loaded; without it, only whether one was given is looked at.
    """
    then = record["model"].get("adapter")
    if then is not None and path is None:
        raise RequestError(
            f"the record was made with the adapter of digest {then}; say where it is with --adapter PATH"
        )
    if then is None and path is not None and record.get("route") != "local":
        raise RequestError("the record was made without an adapter; leave --adapter out")
    if digest is not None and then != digest:
        raise RequestError(f"the adapter {path} has the digest {digest}; the record's is {then}: give that one")


def find_record(record: str, url: str | None) -> dict[str, Any]:
    """A record by its id in a database, or from a file; RequestError if it is not there, or no record."""
    from vitral.serve.records import Records
    from vitral.serve.store import Store
    from vitral.settings import read_settings

    path = Path(record)
    if path.is_file():
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(f"{record} is not the JSON of a record: {error}") from None
        if not isinstance(found, dict) or not {"id", "model", "sequences"} <= found.keys():
            raise RequestError(f"{record} is not the JSON of a record: 'id', 'model' or 'sequences' is missing")
        return found
    store = Store(url or f"sqlite:///{read_settings().home / 'serve' / 'records.sqlite'}")
    try:
        stored = asyncio.run(Records(store).find(record, None))
    finally:
        store.close()
    if stored is None:
        raise RequestError(f"there is no record {record!r} here; give its id, or a file with its JSON")
    return stored
