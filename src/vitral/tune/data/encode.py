"""Examples to rows of ids, with loss exactly on what the model will have to say when it is served.

The template that serves also trains: an answer is what stands between the prompt as the server renders it
and the end of the turn, found by comparing ids, never by looking for markers. The end token carries loss;
what a template writes behind it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vitral.errors import DataError, TemplateError
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.batch import Row
from vitral.tune.data.examples import Chat, Continuation, Example, Message, Pair, Plain, Rated, Task

__all__ = ["Turns", "encode", "prompt_ids"]

Turns = Literal["all", "last"]


def encode(example: Example, tokenizer: Tokenizer, turns: Turns = "all", context: int | None = None) -> list[Row]:
    """The rows of an example: one; two for a Pair (preferred, rejected); windows of at most `context` ids for a Plain.

    Raises DataError where the template cannot be trained with: it does not close the turn, or it writes the
    beginning of a conversation differently once it goes on.
    """
    match example:
        case Chat(_, messages):
            return [_chat(messages, tokenizer, turns)]
        case Pair(_, prompt, chosen, rejected):
            return [_chat((*prompt, _assistant(text)), tokenizer, "last") for text in (chosen, rejected)]
        case Rated(_, prompt, answer) | Task(_, prompt, answer):
            return [_chat((*prompt, _assistant(answer)), tokenizer, "last")]
        case Continuation(_, prompt, completion):
            return [_continued(prompt, completion, tokenizer)]
        case Plain(_, text):
            return _windows(text, tokenizer, context)


def prompt_ids(prompt: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids that the server reads before it answers."""
    return tokenizer.encode_chat(prompt, add_generation_prompt=True)


def _chat(messages: Sequence[Message], tokenizer: Tokenizer, turns: Turns) -> Row:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    whole = tokenizer.encode_chat(messages, add_generation_prompt=False)
    marks = [False] * len(whole)
    for i in answers[-1:] if turns == "last" else answers:
        prompt = prompt_ids(messages[:i], tokenizer)
        upto = (
            whole if i + 1 == len(messages) else tokenizer.encode_chat(messages[: i + 1], add_generation_prompt=False)
        )
        if whole[: len(upto)] != upto or upto[: len(prompt)] != prompt:
            raise DataError(
                f"the chat template writes turn {i + 1} otherwise than the server would before it is answered; "
                'train the last turn of each conversation alone (turns = "last") or give another template'
            )
        ends = [place for place in range(len(prompt), len(upto)) if upto[place] in tokenizer.eos_ids]
        if not ends:
            names = ", ".join(sorted(tokenizer.piece(id) for id in tokenizer.eos_ids)) or "none known"
            raise TemplateError(
                f"the chat template does not close the assistant's turn: no end token ({names}) follows the answer, so a "
                "model trained with it would never stop; give a template that ends the turn"
            )
        marks[len(prompt) : ends[-1] + 1] = [True] * (ends[-1] + 1 - len(prompt))
    return Row(tuple(whole), tuple(marks))


def _continued(prompt: str, completion: str, tokenizer: Tokenizer) -> Row:
    ids = tokenizer.encode(prompt + completion)
    before = tokenizer.encode(prompt)
    shared = 0
    while shared < min(len(ids), len(before)) and ids[shared] == before[shared]:
        shared += 1
    ids = _ended(ids, tokenizer)
    first = max(shared, 1)
    return Row(tuple(ids), (False,) * first + (True,) * (len(ids) - first))


def _windows(text: str, tokenizer: Tokenizer, context: int | None) -> list[Row]:
    """A text longer than the context goes on in further rows; only the first token of each carries no loss."""
    ids = _ended(tokenizer.encode(text), tokenizer)
    size = context or len(ids)
    found: list[Row] = []
    for start in range(
        0, max(len(ids) - 1, 1), max(size - 1, 1)
    ):  # one shared token: it predicts the next window's first
        piece = ids[start : start + size]
        if len(piece) > 1:
            found.append(Row(tuple(piece), (False,) + (True,) * (len(piece) - 1)))
    return found


def _ended(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer names no end-of-text token, so a text cannot be closed; use a chat format")
    return ids if ids[-1:] == [tokenizer.eos_id] else [*ids, tokenizer.eos_id]


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
