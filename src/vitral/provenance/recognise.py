"""Which licence a text is: by fingerprints of the known ones, or `unknown`; never a guess.

Several licences in one file are all found. Versions of one licence share most of their words: the text
that explains most of the file wins, and where two explain it equally well (an excerpt that names no
version) all are named and `ambiguous` says so. Words that no known licence explains are shown, because
a modified licence is a known licence plus a sentence that changes everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from vitral.errors import LicenceError
from vitral.provenance.fingerprint import SHINGLE, WINDOW, Print, digest_of, winnow, words_of
from vitral.provenance.terms import licence

__all__ = ["LARGEST_TEXT", "Known", "Match", "Recognition", "known_texts", "recognise", "recognised_by"]

LARGEST_TEXT = 1 << 19  # characters that are looked at; the longest licence text known has 70,000
_SMALLEST_SHARE = 0.5  # of a licence's prints: less of it is an excerpt at best
_FEWEST_PRINTS = 6
_EXCERPT_COVER = 0.6  # of the file's words that an excerpt must explain
_ADDED_WORDS = 18  # in one stretch that nothing explains
_LIMITING = frozenset(
    [
        "must",
        "shall",
        "may",
        "not",
        "except",
        "provided",
        "however",
        "commercial",
        "revenue",
        "users",
        "prohibited",
        "restrict",
        "restricted",
        "restriction",
        "unless",
        "permission",
        "authorization",
        "royalty",
        "fee",
        "display",
        "employees",
        "noncommercial",
        "military",
        "territory",
        "solely",
        "only",
    ]
)


@dataclass(frozen=True, slots=True)
class Known:
    """A text that can be recognised: its licence, its prints, the digest of its words.

    partial: only a part of the text was to be had, so that a match says less.
    """

    id: str
    source: str
    words: int
    sha256: str
    prints: frozenset[int]
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """Licences that a passage can be (several where it can't tell versions apart), and how much was found.

    score: the share of the licence's text that is there, 0 to 1. exact: word for word. partial: only passages
    of the licence are known, so that the rest of the file is not compared.
    """

    licences: tuple[str, ...]
    score: float
    exact: bool = False
    partial: bool = False

    @property
    def ambiguous(self) -> bool:
        """Whether the passage fits several licences equally well."""
        return len(self.licences) > 1

    @property
    def whole(self) -> bool:
        """Whether all of the licence is there, but for a few words."""
        return self.exact or self.score >= 0.9


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a text was found to be; no matches means unknown.

    explained: the share of its words that known licences explain. added: the longest stretch of words
    with a limit or a condition in it that they do not, or "".
    """

    matches: tuple[Match, ...]
    explained: float
    added: str = ""

    @property
    def unknown(self) -> bool:
        """Whether no known licence was found."""
        return not self.matches


@cache
def known_texts() -> tuple[Known, ...]:
    """The fingerprints that come with Vitral."""
    raw = json.loads(resources.files("vitral.provenance").joinpath("fingerprints.json").read_text("utf-8"))
    if (raw["shingle"], raw["window"]) != (SHINGLE, WINDOW):
        raise LicenceError("fingerprints.json was made with another method; build it again")
    return tuple(
        Known(
            entry["id"],
            entry["source"],
            entry["words"],
            entry["sha256"],
            _unpacked(entry["prints"]),
            entry.get("partial", False),
        )
        for entry in raw["texts"]
    )


@cache
def recognised_by(id: str) -> Literal["text", "passages", "title", "labels"]:
    """By what a licence is known in files: all of its text, passages of it, its title alone, or labels and links alone.

    >>> recognised_by("llama3.1"), recognised_by("mnpl"), recognised_by("jamba")
    ('text', 'passages', 'title')
    """
    partial = {entry.partial for entry in known_texts() if entry.id == id}
    if partial:
        return "passages" if all(partial) else "text"
    return "title" if licence(id).titles else "labels"


def _unpacked(text: str) -> frozenset[int]:
    return frozenset(int(text[at : at + 8], 16) for at in range(0, len(text), 8))


def recognise(text: str, known: Iterable[Known] | None = None) -> Recognition:
    """Find known licences in a text, in the order of how much they explain.

    >>> recognise("This is a novel about the sea and a man who sailed it alone for a year and a day.").unknown
    True
    """
    words = words_of(text[:LARGEST_TEXT])
    texts = tuple(known_texts() if known is None else known)
    digest = digest_of(words)
    exact = sorted({entry.id for entry in texts if entry.sha256 == digest and not entry.partial})
    if exact:
        return Recognition((Match(tuple(exact), 1.0, True),), 1.0)
    prints = winnow(words)
    found, matched = _cover(prints, len(words), texts)
    bare = _unexplained(prints, matched, len(words))
    explained = 1 - sum(b - a for a, b in bare) / max(len(words), 1)
    comparable = bool(found) and not any(match.partial for match in found)
    return Recognition(tuple(found), explained, _added(words, bare) if comparable else "")


def _cover(prints: list[Print], n_words: int, texts: tuple[Known, ...]) -> tuple[list[Match], set[int]]:
    """Licences one after the other, each by what those before it do not explain."""
    left = {found.value for found in prints}
    taken: set[int] = set()
    found: list[Match] = []
    while True:
        fit = {entry: len(entry.prints & left) for entry in texts}
        ranked = sorted(fit, key=lambda entry: (fit[entry], fit[entry] / len(entry.prints)), reverse=True)
        # Boilerplate gives a long licence more hits than a short one has words: only what qualifies may win.
        best = next((entry for entry in ranked if _qualifies(entry, fit[entry], prints, left, n_words)), None)
        if best is None:
            return found, taken
        score = len(best.prints & {each.value for each in prints}) / len(best.prints)
        alike = _alike(best, fit)
        if not any(set(alike) & set(match.licences) for match in found):
            found.append(Match(alike, round(score, 3), partial=best.partial))
        for entry in texts:
            if entry.id in alike:
                taken |= entry.prints & left
                left -= entry.prints


def _qualifies(entry: Known, hits: int, prints: list[Print], left: set[int], n_words: int) -> bool:
    if hits < _FEWEST_PRINTS:
        return False
    return hits / len(entry.prints) >= _SMALLEST_SHARE or _is_excerpt(entry, prints, left, n_words)


def _alike(best: Known, fit: Mapping[Known, int]) -> tuple[str, ...]:
    """The licences that fit as well as the best, where they share what was found and differ in nothing that was."""
    whole = fit[best] / len(best.prints)
    same = {
        entry.id
        for entry, hits in fit.items()
        if hits >= fit[best] - (1 if fit[best] > 20 else 0)
        and (hits / len(entry.prints) > whole - 0.1 or whole < _SMALLEST_SHARE)
    }
    return tuple(sorted(same))


def _is_excerpt(entry: Known, prints: list[Print], left: set[int], n_words: int) -> bool:
    matched = {each.value for each in prints} & entry.prints & left
    bare = _unexplained(prints, matched, n_words)
    return 1 - sum(b - a for a, b in bare) / max(n_words, 1) >= _EXCERPT_COVER


def _unexplained(prints: list[Print], matched: set[int], n_words: int) -> list[tuple[int, int]]:
    """Stretches of words (from, to) that lie farther from any matched print than two neighbours can."""
    bare: list[tuple[int, int]] = []
    last = 0
    for each in prints:
        if each.value in matched:
            if each.at - last > WINDOW:
                bare.append((last, each.at))
            last = max(last, each.at + SHINGLE)
    if n_words - last > WINDOW + SHINGLE:
        bare.append((last, n_words))
    return bare


def _added(words: list[str], bare: list[tuple[int, int]]) -> str:
    """The longest unexplained stretch that sounds like terms."""
    stretches = sorted((words[a:b] for a, b in bare if b - a >= _ADDED_WORDS), key=len, reverse=True)
    for stretch in stretches:
        if len(_LIMITING & set(stretch)) >= 2:
            return " ".join(stretch[:60])
    return ""
