"""Text <-> ids for one vocabulary, whichever library does the merging underneath."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

from vitral.errors import TemplateError, TokenizerError
from vitral.tokenizer import chat
from vitral.tokenizer.special import Specials
from vitral.tokenizer.stream import SpaceRule, TextStream
from vitral.tokenizer.vocab import NEVER_TEXT, Kind, Vocabulary

__all__ = ["END_OF_TURN", "Codec", "Tokenizer"]

# Control tokens that end a turn or a text in the families we run; llama.cpp keeps a like list.
END_OF_TURN = ("</s>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end_of_turn|>")


class Codec(Protocol):
    """The library underneath: plain text to ids. It never yields a control token."""

    def encode(self, text: str, after_special: bool) -> list[int]:
        """Ids of one fragment; `after_special` says that a control token stands before it, else it begins the text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A vocabulary and the rules around it. Made by `vitral.tokenizer.load`.

    `fingerprint` computes `vocabulary_digest`; it is asked once, and only when a digest is wanted.
    """

    kind: str  # "spm", "bpe", "tiktoken" or "tekken"
    vocabulary: Vocabulary
    codec: Codec = field(repr=False)
    specials: Specials = field(repr=False)
    space: SpaceRule
    fingerprint: Callable[[], str] = field(repr=False)
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    add_eos: bool = False
    chat_format: str | None = None  # the name of our template for it, where the vocabulary itself tells
    templates: Mapping[str, str] = field(default_factory=dict, repr=False)  # name -> Jinja source

    def __post_init__(self) -> None:
        named = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        ends = {f"end of turn {number}": number for number in self.eos_ids}
        for name, number in (named | ends).items():
            if number is not None and not 0 <= number < self.vocab_size:
                raise TokenizerError(f"the {name} id is {number}; the vocabulary has ids 0 to {self.vocab_size - 1}")
        for name, wanted in (("bos", self.add_bos), ("eos", self.add_eos)):
            if wanted and named[name] is None:
                raise TokenizerError(f"the vocabulary asks for a {name} token around each text but names none")

    @property
    def vocab_size(self) -> int:
        """How many ids there are; a model's embedding may have more rows (padding)."""
        return len(self.vocabulary)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that plain text never becomes."""
        return self.specials.ids

    @cached_property
    def vocabulary_digest(self) -> str:
        """sha256 (hex) over vocabulary, merges, control tokens and the rules of the library."""
        return self.fingerprint()

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over all that decides ids and where they end, the vocabulary's digest included; not the templates."""
        named = [self.bos_id, self.eos_id, self.add_bos, self.add_eos, sorted(self.eos_ids)]
        facts = [self.kind, self.vocabulary_digest, self.space.value, named]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def is_special(self, id: int) -> bool:
        """Whether an id is a control token."""
        return id in self.specials.ids

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text.

        `add_special` puts BOS (and EOS) where the model wants them, never twice. Control tokens written in the text stay
        ordinary text unless `parse_special`. Raises TokenizerError for text that is not Unicode (lone surrogates).
        """
        parts: Sequence[str | int] = self.specials.split(text) if parse_special else [text] if text else []
        return self.encode_parts(parts, add_special=add_special)

    def encode_parts(self, parts: Sequence[str | int], *, add_special: bool = True) -> list[int]:
        """Ids of plain fragments (str) and control tokens (int) in order; the way to mix both without any parsing."""
        ids: list[int] = []
        for place, part in enumerate(parts):
            if isinstance(part, int):
                self.token_bytes(part)
                ids.append(part)
            elif part:
                ids += self._plain(part, after_special=place > 0 and isinstance(parts[place - 1], int))
        return self._framed(ids) if add_special else ids

    def encode_with_offsets(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the span (start, end) of the characters of `text` it has bytes of.

        A character spread over several tokens lies in the span of each. Added tokens have empty spans.
        Raises TokenizerError where the vocabulary rewrites text (a normaliser), so that no span exists.
        """
        ids = self.encode(text, add_special=add_special, parse_special=parse_special)
        return ids, self._spans(text, ids, parse_special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False, continuing: bool = False) -> str:
        """Text of ids; bytes that form no character become U+FFFD (see `vitral.tokenizer.stream`).

        `skip_special` leaves control tokens out. `continuing`: the ids go on from text that is already there, so the
        space that a SentencePiece encoder puts before a text is not there to be removed.
        Raises TokenizerError for an id outside the vocabulary.
        """
        stream = self.stream(skip_special=skip_special, continuing=continuing)
        pieces = [stream.push(id) for id in ids]
        return "".join(pieces) + stream.finish()

    def stream(self, *, skip_special: bool = False, continuing: bool = False) -> TextStream:
        """A decoder that takes one id at a time; parameters as for `decode`."""
        return TextStream(self, self.space, skip_special=skip_special, continuing=continuing)

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for. Raises TokenizerError for an id outside the vocabulary."""
        if not 0 <= id < self.vocab_size:
            raise TokenizerError(f"token id {id} does not exist; the vocabulary has ids 0 to {self.vocab_size - 1}")
        return self.vocabulary.token_bytes[id]

    def piece(self, id: int) -> str:
        """One id as the vocabulary file spells it. Raises TokenizerError for an id outside the vocabulary."""
        self.token_bytes(id)
        return self.vocabulary.pieces[id]

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that chats are rendered with: the checkpoint's own, or ours for its control tokens, or None."""
        return chat.choose_template(self.templates, self.specials, self.chat_format, tools=False)

    @property
    def template_digest(self) -> str | None:
        """sha256 (hex) of `chat_template`."""
        source = self.chat_template
        return None if source is None else chat.template_digest(source)

    def render_chat(
        self,
        messages: Sequence[chat.Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        date: datetime | None = None,
    ) -> str:
        """The text of a chat, for the eye; `encode_chat` gives the ids.

        `template` names another of the checkpoint's templates or one of ours (`llama2`, `chatml` ...); for the other
        parameters see `vitral.tokenizer.chat.render`. Raises TemplateError, also where there is no template at all.
        """
        source = self._template(template, bool(tools))
        given = self._token_texts() | dict(variables or {})
        return chat.render(
            source,
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            variables=given,
            date=date,
        )

    def encode_chat(
        self,
        messages: Sequence[chat.Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        date: datetime | None = None,
        continuing: bool = False,
    ) -> list[int]:
        """Ids of a chat; parameters as for `render_chat`. continuing: the last message is the beginning of the answer,
        and the ids end where its text does.

        Control tokens come from the template alone: what the messages, tools, documents and variables hold of their
        texts is encoded as plain text. BOS is added where the model wants one and the template wrote none.
        """
        given = [list(messages), tools, documents, dict(variables or {})]
        safe, mark = chat.marked(given, self.specials)
        safe_messages, safe_tools, safe_documents, safe_variables = safe
        if continuing:
            safe_messages[-1] = chat.with_end(safe_messages[-1], mark)
        rendered = self.render_chat(
            safe_messages,
            tools=safe_tools,
            documents=safe_documents,
            add_generation_prompt=add_generation_prompt and not continuing,
            template=template,
            variables=safe_variables,
            date=date,
        )
        if continuing:
            rendered = chat.up_to_end(rendered, mark)
        ids = self.encode_parts(chat.parts_of(rendered, mark, self.specials), add_special=False)
        return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id] else ids

    def with_templates(self, templates: Mapping[str, str]) -> Tokenizer:
        """The same tokenizer with other chat templates (name -> Jinja source; the one used is called `default`)."""
        return replace(self, templates=dict(templates))

    def _template(self, name: str | None, tools: bool) -> str:
        if name is not None:
            return self.templates[name] if name in self.templates else chat.built_in(name)
        source = chat.choose_template(self.templates, self.specials, self.chat_format, tools=tools)
        if source is None:
            ours = ", ".join(chat.built_in_names())
            raise TemplateError(
                f"the checkpoint has no chat template; name the one it was trained with (template, --template): {ours}; "
                "or have plain text continued (text, --raw)"
            )
        return source

    def _token_texts(self) -> dict[str, str]:
        named = {"bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id, "pad": self.pad_id}
        return {f"{name}_token": self.piece(id) for name, id in named.items() if id is not None}

    def _plain(self, text: str, after_special: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise TokenizerError(f"the text has a lone surrogate, {found}; replace it, it is no character") from None
        ids = self.codec.encode(text, after_special)
        if not self.specials.ids.isdisjoint(ids):
            found = repr(self.piece(next(id for id in ids if id in self.specials.ids)))
            if self.unk_id in ids:
                raise TokenizerError(
                    f"a character of the text is not in the vocabulary, which has no byte pieces ({found})"
                )
            raise TokenizerError(
                f"the vocabulary turns plain text into the control token {found}; don't trust this file"
            )
        return ids

    def _framed(self, ids: list[int]) -> list[int]:
        if self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        if self.add_eos and self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids = [*ids, self.eos_id]
        return ids

    def _spans(self, text: str, ids: Sequence[int], parsed: bool) -> list[tuple[int, int]]:
        data = text.encode()
        chars = _character_of_byte(text)
        at, spans = 0, []
        for id in ids:
            piece = self.token_bytes(id)
            if self.is_special(id) and not (parsed and data.startswith(piece, at)):
                spans.append((chars[at], chars[at]))  # BOS or EOS that was added
                continue
            if not data.startswith(piece, at) and self.space is not SpaceRule.NEVER:
                piece = piece.removeprefix(b" ")  # the space that no text had
            if not data.startswith(piece, at):
                raise TokenizerError(
                    f"token {self.piece(id)!r} does not stand at byte {at} of the text; it has no offsets"
                )
            end = at + len(piece)
            spans.append((chars[at], chars[end - 1] + 1 if piece else chars[at]))
            at = end
        return spans


def _character_of_byte(text: str) -> list[int]:
    """For each byte of the UTF-8 text, and for its end, the number of the character it belongs to."""
    owner: list[int] = []
    for number, character in enumerate(text):
        owner += [number] * len(character.encode())
    return [*owner, len(text)]


def token_ids_by_text(vocabulary: Vocabulary, texts: Iterable[str]) -> frozenset[int]:
    """Ids of the control tokens that have one of these texts."""
    specials: Mapping[str, Any] = vocabulary.specials()
    return frozenset(specials[text] for text in texts if text in specials)


def is_control(kind: Kind) -> bool:
    """Whether plain text never becomes a piece of this kind."""
    return kind in NEVER_TEXT
