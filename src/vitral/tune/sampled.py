"""One answer to each of many prompts at once, from our own engine, with the log-probability of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.engine.engine import Engine
from vitral.engine.forward import ShowsTaps
from vitral.engine.observe import Watch
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import ContextOverflow
from vitral.model.spec import ModelSpec
from vitral.tokenizer.tokenizer import Tokenizer

__all__ = ["Sampled", "sample"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer: its ids, end token included, and the log-probability of each when it was chosen.

    routes (T, M, k) int32: which experts each of the T tokens of prompt and answer was sent to, best first, in each
    of the M layers that have some; -1 for the last token, which nobody read. None where they were not asked for.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]
    routes: NDArray[np.int32] | None = None


def sample(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    tokenizer: Tokenizer,
    most: int,
    first_seed: int,
    routes: bool = False,
) -> list[Sampled]:
    """One answer to each prompt at temperature 1, all at once; the answer n has the seed `first_seed + n`.

    `routes` keeps the expert choices; a dense model has none.
    """
    spec = engine.forward.spec if routes and isinstance(engine.forward, ShowsTaps) else None
    seen = [_Routes(spec, len(prompt) + most) for prompt in prompts] if spec is not None and spec.moe else []
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
        watch, on_value = ([_CHOICES], seen[n].take) if seen else ([], None)
        ids.append(engine.add(prompt, params, watch=watch, on_value=on_value))
    answers: dict[int, list[tuple[int, float]]] = {id: [] for id in ids}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, NewToken):
                assert event.score is not None, "asked for by logprobs"
                answers[event.request_id].append((event.token, event.score.logprob))
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    found = []
    for n, (id, prompt) in enumerate(zip(ids, prompts, strict=True)):
        tokens, logprobs = tuple(t for t, _ in answers[id]), tuple(logprob for _, logprob in answers[id])
        kept = seen[n].chosen[: len(prompt) + len(tokens)] if seen else None
        found.append(Sampled(prompt, tokens, logprobs, kept))
    return found


_CHOICES = Watch(("blocks.*.mlp.hook_expert_indices",))


class _Routes:
    """The expert choices of one request, (n, M, k) for n tokens at the most; -1 where none was seen."""

    def __init__(self, spec: ModelSpec, n: int) -> None:
        assert spec.moe is not None, "only a mixture routes"
        self._first = spec.mixture_layers.start
        self.chosen = np.full((n, len(spec.mixture_layers), spec.moe.n_experts_per_token), -1, np.int32)

    def take(self, name: str, positions: NDArray[np.int64], rows: NDArray[Any]) -> None:
        self.chosen[positions, int(name.split(".")[1]) - self._first] = rows
