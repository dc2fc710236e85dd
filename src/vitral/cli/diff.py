"""`vitral diff`: what differs between two models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar, table

__all__ = ["diff"]

_MOST_ROWS = 60


def diff(
    a: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two models, across layouts.

    Architecture, tensors, metadata, tokenizer entries and template lines. Exit code 1 if anything does.
    """
    from vitral import hub
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.provenance.compare import compare

    with progress_bar("tensors") as bar:
        found = compare(open_checkpoint(hub.resolve(a)), open_checkpoint(hub.resolve(b)), bar)
    if as_json:
        print_json({"same": not found, "differences": [asdict(one) for one in found]})
    elif found:
        rows = [
            (one.part, one.name, one.a or "-", one.b or "-", "" if one.relative is None else f"{one.relative:.3%}")
            for one in found[:_MOST_ROWS]
        ]
        table(f"{len(found)} differences", ["part", "name", a, b, "relative"], rows, numbers=["relative"])
        if len(found) > _MOST_ROWS:
            console.print(f"... and {len(found) - _MOST_ROWS} more; --json shows all", highlight=False)
    else:
        console.print("the same", highlight=False)
    if found:
        raise typer.Exit(1)
