"""`vitral bom`: a model's bill of materials, written or held against the files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar, tell
from vitral.cli.scan import exit_with

__all__ = ["bom"]


def bom(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    format: Annotated[str, typer.Option(help="cyclonedx-1.7, cyclonedx-1.6 or spdx-3.0.1.")] = "cyclonedx-1.7",
    out: Annotated[Path | None, typer.Option(help="The file to write; standard output without it.")] = None,
    check: Annotated[Path | None, typer.Option(help="Hold somebody's bill against the model instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's bill of materials, or check somebody's.

    Model, parents, data sets, tokenizer, template, engine and its libraries, with their licences.
    """
    from vitral import hub
    from vitral.provenance.bom import bom as make
    from vitral.provenance.bom import bom_text, made_at
    from vitral.provenance.bom_read import check_bom, read_bom
    from vitral.provenance.facts import gather

    path = hub.resolve(model)
    bill = read_bom(check) if check is not None else None
    with progress_bar("bytes") as bar:
        facts = gather(path, bar)
    if bill is not None:
        verdict = check_bom(facts, bill)
        if as_json:
            print_json({"passed": verdict.passed, "reasons": verdict.reasons, **verdict.evidence})
        else:
            console.print("\n".join(verdict.reasons), highlight=False, markup=False, soft_wrap=True)
        exit_with(verdict.passed)
        return
    text = bom_text(make(facts, format, made_at(path)))
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, "utf-8")
        if as_json:
            print_json({"path": out, "format": format})
        else:
            tell(f"{out}: {format}")
