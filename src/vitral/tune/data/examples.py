"""What one record of a data set is, whatever shape it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Chat", "Continuation", "Example", "Pair", "Plain", "Rated", "Task", "question_of", "text_of"]

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; the assistant's turns are learnt."""

    place: str  # file:line, for whoever must put it right
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Plain:
    """A text; all of it is learnt."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text and how it goes on, without a chat around it; the second is learnt."""

    place: str
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one conversation, the first preferred; `margin` says by how much, if known."""

    place: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class Rated:
    """An answer that someone found good or bad."""

    place: str
    prompt: tuple[Message, ...]
    answer: str
    good: bool


@dataclass(frozen=True, slots=True)
class Task:
    """A question whose answer can be verified."""

    place: str
    prompt: tuple[Message, ...]
    expected: str


Example = Chat | Plain | Continuation | Pair | Rated | Task


def text_of(example: Example) -> str:
    """All text of an example, for comparing and scanning.

    >>> text_of(Continuation("a:1", "2 + 2 =", " 4"))
    '2 + 2 =\\n 4'
    """
    match example:
        case Chat(_, messages):
            return "\n".join(str(message.get("content") or "") for message in messages)
        case Plain(_, text):
            return text
        case Continuation(_, prompt, completion):
            return f"{prompt}\n{completion}"
        case Pair(_, prompt, chosen, rejected):
            return "\n".join([*(str(m.get("content") or "") for m in prompt), chosen, rejected])
        case Rated(_, prompt, answer) | Task(_, prompt, answer):
            return "\n".join([*(str(m.get("content") or "") for m in prompt), answer])


def question_of(example: Example) -> str:
    """What is asked: everything before the last answer; all of a plain text.

    >>> question_of(Continuation("a:1", "2 + 2 =", " 4"))
    '2 + 2 ='
    """
    match example:
        case Plain(_, text):
            return text
        case Continuation(_, prompt, _):
            return prompt
        case Chat(_, messages):
            return text_of(Chat("", messages[:-1]))
        case Pair(_, prompt, _, _) | Rated(_, prompt, _, _) | Task(_, prompt, _):
            return text_of(Chat("", prompt))
