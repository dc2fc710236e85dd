"""Chat templates: messages to text, and to ids in which a message can never pose as a control token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from vitral.errors import TemplateError, TokenizerError
from vitral.tokenizer.budget import Budget, Limits, running
from vitral.tokenizer.sandbox import compiled
from vitral.tokenizer.special import Specials

__all__ = ["DEFAULT", "Message", "built_in", "built_in_names", "choose_template", "marked", "parts_of", "render"]
__all__ += ["up_to_end", "with_end"]

Message = Mapping[str, Any]

DEFAULT = "default"
_TOOLS = "tool_use"  # the name that checkpoints with several templates give to the one for tools
_LONGEST_DATE_FORMAT = 100
_WIDE_DATE = re.compile(r"%[^a-zA-Z%]*\d")
# Code points that Unicode keeps free for use inside a program; no text should hold them.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
# Older names under which a message's reasoning is passed; templates read either.
# Control tokens that show a format; the first that fits counts.
_FORMATS = (
    (("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "llama3"),
    (("<|im_start|>", "<|im_end|>"), "chatml"),
    (("[INST]", "[/INST]", "[SYSTEM_PROMPT]"), "mistral-v7"),
    (("[INST]", "[/INST]"), "mistral-v3"),
)
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render(
    source: str,
    messages: Iterable[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    date: datetime | None = None,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
) -> str:
    """The text of a chat by a template's Jinja source, as `transformers.apply_chat_template` gives it.

    Only plain data goes in (None, bool, int, float, str, list, tuple, dict). A message's entries that are None count as
    absent. `variables` are further names for the template (`bos_token`, `enable_thinking` ...). Without `date` there is
    no `strftime_now`, so that the same chat gives the same text every day; templates then fall back to a date of theirs.
    Raises TemplateError for a template that fails, refuses, or wants more than `limits`.

    >>> render("{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}", [{"role": "user", "content": "Oi"}])
    'user: Oi;'
    """
    values = {
        **_plain(variables or {}, "variables"),
        "messages": [_message(message) for message in messages],
        "tools": _plain(tools, "tools") if tools is not None else None,
        "documents": _plain(documents, "documents") if documents is not None else None,
        "add_generation_prompt": add_generation_prompt,
    }
    if date is not None:
        values["strftime_now"] = lambda form: _strftime(date, form)
    try:
        pieces = compiled(source)
        with running(Budget.start(limits, [value for value in values.values() if not callable(value)])):
            return "".join(pieces(values))
    except TokenizerError:
        raise
    except RecursionError:
        raise TemplateError("the chat template is nested too deeply; simplify it or use another one") from None
    except Exception as error:  # noqa: BLE001  (a stranger's program may fail in any way)
        hint = "; it asks for today's date, pass one" if "strftime_now" in str(error) and date is None else ""
        raise TemplateError(f"the chat template fails: {type(error).__name__}: {str(error)[:300]}{hint}") from None


def built_in_names() -> tuple[str, ...]:
    """Names of our own templates, for checkpoints that bring none."""
    return tuple(sorted(file.name.removesuffix(".jinja") for file in _folder().iterdir() if file.suffix == ".jinja"))


@cache
def built_in(name: str) -> str:
    """The source of one of our own templates. Raises TemplateError for a name that does not exist."""
    if name not in built_in_names():
        raise TemplateError(f"there is no chat template {name!r}; ours are {', '.join(built_in_names())}")
    return (_folder() / f"{name}.jinja").read_text("utf-8")


def choose_template(
    templates: Mapping[str, str], specials: Specials, chat_format: str | None, *, tools: bool
) -> str | None:
    """The source to use: the checkpoint's own, else ours for its vocabulary or its control tokens, else None."""
    if tools and _TOOLS in templates:
        return templates[_TOOLS]
    if DEFAULT in templates:
        return templates[DEFAULT]
    if templates:
        raise TemplateError(
            f"the checkpoint has several chat templates and no default; name one of {', '.join(templates)}"
        )
    if chat_format is not None:
        return built_in(chat_format)
    for tokens, name in _FORMATS:
        if all(specials.id_of(token) is not None for token in tokens):
            return built_in(name)
    return None


def marked(values: Any, specials: Specials) -> tuple[Any, str]:
    """Messages or tools in which no string holds a control token, nor the beginning of one at its end, and the mark.

    The mark, a code point that occurs in none of the strings, breaks every control token after its first character.
    Whoever wrote it, a template's own control tokens stay whole. Raises TemplateError if every mark is taken.
    """
    strings = list(_strings(values))
    mark = next((mark for mark in _MARKS if not any(mark in text for text in strings)), None)
    if mark is None:
        raise TemplateError("the messages hold all 32 code points U+FDD0 to U+FDEF; remove one, they are no characters")

    def broken(text: str) -> str:
        for start in reversed(specials.begins_inside(text)):
            text = text[: start + 1] + mark + text[start + 1 :]
        return text

    return _mapped(values, broken), mark


def with_end(message: Message, mark: str) -> Message:
    """The message with its end marked, by two marks in a row: `marked` writes but one. TemplateError if it is no text."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise TemplateError("the last message has no text, so no answer can go on from it; give it some")
    return {**message, "content": message["content"] + mark * 2}


def up_to_end(rendered: str, mark: str) -> str:
    """A rendered chat up to the end that `with_end` marked. TemplateError if the template does not show it once."""
    before, *after = rendered.split(mark * 2)
    if len(after) != 1:
        raise TemplateError(f"the template shows the last message {len(after)} times, so no answer can go on from it")
    return before


def parts_of(rendered: str, mark: str, specials: Specials) -> list[str | int]:
    """Plain fragments, the marks taken out again, and the control tokens that the template itself wrote."""
    escaped = f"\\u{ord(mark):04x}"  # by a template's tojson(ensure_ascii=true)
    parts: list[str | int] = []
    for part in specials.split(rendered):
        parts.append(part if isinstance(part, int) else part.replace(mark, "").replace(escaped, ""))
    return parts


def template_digest(source: str) -> str:
    """sha256 (hex) of a template's source."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _folder() -> Path:
    return Path(__file__).with_name("templates")


def _message(message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TemplateError(f"a message is a {type(message).__name__}; expected a dictionary with 'role' and 'content'")
    kept = {key: value for key, value in _plain(message, "a message").items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """The same data built anew from Python's own plain types."""
    if depth > 64:
        raise TemplateError(f"{where}: nested over 64 deep; flatten it")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, where, depth + 1): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, where, depth + 1) for item in value)
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    found = type(value).__name__
    raise TemplateError(f"{where}: holds a {found}; a template takes None, bool, int, float, str, list, tuple and dict")


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, change) for item in value)
    return value


def _strftime(date: datetime, form: object) -> str:
    text = str(form)
    if len(text) > _LONGEST_DATE_FORMAT or _WIDE_DATE.search(text):
        raise TemplateError(f"the chat template formats the date with {text[:40]!r}; plain % codes are allowed")
    return date.strftime(text)
