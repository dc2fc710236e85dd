"""How much a chat template may use: time, characters, the size of a value, the depth of calls.

A template is a program from a stranger that runs on every request. Python cannot stop a thread, so the program is made
to ask at every step: `vitral.tokenizer.sandbox` weaves the questions in.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from vitral.errors import TemplateError

__all__ = ["Budget", "Limits", "current_budget", "running"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may use.

    `characters` counts all text and list entries ever made, on top of 64 times the size of the messages;
    `largest` is the size of one value, on top of 4 times the size of the messages. Sizes are those of trees: what
    occurs twice counts twice.
    """

    time_s: float = 1.0
    characters: int = 16 << 20
    largest: int = 4 << 20
    depth: int = 64  # of calls
    bits: int = 4096  # of a whole number
    width: int = 4096  # of padding, indentation and the like


@dataclass(slots=True)
class Budget:
    """What is left of the limits while one template runs."""

    limits: Limits
    deadline: float
    left: int
    largest: int
    depth: int = 0
    # id -> (the container, so that the id stays its own; its size)
    _sizes: dict[int, tuple[object, int]] = field(default_factory=dict)

    @classmethod
    def start(cls, limits: Limits, given: object) -> Budget:
        """A full budget; `given` is what the caller hands to the template."""
        budget = cls(limits, time.monotonic() + limits.time_s, left=0, largest=1 << 62)
        size = budget.size(given)
        budget.left, budget.largest = limits.characters + 64 * size, limits.largest + 4 * size
        return budget

    def tick(self) -> None:
        """Stop if the time is up."""
        if time.monotonic() > self.deadline:
            raise TemplateError(
                f"the chat template ran for over {self.limits.time_s:g} s; simplify it or use another one"
            )

    def charge(self, amount: int) -> None:
        """Take from what is left; ask before making something large."""
        self.tick()
        self.left -= amount + 1
        if self.left < 0 or amount > self.largest:
            raise TemplateError("the chat template makes too much text; simplify it or use another one")

    def made(self, value: T) -> T:
        """Charge for a new value and hand it back."""
        if isinstance(value, (str, bytes, list, tuple, dict, set)):
            self.charge(len(value))
            self.size(value)
        else:
            self.tick()
        return value

    def size(self, value: object) -> int:
        """The size of a value as a tree. Raises TemplateError if it is too large."""
        if isinstance(value, (str, bytes)):
            total = len(value) + 1
        elif isinstance(value, int):
            total = 1 + value.bit_length() // 4
        elif isinstance(value, (list, tuple, dict, set)):
            total = self._container(value)
        else:
            total = 1
        if total > self.largest:
            raise TemplateError("the chat template makes too large a value; simplify it or use another one")
        return total

    def _container(self, value: list[object] | tuple[object, ...] | dict[object, object] | set[object]) -> int:
        known = self._sizes.get(id(value))
        if known is None:
            total = 1 + sum(map(self.size, value))
            if isinstance(value, dict):
                total += sum(map(self.size, value.values()))
            known = self._sizes[id(value)] = (value, total)
        return known[1]


_running: ContextVar[Budget | None] = ContextVar("budget of the running chat template", default=None)


def current_budget() -> Budget:
    """The budget of the template that runs in this context."""
    budget = _running.get()
    if budget is None:
        raise TemplateError("a chat template runs outside of vitral.tokenizer.chat; render it there")
    return budget


@contextmanager
def running(budget: Budget) -> Iterator[Budget]:
    """Make a budget the one that the templates of this context use."""
    token = _running.set(budget)
    try:
        yield budget
    finally:
        _running.reset(token)
