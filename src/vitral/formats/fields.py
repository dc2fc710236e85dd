"""Reading a foreign configuration to the last field: what is unknown is an error, not a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitral.errors import SpecError
from vitral.formats.bounds import nearest

__all__ = ["FAMILIES", "Fields", "yarn_attention"]

FAMILIES = "Llama 1/2/3.x, Mistral, Mixtral and models of the same architecture"

_MISSING = object()


class Fields:
    """A configuration of which every field is read, known to be harmless, or refused.

    `where` names the file in messages; `harmless` maps fields without effect on the numbers to
    the reason why; `notes` holds further facts of the file that may help and need not be read.
    """

    def __init__(
        self,
        where: str,
        values: Mapping[str, Any],
        harmless: Mapping[str, str],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.where, self.values, self.harmless, self.notes = where, values, harmless, notes or {}
        self.read: set[str] = set()

    def get(self, name: str, kind: type, default: Any = _MISSING) -> Any:
        """The field as `kind` (int, float, bool, str, dict); a missing one or null gives the default.

        Raises SpecError where it is missing without a default, or of another kind.
        """
        self.read.add(name)
        value = self.values.get(name)
        if value is None:
            if default is _MISSING:
                raise SpecError(f"{self.where}: {name} is missing{self._near(name)}")
            return default
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise SpecError(f"{self.where}: {name} is a number of {value.bit_length()} bits; at most 63 are allowed")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise SpecError(f"{self.where}: {name} is {_shown(value)}; allowed: {_KINDS.get(kind, kind.__name__)}")
        return value

    def must_be(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuse a field whose value changes the architecture into one that we do not run."""
        self.read.add(name)
        value = self.values.get(name, allowed[0])
        if not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(repr(a) for a in allowed if a is not None)
            runs = f"{wanted} only" if wanted else "models without it"
            raise SpecError(f"{self.where}: {name} is {_shown(value)}; Vitral runs {runs} ({why})")

    def finish(self) -> None:
        """Raise SpecError for the first field that nobody read and that is not listed as harmless."""
        for name in self.values:
            if name not in self.read and name not in self.harmless:
                raise SpecError(
                    f"{self.where}: field {name!r} (value {_shown(self.values[name])}) is unknown{self._near(name)}; "
                    "it may change what the model computes, so it is not ignored"
                )

    def _near(self, name: str) -> str:
        known = [*self.read, *self.harmless, *self.values]
        near = nearest(name, (k for k in known if k != name))
        return f"; the nearest known one is {near!r}" if near else ""


def _shown(value: Any) -> str:
    """A value in few characters; a large one is never written out."""
    if isinstance(value, str | int | float | None):
        return f"{value!r:.60}"
    return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "an object"}


def yarn_attention(factor: float) -> float:
    """YaRN's temperature, 0.1 ln(s) + 1 (arXiv 2309.00071, equation 22)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
