"""Answers that the policy itself gives, from our own engine, rewarded and made into batches (GRPO).

Before a step the engine is filled with the policy's present weights, merged in float32. Sampling follows from
the run's seed, the step and the number of the answer, so that a resumed run samples the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vitral.engine.engine import Engine
from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.errors import ContextOverflow
from vitral.formats.canonical import Checkpoint
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune import distributed
from vitral.tune.batch import Batch, Row
from vitral.tune.data.encode import prompt_ids
from vitral.tune.data.examples import Task
from vitral.tune.data.load import Item
from vitral.tune.export import merged_checkpoint
from vitral.tune.forward import Transformer
from vitral.tune.losses.grpo import group_advantages
from vitral.tune.served import engine_of
from vitral.tune.source import Order

__all__ = ["Rollouts", "Sampled", "sample"]

Reward = Callable[[str, str], float]


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer: its ids, end token included, and the log-probability of each when it was chosen."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass
class Rollouts:
    """A source of batches for GRPO: each step asks `order.batch` questions, `group` times each.

    `seen` holds mean reward and mean length of the last step's answers, for whoever shows them.
    """

    model: Transformer
    base: Checkpoint
    tokenizer: Tokenizer
    items: Sequence[Item]
    order: Order
    reward: Reward
    group: int
    answer_tokens: int
    piece_tokens: int
    context: int

    def __post_init__(self) -> None:
        self.seen: dict[str, float] = {}

    def batches(self, step: int) -> list[Batch]:
        """Sample, reward, compare within each group, cut into pieces."""
        numbers = self.order.step(step)
        total = float(len(numbers) * self.group)
        mine = distributed.share_of(numbers)
        tasks = [task for task in (self.items[i].example for i in mine) if isinstance(task, Task)]
        engine = engine_of(
            merged_checkpoint(self.model, self.base), threads=torch.get_num_threads(), context_length=self.context
        )
        prompts = [tuple(prompt_ids(task.prompt, self.tokenizer)) for task in tasks]
        asked = [prompt for prompt in prompts for _ in range(self.group)]
        first_seed = (self.order.seed << 32) + step * (1 << 16) + distributed.rank() * (1 << 12)
        found = sample(engine, asked, self.tokenizer, self.answer_tokens, first_seed)
        texts = [self.tokenizer.decode(s.answer, skip_special=True) for s in found]
        rewards = torch.tensor([self.reward(text, tasks[i // self.group].expected) for i, text in enumerate(texts)])
        lengths = sum(len(s.answer) for s in found) / max(len(found), 1)
        self.seen = {"reward": float(rewards.mean()) if len(rewards) else 0.0, "answer_tokens": lengths}
        return self._pieces(found, group_advantages(rewards, self.group), total) if found else []

    def places(self, step: int) -> str:
        """Where the questions of a step stand."""
        return ", ".join(self.items[i].example.place for i in self.order.step(step)[:5])

    def _pieces(self, found: Sequence[Sampled], advantage: torch.Tensor, total: float) -> list[Batch]:
        pieces: list[list[int]] = []
        room = 0
        for i, s in enumerate(found):
            size = len(s.prompt) + len(s.answer)
            if size > room:
                pieces.append([])
                room = self.piece_tokens
            pieces[-1].append(i)
            room -= size
        batches = []
        for piece in pieces:
            rows = [_row(found[i]) for i in piece]
            then = torch.tensor([logprob for i in piece for logprob in found[i].logprobs])
            batches.append(Batch.of(rows, total, {"advantage": advantage[piece], "logprob": then}))
        return batches


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


def _row(s: Sampled) -> Row:
    return Row((*s.prompt, *s.answer), (False,) * len(s.prompt) + (True,) * len(s.answer))
