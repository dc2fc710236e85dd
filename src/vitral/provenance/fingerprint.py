"""Fingerprints of texts: few numbers that survive copying, and tell near texts apart.

A text becomes its words (letters and digits alone, without case, accents or markup). Every run of
SHINGLE words is hashed; of every WINDOW neighbouring hashes the smallest is kept (winnowing: Schleimer,
Wilkerson and Aiken, "Winnowing: local algorithms for document fingerprinting", SIGMOD 2003). Which hash
is kept depends on its neighbourhood alone, so a passage of SHINGLE + WINDOW - 1 words that two texts
share always gives them a number in common, wherever it stands.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

__all__ = ["SHINGLE", "WINDOW", "Print", "digest_of", "winnow", "words_of"]

SHINGLE = 5
WINDOW = 8
_WORD = re.compile(r"[a-z0-9]+(?:\.[0-9]+)*")
_MARKUP = re.compile(r"<[^<>]{1,200}>|&[a-z#0-9]{1,8};|\\(?=\W)|\]\([^()\s]{1,300}\)|https?://\S+")


@dataclass(frozen=True, slots=True)
class Print:
    """A number that stands for a run of words, and where in the text the run begins (in words)."""

    value: int
    at: int


def words_of(text: str) -> list[str]:
    """The words that count: folded to lower case and plain letters, without markup or addresses.

    >>> words_of("**“Llama 3.1”** means\\n// the <b>models</b>")
    ['llama', '3.1', 'means', 'the', 'models']
    """
    plain = unicodedata.normalize("NFKD", _MARKUP.sub(" ", text)).lower()
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))


def digest_of(words: list[str]) -> str:
    """SHA-256 of the words: equal for texts that differ in space, case and markup alone."""
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def winnow(words: list[str]) -> list[Print]:
    """The prints of a text, in its order; a text shorter than SHINGLE words has none.

    >>> text = "permission is hereby granted free of charge to any person obtaining a copy of this software".split()
    >>> inner = {print.value for print in winnow(text[2:])}
    >>> bool(inner & {print.value for print in winnow(text)})
    True
    """
    hashes = [_hash(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)]
    kept: list[Print] = []
    for start in range(max(1, len(hashes) - WINDOW + 1) if hashes else 0):
        window = hashes[start : start + WINDOW]
        smallest = min(window)
        if kept and kept[-1].at >= start and kept[-1].value == smallest:
            continue  # robust winnowing: of equals, the one already kept, so that repetition adds nothing
        kept.append(Print(smallest, start + len(window) - 1 - window[::-1].index(smallest)))
    return kept


def _hash(words: list[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=4).digest(), "big")
