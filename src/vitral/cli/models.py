"""`vitral pull`, `list`, `rm`: the models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, size_text, table, tell

__all__ = ["list_models", "pull", "rm"]


def pull(
    name: Annotated[str, typer.Argument(help="A short name (smollm2:135m) or hf:owner/name[:file].")],
    as_json: AsJson = False,
) -> None:
    """Fetch a model and verify its digest.

    A broken download resumes where it stopped. HF_ENDPOINT names a mirror of the Hub.
    """
    from vitral import hub

    path = hub.pull(name, tell)
    if as_json:
        print_json({"name": name, "path": path})
    else:
        console.print(f"{name} is at {path}", highlight=False, soft_wrap=True)


def list_models(as_json: AsJson = False) -> None:
    """List fetched models and known short names."""
    from vitral import hub

    entries = hub.store().entries()
    if as_json:
        print_json({"models": [asdict(entry) for entry in entries.values()], "short_names": hub.short_names()})
        return
    rows = [(entry.name, size_text(entry.n_bytes), entry.source, entry.fetched) for entry in entries.values()]
    rows += [(name, "", "not fetched", about) for name, about in hub.short_names().items() if name not in entries]
    table("Models", ["name", "size", "source", "fetched"], rows, numbers=["size"])


def rm(name: Annotated[str, typer.Argument(help="A name as `vitral list` shows it.")], as_json: AsJson = False) -> None:
    """Delete a model from the store."""
    from vitral import hub

    entry = hub.store().remove(name)
    if as_json:
        print_json({"removed": entry.name, "bytes": entry.n_bytes})
    else:
        console.print(f"{name} is gone; {size_text(entry.n_bytes)} are free again", highlight=False)
