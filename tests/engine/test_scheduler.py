"""The scheduler against a model of itself: integers in, invariants out."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.engine.blocks import PageAllocator
from vitral.engine.prefix import PrefixCache
from vitral.engine.request import Request, SamplingParams
from vitral.engine.scheduler import Chunk, Scheduler

PAGE = 4
N_PAGES = 12


def scheduler(step_tokens: int = 16, most_running: int = 4, enabled: bool = True) -> Scheduler:
    cache = PrefixCache(PageAllocator(N_PAGES), PAGE, enabled=enabled)
    return Scheduler(cache, step_tokens=step_tokens, most_running=most_running, logit_rows=8)


def check(s: Scheduler) -> None:
    """No page leaked, none shared that somebody may write to."""
    pages = s.cache.pages
    holders = Counter(page for request in s.running for page in request.pages)
    remembered = {page for page in range(N_PAGES) if page in s.cache._key_of}
    for page in range(N_PAGES):
        assert pages.holders(page) == holders[page] + (page in remembered)
    assert pages.free == sum(pages.holders(page) == 0 for page in range(N_PAGES))
    assert s.cache.available == N_PAGES - len(holders)
    for request in s.running:
        assert len(set(request.pages)) == len(request.pages)
        for page in request.pages[len(request.ids) // PAGE :]:
            assert holders[page] == 1 and page not in remembered
    assert len(s.running) <= s.most_running


ASKED = st.tuples(
    st.integers(0, 2),  # client
    st.integers(1, 30),  # tokens of the prompt
    st.integers(1, 18),  # tokens of the answer
    st.integers(0, 1),  # which of two texts it begins with
    st.booleans(),  # wants every position
    st.integers(0, 40),  # arrives at this step
    st.integers(0, 200),  # cancelled at this step, if it lives so long
)


@settings(max_examples=150, deadline=None)
@given(
    asked=st.lists(ASKED, min_size=1, max_size=12),
    step_tokens=st.integers(1, 24),
    most_running=st.integers(1, 5),
    enabled=st.booleans(),
)
def test_every_request_finishes_and_no_page_is_lost(
    asked: list[tuple[int, int, int, int, bool, int, int]], step_tokens: int, most_running: int, enabled: bool
) -> None:
    s = scheduler(step_tokens, most_running, enabled)
    finished: set[int] = set()
    work = sum(prompt + answer for _, prompt, answer, *_ in asked)
    requests = [
        Request(
            i,
            [text * 100 + position for position in range(prompt)],
            SamplingParams(prompt_logprobs=0 if scored else None),
            answer,
            client=str(client),
        )
        for i, (client, prompt, answer, text, scored, *_) in enumerate(asked)
    ]
    bound = 50 + work * (len(asked) + 1)  # each token at worst alone in its step, each request put back by every other
    for step in range(bound):
        for request, entry in zip(requests, asked, strict=True):
            if entry[5] == step:
                s.add(request)
            if entry[6] == step > entry[5] and request.id not in finished:
                finished.add(request.id)
                s.remove(request)
        chunks = s.plan()
        check(s)
        assert sum(chunk.count for chunk in chunks) <= step_tokens
        assert len({chunk.request.id for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            request = chunk.request
            assert chunk.start == request.computed and 0 < chunk.end <= len(request.ids)
            assert len(request.pages) * PAGE >= chunk.end
            if chunk.wanted:
                request.seen = chunk.wanted[-1] + 1
            s.advance(chunk)
            if request.missing == 0:
                request.ids.append(request.id * 1000 + request.answered)
                if request.answered == request.max_tokens:
                    finished.add(request.id)
                    s.remove(request)
        check(s)
        if len(finished) == len(asked):
            break
    assert len(finished) == len(asked), "a request waits for ever"
    assert s.idle and s.cache.available == N_PAGES


def request(i: int, tokens: int, client: str = "", max_tokens: int = 4) -> Request:
    return Request(i, list(range(i * 100, i * 100 + tokens)), SamplingParams(), max_tokens, client)


def counts(chunks: list[Chunk]) -> list[tuple[int, int]]:
    return [(chunk.request.id, chunk.count) for chunk in chunks]


def advance(s: Scheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        s.advance(chunk)
        if chunk.request.missing == 0:
            chunk.request.ids.append(7)


def test_rows_that_answer_come_before_prompts() -> None:
    s = scheduler(step_tokens=6)
    s.add(request(0, 5))
    advance(s, s.plan())
    s.add(request(1, 20))
    assert counts(s.plan()) == [(0, 1), (1, 5)]


def test_clients_take_turns_with_their_prompts() -> None:
    s = scheduler(step_tokens=4)
    s.add(request(0, 16, "many"))
    s.add(request(1, 16, "many"))
    s.add(request(2, 6, "one"))
    order = []
    for _ in range(4):
        chunks = s.plan()
        order.append(chunks[0].request.id)
        for chunk in chunks:
            s.advance(chunk)
    assert order == [0, 2, 0, 2] or order == [0, 2, 1, 2]


def test_nobody_overtakes_a_request_that_waits_for_pages() -> None:
    s = scheduler()
    s.add(request(0, 30))  # 8 of 12 pages
    s.add(request(1, 30))
    s.add(request(2, 2))
    s.plan()
    assert [r.id for r in s.running] == [0]


def test_the_youngest_gives_up_its_pages_to_the_oldest() -> None:
    s = scheduler(step_tokens=64)
    s.add(request(0, 20, max_tokens=20))
    s.add(request(1, 20, max_tokens=20))
    for _ in range(30):
        advance(s, s.plan())
        check(s)
        if len(s.running) == 1:
            break
    assert [r.id for r in s.running] == [0]
    assert [r.id for r in s.requests()] == [0, 1]


def test_logit_rows_bound_a_chunk_that_wants_every_position() -> None:
    s = scheduler(step_tokens=64)
    s.add(Request(0, list(range(20)), SamplingParams(prompt_logprobs=0), 1))
    s.add(request(1, 20))
    assert counts(s.plan()) == [(0, 8), (1, 20)]
