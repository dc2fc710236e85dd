"""`vitral tokenize`: which tokens a text becomes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vitral.cli.output import AsJson, print_json, table

__all__ = ["tokenize"]


def tokenize(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    text: Annotated[str | None, typer.Argument(help="The text; without it, standard input.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Read control tokens written in the text as such.")
    ] = False,
    bare: Annotated[bool, typer.Option("--bare", help="Don't add the tokens that begin and end a text.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show which tokens a text becomes.

    For each its id, its piece of the vocabulary, and the characters of the text that it stands for.
    """
    from vitral import hub
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.loading import tokenizer_of

    tokenizer = tokenizer_of(open_checkpoint(hub.admitted(model)))
    text = sys.stdin.read() if text is None else text
    ids, offsets = tokenizer.encode_with_offsets(text, add_special=not bare, parse_special=special)
    rows = [
        {"id": id_, "piece": tokenizer.piece(id_), "start": start, "end": end, "text": text[start:end]}
        for id_, (start, end) in zip(ids, offsets, strict=True)
    ]
    if as_json:
        print_json({"count": len(rows), "tokens": rows})
        return
    columns = ["id", "piece", "start", "end", "text"]
    table(f"{len(rows)} tokens", columns, [[repr(r[c]) if c in ("piece", "text") else r[c] for c in columns] for r in rows],
          numbers=["id", "start", "end"])  # fmt: skip
