"""A judgement as a person reads it: the answer first, then what decides, what to do, and what it rests on."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from vitral.provenance.component import INSIDE, Component, Evidence
from vitral.provenance.conditions import facts_of
from vitral.provenance.judgement import Finding, Judgement, Outcome, in_order
from vitral.provenance.terms import Clause, catalogue
from vitral.provenance.wording import (
    DUTY_GROUPS,
    OUTCOMES,
    ROLES,
    SURE,
    WORDS,
    Language,
    place,
    question,
    source_text,
    text_of,
    value,
)

__all__ = ["Point", "Report", "report", "to_html", "to_json"]


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to know or do: what, the place it stands, the parts that bring it, words to reproduce."""

    text: str
    ref: str
    parts: tuple[str, ...]
    say: str = ""
    file: str = ""
    more: str = ""
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a report holds, in one language; text and HTML are laid out from it."""

    language: Language
    title: str
    outcome: str
    grade: str
    answer: str
    stated: tuple[str, ...]
    decides: tuple[Point, ...]
    open: tuple[Point, ...]
    facts: tuple[Point, ...]
    duties: tuple[tuple[str, tuple[Point, ...]], ...]
    records: tuple[Point, ...]
    readings: tuple[Point, ...]
    parts: tuple[tuple[str, str, str, str], ...]
    licences: tuple[tuple[str, ...], ...]
    advice: str
    made: str


def report(judgement: Judgement, language: Language = "en", day: datetime.date | None = None) -> Report:
    """The report on a judgement; `day` is the date on it, today if not given."""
    words = {key: pair[language == "pt"] for key, pair in WORDS.items()}
    (name, answer) = (pair[language == "pt"] for pair in OUTCOMES[judgement.outcome])
    questions = judgement.of("question")
    if judgement.outcome is Outcome.PERSON and all(judgement.facts_for(found) for found in questions):
        answer = words["state_duties" if all(map(_of_duty, questions)) else "state"]
    answer = " ".join([answer, *_counts(judgement, language)])
    return Report(
        language,
        words["title"].format(model=judgement.dossier.model),
        name,
        judgement.outcome.name.lower(),
        answer,
        tuple(_stated(judgement, language)),
        _points(judgement.of("denied"), judgement, language),
        _points(tuple(found for found in questions if not judgement.facts_for(found)), judgement, language),
        tuple(_facts(judgement, language)),
        tuple(_duties(judgement, language)),
        _points(tuple(found for found in judgement.of("note") if found.licence), judgement, language),
        _points(tuple(found for found in judgement.of("note") if not found.licence), judgement, language),
        tuple(_part(part, judgement, language) for part in judgement.dossier.components),
        tuple(_licences(judgement, language)),
        words["advice"],
        words["made"].format(day=(day or datetime.date.today()).isoformat()),
    )


def _counts(judgement: Judgement, language: Language) -> Iterator[str]:
    """How much there is to do, in sentences."""
    pt = language == "pt"
    denied = list(dict.fromkeys(_ref(found, language) for found in judgement.of("denied")))
    duties = {(duty.licence, duty.clause) for duty in judgement.of("duty")}
    if denied:
        yield f"{'Decide' if pt else 'Decisive'}: {'; '.join(denied[:3])}{' …' if len(denied) > 3 else ''}."
    if judgement.missing:
        n = len(judgement.missing)
        yield f"Faltam fatos: {n}." if pt else f"{n} fact{'s are' if n > 1 else ' is'} missing."
    if duties and not denied:
        yield (
            f"Deveres: {len(duties)}."
            if pt
            else f"There {'are' if len(duties) > 1 else 'is'} {len(duties)} dut{'ies' if len(duties) > 1 else 'y'} to keep."
        )
    for duty in judgement.unmet:
        yield (
            f"O nome ainda não começa por “{duty.prefix}”."
            if pt
            else f"The name does not begin with “{duty.prefix}” yet."
        )


def _points(findings: tuple[Finding, ...], judgement: Judgement, language: Language) -> tuple[Point, ...]:
    """Findings as points; what several parts bring alike is said once."""
    grouped: dict[tuple[str, str, str, str], list[Finding]] = {}
    for found in findings:
        grouped.setdefault((text_of(found, language), found.licence, found.ref, found.say), []).append(found)
    return tuple(_point(group, judgement, language) for group in grouped.values())


def _point(group: list[Finding], judgement: Judgement, language: Language) -> Point:
    first = group[0]
    words = {key: pair[language == "pt"] for key, pair in WORDS.items()}
    more = ""
    if first.instead:
        more = f"{words['instead']} {first.instead_pt if language == 'pt' else first.instead}"
    if first.met is not None:
        own = judgement.use.name or judgement.dossier.model.rsplit("/", 1)[-1]
        more = words["met" if first.met else "unmet"].format(name=own)
    parts = _parts_of(group, judgement)
    return Point(
        text_of(first, language), _ref(first, language), parts, first.say, first.file, more, first.met is False
    )


def _parts_of(findings: Sequence[Finding], judgement: Judgement) -> tuple[str, ...]:
    """The parts that findings are about; nothing where the model is of one part, which then goes without saying."""
    return tuple(dict.fromkeys(found.part for found in findings)) if len(judgement.dossier.components) > 1 else ()


def _ref(found: Finding, language: Language = "en") -> str:
    return " ".join(filter(None, (found.licence, place(found.ref, language))))


def _facts(judgement: Judgement, language: Language) -> Iterator[Point]:
    words = {key: pair[language == "pt"] for key, pair in WORDS.items()}
    for fact in judgement.missing:
        waiting = [found for found in judgement.of("question") if fact in judgement.facts_for(found)]
        refs = sorted(
            {(found.licence, place(found.ref, language)) for found in waiting}, key=lambda place: in_order(*place)
        )
        by_licence: dict[str, list[str]] = {}
        for licence, ref in refs[:4]:
            by_licence.setdefault(licence, []).append(ref)
        shown = "; ".join(f"{licence} {', '.join(places)}".strip() for licence, places in by_licence.items())
        shown += " …" if len(refs) > 4 else ""
        turns = words["turns_one" if len(refs) == 1 else "turns"].format(n=len(refs), refs=shown)
        yield Point(question(fact, language), "", _parts_of(waiting, judgement), more=turns)


def _duties(judgement: Judgement, language: Language) -> Iterator[tuple[str, tuple[Point, ...]]]:
    for names, kinds in DUTY_GROUPS:
        found = tuple(duty for duty in judgement.of("duty") if duty.duty in kinds)
        found = tuple(sorted(found, key=lambda duty: in_order(duty.licence, duty.ref)))
        if found:
            yield names[language == "pt"], _points(found, judgement, language)


def _clause(found: Finding) -> Clause | None:
    """The clause that a finding is about; None where it is about a right or the evidence."""
    clauses = catalogue()[found.licence].clauses if found.licence else ()
    return next((clause for clause in clauses if clause.id == found.clause), None)


def _of_duty(found: Finding) -> bool:
    clause = _clause(found)
    return clause is not None and clause.does == "duty"


def _limits_fields(found: Finding) -> bool:
    clause = _clause(found)
    return clause is not None and "fields" in facts_of(clause.when)


def _stated(judgement: Judgement, language: Language) -> Iterator[str]:
    use, pt = judgement.use, language == "pt"
    who = ", ".join(filter(None, (use.who, use.actor and value(use.actor, language), use.domicile)))
    if who:
        yield f"{'quem' if pt else 'who'}: {who}"
    does = {
        "commercial": (use.commercial, "uso comercial" if pt else "commercial use"),
        "production": (use.production, "em produção" if pt else "in production"),
        "modify": (use.modify, "altera os pesos" if pt else "changes the weights"),
        "share_weights": (use.share_weights, "entrega os pesos" if pt else "gives the weights to others"),
        "share_product": (
            use.share_product,
            "entrega um produto com os pesos" if pt else "gives others a product with the weights",
        ),
        "serve": (use.serve, "oferece pela rede" if pt else "serves over a network"),
        "outputs": (
            use.train_on_outputs,
            "treina outros modelos com as saídas" if pt else "trains other models on outputs",
        ),
    }
    said = [words for value, words in does.values() if value]
    not_said = [words for value, words in does.values() if value is False]
    if use.purpose:
        yield f"{'finalidade' if pt else 'purpose'}: {value(use.purpose, language)}"
    if said:
        yield f"{'sim' if pt else 'yes'}: {', '.join(said)}"
    if not_said:
        yield f"{'não' if pt else 'no'}: {', '.join(not_said)}"
    if use.fields is not None:
        fields = ", ".join(value(each, language) for each in use.fields) or WORDS["nothing"][pt]
        idle = use.fields and not any(map(_limits_fields, judgement.findings))
        fields += f" ({WORDS['untouched'][pt]})" if idle else ""
        yield f"{'campos de uso sensíveis' if pt else 'sensitive fields of use'}: {fields}"
    for name, numbers in (
        ("usuários por mês" if pt else "users a month", use.users),
        ("receita em US$" if pt else "revenue in US$", use.revenue),
    ):
        if numbers:
            yield f"{name}: " + ", ".join(
                f"{value(key, language)} {_grouped(number, language)}" for key, number in sorted(numbers.items())
            )
    if use.name:
        yield f"{'nome pretendido' if pt else 'intended name'}: {use.name}"


def _grouped(number: int, language: Language) -> str:
    return f"{number:,}".replace(",", "." if language == "pt" else ",")


def _part(part: Component, judgement: Judgement, language: Language) -> tuple[str, str, str, str]:
    words = {key: pair[language == "pt"] for key, pair in WORDS.items()}
    parents = any(other.role in INSIDE and other.role != "model" for other in judgement.dossier.components)
    inherits = part.role == "model" and parents and not part.claims
    licences = ", ".join(" / ".join(claim) for claim in part.claims) or words["inherited" if inherits else "none"]
    says = "; ".join(dict.fromkeys(_says(item, language) for item in part.evidence)) or "—"
    return part.name, ROLES[part.role][language == "pt"], licences, says


def _says(item: Evidence, language: Language) -> str:
    where = place(item.where, language)
    return where if item.said in item.where else f"{where} (“{place(item.said, language)}”)"


def _licences(judgement: Judgement, language: Language) -> Iterator[tuple[str, ...]]:
    used = {id for part in judgement.dossier.components for id in part.licences}
    used |= {catalogue()[id].policy for id in used} - {""}
    for id in sorted(used):
        entry = catalogue()[id]
        yield (
            id,
            entry.name,
            entry.dated,
            source_text(entry.source, language),
            entry.read,
            SURE[entry.sure][language == "pt"],
            entry.get,
        )


def to_json(judgement: Judgement) -> dict[str, Any]:
    """The judgement for machines: the same facts, each finding with its clause, in both languages."""
    return {
        "model": judgement.dossier.model,
        "outcome": judgement.outcome.words,
        "passed": judgement.verdict().passed,
        "findings": [_json_finding(found) for found in judgement.findings],
        "missing": [{"fact": fact, "question": question(fact)} for fact in judgement.missing],
        "unmet": [_json_finding(found) for found in judgement.unmet],
        "parts": [_json_part(part) for part in judgement.dossier.components],
        "read": list(judgement.dossier.read),
        "advice": WORDS["advice"][0],
    }


def _json_finding(found: Finding) -> dict[str, Any]:
    names = (
        "what",
        "part",
        "licence",
        "clause",
        "ref",
        "text",
        "pt",
        "sure",
        "duty",
        "say",
        "file",
        "prefix",
        "instead",
        "met",
    )
    kept = {name: getattr(found, name) for name in names}
    return {name: value for name, value in kept.items() if value not in ("", None)} | (
        {"missing": list(found.missing)} if found.missing else {}
    )


def _json_part(part: Component) -> dict[str, Any]:
    return {
        "name": part.name,
        "role": part.role,
        "licences": [list(claim) for claim in part.claims],
        "disagrees": part.disagrees,
        "evidence": [
            {
                "kind": item.kind,
                "where": item.where,
                "said": item.said,
                "licences": list(item.licences),
                "score": item.score,
            }
            for item in part.evidence
        ],
    }


def to_html(found: Report) -> str:
    """A page that stands alone: no script, no other file; it prints on white paper."""
    words: Mapping[str, str] = {key: pair[found.language == "pt"] for key, pair in WORDS.items()}
    return _template().render(r=found, w=words)


@cache
def _template() -> jinja2.Template:
    text = resources.files("vitral.provenance").joinpath("report.html.jinja").read_text("utf-8")
    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(text)
