"""Stand-ins for the native model behind the engine's `Forward`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from tests.parity.families import FAMILIES, random_weights
from vitral.engine.engine import Engine
from vitral.engine.forward import Batch
from vitral.engine.request import Event, Finished, NewToken, PromptScored, SamplingParams, TokenScore
from vitral.model.law import F32
from vitral.model.reference import Cache, Reference


class HashForward:
    """Logits are a hash of the sequence as the pages hold it: a page mixed up gives other tokens.

    After a token of `poison` the logits are NaN; `fail_on` makes the whole pass raise.
    """

    def __init__(self, n_pages: int = 64, page_size: int = 4, vocab_size: int = 50) -> None:
        self.n_pages, self.page_size, self.vocab_size = n_pages, page_size, vocab_size
        self.pages = np.full((n_pages, page_size), -1, np.int64)
        self.poison: int | None = None
        self.fail_on: int | None = None
        self.steps: list[int] = []

    def __call__(self, batch: Batch) -> F32:
        if self.fail_on is not None and self.fail_on in batch.ids:
            raise RuntimeError("the double was told to fail")
        self.steps.append(len(batch.ids))
        logits = np.zeros((len(batch.wanted), self.vocab_size), np.float32)
        wanted = {int(token): row for row, token in enumerate(batch.wanted)}
        for i, (token, position, sequence) in enumerate(
            zip(batch.ids.tolist(), batch.positions.tolist(), batch.sequence.tolist(), strict=True)
        ):
            table = batch.page_table[sequence]
            assert table[position // self.page_size] >= 0
            self.pages[table[position // self.page_size], position % self.page_size] = token
            if i in wanted:
                n = position // self.page_size + 1
                past = self.pages[table[:n]].ravel()[: position + 1]
                assert (past >= 0).all(), "a position is read that was never written"
                logits[wanted[i]] = self.expected(past.tolist())
        return logits

    def with_hidden(self, batch: Batch) -> tuple[F32, F32]:
        logits = self(batch)
        return logits, np.ascontiguousarray(logits[:, :3])

    def expected(self, past: Sequence[int]) -> F32:
        digest = hashlib.sha256(np.asarray(past, np.int64).tobytes()).digest()
        logits = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little"))).standard_normal(
            self.vocab_size, np.float32
        )
        if self.poison in past:
            logits[self.vocab_size // 2] = np.nan
        return logits


class ReferenceForward:
    """The law itself over a paged cache: the reference gets each sequence's keys and values out of its pages."""

    def __init__(self, family: str = "llama-3.1", n_pages: int = 64, page_size: int = 4) -> None:
        self.spec = FAMILIES[family]
        self.reference = Reference(self.spec, random_weights(self.spec))
        self.n_pages, self.page_size, self.vocab_size = n_pages, page_size, self.spec.vocab_size
        shape = (self.spec.n_layers, 2, self.spec.n_kv_heads, n_pages, page_size, self.spec.head_dim)
        self.pages = np.full(shape, np.nan, np.float32)

    def __call__(self, batch: Batch) -> F32:
        rows: dict[int, F32] = {}
        for sequence in np.unique(batch.sequence):
            mine = np.flatnonzero(batch.sequence == sequence)
            start, stop = int(batch.positions[mine[0]]), int(batch.positions[mine[-1]]) + 1
            table = batch.page_table[sequence]
            where = (table[np.arange(stop) // self.page_size], np.arange(stop) % self.page_size)
            cache = Cache(self.spec)
            for layer in range(self.spec.n_layers):
                keys, values = (self.pages[layer, i][:, where[0], where[1]] for i in (0, 1))
                cache.keys[layer], cache.values[layer] = keys[:, :start], values[:, :start]
            logits = self.reference.forward(batch.ids[mine].tolist(), cache)
            for layer in range(self.spec.n_layers):
                self.pages[layer, 0][:, where[0], where[1]] = cache.keys[layer]
                self.pages[layer, 1][:, where[0], where[1]] = cache.values[layer]
            rows |= dict(zip(mine.tolist(), logits, strict=True))
        return np.array([rows[i] for i in batch.wanted.tolist()], np.float32).reshape(-1, self.vocab_size)


class Outcome:
    """All that happened to one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.scores: list[TokenScore | None] = []
        self.prompt_scores: tuple[TokenScore, ...] | None = None
        self.end: Finished | None = None

    def take(self, event: Event) -> None:
        assert self.end is None, "nothing may happen after the end"
        match event:
            case NewToken(_, token, score):
                self.tokens.append(token)
                self.scores.append(score)
            case PromptScored(_, scores):
                self.prompt_scores = scores
            case Finished():
                self.end = event


def run(engine: Engine, requests: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Outcome]:
    """Add all, step until idle."""
    ids = [engine.add(prompt, params) for prompt, params in requests]
    outcomes = {request_id: Outcome() for request_id in ids}
    for _ in range(10_000):
        if engine.idle:
            break
        for event in engine.step():
            outcomes[event.request_id].take(event)
    assert engine.idle, "the engine did not come to an end"
    return [outcomes[request_id] for request_id in ids]
