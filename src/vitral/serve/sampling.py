"""The parameters that OpenAI's generating routes share, and what they mean for the engine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from vitral.engine.request import SamplingParams
from vitral.errors import RequestError
from vitral.serve.body import Body
from vitral.serve.glass import GlassBody
from vitral.serve.models import Model

__all__ = ["Metadata", "SamplingBody", "Seed", "Stop", "StreamOptions", "logit_bias", "seeds"]

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class StreamOptions(Body):
    """`include_usage` sends one more chunk with the counts."""

    include_usage: bool = False


class SamplingBody(GlassBody):
    """temperature, top_p, penalties, logit_bias, seed and stop as OpenAI has them; top_k, min_p and
    repetition_penalty as vLLM and llama.cpp have them."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def params(
        self, model: Model, seed: int, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """For the engine. Temperature is 1 unless said, as in OpenAI's API."""
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=logit_bias(self.logit_bias or {}, model),
            seed=seed,
            max_tokens=max_tokens,
            stop_ids=model.tokenizer.eos_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def seeds(seed: int | None, n: int) -> list[int]:
    """One for each of n answers: the given one counted up, modulo 2^64, or drawn ones.

    >>> seeds(-1, 2) == [2**64 - 1, 0]
    True
    """
    if seed is None:
        return [secrets.randbits(64) for _ in range(n)]
    return [(seed + i) % 2**64 for i in range(n)]


def logit_bias(given: Mapping[str, float], model: Model) -> dict[int, float]:
    """Token ids to numbers; RequestError for a key that is no id of the model."""
    found: dict[int, float] = {}
    for key, bias in given.items():
        if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= model.facts.vocab_size:
            raise RequestError(
                f"logit_bias has the key {key[:40]!r}; allowed: token ids from 0 to {model.facts.vocab_size - 1}"
            )
        found[int(key)] = bias
    return found


def notes(body: Any) -> dict[str, Any]:
    """What a client claims about itself, for the record."""
    return {
        f"claimed_{name}": value for name in ("user", "metadata") if (value := getattr(body, name, None)) is not None
    }
