"""One request's way through the engine: admitted, reserved, computed, recorded.

    async with Run(service, caller, model, route, sequences) as run:
        async for piece in run.pieces():
            ...

Pieces of several sequences come as they are certain. The last piece of all comes only when the record is durable.
Whoever leaves early (a client that hangs up, an error) ends the rest within one step; what was made is still recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from vitral.completion import StopStrings
from vitral.engine.interventions import Intervention
from vitral.engine.observe import Watch
from vitral.engine.request import FinishReason, SamplingParams, TokenScore
from vitral.errors import ContextOverflow, RecordStoreError, VitralError
from vitral.serve.access import Caller
from vitral.serve.admission import UNSAID
from vitral.serve.engines import (
    Ability,
    Ask,
    Digest,
    Drawn,
    Ended,
    EngineEvent,
    Hidden,
    Picture,
    Pooling,
    Said,
    Scored,
    Seen,
    Token,
)
from vitral.serve.models import Model
from vitral.serve.records import Generated, new_id
from vitral.serve.service import Service
from vitral.serve.traces import AnswerSpan

log = logging.getLogger("vitral.serve")
DIGESTS_S = 5.0  # that a record waits for those of its last tokens

__all__ = ["Job", "Piece", "Progress", "Run", "salt_of"]


@dataclass(frozen=True, slots=True)
class Job:
    """What shall be computed. `params` have a seed; `continuing` says that the answer goes on from plain text.

    watch, light, interventions, picture: as in `Ask`.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    stops: tuple[str, ...] = ()
    continuing: bool = False
    constraint: str | None = None
    pooling: Pooling | None = None
    watch: tuple[Watch, ...] = ()
    light: int | None = None
    interventions: tuple[Intervention, ...] = ()
    picture: Picture | None = None

    @property
    def is_watched(self) -> bool:
        """Whether readings come with the answer."""
        return bool(self.watch) or self.light is not None


@dataclass(slots=True)
class Piece:  # one for each token: a frozen one takes three times as long to make
    """News of sequence `index`: certain text, and the tokens and scores since the last piece. `finish` is set at its end."""

    index: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    finish: FinishReason | None = None


@dataclass(slots=True)
class Progress:
    """A sequence as it grows."""

    sequence: Job
    decoder: Any
    stops: StopStrings
    number: int | None = None
    tokens: list[int] = field(default_factory=list)
    said: list[str] | None = None  # the answer, from an engine that tells no ids
    made: int | None = None  # how many tokens that has
    digests: list[str] = field(default_factory=list)
    prompt_scores: tuple[TokenScore, ...] | None = None
    hidden: tuple[float, ...] | None = None
    cached: int = 0
    seen: list[Seen] = field(default_factory=list)
    drawn: dict[str, Any] | None = None
    stopped: bool = False  # the text is complete; readings or digests are still to come
    last_text: str = ""  # of an answer that stopped
    ended: bool = False  # the engine sends no more
    finish: FinishReason | None = None
    held: list[int] = field(default_factory=list)  # tokens since the last piece, and their scores
    held_scores: list[TokenScore] = field(default_factory=list)
    has_digests: bool = False  # the engine sends one for each token

    @property
    def lacks_digests(self) -> bool:
        """Whether digests of its tokens are still to come."""
        return self.has_digests and len(self.digests) < len(self.tokens)


class Run:
    """All sequences of one request. After the last piece `progress` holds what each became."""

    def __init__(
        self,
        service: Service,
        caller: Caller,
        model: Model,
        route: str,
        sequences: Sequence[Job],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.record = new_id("rec")
        self.model = model
        self.began = time.perf_counter()
        self.first_token_s: float | None = None
        self._service, self._caller, self._route, self._notes = service, caller, route, dict(notes or {})
        self.progress = [
            Progress(s, model.tokenizer.stream(continuing=s.continuing), StopStrings(s.stops)) for s in sequences
        ]
        self._events: deque[tuple[int, EngineEvent | VitralError]] = deque()  # at most what max_tokens allows
        self._news: asyncio.Future[None] | None = None  # awaited while there are no events
        self._place: AbstractContextManager[None] | None = None
        self._has_model = False
        self._reserved = self._settled = False
        self._open = len(sequences)
        self._n_ids = model.tokenizer.vocab_size
        self._overdue: asyncio.TimerHandle | None = None
        self._trace = service.traces.here() if service.traces is not None else None
        self._span: AnswerSpan | None = None

    @property
    def usage(self) -> tuple[int, int, int]:
        """Tokens of prompts, of those found in the cache, and of answers. A prompt asked n times counts once."""
        distinct = {id(p.sequence.prompt): p for p in self.progress}.values()
        return (
            sum(len(p.sequence.prompt) for p in distinct),
            sum(p.cached for p in distinct),
            sum(self._made(p) for p in self.progress),
        )

    def _made(self, progress: Progress) -> int:
        """Tokens of an answer; of a text whose engine did not count them, those that our tokenizer makes of it."""
        if progress.said is None:
            return len(progress.tokens)
        if progress.made is None:
            return len(self.model.tokenizer.encode("".join(progress.said), add_special=False))
        return progress.made

    async def __aenter__(self) -> Self:
        if self._service.traces is not None and self._trace is not None:
            first = self.progress[0].sequence
            begin, n = self._service.traces.begin, len(self.progress)
            self._span = begin(self._route, self.model.name, self.record, first.params, first.stops, n, self._trace)
        try:
            await self._begin()
        except BaseException as error:
            self._end_span(error)
            raise
        return self

    def _check_abilities(self) -> None:
        """ApiError 400 for what the model's engine cannot do."""
        for s in (progress.sequence for progress in self.progress):
            asked: tuple[tuple[Ability, bool, str], ...] = (
                ("logprobs", s.params.logprobs is not None, "give log-probabilities of the answer (logprobs)"),
                ("prompt_logprobs", s.params.prompt_logprobs is not None, "give log-probabilities of the prompt"),
                ("hidden", s.pooling is not None, "give the hidden state"),
                ("constraints", s.constraint is not None, "hold an answer to a form"),
                (
                    "taps",
                    s.is_watched or bool(s.interventions or s.picture),
                    "look into the forward pass, or change it",
                ),
            )
            for ability, is_asked, for_what in asked:
                if is_asked:
                    self.model.need(ability, for_what)

    async def _begin(self) -> None:
        self._check_abilities()
        worst, likely = 0, 0
        for progress in self.progress:
            most = _most(progress.sequence, self.model.facts.context_length)
            worst += len(progress.sequence.prompt) + most
            unsaid = progress.sequence.params.max_tokens is None
            likely += len(progress.sequence.prompt) + (min(most, UNSAID) if unsaid else most)
        place = self._service.admission.admit(likely, len(self.progress))
        place.__enter__()
        self._place = place
        self._service.runs.add(self)
        limit_s = self._service.limits.answer_s
        too_long = VitralError(f"the answer took longer than the {limit_s:g} s that one may take; ask for less")
        left_s = max(0.0, limit_s - (time.perf_counter() - self.began))
        self._overdue = asyncio.get_running_loop().call_later(left_s, self.stop, too_long)
        try:
            await self.model.place.take()
            self._has_model = True
            self._reserved = True  # also if we are cancelled while it is being written
            try:
                await self._service.records.reserve(self.record, self._caller.tenant, worst)
            except RecordStoreError:
                self._reserved = False
                raise
            digests = "digests" in self.model.facts.can
            self.model.still_served()
            for index, progress in enumerate(self.progress):
                s, progress.has_digests = progress.sequence, digests
                ask = Ask(
                    prompt=s.prompt,
                    params=s.params,
                    client=self._caller.tenant,
                    salt=salt_of(self._caller.tenant),
                    digests=digests,
                    constraint=s.constraint,
                    pooling=s.pooling,
                    adapter=self.model.adapter,
                    watch=s.watch,
                    light=s.light,
                    interventions=s.interventions,
                    picture=s.picture,
                )
                progress.number = self.model.engine.submit(ask, partial(self._hear, index))
        except BaseException:
            await self._end()
            raise

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            await self._end()
        finally:
            self._end_span(error)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Everything that happens, until all sequences have ended. Raises what ended one with an error."""
        while self._open:
            index, event = await self._next()
            progress = self.progress[index]
            if progress.finish is not None:
                continue  # came while its cancellation was on the way
            piece = self._take(index, progress, event)
            if piece.finish is not None:
                self._open -= 1
                if not self._open:
                    self._release_model()  # a slow reader does not hold it
                    await self._service.keep(self._settle())
            if piece.tokens or piece.text or piece.finish is not None:
                yield piece

    async def finish(self) -> None:
        """Read to the end."""
        async for _ in self.pieces():
            pass

    def stop(self, error: VitralError) -> None:
        """End what still runs with this error."""
        for index, progress in enumerate(self.progress):
            if progress.finish is None:
                self._cancel(progress)
                self._hear(index, error)

    async def _next(self) -> tuple[int, EngineEvent | VitralError]:
        while not self._events:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return self._events.popleft()

    def _hear(self, index: int, event: EngineEvent | VitralError) -> None:
        if isinstance(event, Digest):
            progress = self.progress[index]
            progress.digests.append(event.digest)
            if not (progress.stopped or self._settled):
                return  # nobody waits for it
        self._events.append((index, event))
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _take(self, index: int, progress: Progress, event: EngineEvent | VitralError) -> Piece:
        match event:
            case VitralError():
                progress.finish = "error"
                raise event
            case Token(token, score):
                return self._token(index, progress, token, score)
            case Digest():
                if progress.stopped and not progress.sequence.is_watched and not progress.lacks_digests:
                    progress.finish = "stop"
                    return self._piece(index, progress, progress.last_text, "stop")
            case Said(text):
                return self._text(index, progress, text)
            case Scored(scores):
                progress.prompt_scores = scores
            case Hidden(vector):
                progress.hidden = vector
            case Seen():
                progress.seen.append(event)
            case Drawn(content):
                progress.drawn = content
            case Ended(reason, cached, error, made):
                progress.cached, progress.made, progress.ended = cached, made, True
                progress.finish = "stop" if progress.stopped else reason
                if error is not None:
                    raise error
                if progress.stopped:
                    return self._piece(index, progress, progress.last_text, "stop")
                text = progress.stops.push(progress.decoder.finish()) + progress.stops.finish()
                return self._piece(index, progress, text, reason)
        return Piece(index)

    def _text(self, index: int, progress: Progress, text: str) -> Piece:
        self._note_first()
        progress.said = progress.said or []
        progress.said.append(text)
        certain = progress.stops.push(text)
        if progress.stops.stopped:
            progress.finish = "stop"
            self._cancel(progress)
            return self._piece(index, progress, certain, "stop")
        return self._piece(index, progress, certain, None) if certain else Piece(index)

    def _note_first(self) -> None:
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.began
            self._service.metrics.first_token.observe(self.first_token_s)

    def _token(self, index: int, progress: Progress, token: int, score: TokenScore | None) -> Piece:
        self._note_first()
        if progress.stopped:
            return Piece(index)  # came while its cancellation was on the way
        progress.tokens.append(token)
        progress.held.append(token)
        if score is not None:
            progress.held_scores.append(score)
        if token in progress.sequence.params.stop_ids:
            return Piece(index)  # the end follows
        known = token < self._n_ids  # an embedding may have more rows than there are ids
        text = progress.stops.push(progress.decoder.push(token) if known else "\ufffd")
        if progress.stops.stopped:
            self._cancel(progress)
            if progress.sequence.is_watched:
                progress.stopped = True
                return self._piece(index, progress, text, None)
            if progress.lacks_digests:
                progress.stopped, progress.last_text = True, text
                return Piece(index)
            progress.finish = "stop"
            return self._piece(index, progress, text, "stop")
        return self._piece(index, progress, text, None) if text else Piece(index)

    def _piece(self, index: int, progress: Progress, text: str, finish: FinishReason | None) -> Piece:
        piece = Piece(index, text, tuple(progress.held), tuple(progress.held_scores), finish)
        progress.held.clear()
        progress.held_scores.clear()
        return piece

    def _cancel(self, progress: Progress) -> None:
        if progress.number is not None:
            self.model.engine.cancel(progress.number)
            progress.number = None

    async def _settle(self) -> None:
        """Write the record; also when the request was cut short."""
        if self._settled or not self._reserved:
            return
        self._settled = True
        await self._hear_digests()
        facts = {
            "route": self._route,
            "model": dict(self.model.identity()),
            **self._notes,
        }
        if "replay" not in self.model.facts.can:
            facts["not_replayable"] = "its engine tells neither ids nor logits of what it answered"
        if changes := self.progress[0].sequence.interventions:
            facts["interventions"] = self._service.records.changes(changes)
        sequences = [
            Generated(
                p.sequence.prompt,
                p.sequence.params,
                tuple(p.tokens),
                tuple(p.digests[: len(p.tokens)]),
                p.finish or "cancelled",
                p.cached,
                p.sequence.constraint,
                None if p.said is None else ("".join(p.said), self._made(p)),
            )
            for p in self.progress
        ]
        await self._service.records.settle(self.record, self._caller.tenant, self.model.name, facts, sequences)
        self._service.metrics.count(self.model.name, self.usage, time.perf_counter() - self.began)

    async def _hear_digests(self) -> None:
        """Wait for those of the tokens that have come, usually less than a step. If they do not come, because the engine
        died or stands still, the record ends before: it says no more than can be replayed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DIGESTS_S):
                while any(progress.lacks_digests and not progress.ended for progress in self.progress):
                    index, event = await self._next()
                    self.progress[index].ended |= isinstance(event, Ended)
        for progress in self.progress:
            if progress.lacks_digests:
                lost = len(progress.tokens) - len(progress.digests)
                log.warning(
                    "record %s ends %d tokens early: the engine gave no digest of their logits", self.record, lost
                )
                del progress.tokens[len(progress.digests) :]

    async def _end(self) -> None:
        """Stop what still runs, record what there is, give the place back; also while being cancelled."""
        for progress in self.progress:
            if progress.finish is None:
                self._cancel(progress)
        self._release_model()
        self._service.runs.discard(self)
        if self._overdue is not None:
            self._overdue.cancel()
        if self._place is not None:
            self._place.__exit__(None, None, None)
            self._place = None
        if self._reserved and not self._settled:
            await self._service.keep(self._settle())

    def _end_span(self, error: BaseException | None) -> None:
        if self._span is not None:
            left = isinstance(error, asyncio.CancelledError | GeneratorExit)  # the client went: no failure of ours
            finish = [progress.finish or "cancelled" for progress in self.progress]
            self._span.end(self.model.name, self.usage, finish, self.first_token_s, None if left else error)

    def _release_model(self) -> None:
        if self._has_model:
            self._has_model = False
            self.model.place.release()


def salt_of(tenant: str) -> bytes:
    """Parts the prefix cache: nobody finds, or times, what another tenant's prompts left there."""
    return hashlib.sha256(b"tenant\0" + tenant.encode()).digest()


def _most(sequence: Job, context_length: int) -> int:
    """The longest answer; ContextOverflow with the counts if it does not fit."""
    n, asked = len(sequence.prompt), sequence.params.max_tokens
    left = context_length - n
    if left < 0 or (asked is None and left < 1):
        raise ContextOverflow(
            f"the prompt has {n} tokens; the context holds {context_length}, the answer included: shorten the prompt"
        )
    if asked is not None and asked > left:
        raise ContextOverflow(
            f"prompt ({n} tokens) and answer (at most {asked}) need {n + asked}; the context holds {context_length}: "
            f"ask for at most {left} or shorten the prompt"
        )
    return left if asked is None else asked
