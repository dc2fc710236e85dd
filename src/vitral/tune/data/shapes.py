"""Which shape a record has, told from its keys, and the example that it is.

| shape | keys |
|---|---|
| messages | `messages`: a list of `{role, content}` (OpenAI) |
| sharegpt | `conversations`: a list of `{from, value}` |
| alpaca | `instruction`, `output`, optional `input` |
| completion | `prompt`, `completion` (or `response`) |
| text | `text` |
| pairs | `chosen`, `rejected`, optional `prompt`, `margin` |
| rated | `prompt`, `completion`, `label` |
| task | `prompt` (or `question`), `answer` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from vitral.errors import DataError
from vitral.tune.data.examples import Chat, Continuation, Example, Message, Pair, Plain, Rated, Task

__all__ = ["SHAPES", "parse", "shape_of"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
_GOOD = {"true": True, "false": False, "good": True, "bad": False, "1": True, "0": False}


def shape_of(record: Any) -> str:
    """The name of a record's shape. Raises DataError with the keys found."""
    if not isinstance(record, Mapping):
        raise DataError(f"a {type(record).__name__}; a record is an object with named values")
    keys = {key for key, value in record.items() if value is not None}
    for name, needed in _KEYS:
        if needed <= keys:
            return name
    raise DataError(
        f"keys {', '.join(sorted(map(str, record)))[:120] or 'none'} fit no shape; allowed: "
        + "; ".join(f"{name} ({' + '.join(sorted(needed))})" for name, needed in _KEYS)
    )


_KEYS: tuple[tuple[str, frozenset[str]], ...] = (
    ("pairs", frozenset({"chosen", "rejected"})),
    ("messages", frozenset({"messages"})),
    ("sharegpt", frozenset({"conversations"})),
    ("rated", frozenset({"prompt", "completion", "label"})),
    ("alpaca", frozenset({"instruction", "output"})),
    ("completion", frozenset({"prompt", "completion"})),
    ("completion", frozenset({"prompt", "response"})),
    ("task", frozenset({"prompt", "answer"})),
    ("task", frozenset({"question", "answer"})),
    ("text", frozenset({"text"})),
)


def parse(place: str, record: Any, shape: str, chat: bool) -> Example:
    """The example of a record. `chat`: instructions and prompts become a user's turn, else they are continued as text.

    Raises DataError for what does not fit the shape; the message does not repeat the place.

    >>> parse("a:1", {"instruction": "Add", "input": "2 2", "output": "4"}, "alpaca", True).messages[0]["content"]
    'Add\\n\\n2 2'
    """
    found = shape_of(record)
    if found != shape:
        raise DataError(f"is of the shape {found!r}, the records before it are {shape!r}; one shape in a set")
    return SHAPES[shape](place, record, chat)


def _messages(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    return Chat(place, _conversation(record["messages"], answered=True))


def _sharegpt(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    turns = record["conversations"]
    if not isinstance(turns, list) or not all(isinstance(t, Mapping) and {"from", "value"} <= set(t) for t in turns):
        raise DataError("conversations must be a list of objects with from and value")
    unknown = [turn["from"] for turn in turns if turn["from"] not in _SHAREGPT]
    if unknown:
        raise DataError(f"a turn is from {unknown[0]!r}; allowed: {', '.join(_SHAREGPT)}")
    messages = [{"role": _SHAREGPT[turn["from"]], "content": turn["value"]} for turn in turns]
    return Chat(place, _conversation(messages, answered=True))


def _alpaca(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    instruction, output = _text(record, "instruction"), _text(record, "output")
    more = _text(record, "input", empty=True) if record.get("input") is not None else ""
    prompt = f"{instruction}\n\n{more}" if more else instruction
    return _answered(place, prompt, output, chat, system=record.get("system"))


def _completion(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    answer = _text(record, "completion" if record.get("completion") is not None else "response")
    if isinstance(record["prompt"], list):
        return Chat(place, (*_conversation(record["prompt"], answered=False), _assistant(answer)))
    return _answered(place, _text(record, "prompt"), answer, chat)


def _plain(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    return Plain(place, _text(record, "text"))


def _pairs(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    margin = record.get("margin") or 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise DataError(f"margin is {margin!r}; allowed: a number")
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        before = list(_conversation(record["prompt"], answered=False)) if record.get("prompt") is not None else []
        whole, other = ([*before, *_conversation(side, answered=True)] for side in (chosen, rejected))
        if whole[:-1] != other[:-1]:
            raise DataError("chosen and rejected are conversations that differ before their last turn")
        return _checked_pair(
            Pair(place, tuple(whole[:-1]), str(whole[-1]["content"]), str(other[-1]["content"]), margin)
        )
    if record.get("prompt") is None:
        raise DataError("chosen and rejected are texts without a prompt; add one")
    pair = Pair(
        place,
        _conversation(record["prompt"], answered=False),
        _text(record, "chosen"),
        _text(record, "rejected"),
        margin,
    )
    return _checked_pair(pair)


def _checked_pair(pair: Pair) -> Pair:
    if pair.chosen == pair.rejected:
        raise DataError("chosen and rejected are the same answer, so that nothing is preferred")
    return pair


def _rated(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    label = record["label"]
    label = str(label).lower()
    if label not in _GOOD:
        raise DataError(f"label is {label!r}; allowed: true or false, 1 or 0, good or bad")
    return Rated(place, _conversation(record["prompt"], answered=False), _text(record, "completion"), _GOOD[label])


def _task(place: str, record: Mapping[str, Any], chat: bool) -> Example:
    prompt = record["prompt"] if record.get("prompt") is not None else record["question"]
    return Task(place, _conversation(prompt, answered=False), _text(record, "answer"))


SHAPES: dict[str, Callable[[str, Mapping[str, Any], bool], Example]] = {
    "messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca, "completion": _completion,
    "text": _plain, "pairs": _pairs, "rated": _rated, "task": _task,
}  # fmt: skip


def _conversation(turns: Any, *, answered: bool) -> tuple[Message, ...]:
    """Checked messages that end with an answer, or with what is to be answered. A text is a user's turn."""
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError("messages must be a list of objects with role and content, at least one")
    for number, turn in enumerate(turns, 1):
        if turn.get("role") not in _ROLES:
            raise DataError(f"turn {number} has the role {str(turn.get('role'))[:30]!r}; allowed: {', '.join(_ROLES)}")
        content = turn.get("content")
        calls = turn["role"] == "assistant" and turn.get("tool_calls")
        if not calls and (not isinstance(content, str) or not content.strip()):
            raise DataError(f"turn {number} ({turn['role']}) has no text")
        if turn["role"] in ("system", "developer") and number > 1:
            raise DataError(f"turn {number} is the system's; it may only be the first")
    roles = [turn["role"] for turn in turns if turn["role"] not in ("system", "developer")]
    if answered and (len(roles) < 2 or roles[-1] != "assistant"):
        raise DataError(
            f"the last turn is the {roles[-1] if roles else 'system'}'s; a question and the assistant's answer must end it"
        )
    if not roles or roles[0] != "user":
        raise DataError(f"the first turn is the {roles[0] if roles else 'system'}'s; a user's turn must begin")
    if not answered and roles[-1] == "assistant":
        raise DataError("the prompt ends with an answer; it must end with what is to be answered")
    for number, (one, next_) in enumerate(pairwise(roles), 1):
        if one == next_ and one != "tool":
            raise DataError(f"turns {number} and {number + 1} are both the {one}'s; roles must alternate")
    return tuple(dict(turn) for turn in turns)


def _answered(place: str, prompt: str, answer: str, chat: bool, system: Any = None) -> Example:
    if not chat:
        return Continuation(place, prompt, answer)
    begin = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return Chat(place, (*begin, {"role": "user", "content": prompt}, _assistant(answer)))


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _text(record: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    value = record[key]
    if not isinstance(value, str) or (not value.strip() and not empty):
        found = "empty" if isinstance(value, str) else f"a {type(value).__name__}"
        raise DataError(f"{key} is {found}; a text is wanted")
    return value
