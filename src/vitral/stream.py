"""An answer as it is written: pieces of text and of tool calls, and all of it in the end."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from vitral.completion import Completion, StopStrings, Timings, Usage
from vitral.engine.adapters import LoadedAdapter
from vitral.engine.engine import Engine
from vitral.engine.request import (
    Event,
    Finished,
    FinishReason,
    NewToken,
    PromptScored,
    SamplingParams,
    TokenScore,
)
from vitral.engine.tool_parser import Delta, TextDelta, ToolParser
from vitral.errors import RequestError
from vitral.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # most answers have neither constraint nor tools
    from vitral.engine.grammar import Matcher
    from vitral.engine.tools import CallFormat

__all__ = ["Stream"]


class Stream(Iterator[str]):
    """Pieces of an answer's text. Closing it early, or leaving its `with`, cancels the rest."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt: list[int],
        params: SamplingParams,
        stops: StopStrings,
        matcher: Matcher | None,
        *,
        continuing: bool,
        call_format: CallFormat | None = None,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        self._began = time.perf_counter()
        self._answer = engine.answer(prompt, params, constraint=matcher, adapter=adapter)
        self._decoder = tokenizer.stream(continuing=continuing)
        self._vocab_size = tokenizer.vocab_size
        self._stops = stops
        self._prompt, self._params = prompt, params
        self._text = ""
        self._waiting: deque[Delta] = deque()
        self._tokens: list[int] = []
        self._scores: list[TokenScore] = []
        self._prompt_scores: tuple[TokenScore, ...] | None = None
        self._first_token_s: float | None = None
        self._tools: ToolParser | None = None
        if call_format is not None:
            from vitral.engine.tools import call_id

            self._tools = ToolParser(call_format, functools.partial(call_id, call_format, prompt, self._answer.seed))
        self._conforms: bool | None = None if matcher is None else False
        self._completion: Completion | None = None

    @property
    def seed(self) -> int:
        """The seed in use, drawn if none was given."""
        return self._answer.seed

    @property
    def completion(self) -> Completion:
        """All of the answer; RequestError before its end."""
        if self._completion is None:
            raise RequestError("the answer has not ended; read the stream to its end or close it first")
        return self._completion

    def close(self) -> None:
        """End the answer here; `completion` then says "cancelled". Does nothing after the end."""
        if self._completion is None:
            self._end("cancelled")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        for delta in self.deltas():
            if isinstance(delta, TextDelta):
                return delta.text
        raise StopIteration

    def deltas(self) -> Iterator[Delta]:
        """The answer in pieces as iteration gives it, and the pieces of tool calls among them."""
        while self._waiting or self._completion is None:
            if self._waiting:
                yield self._waiting.popleft()
                continue
            try:
                self._waiting.extend(self._take(next(self._answer)))
            except BaseException:
                self.close()
                raise

    def _take(self, event: Event) -> list[Delta]:
        piece = ""
        ended: FinishReason | None = None
        match event:
            case PromptScored(_, scores):
                self._prompt_scores = scores
            case NewToken(_, token, score):
                piece = self._token(token, score)
            case Finished(_, reason, _, error, conforms):
                if error is not None:
                    raise error
                self._conforms = conforms
                piece = self._stops.push(self._decoder.finish()) + self._stops.finish()
                ended = reason
        if self._stops.stopped:
            ended = "stop"
            self._conforms = None if self._conforms is None else False  # the text was cut
        deltas: list[Delta] = [TextDelta(piece)] if piece else []
        if self._tools is not None:
            deltas = self._tools.push(piece) + (self._tools.finish() if ended is not None else [])
        self._text += "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
        if ended is not None:
            self._end(ended)
        return deltas

    def _token(self, token: int, score: TokenScore | None) -> str:
        if self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._began
        self._tokens.append(token)
        if score is not None:
            self._scores.append(score)
        if token in self._params.stop_ids:
            return ""
        # An embedding may have more rows than the tokenizer has ids; they stand for no text.
        return self._stops.push(self._decoder.push(token) if token < self._vocab_size else "\ufffd")

    def _end(self, reason: FinishReason) -> None:
        self._answer.close()
        self._completion = Completion(
            text=self._text,
            token_ids=tuple(self._tokens),
            prompt_ids=tuple(self._prompt),
            logprobs=None if self._params.logprobs is None else tuple(self._scores),
            prompt_logprobs=self._prompt_scores,
            finish_reason=reason,
            seed=self.seed,
            params=self._params,
            usage=Usage(len(self._prompt), self._answer.cached, len(self._tokens)),
            timings=Timings(self._first_token_s, time.perf_counter() - self._began),
            conforms=self._conforms,
            tool_calls=() if self._tools is None else tuple(self._tools.calls),
        )
