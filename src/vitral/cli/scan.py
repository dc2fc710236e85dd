"""`vitral scan`: is there anything in these files that a model does not need?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, table, tell

__all__ = ["exit_with", "scan"]


def scan(
    model: Annotated[str, typer.Argument(help="A file or folder, a short name, or hf:owner/name.")],
    base: Annotated[
        str | None, typer.Option(help="The model that it says it comes from: templates and tokens are compared.")
    ] = None,
    accept: Annotated[
        str | None, typer.Option(metavar="REASON", help="Record that what is refused may be loaded, these bytes only.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for code, lying headers and poisoned templates.

    Exit code 1: something is refused, and would not be loaded. 3: a person should look.
    """
    from vitral import hub
    from vitral.provenance.accepted import accept as record
    from vitral.provenance.scan import scan as look
    from vitral.settings import read_settings

    found = look(hub.resolve(model), hub.resolve(base) if base else None)
    verdict = found.verdict()
    accepted = record(read_settings().home, found, accept) if accept is not None else []
    if as_json:
        print_json({"passed": verdict.passed, "reasons": verdict.reasons, **verdict.evidence,
                    "accepted": [asdict(one) for one in accepted]})  # fmt: skip
    else:
        if found.findings:
            rows = [(f.level, f.file, f.text, f.rule) for f in found.findings]
            table(str(model), ["", "file", "what", "rule"], rows)
        for name, able in found.templates.items():
            looks = f"; looks for {', '.join(map(repr, able.looks_for[:12]))}" if able.looks_for else ""
            tell(f"{name}: reads {', '.join(able.variables)}{looks}")
        said = {True: "nothing against it", False: "refused", None: "a person should look"}[verdict.passed]
        console.print(f"{len(found.files)} file{'s' if len(found.files) != 1 else ''}: {said}", highlight=False)
        for one in accepted:
            tell(f"accepted by {one.who}: {one.file} [{one.rule}] with SHA-256 {one.sha256}")
    exit_with(True if accepted else verdict.passed)


def exit_with(passed: bool | None) -> None:
    """End with the code of a judgement: 0 passed, 1 not, 3 where a person must decide."""
    if passed is not True:
        raise typer.Exit(1 if passed is False else 3)
