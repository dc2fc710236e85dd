"""Finding control tokens in text, and only where they were asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Special", "Specials"]


@dataclass(frozen=True, slots=True)
class Special:
    """A control token: its id, its text, and whether it swallows the blanks beside it (`lstrip`, `rstrip`)."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


class Specials:
    """The control tokens of a vocabulary; where two begin at the same place, the longer one counts."""

    def __init__(self, specials: Iterable[Special]) -> None:
        self._by_text = {special.text: special for special in specials if special.text}
        self.ids = frozenset(special.id for special in self._by_text.values())
        lengths: dict[str, set[int]] = {}
        for text in self._by_text:
            lengths.setdefault(text[0], set()).add(len(text))
        # One dictionary look-up per possible length: a vocabulary may have a thousand control tokens.
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._starts = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None

    def __iter__(self) -> Iterator[Special]:
        return iter(self._by_text.values())

    def find(self, text: str, start: int = 0) -> Special | None:
        """The control token whose text stands at `start`, or None."""
        for length in self._lengths.get(text[start : start + 1], ()):
            special = self._by_text.get(text[start : start + length])
            if special is not None:
                return special
        return None

    def id_of(self, text: str) -> int | None:
        """The id of the control token with exactly this text, or None."""
        special = self._by_text.get(text)
        return None if special is None else special.id

    def split(self, text: str) -> list[str | int]:
        """Plain fragments and the ids of the control tokens between them, in order.

        >>> Specials([Special(1, "<s>"), Special(2, "</s>")]).split("<s>hi</s>")
        [1, 'hi', 2]
        """
        parts: list[str | int] = []
        done = at = 0
        while self._starts is not None and (match := self._starts.search(text, at)):
            at = match.start()
            special = self.find(text, at)
            if special is None:
                at += 1
                continue
            fragment = text[done:at]
            fragment = fragment.rstrip() if special.lstrip else fragment
            parts += [fragment, special.id] if fragment else [special.id]
            at += len(special.text)
            if special.rstrip:
                at += len(text[at:]) - len(text[at:].lstrip())
            done = at
        return [*parts, text[done:]] if done < len(text) else parts

    def begins_inside(self, text: str) -> list[int]:
        """Where a control token stands in `text`, or where one begins that the end of `text` cuts off.

        >>> Specials([Special(1, "<s>")]).begins_inside("a<s>b<")
        [1, 5]
        """
        if self._starts is None:
            return []
        return [
            m.start() for m in self._starts.finditer(text) if self.find(text, m.start()) or self._cut(text[m.start() :])
        ]

    def _cut(self, tail: str) -> bool:
        longest = self._lengths[tail[0]][0]
        return len(tail) < longest and any(text.startswith(tail) for text in self._by_text)
