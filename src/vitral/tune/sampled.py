"""One answer to each of many prompts at once, from our own engine, with the log-probability of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitral.engine.engine import Engine
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import ContextOverflow
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["Sampled", "sample"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer: its ids, end token included, and the log-probability of each when it was chosen."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]


def sample(
    engine: Engine, prompts: Sequence[tuple[int, ...]], tokenizer: Tokenizer, most: int, first_seed: int
) -> list[Sampled]:
    """One answer to each prompt at temperature 1, all at once; the answer n has the seed `first_seed + n`."""
    ids: list[int] = []
    for n, prompt in enumerate(prompts):
        if len(prompt) + most > engine.context_length:
            raise ContextOverflow(
                f"a question of {len(prompt)} tokens and an answer of {most} do not fit the context of {engine.context_length}: "
                "raise data.context or lower method.answer_tokens"
            )
        params = SamplingParams(
            temperature=1.0, seed=first_seed + n, max_tokens=most, stop_ids=tokenizer.eos_ids, logprobs=0
        )
        ids.append(engine.add(prompt, params))
    answers: dict[int, list[tuple[int, float]]] = {id: [] for id in ids}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, NewToken):
                assert event.score is not None, "asked for by logprobs"
                answers[event.request_id].append((event.token, event.score.logprob))
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    return [
        Sampled(prompt, tuple(token for token, _ in answers[id]), tuple(logprob for _, logprob in answers[id]))
        for id, prompt in zip(ids, prompts, strict=True)
    ]
