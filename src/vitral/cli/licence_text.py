"""Licence reports on a terminal, and the questions that are asked there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vitral.cli.output import console, tell
from vitral.provenance.judge import ACT_NAMES
from vitral.provenance.judgement import Judgement
from vitral.provenance.report import Point, Report
from vitral.provenance.terms import Clause, Licence, catalogue
from vitral.provenance.use import Use, answered
from vitral.provenance.wording import CHOICES, SURE, WORDS, Language, choice, question, source_text

__all__ = ["ask", "explained", "show"]

_TONE = {"allowed": "bold green", "duties": "bold green", "person": "bold yellow", "denied": "bold red"}


def show(found: Report) -> None:
    """The whole report: the answer first."""
    words = {key: pair[found.language == "pt"] for key, pair in WORDS.items()}
    _line(found.title, "bold")
    _line(found.outcome, _TONE[found.grade])
    _line(found.answer)
    for name, points in (("decides", found.decides), ("open", found.open), ("facts", found.facts)):
        _section(words[name], points)
    if found.duties:
        _line(f"\n{words['duties']}", "bold")
        for name, points in found.duties:
            _line(f"  {name}", "italic")
            _points(points, indent=4)
    _section(words["records"], found.records)
    if found.stated:
        _line(f"\n{words['stated']}", "bold")
        for text in found.stated:
            _bullet(Text(text), 2)
    _line(f"\n{words['rests']}", "bold")
    for name, role, licence, says in found.parts:
        _bullet(Text.assemble((name, "bold"), f" ({role}): {licence}\n", (says, "dim")), 2)
    _points(found.readings, indent=2)
    if found.licences:
        _line(f"\n{words['licences']}", "bold")
        for id, name, dated, source, read, sure, _ in found.licences:
            _bullet(Text.assemble(f"{name} ({id}, {dated})\n", (f"{source}; {read}; {sure}", "dim")), 2)
    _line(f"\n{found.advice}", "dim")


def _section(name: str, points: Iterable[Point]) -> None:
    points = tuple(points)
    if points:
        _line(f"\n{name}", "bold")
        _points(points, indent=2)


def _points(points: Iterable[Point], indent: int) -> None:
    for point in points:
        text = Text(point.text)
        if point.say:
            text.append(f"\n“{point.say}”", "cyan")
        if point.more:
            text.append(f"\n{point.more}", "bold red" if point.bad else "")
        where = " · ".join(filter(None, (point.ref, ", ".join(point.parts))))
        text.append(f"\n{where}" if where else "", "dim")
        _bullet(text, indent)


def _bullet(text: Text, indent: int) -> None:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    grid.add_row("•", text)
    console.print(Padding(grid, (0, 0, 0, indent)))


def _line(text: str, style: str = "") -> None:
    console.print(Text(text, style))


def explained(entry: Licence, language: Language) -> None:
    """A licence, clause by clause."""
    pt = language == "pt"
    _line(f"{entry.name} ({entry.id})", "bold")
    _line(entry.summary_pt if pt else entry.summary)
    facts = (entry.licensor, entry.dated, entry.models, entry.law, entry.get)
    _line(" · ".join(filter(None, facts)), "dim")
    _line("\nDireitos" if pt else "\nRights", "bold")
    for act, right in entry.rights.items():
        limit = right.pt if pt else right.text
        words = Text.assemble(f"{ACT_NAMES[act][pt]}: ", (right.answer, "bold"), f"  {right.ref}")
        words.append(f"\n{limit}" if limit else "", "dim")
        _bullet(words, 2)
    policy = catalogue().get(entry.policy)
    for source in (entry, policy) if policy else (entry,):
        if source.clauses:
            _line(f"\n{source.name}", "bold")
        for clause in source.clauses:
            _bullet(_clause(clause, pt), 2)
    _line(
        f"\n{WORDS['source'][pt]}: {source_text(entry.source, language)}; {WORDS['read'][pt]} {entry.read}; {WORDS['sure'][pt]}: {SURE[entry.sure][pt]}",
        "dim",
    )
    _line(WORDS["advice"][pt], "dim")


def _clause(clause: Clause, pt: bool) -> Text:
    kinds = {
        "deny": ("bar", "vedação"),
        "ask": ("to be judged", "a julgar"),
        "term": ("term", "termo"),
        "duty": ("duty", "dever"),
    }
    text = Text.assemble((f"{clause.ref}  " if clause.ref else "", "bold"), (kinds[clause.does][pt], "italic"), "  ")
    text.append(clause.pt if pt else clause.text)
    if clause.say:
        text.append(f"\n“{clause.say}”", "cyan")
    if clause.sure != "primary":
        text.append(f"\n{SURE[clause.sure][pt]}", "dim")
    return text


def ask(judgement: Judgement, judged: Callable[[Use], Judgement], language: Language) -> Judgement:
    """Ask for the facts that clauses turn on, one by one, until none is left.

    An empty answer leaves a fact unknown; one that means nothing is said to, and asked for again.
    """
    skipped: set[str] = set()
    while waiting := [fact for fact in judgement.missing if fact not in skipped and fact not in _NOT_ASKED]:
        fact = waiting[0]
        answer = typer.prompt(
            question(fact, language) + _hint(fact, language), default="", show_default=False, err=True
        )
        if not answer.strip():
            skipped.add(fact)
            continue
        value = _value(fact, answer, language)
        if value is None:
            tell(_not_understood(fact, answer, language))
        else:
            judgement = judged(answered(judgement.use, fact, value))
    return judgement


_NOT_ASKED = frozenset({"generated_by_you"})  # a fact of each part, stated in the file
_YES, _NO = {"y", "yes", "s", "sim", "true"}, {"n", "no", "nao", "false"}
_NONE = _NO | {"none", "nenhum", "-"}
_NUMBER = re.compile(r"\d+|\d{1,3}(?:([.,_ ])\d{3})(?:\1\d{3})*")


def _hint(fact: str, language: Language) -> str:
    if "." in fact or fact in CHOICES or fact == "domicile":
        return ""
    return " (s/n)" if language == "pt" else " (y/n)"


def _value(fact: str, answer: str, language: Language) -> object:
    """What an answer means; None where it means nothing."""
    plain = _folded(answer)
    if "." in fact:
        return int(re.sub(r"\D", "", plain)) if _NUMBER.fullmatch(plain) else None
    if fact in CHOICES:
        offered = {_folded(word): each for each in CHOICES[fact] for word in (each, choice(each, language))}
        if fact == "fields":
            if plain in _NONE:
                return ()
            named = [offered.get(word) for word in plain.replace(",", " ").split()]
            return tuple(named) if all(named) else None
        return offered.get(plain)
    if fact == "domicile":
        return plain.upper() if len(plain) == 2 and plain.isalpha() else None
    return True if plain in _YES else False if plain in _NO else None


def _folded(text: str) -> str:
    """Lower case, without accents, so that answers need none."""
    plain = unicodedata.normalize("NFKD", text.strip().lower())
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


def _not_understood(fact: str, answer: str, language: Language) -> str:
    pt = language == "pt"
    if "." in fact:
        allowed = "um número inteiro, como 40000 ou 40.000" if pt else "a whole number, such as 40000 or 40,000"
    elif fact in CHOICES:
        allowed = ", ".join(choice(each, language) for each in CHOICES[fact])
        allowed += ("; nenhum" if pt else "; none") if fact == "fields" else ""
    elif fact == "domicile":
        allowed = "duas letras, como BR" if pt else "two letters, such as BR"
    else:
        allowed = "s ou n" if pt else "y or n"
    said = f"{answer.strip()!r} não foi entendido" if pt else f"{answer.strip()!r} was not understood"
    skip = "vazio deixa em aberto" if pt else "empty leaves it open"
    return f"{said}; {'permitido' if pt else 'allowed'}: {allowed}; {skip}"
