"""Which tokens the next step computes. Bookkeeping on integers; no array is touched here.

Every step serves, in this order:

1. **Decode rows**: each answering request computes its newest token. If a row needs a page and none is
   left, the youngest running request (by order of arrival) gives up its pages and waits again, at the
   head of its client's queue. What it had computed is computed again or found in the prefix cache; by the
   law the bits are the same. The oldest request is never put back, so something always advances.
2. **Admission**: waiting requests enter while their known tokens find pages and each running request
   could still get one more. Clients take turns; within a client first come, first served. Nobody
   overtakes a request that must wait for pages, so even the largest one enters in the end.
3. **Prefill**: the rest of the token budget goes to prompts in chunks. The client, then the request,
   that was served longest ago comes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vitral.engine.prefix import PrefixCache, page_key
from vitral.engine.request import Request

__all__ = ["Chunk", "Scheduler"]


_MOST_GUESSING = 4  # answering requests; with more, the rows of a step are worth more as answers than as guesses


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `start + count - 1` of a request, computed in one step; the last ones may be guesses."""

    request: Request
    start: int
    count: int
    guess: Sequence[int] = ()

    @property
    def end(self) -> int:
        return self.start + self.count

    def certain(self) -> Chunk:
        """The same without its guess."""
        return Chunk(self.request, self.start, self.count - len(self.guess)) if self.guess else self

    @property
    def ids(self) -> list[int]:
        """The tokens."""
        known = self.request.ids[self.start : self.end]
        return [*known, *self.guess] if self.guess else known

    @property
    def wanted(self) -> range:
        """Positions whose logits are needed: those not seen yet if all are asked for, else from the newest token on."""
        if self.request.wants_every_position:
            return range(max(self.start, self.request.seen), self.end)
        return range(max(self.start, len(self.request.ids) - 1), self.end)


class Scheduler:
    """Continuous batching with chunked prefill.

    `step_tokens` is the most tokens of a step, `most_running` the most requests that hold pages at
    once, `logit_rows` the most rows of logits a step gives to requests that want every position (a
    row has as many numbers as the vocabulary). `speculation` lets a few answering requests guess.
    """

    def __init__(
        self,
        cache: PrefixCache,
        *,
        step_tokens: int,
        most_running: int,
        logit_rows: int,
        speculation: bool = False,
    ) -> None:
        self.cache = cache
        self.step_tokens = step_tokens
        self.most_running = most_running
        self.logit_rows = logit_rows
        self.speculation = speculation
        self.running: list[Request] = []
        self._waiting: dict[str, deque[Request]] = {}  # clients in order of their turn
        self._client_served: dict[str, int] = {}
        self._step = 0

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self.running and not self._waiting

    def requests(self) -> list[Request]:
        """All that run or wait."""
        return self.running + [request for queue in self._waiting.values() for request in queue]

    def add(self, request: Request) -> None:
        """Put a request at the end of its client's queue."""
        self._waiting.setdefault(request.client, deque()).append(request)

    def remove(self, request: Request) -> None:
        """Forget a request, finished or cancelled, wherever it is; its pages are let go."""
        if request.running:
            self._stop(request)
        else:
            queue = self._waiting[request.client]
            queue.remove(request)
            if not queue:
                del self._waiting[request.client]
        if not any(other.client == request.client for other in self.requests()):
            self._client_served.pop(request.client, None)

    def plan(self) -> list[Chunk]:
        """The chunks of the next step; empty only when idle."""
        self._step += 1
        self._grow()
        rows = sorted((r for r in self.running if r.missing == 1), key=lambda r: (r.served, r.id))
        chunks = [self._row(r, len(rows)) for r in rows[: self.step_tokens]]
        left = self.step_tokens - sum(chunk.count for chunk in chunks)
        if left > 0:
            self._admit()
            chunks += self._prefill(left, {chunk.request.id for chunk in chunks})
        for chunk in chunks:
            chunk.request.served = self._step
        assert chunks or self.idle, "a request neither advances nor waits for one that does"
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """A chunk was computed: pages that became full can be shared from now on."""
        request = chunk.request
        request.computed = chunk.end
        size = self.cache.page_size
        for page in range(len(request.keys), request.computed // size):
            before = request.keys[-1] if request.keys else request.salt
            request.keys.append(page_key(before, request.ids[page * size : (page + 1) * size]))
            self.cache.remember(request.keys[-1], request.pages[page])

    def _row(self, request: Request, n_rows: int) -> Chunk:
        """The newest token of a request, and a guess at the next ones that fits its last page."""
        guess: list[int] = []
        if (
            self.speculation
            and n_rows <= _MOST_GUESSING
            and request.answered
            and not (request.wants_every_position or request.watched)
        ):
            page_room = len(request.pages) * self.cache.page_size - len(request.ids)
            fair_share = self.step_tokens // n_rows - 1
            guess = request.lookup.guess(
                request.ids, min(page_room, fair_share, request.max_tokens - request.answered - 1)
            )
        return Chunk(request, request.computed, 1 + len(guess), guess)

    def _grow(self) -> None:
        """Give each row that begins a page its page, taking from the youngest if need be."""
        for request in sorted(self.running, key=lambda r: r.id):
            while request.running and self._pages_for(len(request.ids)) > len(request.pages):
                page = self.cache.take()
                if page is not None:
                    request.pages.append(page)
                else:
                    self._put_back(max(self.running, key=lambda r: r.id))

    def _put_back(self, request: Request) -> None:
        self._stop(request)
        queue = self._waiting.pop(request.client, deque())
        queue.appendleft(request)
        self._waiting = {request.client: queue, **self._waiting}

    def _stop(self, request: Request) -> None:
        self.running.remove(request)
        self.cache.release(request.pages)
        request.pages, request.keys, request.computed, request.running = [], [], 0, False

    def _admit(self) -> None:
        while self._waiting and len(self.running) < self.most_running:
            client, queue = next(iter(self._waiting.items()))
            if not self._enter(queue[0]):
                return
            queue.popleft()
            del self._waiting[client]
            if queue:
                self._waiting[client] = queue  # its next turn comes after everyone else's

    def _enter(self, request: Request) -> bool:
        """Hold pages for every known token of the request, found ones first; False if they are not to be had."""
        known = len(request.ids)
        pages, keys = self.cache.match(request.ids, request.salt, request.reusable // self.cache.page_size)
        lacking = self._pages_for(known) - len(pages)
        if lacking + len(self.running) > self.cache.available:
            self.cache.release(pages)
            return False
        for _ in range(lacking):
            page = self.cache.take()
            assert page is not None
            pages.append(page)
        request.pages, request.keys, request.running = pages, keys, True
        request.computed = len(keys) * self.cache.page_size
        if request.cached is None:
            request.cached = request.computed
        self.running.append(request)
        return True

    def _prefill(self, budget: int, served: set[int]) -> list[Chunk]:
        chunks = []
        rows = self.logit_rows
        turns = [request for request in self.running if request.id not in served]
        turns.sort(key=lambda r: (self._client_served.get(r.client, 0), r.served, r.id))
        for request in turns:
            count = min(request.missing, budget)
            if request.wants_every_position:
                count = min(count, rows)
                rows -= count
            if count:
                budget -= count
                chunks.append(Chunk(request, request.computed, count))
                self._client_served[request.client] = self._step
        return chunks

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.cache.page_size)
