"""Answers that the policy itself gives, from our own engine, judged and made into batches (GRPO, PPO, rejection sampling).

Before a step the engine is filled with the policy's present weights, merged in float32. Sampling follows from
the run's seed, the step and the number of the answer, so that a resumed run samples the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitral.formats.canonical import Checkpoint
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune import distributed
from vitral.tune.batch import Batch
from vitral.tune.data.encode import prompt_ids
from vitral.tune.data.examples import Task
from vitral.tune.data.load import Item
from vitral.tune.export import merged_checkpoint
from vitral.tune.forward import Transformer
from vitral.tune.judges import Judge
from vitral.tune.lessons import Lesson
from vitral.tune.sampled import sample
from vitral.tune.served import engine_of
from vitral.tune.source import Order

__all__ = ["Rollouts"]


@dataclass
class Rollouts:
    """A source of batches: `order.batch` questions, `group` times each, judged, and learnt from in `updates` steps.

    `seen` holds mean reward and mean length of the last answers, for whoever shows them. `routes` keeps the expert
    choices of a mixture in the batches, for a policy that follows them.
    """

    model: Transformer
    base: Checkpoint
    tokenizer: Tokenizer
    items: Sequence[Item]
    order: Order
    judge: Judge
    lesson: Lesson
    group: int
    answer_tokens: int
    piece_tokens: int
    context: int
    updates: int = 1
    routes: bool = False

    def __post_init__(self) -> None:
        self.seen: dict[str, float] = {}
        self._last: tuple[int, list[Batch]] = (-1, [])

    def begins(self, step: int) -> bool:
        """Whether a step samples anew. Only between such steps can a run be stopped and gone on with."""
        return step % self.updates == 0

    def batches(self, step: int) -> list[Batch]:
        """Sample, judge and make the lesson, or give the lesson of the answers that are there."""
        number = step // self.updates
        if self._last[0] != number:
            self._last = number, self._sampled(number)
        return self._last[1]

    def _sampled(self, number: int) -> list[Batch]:
        mine = distributed.share_of(self.order.step(number))
        tasks = [task for task in (self.items[i].example for i in mine) if isinstance(task, Task)]
        engine = engine_of(
            merged_checkpoint(self.model, self.base), threads=torch.get_num_threads(), context_length=self.context
        )
        asked = [task for task in tasks for _ in range(self.group)]
        prompts = {id(task): tuple(prompt_ids(task.prompt, self.tokenizer)) for task in tasks}
        first_seed = (self.order.seed << 32) + number * (1 << 16) + distributed.rank() * (1 << 12)
        found = sample(engine, [prompts[id(task)] for task in asked], self.tokenizer, self.answer_tokens, first_seed,
                       self.routes)  # fmt: skip
        rewards = self.judge(found, asked)
        count, reward, length = distributed.summed_numbers(
            float(len(found)), float(rewards.sum()), float(sum(len(s.answer) for s in found))
        )
        self.seen = {"reward": reward / max(count, 1.0), "answer_tokens": length / max(count, 1.0)}
        return self.lesson(found, rewards, self.piece_tokens)

    def places(self, step: int) -> str:
        """Where the questions of a step stand."""
        return ", ".join(self.items[i].example.place for i in self.order.step(step // self.updates)[:5])
