"""What a look at a file found: one rule, how grave it is, where, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level", "note", "person", "refused", "shown"]

Level = Literal["refused", "person", "note"]
"""`refused`: no model needs this; `person`: someone should look; `note`: worth knowing."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """`file` is relative to what was scanned; `sha256` is there for what is refused, so that it can be accepted."""

    file: str
    rule: str
    level: Level
    text: str
    sha256: str | None = None


def refused(file: str, rule: str, text: str) -> Finding:
    """A finding for which the file is refused."""
    return Finding(file, rule, "refused", text)


def person(file: str, rule: str, text: str) -> Finding:
    """A finding that a person must judge."""
    return Finding(file, rule, "person", text)


def note(file: str, rule: str, text: str) -> Finding:
    """A fact worth knowing."""
    return Finding(file, rule, "note", text)


def shown(text: object, longest: int = 80) -> str:
    """A stranger's text for a message: quoted, control characters escaped, cut.

    >>> shown("a\\x1b[2J")
    "'a\\\\x1b[2J'"
    """
    return ascii(text) if len(str(text)) <= longest else ascii(str(text)[:longest]) + "..."
