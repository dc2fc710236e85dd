"""Small vocabularies for constraints."""

from __future__ import annotations

from collections.abc import Sequence

from vitral.tokenizer.stream import SpaceRule, TextStream


class ByteVocabulary:
    """Ids are bytes; 256 ends the text; pieces of several bytes and further control tokens follow."""

    def __init__(
        self, pieces: Sequence[bytes] = (), controls: Sequence[bytes] = (), space: SpaceRule = SpaceRule.NEVER
    ) -> None:
        self.tokens = [*(bytes([byte]) for byte in range(256)), b"<end>", *pieces, *controls]
        self.special_ids = frozenset({256, *range(257 + len(pieces), len(self.tokens))})
        self.space = space

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]

    def is_special(self, id: int) -> bool:
        return id in self.special_ids

    def decode(self, ids: Sequence[int]) -> str:
        stream = TextStream(self, self.space)
        return "".join(map(stream.push, ids)) + stream.finish()
