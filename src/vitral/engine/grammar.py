"""Answers held to a form: a JSON schema, a regular expression, a grammar or a list of choices.

    grammars = Grammars(tokenizer, vocab_size)
    constraint = Constraint.json_schema({"type": "object", "properties": {"city": {"type": "string"}}})
    engine.answer(prompt, params, constraint=grammars.start(constraint))

The library `llguidance` says which tokens may come next; the sampler sets the others to minus
infinity before anything else. Which tokens those are depends on the answer so far and on nothing else.
A token that cannot stand in plain text is never allowed, unless the constraint itself was built to
write it. No text is forced token by token: the model chooses among all ways to cut it into tokens.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from vitral.engine.json_schema import checked_schema
from vitral.errors import RequestError
from vitral.tokenizer.stream import SpaceRule

if TYPE_CHECKING:  # the library is read when the first constraint comes: most answers have none
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

__all__ = ["Constraint", "Grammars", "Matcher", "Vocabulary", "encoded", "json_source", "quoted"]

_MOST_CHARACTERS = 1 << 20
_KEPT = 64  # compiled constraints kept for the next request with the same one
# Between the signs of a JSON text at most a space, or a new line and its indentation: a model that
# loses its way cannot fill the answer with blanks.
_JSON_OPTIONS = {
    "whitespace_pattern": r" |\n[ \t]{0,32}",
    # Each text has one spelling: with \u escapes, "\u0061" would pass for another name than "a".
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be, checked when it is made; RequestError says what cannot be honoured.

    body: one grammar of the library as JSON, {"json_schema": ...} or {"lark_grammar": ...}. control_ids:
    the control tokens that it may write. drops_space: whether the space that a SentencePiece decoder
    takes off the beginning of a text is put before it.

    >>> Constraint.choice(["yes", "no"]) == Constraint.choice(["yes", "no"])
    True
    """

    body: str
    control_ids: frozenset[int] = frozenset()
    drops_space: bool = True

    def __post_init__(self) -> None:
        if len(self.body) > _MOST_CHARACTERS:
            raise RequestError(f"the constraint has {len(self.body)} characters; allowed: {_MOST_CHARACTERS}")
        from llguidance import LLMatcher

        failed, messages = LLMatcher.validate_grammar_with_warnings(self.document(after_space=False))
        if failed:
            raise _refused(messages[0])

    @classmethod
    def json_object(cls) -> Constraint:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def json_schema(cls, schema: object) -> Constraint:
        """A JSON text that the schema (Draft 2020-12) accepts. `docs/reference/constraints.md` lists the keywords.

        Properties come in the order of the schema. A keyword that cannot be honoured is refused by name.
        """
        return cls(encoded({"json_schema": json_source(schema)}))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """A text that the pattern, in the syntax of Rust's `regex`, matches from its beginning to its end."""
        from llguidance import LLMatcher

        body = json.loads(LLMatcher.grammar_from_regex(_text(pattern, "the pattern")))["grammars"][0]
        return cls(encoded({"lark_grammar": body["lark_grammar"]}))

    @classmethod
    def grammar(cls, text: str) -> Constraint:
        """A text of a context-free grammar, in Lark's syntax (first rule `start`) or in GBNF (first rule `root`)."""
        if "%json" in _text(text, "the grammar") or "%llguidance" in text:
            raise RequestError("the grammar holds %json or %llguidance; leave them out, or give a JSON schema alone")
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            lark = any_to_lark(text)
        except Exception as error:  # noqa: BLE001 - the converter raises what it likes
            raise RequestError(f"the grammar cannot be read: {_first_line(str(error))}") from None
        return cls(encoded({"lark_grammar": lark}))

    @classmethod
    def choice(cls, options: Sequence[str]) -> Constraint:
        """One of these texts."""
        if not options or not all(isinstance(option, str) and option for option in options):
            raise RequestError(f"choices are {options!r:.80}; allowed: one or more texts that are not empty")
        return cls(encoded({"lark_grammar": "start: " + " | ".join(map(quoted, options))}))

    @property
    def digest(self) -> str:
        """sha256 (hex) of what is asked; equal digests allow the same tokens."""
        facts = json.dumps([self.body, sorted(self.control_ids), self.drops_space])
        return hashlib.sha256(facts.encode()).hexdigest()

    def document(self, *, after_space: bool) -> str:
        """What the library reads; `after_space` puts a space before the text."""
        space = '" " ' if after_space and self.drops_space else ""
        start = f'%llguidance {{"no_forcing": true}}\nstart: {space}@body'
        body = json.loads(self.body)
        return json.dumps({"grammars": [{"lark_grammar": start}, {"name": "body", **body}]}, ensure_ascii=False)


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def space(self) -> SpaceRule: ...

    def token_bytes(self, id: int) -> bytes: ...


class Grammars:
    """Constraints over one vocabulary. Several threads may use it; a constraint in use again, by requests of equal salt,
    is not compiled again.

    `vocab_size` is the model's, which may have more rows than the tokenizer has ids.
    """

    def __init__(self, tokenizer: Vocabulary, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._compiled: OrderedDict[tuple[Constraint, bool, bytes], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def start(
        self, constraint: Constraint, *, stop_ids: Iterable[int] = (), continuing: bool = False, salt: bytes = b""
    ) -> Matcher:
        """The state of one answer, for `Engine.answer`.

        stop_ids: the tokens that end the answer, the request's. continuing: the text goes on from one
        that is already there, as in `Tokenizer.stream`. salt: parts what is kept as in `Engine.add`, so that
        nobody can time what another tenant asked for.
        Raises RequestError if no text at all fulfils the constraint with this vocabulary.
        """
        after_space = self._tokenizer.space is not SpaceRule.NEVER and not continuing
        allowed = self._plain.copy()
        allowed[list(constraint.control_ids)] = True
        ends = [token for token in stop_ids if not allowed[token]]
        matcher = Matcher(self._compile(constraint, after_space, salt), allowed, np.array(ends, np.int64))
        if not matcher.ended and not matcher.allowed().any():
            raise _stuck("NoExtension")
        return matcher

    def _compile(self, constraint: Constraint, after_space: bool, salt: bytes) -> LLMatcher:
        from llguidance import LLMatcher

        key = (constraint, after_space, salt)
        with self._lock:
            if key not in self._compiled:
                source = constraint.document(after_space=after_space)
                compiled = LLMatcher(self._library_tokenizer, source, log_level=0)
                if compiled.is_error():
                    raise _refused(compiled.get_error())
                self._compiled[key] = compiled
            self._compiled.move_to_end(key)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return self._compiled[key].deep_copy()

    @cached_property
    def _plain(self) -> NDArray[np.bool_]:
        """Which ids stand for text."""
        plain = np.zeros(self.vocab_size, np.bool_)
        plain[: self._tokenizer.vocab_size] = True
        plain[list(self._tokenizer.special_ids)] = False
        return plain

    @cached_property
    def _library_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        pieces = _Pieces(self._tokenizer, self._plain)
        return LLTokenizer(cast("TokenizerWrapper", pieces), slices=LLTokenizer.json_slices())


class Matcher:
    """What may come next in one answer. Not for two threads at once."""

    def __init__(self, matcher: LLMatcher, possible: NDArray[np.bool_], ends: NDArray[np.int64]) -> None:
        self._matcher, self._possible, self._ends = matcher, possible, ends
        self._allowed: NDArray[np.bool_] | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (V,). A token that ends the answer is allowed where the text is complete."""
        if self._allowed is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            self._allowed = np.unpackbits(bits, count=len(self._possible), bitorder="little").view(np.bool_)
            self._allowed &= self._possible
            if self._matcher.is_error():
                raise _stuck(self._matcher.get_error())
            if self.complete:
                self._allowed[self._ends] = True
        return self._allowed

    def take(self, token: int) -> None:
        """The answer goes on with this token, one of those allowed that does not end it."""
        self._allowed = None
        if not self._matcher.consume_token(token):
            raise RequestError(f"token {token} breaks the constraint: {_first_line(self._matcher.get_error())}")

    @property
    def complete(self) -> bool:
        """Whether the text so far fulfils the constraint."""
        return self._matcher.is_accepting()

    @property
    def ended(self) -> bool:
        """Whether it is complete and nothing can follow."""
        return self._matcher.is_stopped() and self.complete


class _Pieces:
    """The vocabulary as the library reads it. One id more than the model has plays the end of the text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Vocabulary, plain: NDArray[np.bool_]) -> None:
        self.tokens: list[bytes] = []
        for id, is_plain in enumerate(plain.tolist()):
            data = tokenizer.token_bytes(id) if is_plain else b"\xff[%d]" % id  # 0xFF marks a control token
            self.tokens.append(b"" if is_plain and data.startswith(b"\xff") else data)  # no text has this byte
        self.eos_token_id = len(self.tokens)
        self.tokens.append(b"\xff[end]")
        self.special_token_ids = [id for id, is_plain in enumerate([*plain.tolist(), False]) if not is_plain]

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError("no text is forced, so none is cut into tokens")


def json_source(schema: object) -> dict[str, Any]:
    """A checked schema with our options, for `%json` and `json_schema` of the library."""
    return {**checked_schema(schema), "x-guidance": _JSON_OPTIONS}


def quoted(text: str) -> str:
    """A text as a literal of a grammar."""
    return json.dumps(_text(text, "a choice"), ensure_ascii=False)


def encoded(body: dict[str, Any]) -> str:
    """The body of a constraint as JSON; RequestError for what JSON cannot say."""
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"the constraint is no JSON: {error}") from None


def _text(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise RequestError(f"{what} is a {type(text).__name__}; expected a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{what} holds a lone surrogate, which is no character; remove it") from None
    return text


def _refused(message: str) -> RequestError:
    reason = _first_line(message)
    if reason.startswith("oneOf "):
        reason = "oneOf whose schemas may overlap; write anyOf, or set them apart by a required const of text"
    return RequestError(f"the constraint cannot be honoured: {reason}")


def _stuck(message: str) -> RequestError:
    reason = _first_line(message)
    if reason.startswith("NoExtension"):
        return RequestError("no text fulfils the constraint; look for a part that refers to itself without end")
    return RequestError(f"the constraint is too complex to go on with: {reason}")


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason given"
