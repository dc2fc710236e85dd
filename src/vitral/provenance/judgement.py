"""What a judgement is: an outcome, and each clause that led to it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from vitral.provenance.component import Dossier
from vitral.provenance.use import Use, askable
from vitral.verdict import Verdict

__all__ = ["Finding", "Judgement", "Outcome", "cite", "in_order"]


class Outcome(IntEnum):
    """The four outcomes, from the mildest to the strictest."""

    ALLOWED = 0
    DUTIES = 1
    PERSON = 2
    DENIED = 3

    @property
    def words(self) -> str:
        """How the outcome is written."""
        return ("allowed", "allowed with duties", "needs a person", "denied")[self]


@dataclass(frozen=True, slots=True)
class Finding:
    """One consequence of one clause for one part of the model.

    what: "denied", "question", "duty" or "note". licence and clause name where it stands; both are empty for a
    finding about the evidence itself. met: whether a duty is seen to be kept; None where that can't be seen.
    missing: the facts that would settle a question.
    """

    what: Literal["denied", "question", "duty", "note"]
    part: str
    licence: str
    clause: str
    ref: str
    text: str
    pt: str
    sure: str = "primary"
    duty: str = ""
    say: str = ""
    file: str = ""
    prefix: str = ""
    instead: str = ""
    instead_pt: str = ""
    met: bool | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What may be done with a model, and why."""

    outcome: Outcome
    dossier: Dossier
    use: Use
    findings: tuple[Finding, ...] = field(default=())

    def of(self, what: str) -> tuple[Finding, ...]:
        """The findings of one kind: "denied", "question", "duty" or "note"."""
        return tuple(finding for finding in self.findings if finding.what == what)

    @property
    def missing(self) -> tuple[str, ...]:
        """The facts that would settle open questions, the one most clauses wait for first."""
        asked = [fact for finding in self.of("question") for fact in self.facts_for(finding)]
        return tuple(sorted(set(asked), key=lambda fact: (-asked.count(fact), fact)))

    def facts_for(self, finding: Finding) -> tuple[str, ...]:
        """The facts that would settle one question, as they are asked for."""
        return tuple(dict.fromkeys(each for fact in finding.missing for each in askable(fact, self.use)))

    @property
    def unmet(self) -> tuple[Finding, ...]:
        """The duties that are seen not to be kept, such as a name that begins otherwise than it must."""
        return tuple(duty for duty in self.of("duty") if duty.met is False)

    def verdict(self) -> Verdict:
        """The judgement as the one shape that gates and promotion ask for.

        Allowed, with duties or without, has passed; denied has not; None where a person must decide.
        """
        passed = {Outcome.DENIED: False, Outcome.PERSON: None}.get(self.outcome, True)
        order = ("denied", "question", "duty")
        reasons = [cite(finding) for what in order for finding in self.of(what)]
        evidence = {
            "outcome": self.outcome.words,
            "parts": {part.name: list(part.licences) for part in self.dossier.components},
            "missing": list(self.missing),
        }
        return Verdict(passed, tuple(reasons), evidence)


def cite(finding: Finding) -> str:
    """A finding in a line: where it stands, and what it says.

    >>> cite(Finding("denied", "m", "mrl", "research", "§3.2", "Research only.", ""))
    'mrl §3.2: Research only.'
    """
    return f"{' '.join(word for word in (finding.licence, finding.ref) if word) or finding.part}: {finding.text}"


def in_order(licence: str, ref: str) -> tuple[str, list[tuple[bool, int, str]]]:
    """A key that sorts places as a licence counts them.

    >>> sorted(["§10", "§2(b)", "§2(a)"], key=lambda ref: in_order("mit", ref))
    ['§2(a)', '§2(b)', '§10']
    """
    parts = re.findall(r"\d+|\D+", ref)
    return licence, [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
