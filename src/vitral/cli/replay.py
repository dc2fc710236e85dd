"""`vitral replay`: run a recorded answer again and compare every step."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vitral.cli.output import AsJson, console, facts, print_json
from vitral.errors import RequestError

__all__ = ["replay"]


def replay(
    record: Annotated[str, typer.Argument(help="A record's id, or a file with its JSON.")],
    model: Annotated[str | None, typer.Option(help="The model to run it on; the record's name if not said.")] = None,
    records: Annotated[str | None, typer.Option(help="Database of records, as for 'vitral serve'.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recorded answer again and compare every step.

    EXACT, or the first step that differs (exit code 1).
    """
    import vitral
    from vitral.serve.replay import replay_here
    from vitral.serve.worker import identity_of

    found = _find(record, records)
    if found["model"].get("adapter") is not None:
        raise RequestError("the record was made with an adapter; replay it on the server: POST /v1/records/ID/replay")
    name = model or found["model"]["name"]
    with vitral.load(name, threads=threads, kv_type=found["model"]["kernels"]["kv_type"]) as loaded:
        now = {"name": found["model"]["name"], **identity_of(loaded, name, found["model"]["kernels"]["kv_type"])}
        report = replay_here(loaded, found, now)
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


def _find(record: str, url: str | None) -> dict[str, Any]:
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
