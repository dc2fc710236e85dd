"""How much work the server takes on: bounded by tokens and by requests; the rest hears when to come back.

Nothing waits in line here: the engine's scheduler is the line, and it is fair between clients. What is refused is
refused at once.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vitral.errors import Overloaded, ShuttingDown

__all__ = ["Admission"]

UNSAID = 1024  # tokens that count for an answer whose length the client leaves open
_MEMORY_S = 30.0


class _Door:
    """One request that is being prepared."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self._open = admission, True
        admission.entering += 1

    def leave(self) -> None:
        """It is in, or away; the second time changes nothing."""
        self._admission.entering -= self._open
        self._open = False


_at_the_door: ContextVar[_Door | None] = ContextVar("at_the_door", default=None)  # of the request being served


class Admission:
    """Counts the work in flight against limits.

    >>> admission = Admission(most_tokens=100, most_requests=8)
    >>> with admission.admit(90):
    ...     admission.tokens
    90
    >>> admission.tokens
    0
    """

    def __init__(self, most_tokens: int, most_requests: int) -> None:
        self.most_tokens, self.most_requests = most_tokens, most_requests
        self.tokens = 0
        self.requests = 0
        self.entering = 0  # requests being prepared, one sequence each
        self.draining = False
        self._done: deque[tuple[float, int]] = deque()

    def check(self, tokens: int = 1, sequences: int = 1) -> None:
        """Raise Overloaded or ShuttingDown if there is no room, here for the smallest request that there can be."""
        if self.draining:
            raise ShuttingDown("the server is shutting down and takes no new work; ask another one")
        ahead = self.requests + self.entering
        full = self.tokens > 0 and self.tokens + tokens > self.most_tokens
        if full or (ahead and ahead + sequences > self.most_requests):
            raise Overloaded(
                f"the server is at work on {ahead} sequences of {self.tokens} tokens; "
                f"allowed: {self.most_requests} and {self.most_tokens}; come back in a while",
                self.retry_after_s(),
            )

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for one sequence until `admit` takes it over, so that a crowd is refused before it is prepared.

        Templates are rendered and grammars checked between the two. Raises like `check`.
        """
        self.check()
        door = _Door(self)
        token = _at_the_door.set(door)
        try:
            yield
        finally:
            door.leave()
            _at_the_door.reset(token)

    @contextmanager
    def admit(self, tokens: int, sequences: int = 1) -> Iterator[None]:
        """Hold a place while the block runs. Raises Overloaded or ShuttingDown at once if there is none.

        A request larger than all of the room is let in alone, so that nothing is impossible only because of the queue.
        """
        door = _at_the_door.get()
        if door is not None:
            door.leave()
        self.check(tokens, sequences)
        self.tokens += tokens
        self.requests += sequences
        try:
            yield
        finally:
            self.tokens -= tokens
            self.requests -= sequences
            self._done.append((time.monotonic(), tokens))

    def retry_after_s(self) -> int:
        """Until a quarter of the work in flight is done at the pace of the last half minute: 1 to 60 seconds."""
        now = time.monotonic()
        while self._done and self._done[0][0] < now - _MEMORY_S:
            self._done.popleft()
        finished = sum(tokens for _, tokens in self._done)
        if not finished:
            return 5
        pace = finished / max(now - self._done[0][0], 1.0)
        return min(60, max(1, math.ceil(self.tokens / 4 / pace)))
