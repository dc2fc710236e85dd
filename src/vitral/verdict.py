"""The one shape of every judgement: gates, licence, scan, signature, self-test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, why, and on what evidence.

    `passed` is True, False, or None where a person must decide.

    >>> bool(Verdict(True, ("all 12 kernels agree with the reference",)))
    True
    """

    passed: bool | None
    reasons: tuple[str, ...] = ()
    evidence: Mapping[str, object] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.passed is True
