"""Guessing what comes next from what was already written (prompt lookup), so that one step yields several tokens.

A guess is read in the same step as the newest token; each guessed token counts only if it is the one that
would have been chosen. A token's logits do not depend on what else is in the step, and its random number
only on seed and position, so an answer has the same tokens with and without guesses.

The idea is Saxena's "Prompt Lookup Decoding" (2023), itself a form of speculative decoding (arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PromptLookup"]

_GRAM = 3  # tokens that must stand alike before a guess is made
_LONGEST = 7  # tokens of a guess: with the newest one, eight rows
_TRIAL = 8  # guesses before their worth is judged
_WORTH = 0.5  # tokens that a guess must win on average: about what reading it costs
_REST = 64  # tokens without guesses after a trial that failed; doubled each time
_LONGEST_REST = 4096


class PromptLookup:
    """Guesses for one request. It stops where guessing does not pay and tries again later.

    >>> lookup = PromptLookup()
    >>> lookup.guess([5, 6, 7, 8, 9, 1, 5, 6, 7], most=4)
    [8, 9, 1, 5]
    """

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # three tokens -> where the latest ones like them end
        self._indexed = _GRAM - 1
        self._guesses = self._won = 0
        self._rest, self._resting_until = _REST, 0

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens (and no more than 7) that followed when the text last ended as it does now."""
        n = len(ids)
        if most < 1 or n < self._resting_until or n <= _GRAM:
            return []
        for end in range(self._indexed + 1, n):  # not the last three: they would find themselves
            self._after[tuple(ids[end - _GRAM : end])] = end
        self._indexed = n - 1
        start = self._after.get(tuple(ids[n - _GRAM :]))
        return [] if start is None else list(ids[start : start + min(most, _LONGEST)])

    def learn(self, won: int, length: int) -> None:
        """A guess won that many tokens; the text now has `length`."""
        self._guesses += 1
        self._won += won
        if self._guesses < _TRIAL:
            return
        if self._won < _WORTH * self._guesses:
            self._resting_until = length + self._rest
            self._rest = min(2 * self._rest, _LONGEST_REST)
        else:
            self._rest = _REST
        self._guesses = self._won = 0
