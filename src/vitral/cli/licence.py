"""`vitral licence`: may a model be used for this, what a licence says, what must travel with a model.

Exit codes of `check`: 0 allowed (with duties or without), 1 denied, 3 a person must decide,
4 allowed, but a duty is seen not to be kept (a name that begins otherwise than it must).
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitral.cli.output import AsJson, console, print_json, table, tell

if TYPE_CHECKING:
    from vitral.provenance.licence import Judgement
    from vitral.provenance.use import Use

__all__ = ["app"]

app = typer.Typer(help="Licences: a verdict with the clause that decides, and what must travel.", rich_markup_mode=None)

DENIED, PERSON, UNMET = 1, 3, 4


class Language(StrEnum):
    """A report's language."""

    EN = "en"
    PT = "pt"


Model = Annotated[
    str, typer.Argument(help="A path, a name in the store, or owner/name (by name alone: nothing is fetched).")
]
LicenceName = Annotated[str, typer.Argument(help="A licence's id, tag or SPDX identifier, such as llama3.1.")]
UseFile = Annotated[Path | None, typer.Option("--use", help="A TOML file that states the intended use.")]
Spoken = Annotated[Language, typer.Option("--language", help="Of the report: English or Brazilian Portuguese.")]


@app.command()
def check(
    model: Model,
    use: UseFile = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report as a page, too.")] = None,
    language: Spoken = Language.EN,
    as_json: AsJson = False,
) -> None:
    """Judge an intended use of a model.

    On a terminal, what is not stated is asked. Exit code 0 allowed, 1 denied, 3 a person must decide, 4 a name duty is not kept.
    """
    from vitral.cli.licence_text import ask, show
    from vitral.provenance.licence import report, to_html, to_json

    judgement = _judged(model, use)
    if sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        judgement = ask(judgement, lambda known: _judged(model, known), language.value)
    found = report(judgement, language.value)
    if html is not None:
        html.write_text(to_html(found), "utf-8")
        tell(f"the report is at {html}")
    if as_json:
        print_json(to_json(judgement))
    else:
        show(found)
    raise typer.Exit(_code(judgement))


@app.command()
def notices(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    use: UseFile = None,
    as_json: AsJson = False,
) -> None:
    """Write the files that must travel with a model.

    Licence copies, Notice, attribution lines, what to display and how to name.
    """
    from vitral.provenance.licence import write_notices

    judgement = _judged(model, use)
    path = _place(model)[0]
    written = write_notices(judgement, out, path)
    if as_json:
        print_json({"outcome": judgement.outcome.words, "files": [str(file) for file in written]})
    else:
        for file in written:
            console.print(str(file), highlight=False, soft_wrap=True)
        tell(f"verdict for this use: {judgement.outcome.words}")
    raise typer.Exit(_code(judgement))


@app.command()
def explain(
    licence: LicenceName,
    language: Spoken = Language.EN,
    as_json: AsJson = False,
) -> None:
    """Show a licence clause by clause, with source and date."""
    from dataclasses import asdict

    from vitral.cli.licence_text import explained
    from vitral.provenance.terms import licence as find

    entry = find(licence)
    if as_json:
        print_json(asdict(entry))
    else:
        explained(entry, language.value)


@app.command()
def compare(first: LicenceName, second: LicenceName, as_json: AsJson = False) -> None:
    """Show two licences side by side: what differs first."""
    from dataclasses import asdict

    from vitral.provenance.licence import compare as compared
    from vitral.provenance.terms import licence as find

    rows = sorted(compared(first, second), key=lambda row: row.same)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    one, other = find(first), find(second)
    differ = [[row.about, row.first or "–", row.second or "–"] for row in rows if not row.same]
    table(f"{one.name} against {other.name}: what differs", ["about", one.id, other.id], differ)
    same = [row.about for row in rows if row.same]
    console.print(f"The same in both: {', '.join(same) or 'nothing'}.", highlight=False, markup=False)


@app.command("list")
def list_licences(as_json: AsJson = False) -> None:
    """List the licences of the catalogue.

    How sure each reading is, and by what each is known in files: its text, passages, its title, or labels alone.
    """
    from vitral.provenance.recognise import recognised_by
    from vitral.provenance.terms import catalogue

    rows = [[e.id, e.name, e.dated, e.sure, recognised_by(e.id), e.models] for e in catalogue().values()]
    if as_json:
        keys = ("id", "name", "dated", "sure", "recognised_by", "models")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        table("Licences", ["id", "name", "version of", "how sure", "recognised by", "models"], rows)


@app.command()
def recognise(
    file: Annotated[Path, typer.Argument(help="The file whose text is looked at.")], as_json: AsJson = False
) -> None:
    """Say which known licences a text holds.

    By fingerprints; an unknown text is called unknown.
    """
    from vitral.errors import LicenceError
    from vitral.provenance.recognise import LARGEST_TEXT
    from vitral.provenance.recognise import recognise as find

    try:
        with file.open("rb") as stream:
            found = find(stream.read(LARGEST_TEXT).decode("utf-8", "replace"))
    except OSError as error:
        raise LicenceError(f"{file} cannot be read: {error.strerror}") from None
    if as_json:
        matches = [{"licences": list(m.licences), "score": m.score, "exact": m.exact} for m in found.matches]
        print_json({"matches": matches, "explained": round(found.explained, 3), "added": found.added})
        return
    for match in found.matches:
        how = "word for word" if match.exact else f"{match.score:.0%} of its text"
        console.print(f"{' or '.join(match.licences)}: {how}", highlight=False, markup=False)
    if found.added:
        console.print(f"with terms that no known licence has: {found.added} …", highlight=False, markup=False)
    if found.unknown:
        console.print("unknown", highlight=False)


def _judged(model: str, use: Path | Use | None) -> Judgement:
    from vitral.hub import at_hand
    from vitral.provenance.licence import check as judged
    from vitral.provenance.use import Use, read_use

    path, name, declared = _place(model)
    return judged(name, read_use(use) if isinstance(use, Path) else use or Use(), path, declared, at_hand)


def _place(model: str) -> tuple[Path | None, str, dict[str, str]]:
    """Where a model's files are (None for a name alone), what it is called, and labels that the store knows."""
    from vitral import hub
    from vitral.errors import ModelNotFound

    path = Path(model).expanduser()
    if path.exists():
        return path, path.resolve().name if path.is_dir() else path.stem, {}
    short = model.removeprefix("hf:")
    entry = hub.store().entries().get(model)
    if entry is not None:
        source = entry.source.partition("@")[0]
        return hub.resolve(model), source.removeprefix("hf:") if source.startswith("hf:") else model, {}
    if model in hub.short_names():
        return hub.resolve(model), model, {}
    if short.count("/") == 1 and not short.startswith((".", "/", "~")):
        return None, short.partition(":")[0], {}
    raise ModelNotFound(f"{model!r} is no path, no model in the store and no owner/name; give one of these")


def _code(judgement: Judgement) -> int:
    codes: dict[Any, int] = {"denied": DENIED, "needs a person": PERSON}
    return codes.get(judgement.outcome.words, UNMET if judgement.unmet else 0)
