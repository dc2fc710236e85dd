"""Many requests at once, token ids in, token ids out.

    engine = Engine(forward, context_length=4096)
    with engine.answer([1, 2, 3], SamplingParams(max_tokens=16)) as answer:
        for event in answer:
            ...

A request's tokens depend on its own prompt, parameters and seed, never on what else runs: the model
computes rows by the numeric law, the scheduler only decides when. Any thread may ask; whichever
thread waits for an event computes the next step for all.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vitral.engine import sampler
from vitral.engine.blocks import PageAllocator
from vitral.engine.forward import Batch, Forward, ShowsTaps, assemble
from vitral.engine.prefix import PrefixCache
from vitral.engine.request import (
    Event,
    Finished,
    FinishReason,
    NewToken,
    OnHidden,
    OnLogits,
    PromptScored,
    Request,
    SamplingParams,
    TokenConstraint,
)
from vitral.engine.scheduler import Chunk, Scheduler
from vitral.errors import ContextOverflow, RequestError, SettingsError, VitralError
from vitral.model.law import F32

if TYPE_CHECKING:
    from vitral.engine.adapters import LoadedAdapter
    from vitral.engine.interventions import Intervention
    from vitral.engine.observe import OnValue, StepTaps, TapPlan, Watch

__all__ = ["Answer", "Engine"]

Array = NDArray[Any]
_HIDDEN = "unembed.hook_in"


class Answer:
    """The events of one request as they come, up to its Finished. Closing it early cancels the request.

    `seed` is the one in use, drawn if none was given.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request_id = request.id
        self.seed = request.seed
        self._engine = engine
        self._request = request
        self._ended = False

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were found in the prefix cache."""
        return self._request.cached or 0

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        event = self._engine._next_event(self.request_id)
        if isinstance(event, Finished):
            self.close()
        return event

    def close(self) -> None:
        """Cancel what is not finished. May be called again."""
        if not self._ended:
            self._ended = True
            self._engine._hang_up(self.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine:
    """Runs requests on one model, many a step.

    context_length: the most tokens of prompt and answer together.
    step_tokens: the most tokens of a step; most_running: the most requests that share a step.
    prefix_cache: whether full pages are found again by content.
    speculation: whether answers may guess ahead (`speculative.py`); it changes speed, never a token.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        context_length: int,
        step_tokens: int = 512,
        most_running: int = 64,
        prefix_cache: bool = True,
        speculation: bool = True,
    ) -> None:
        room = forward.n_pages * forward.page_size
        if context_length > room:
            raise SettingsError(f"context_length is {context_length}; the cache holds {room} tokens: make it larger")
        self.context_length = context_length
        self._forward = forward
        cache = PrefixCache(PageAllocator(forward.n_pages), forward.page_size, enabled=prefix_cache)
        self._scheduler = Scheduler(
            cache, step_tokens=step_tokens, most_running=most_running, logit_rows=128, speculation=speculation
        )
        self._requests: dict[int, Request] = {}
        self._next_id = 0
        self._arrived: deque[Request] = deque()
        self._cancelled: set[int] = set()
        self._mail: dict[int, deque[Event]] = {}
        self._intake_lock = threading.Lock()  # guards the five fields above
        self._step_lock = threading.Lock()  # held by the thread that computes

    @property
    def forward(self) -> Forward:
        """The model that computes."""
        return self._forward

    @property
    def idle(self) -> bool:
        """Nothing is left to compute."""
        with self._intake_lock:
            return not self._requests

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        client: str = "",
        salt: bytes = b"",
        on_logits: OnLogits | None = None,
        on_choice: OnLogits | None = None,
        on_hidden: OnHidden | None = None,
        constraint: TokenConstraint | None = None,
        adapter: LoadedAdapter | None = None,
        watch: Sequence[Watch] = (),
        on_value: OnValue | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> int:
        """Queue a request and return its id.

        `client` shares the machine fairly with other clients. `salt` parts the prefix cache: only
        requests of equal salt find each other's pages. `on_logits` sees the logits of every position,
        `on_choice` only those that a token of the answer is chosen from, `on_hidden` every position's final
        hidden state.
        `constraint` is asked for each token which ones are allowed; it belongs to this request alone. `adapter` is one of those loaded.
        `on_value` sees the values of the forward pass that `watch` asks for, `interventions` change them, for this
        request alone. A watched request does not guess ahead; requests share pages if their interventions are equal.

        Raises RequestError for a prompt or parameters that cannot be served, ContextOverflow with the
        counts if prompt and answer do not fit.
        """
        plan, salt = self._tap_plan(watch, on_value, interventions, salt)
        return self._new(
            prompt, params, client, salt, (on_logits, on_choice, on_hidden), constraint, adapter, plan, mail=False
        ).id

    def answer(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        client: str = "",
        salt: bytes = b"",
        on_logits: OnLogits | None = None,
        on_choice: OnLogits | None = None,
        on_hidden: OnHidden | None = None,
        constraint: TokenConstraint | None = None,
        adapter: LoadedAdapter | None = None,
        watch: Sequence[Watch] = (),
        on_value: OnValue | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> Answer:
        """Like `add`, but the events go to the Answer returned; whoever reads it computes the steps."""
        plan, salt = self._tap_plan(watch, on_value, interventions, salt)
        watchers = (on_logits, on_choice, on_hidden)
        return Answer(self, self._new(prompt, params, client, salt, watchers, constraint, adapter, plan, mail=True))

    def _tap_plan(
        self, watch: Sequence[Watch], on_value: OnValue | None, interventions: Sequence[Intervention], salt: bytes
    ) -> tuple[TapPlan | None, bytes]:
        """What a request shows and changes, and its salt: keys and values under interventions are other ones."""
        if not watch and not interventions and on_value is None:
            return None, salt
        if not isinstance(self._forward, ShowsTaps):
            raise RequestError("this model shows no values: it is not the native one")
        from vitral.engine.interventions import digest  # only who looks inside needs them
        from vitral.engine.observe import TapPlan

        plan = TapPlan.of(self._forward.spec, watch, interventions, on_value)
        if interventions:
            salt = hashlib.sha256(salt + b"\0interventions\0" + digest(interventions).encode()).digest()
        return plan, salt

    def _new(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        client: str,
        salt: bytes,
        watchers: tuple[OnLogits | None, OnLogits | None, OnHidden | None],
        constraint: TokenConstraint | None,
        adapter: LoadedAdapter | None,
        plan: TapPlan | None,
        *,
        mail: bool,
    ) -> Request:
        most = self._fit(prompt, params)
        if adapter is not None and plan is not None and plan.replaces_results:
            raise RequestError(
                "hook_result is what W_O alone makes of z, and an adapter adds to it; replace hook_z or hook_attn_out"
            )
        if adapter is not None:
            salt = adapter.salt(salt)
        with self._intake_lock:
            request = Request(
                self._next_id, list(prompt), params, most, client, salt, *watchers, constraint, adapter, plan
            )
            self._next_id += 1
            self._requests[request.id] = request
            self._arrived.append(request)
            if mail:
                self._mail[request.id] = deque()
        return request

    def uses_adapter(self, number: int) -> bool:
        """Whether a request with this adapter has not ended."""
        with self._intake_lock:
            requests = list(self._requests.values())
        return any(request.adapter is not None and request.adapter.number == number for request in requests)

    def cancel(self, request_id: int) -> None:
        """End a request at the next step, before anything more is computed for it. Late calls do nothing."""
        with self._intake_lock:
            if request_id in self._requests:
                self._cancelled.add(request_id)

    def step(self) -> list[Event]:
        """Compute one step and return what happened, in order. Nothing to do gives an empty list."""
        with self._step_lock:
            events = self._step()
            self._deliver(events)
            return events

    def _next_event(self, request_id: int) -> Event:
        mail = self._mail[request_id]
        while True:
            with self._step_lock:  # whoever had it before may have brought our event
                if not mail:
                    self._deliver(self._step())
                if mail:
                    return mail.popleft()

    def _deliver(self, events: list[Event]) -> None:
        with self._intake_lock:
            for event in events:
                if event.request_id in self._mail:
                    self._mail[event.request_id].append(event)

    def _hang_up(self, request_id: int) -> None:
        self.cancel(request_id)
        with self._intake_lock:
            del self._mail[request_id]

    def _step(self) -> list[Event]:
        events = self._intake()
        chunks = self._scheduler.plan()
        if chunks:
            events += self._compute(chunks)
        return events

    def _fit(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """Check a request against model and context; the most tokens of its answer."""
        if not prompt:
            raise RequestError("the prompt has no tokens; at least one is needed, such as the beginning-of-text token")
        vocab = self._forward.vocab_size
        for token in (*prompt, *params.logit_bias):
            if not isinstance(token, int | np.integer) or not 0 <= token < vocab:
                raise RequestError(f"token id {token!r} does not exist; allowed: 0 to {vocab - 1}")
        left = self.context_length - len(prompt)
        if (params.max_tokens is None and left < 1) or left < 0:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens; the context holds {self.context_length}, the answer included: "
                "shorten the prompt or load the model with a larger context_length"
            )
        if params.max_tokens is None:
            return left
        if params.max_tokens > left:
            raise ContextOverflow(
                f"prompt ({len(prompt)} tokens) and answer (max_tokens {params.max_tokens}) need "
                f"{len(prompt) + params.max_tokens}; the context holds {self.context_length}: "
                f"ask for at most {left} or load the model with a larger context_length"
            )
        return params.max_tokens

    def _intake(self) -> list[Event]:
        with self._intake_lock:
            arrived, self._arrived = self._arrived, deque()
            cancelled, self._cancelled = self._cancelled, set()
        events: list[Event] = []
        for request in arrived:
            self._scheduler.add(request)
        for request_id in sorted(cancelled):
            if request_id in self._requests:
                events.append(self._finish(self._requests[request_id], "cancelled"))
        for request in arrived:
            shown = request.wants_every_position or request.watched
            if request.finished is None and request.max_tokens == 0 and not shown:
                events.append(self._finish(request, "length"))
        return events

    def _compute(self, chunks: list[Chunk]) -> list[Event]:
        """One pass for all chunks. If it fails, each chunk alone and without guesses: the bits are the same and the fault is found."""
        try:
            logits, taps = self._pass(chunks, assemble(chunks))
        except Exception as error:  # noqa: BLE001 - a fault ends the request that causes it, not the others
            if len(chunks) > 1 or chunks[0].guess:
                return [event for chunk in chunks for event in self._compute([chunk.certain()])]
            return [self._finish(chunks[0].request, "error", _typed(error, "the model failed"))]
        largest = np.argmax(logits, axis=-1)  # (R,)
        events: list[Event] = []
        row = 0
        for number, chunk in enumerate(chunks):
            n = len(chunk.wanted)
            try:
                if taps is not None:
                    taps.deliver(number)
                    chunk.request.observed = max(chunk.request.observed, chunk.end - len(chunk.guess))
                for event in self._take(chunk, logits[row : row + n], largest[row : row + n].tolist()):
                    events.append(event)  # noqa: PERF402 - one by one: what came before a fault has happened
            except Exception as error:  # noqa: BLE001 - likewise
                events.append(self._finish(chunk.request, "error", _typed(error, "the request failed")))
            row += n
        return events

    def _pass(self, chunks: list[Chunk], batch: Batch) -> tuple[F32, StepTaps | None]:
        """Logits (R, V) of the wanted tokens, and the taps if a request has any."""
        wants_hidden = any(chunk.request.on_hidden is not None for chunk in chunks)
        if any(chunk.request.tap_plan is not None for chunk in chunks):
            assert isinstance(self._forward, ShowsTaps), "no request has a tap plan without it"
            from vitral.engine.observe import StepTaps

            taps = StepTaps(chunks, self._forward.head_result)
            hidden: list[F32] = []

            def on_tap(name: str, value: Array, sequence: int) -> None:
                taps.on_tap(name, value, sequence)
                if wants_hidden and name == _HIDDEN:
                    hidden.append(np.array(value, np.float32))

            names = taps.names | ({_HIDDEN} if wants_hidden else set())
            logits = self._forward.with_taps(batch, names, on_tap, taps.attention_of, later=not taps.changes)
            for rows in hidden:
                _show_hidden(chunks, rows)
            return logits, taps
        if wants_hidden:
            logits, rows = self._forward.with_hidden(batch)
            _show_hidden(chunks, rows)
            return logits, None
        return self._forward(batch), None

    def _take(self, chunk: Chunk, logits: F32, largest: list[int]) -> Iterator[Event]:
        """What a chunk's logits (n, V) mean for its request. What it raises ends the request alone."""
        request, params = chunk.request, chunk.request.params
        if chunk.guess:
            yield from self._verify(chunk, logits, largest)
            return
        for position, row, top in zip(chunk.wanted, logits, largest, strict=True):
            _check(row, top, position)
            if request.on_logits is not None:
                request.on_logits(position, row)
            if params.prompt_logprobs is not None and position + 1 < len(request.prompt):
                token = request.ids[position + 1]
                request.prompt_scores.append(sampler.score(row, top, token, params.prompt_logprobs))
            request.seen = position + 1
        self._scheduler.advance(chunk)
        if chunk.end < len(request.ids):
            return
        if request.answered == 0 and params.prompt_logprobs is not None:
            yield PromptScored(request.id, tuple(request.prompt_scores))
        if request.max_tokens == 0:
            yield self._finish(request, "length")
        else:
            yield from self._answer(request, logits[-1], largest[-1])

    def _verify(self, chunk: Chunk, logits: F32, largest: list[int]) -> Iterator[Event]:
        """Answer from one row after another, as long as the guess says what is chosen."""
        request = chunk.request
        won = 0
        for row, top, guessed in zip(logits, largest, [*chunk.guess, None], strict=True):
            _check(row, top, request.computed)
            self._scheduler.advance(Chunk(request, request.computed, 1))
            yield from self._answer(request, row, top)
            if request.finished is not None or request.ids[-1] != guessed:
                break
            won += 1
        request.lookup.learn(won, len(request.ids))

    def _answer(self, request: Request, logits: F32, largest: int) -> Iterator[Event]:
        """The next token of an answer, from the logits (V,) after its newest one."""
        params = request.params
        if request.on_choice is not None:
            request.on_choice(len(request.ids) - 1, logits)
        token = sampler.choose(request, logits, largest)
        score = None if params.logprobs is None else sampler.score(logits, largest, token, params.logprobs)
        request.ids.append(token)
        request.counts[token] = request.counts.get(token, 0) + 1
        yield NewToken(request.id, token, score)
        if request.constraint is not None and token not in params.stop_ids:
            request.constraint.take(token)
        if token in params.stop_ids or (request.constraint is not None and request.constraint.ended):
            yield self._finish(request, "stop")
        elif request.answered == request.max_tokens:
            yield self._finish(request, "length")

    def _finish(self, request: Request, reason: FinishReason, error: VitralError | None = None) -> Finished:
        request.finished = reason
        self._scheduler.remove(request)
        with self._intake_lock:
            del self._requests[request.id]
        conforms = None if request.constraint is None else reason != "error" and request.constraint.complete
        return Finished(request.id, reason, request.cached or 0, error, conforms)


def _check(logits: F32, largest: int, position: int) -> None:
    error = sampler.not_finite(logits, largest, position)
    if error is not None:
        raise error


def _show_hidden(chunks: list[Chunk], hidden: F32) -> None:
    """Hand the rows (R, C) of the wanted positions to the requests that asked for them."""
    row = 0
    for chunk in chunks:
        for position in chunk.wanted:
            if chunk.request.on_hidden is not None:
                chunk.request.on_hidden(position, hidden[row])
            row += 1


def _typed(error: Exception, what: str) -> VitralError:
    """The error as one of ours, so that whoever asked can tell it from a bug in their own code."""
    if isinstance(error, VitralError):
        return error
    typed = VitralError(f"{what}: {type(error).__name__}: {error}")
    typed.__cause__ = error
    return typed
