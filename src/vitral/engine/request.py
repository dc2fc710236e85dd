"""What is asked of the engine, and what it answers: token ids, never text."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vitral.engine.speculative import PromptLookup
from vitral.errors import RequestError, VitralError
from vitral.model.law import F32

if TYPE_CHECKING:
    from vitral.engine.adapters import LoadedAdapter
    from vitral.engine.observe import TapPlan

__all__ = [
    "MOST_LOGPROBS",
    "Event",
    "FinishReason",
    "Finished",
    "NewToken",
    "OnHidden",
    "OnLogits",
    "PromptScored",
    "Request",
    "SamplingParams",
    "State",
    "TokenConstraint",
    "TokenScore",
]

MOST_LOGPROBS = 20  # alternatives reported per token, as in OpenAI's API

FinishReason = Literal["stop", "length", "cancelled", "error"]
OnLogits = Callable[[int, F32], None]
"""Sees the position of a token and the logits (V,) that follow it, unmodified."""
OnHidden = Callable[[int, F32], None]
"""Sees the position of a token and its final hidden state (C,), after the last norm."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when to stop. Checks itself; raises RequestError.

    temperature: 0 takes the most likely token; otherwise logits are divided by it.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the most likely tokens until their probabilities sum to this (0 < p <= 1).
    min_p: drop tokens less likely than this share of the most likely one's probability.
    repetition_penalty: above 1, tokens of prompt and answer become less likely.
    presence_penalty, frequency_penalty: taken off the logits of tokens of the answer, once and
        for each occurrence (-2 to 2).
    logit_bias: token id to a number added to its logit; minus infinity forbids the token.
    seed: 0 to 2^64 - 1; None draws one, which the answer reports.
    max_tokens: the longest answer; None allows what the context leaves. 0 only scores the prompt.
    stop_ids: tokens that end the answer. They count as part of it.
    logprobs: report each token's log-probability and that many alternatives (0 to 20); None does not.
    prompt_logprobs: the same for the tokens of the prompt.

    `sampler.py` says in which order these apply.

    >>> SamplingParams(temperature=0.7, top_p=0.9).top_k
    0
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, 0, None, "0 keeps all tokens")
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise RequestError("top_p is 0; allowed: above 0 up to 1; use temperature 0 for the most likely token")
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias has a token id that", token, 0, None, "ids of the vocabulary")
            if not isinstance(bias, int | float) or math.isnan(bias) or bias == math.inf:
                raise RequestError(f"logit_bias of token {token} is {bias!r}; allowed: a number, or minus infinity")
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**64 - 1, "leave it out to have one drawn")
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 0, None, "leave it out for what the context allows")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0, MOST_LOGPROBS, "leave it out for none")

    @property
    def changes_logits(self) -> bool:
        """Whether bias or penalties have a say, so that the most likely token is not simply the largest logit."""
        return bool(
            self.logit_bias or self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's natural log-probability under the unmodified logits, and the most likely ones', best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class NewToken:
    """A request's answer grew by a token."""

    request_id: int
    token: int
    score: TokenScore | None


@dataclass(frozen=True, slots=True)
class PromptScored:
    """Scores of all prompt tokens but the first, which nothing predicts."""

    request_id: int
    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's end. `error` is set when the reason is "error"; `cached` counts prompt tokens not computed anew.

    `conforms` says whether the answer fulfils the request's constraint; None without one.
    """

    request_id: int
    reason: FinishReason
    cached: int
    error: VitralError | None
    conforms: bool | None = None


Event = NewToken | PromptScored | Finished


class TokenConstraint(Protocol):
    """What one answer may go on with; `vitral.engine.grammar` has the real one. What it raises ends the request."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (V,)."""
        ...

    def take(self, token: int) -> None:
        """The answer goes on with this token, which does not end it."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it must."""
        ...


class State(Enum):
    """Where a request is: waiting for pages, reading its prompt, answering, done."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way through the engine. The scheduler keeps the fields from `pages` on.

    `ids` is the prompt and the answer so far; keys and values exist for the first `computed` of
    them, in `pages`; `keys` are the content keys of the full pages. `client` shares are fair;
    `salt` parts the prefix cache (tenant, adapter, intervention). `on_choice` sees the logits that each
    token of the answer is chosen from; unlike `on_logits` and `on_hidden` it asks for nothing to be
    computed. `seen` counts the positions whose logits were reported, for a request that wants all of them;
    `observed` those whose taps were, for one with a `tap_plan`.
    """

    id: int
    prompt: Sequence[int]
    params: SamplingParams
    max_tokens: int
    client: str = ""
    salt: bytes = b""
    on_logits: OnLogits | None = None
    on_choice: OnLogits | None = None
    on_hidden: OnHidden | None = None
    constraint: TokenConstraint | None = None
    adapter: LoadedAdapter | None = None
    tap_plan: TapPlan | None = None
    seed: int = 0
    ids: list[int] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    seen: int = 0
    observed: int = 0
    finished: FinishReason | None = None
    cached: int | None = None
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    computed: int = 0
    lookup: PromptLookup = field(default_factory=PromptLookup)
    running: bool = False
    served: int = 0

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        self.seed = int.from_bytes(os.urandom(8), "little") if self.params.seed is None else self.params.seed

    @property
    def state(self) -> State:
        if self.finished is not None:
            return State.FINISHED
        if not self.running:
            return State.WAITING
        return State.DECODE if self.missing == 1 and self.answered else State.PREFILL

    @property
    def missing(self) -> int:
        """Tokens whose keys and values are not computed yet."""
        return len(self.ids) - self.computed

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - len(self.prompt)

    @property
    def wants_every_position(self) -> bool:
        """Whether logits of the prompt are asked for, not only those that choose the next token."""
        return (
            self.on_logits is not None
            or self.on_hidden is not None
            or self.params.prompt_logprobs is not None
            or (self.tap_plan is not None and self.tap_plan.watches_every_logit)
        )

    @property
    def watched(self) -> bool:
        """Whether values of the forward pass are asked for."""
        return self.tap_plan is not None and bool(self.tap_plan.watched)

    @property
    def reusable(self) -> int:
        """Tokens whose keys and values may come from the prefix cache: all but the last, up to what must be shown."""
        most = len(self.ids) - 1
        if self.wants_every_position:
            most = min(most, self.seen)
        first = None if self.tap_plan is None else self.tap_plan.first_watched(self.observed)
        return most if first is None else min(most, first)


def _number(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise RequestError(f"{name} is {value!r}; allowed: a number from {least:g} to {most:g}")


def _whole(name: str, value: object, least: int, most: int | None, advice: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"from {least}" if most is None else f"from {least} to {most}"
        raise RequestError(f"{name} is {value!r}; allowed: a whole number {allowed}; {advice}")
