"""What tuning costs elsewhere: loss on neutral text and on the base's own answers, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import torch

from vitral.errors import VitralError
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.batch import Batch, Row
from vitral.tune.data.encode import prompt_ids
from vitral.tune.policy import Policy

if TYPE_CHECKING:
    from vitral.engine.engine import Engine

__all__ = ["REPLAYED_TOKENS", "Probes", "make_probes", "make_replay"]

_NEUTRAL = "neutral.txt"
_QUESTIONS = (
    "What is the capital of France?",
    "How do plants make their food?",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Give three uses of a spoon.",
    "Explain in a few words what a library is.",
)
# Other questions than those that are measured, or the measure would be of what was trained.
_REPLAYED = (
    "What is the largest planet?", "Name two animals that lay eggs.", "How many days are in a week?",
    "Write a short greeting.", "What is the opposite of hot?", "Why do leaves fall in autumn?",
    "Say in one sentence what a computer is.", "Which month comes after June?", "What do bees make?",
    "Give me a word that rhymes with light.", "What is 9 times 6?", "How do you make tea?",
    "Who wrote Romeo and Juliet?", "What colour is the sky on a clear day?", "List three fruits.",
    "What is ice made of?",
)  # fmt: skip
_ANSWER_TOKENS = 48
REPLAYED_TOKENS = _ANSWER_TOKENS + 36  # of a question in a chat's template with its answer, at most and about


@dataclass(frozen=True)
class Probes:
    """Rows that nobody trains on: `neutral` text, and questions with the answers that the `base` gives itself."""

    neutral: tuple[Row, ...]
    own: tuple[Row, ...]

    def measure(self, policy: Policy) -> dict[str, float]:
        """Mean loss (nats a token) on each kind."""
        policy.model.eval()
        with torch.no_grad():
            return {
                name: -float(policy.logprobs(batch).mean())
                for name, rows in (("neutral", self.neutral), ("own_answers", self.own))
                for batch in ([Batch.of(rows)] if rows else [])
            }


def make_probes(tokenizer: Tokenizer, engine: Engine | None, context: int) -> Probes:
    """The probes for a model. Without an engine, or a chat template, there are no answers to keep."""
    text = files("vitral.tune").joinpath(_NEUTRAL).read_text("utf-8")
    neutral = []
    for paragraph in text.split("\n\n"):
        ids = tokenizer.encode(paragraph.strip())[:context]
        neutral.append(Row(tuple(ids), (False,) + (True,) * (len(ids) - 1)))
    own = [] if engine is None else _own_answers(_QUESTIONS, tokenizer, engine, context)
    return Probes(tuple(neutral), tuple(own))


def make_replay(tokenizer: Tokenizer, engine: Engine, context: int) -> list[Row]:
    """Other questions with the base's own answers, to be trained on so that they stay."""
    return _own_answers(_REPLAYED, tokenizer, engine, context)


def _own_answers(questions: Sequence[str], tokenizer: Tokenizer, engine: Engine, context: int) -> list[Row]:
    from vitral.engine.request import Finished, NewToken, SamplingParams

    rows: list[Row] = []
    if tokenizer.chat_template is None:
        return rows
    for question in questions:
        prompt = prompt_ids([{"role": "user", "content": question}], tokenizer)
        room = min(_ANSWER_TOKENS, context - len(prompt), engine.context_length - len(prompt))
        if room < 2:
            continue
        answer: list[int] = []
        with engine.answer(prompt, SamplingParams(max_tokens=room, stop_ids=tokenizer.eos_ids)) as events:
            for event in events:
                if isinstance(event, NewToken):
                    answer.append(event.token)
                elif isinstance(event, Finished) and isinstance(event.error, VitralError):
                    raise event.error
        rows.append(Row((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer)))
    return rows
