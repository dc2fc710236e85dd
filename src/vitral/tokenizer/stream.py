"""Ids to text, one at a time, never half a character.

A character may be spread over several tokens (byte fallback, byte-level BPE). The stream holds back bytes that could
still become a character. Bytes that cannot are replaced by U+FFFD, one for each maximal part of an ill-formed sequence
(Unicode 15, section 3.9, "U+FFFD Substitution of Maximal Subparts"; what Python's `errors="replace"` does). Text pieces
pushed one by one, joined, equal the decoding of all ids at once: decoding *is* this stream.
"""

from __future__ import annotations

import codecs
from enum import Enum
from typing import Protocol

__all__ = ["Pieces", "SpaceRule", "TextStream"]


class SpaceRule(Enum):
    """Where a SentencePiece encoder puts the space that no text had, and the decoder takes it away again."""

    NEVER = "never"
    START = "start"  # before the text
    FRAGMENT = "fragment"  # before the text, and again after each control token
    UNLESS_SPACE = "unless_space"  # the same, but after a control token only if no space stands there (Mistral v2, v3)


class Pieces(Protocol):
    """What the stream asks of a tokenizer."""

    def token_bytes(self, id: int) -> bytes: ...

    def is_special(self, id: int) -> bool: ...


class TextStream:
    """Takes ids, gives text.

    `continuing` says that the ids go on from text that is already there: then a leading space is a real one.
    """

    def __init__(
        self, pieces: Pieces, rule: SpaceRule, *, skip_special: bool = False, continuing: bool = False
    ) -> None:
        self._pieces, self._rule, self._skip = pieces, rule, skip_special
        self._drop_space = rule is not SpaceRule.NEVER and not continuing
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that is certain once this id is known; often a word, sometimes nothing.

        Raises TokenizerError for an id outside the vocabulary.
        """
        data = self._pieces.token_bytes(id)
        if self._pieces.is_special(id):
            return self._special(data)
        if self._drop_space and data:
            self._drop_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was held back: U+FFFD where a character never became whole. The stream may be used again."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text

    def _special(self, data: bytes) -> str:
        held = self.finish()
        if self._rule in (SpaceRule.FRAGMENT, SpaceRule.UNLESS_SPACE):
            self._drop_space = True
        elif not self._skip:
            self._drop_space = False
        return held if self._skip else held + data.decode("utf-8", "replace")
