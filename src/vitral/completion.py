"""What a generation gives: text, ids, scores, counts; and stop strings, which never leak a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitral.engine.request import FinishReason, SamplingParams, TokenScore
from vitral.errors import RequestError

if TYPE_CHECKING:
    from vitral.engine.tool_parser import ToolCall

__all__ = ["Completion", "Perplexity", "StopStrings", "Timings", "Usage"]

_MOST_STOPS = 64
_LONGEST_STOP = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of prompt and answer; `cached` prompt tokens were found and not computed."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds from the request to its first token (None if there was none) and to its end."""

    first_token_s: float | None
    total_s: float


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    text: what was generated, without prompt, stop string and stop token.
    token_ids: what was generated, the stop token included. prompt_ids: what the model read.
    logprobs: one entry for each of token_ids, or None if not asked for. prompt_logprobs: one for each
        of prompt_ids but the first.
    finish_reason: "stop" (a stop token or string), "length" (max_tokens or the context) or "cancelled".
    conforms: whether the text fulfils the constraint; None without one. False where max_tokens, the
        context or a stop string cut it short.
    tool_calls: the calls of tools in order; the last one's arguments are cut where the answer was.
    seed: the one in use, drawn if none was given; with `params` and `prompt_ids` it gives the same answer.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    logprobs: tuple[TokenScore, ...] | None
    prompt_logprobs: tuple[TokenScore, ...] | None
    finish_reason: FinishReason
    seed: int
    params: SamplingParams
    usage: Usage
    timings: Timings
    conforms: bool | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a text is predicted: exp(mean negative log-likelihood) over the `tokens` that were scored."""

    value: float
    mean_nll: float
    tokens: int
    windows: int


class StopStrings:
    """Passes text on, ends before the first stop string, and never lets a part of one through.

    The first to be complete wins, reading character by character; of those that end at the same
    place the longest. So the result does not depend on how the text is cut into tokens.

    >>> stops = StopStrings(["END"])
    >>> stops.push("a E"), stops.push("N"), stops.push("X E"), stops.finish()
    ('a ', '', 'ENX ', 'E')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > _MOST_STOPS:
            raise RequestError(f"stop has {len(stops)} strings; allowed: at most {_MOST_STOPS}")
        for stop in stops:
            if not isinstance(stop, str) or not 1 <= len(stop) <= _LONGEST_STOP:
                raise RequestError(f"stop has {stop!r}; allowed: strings of 1 to {_LONGEST_STOP} characters")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        self.found: str | None = None  # the stop string that was met

    def push(self, text: str) -> str:
        """The part of the text so far that is certain not to belong to a stop string. Nothing after a stop."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            end, start = min(ends)
            self.found = text[start:end]
            return text[:start]
        held = max((self._begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back: the text ended, so it was not a stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How many characters at the end of the text are the beginning of the stop string."""
        for n in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:n]):
                return n
        return 0
