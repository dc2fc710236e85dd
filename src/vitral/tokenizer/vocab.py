"""What a vocabulary is: pieces, the bytes they stand for, and what kind each one is.

Two alphabets occur. SentencePiece writes a space as U+2581 (`▁`) and holds 256 byte pieces (`<0x0A>`) to fall back on.
Byte-level BPE (GPT-2) writes every byte as one printable character, so that nothing ever needs a fallback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from itertools import compress, repeat
from operator import is_not
from typing import overload

from vitral.errors import TokenizerError
from vitral.native import Texts

__all__ = [
    "AlphabetBytes",
    "MOST_PIECES",
    "NEVER_TEXT",
    "SPACE_MARK",
    "Kind",
    "Vocabulary",
    "byte_alphabet",
    "byte_piece",
    "from_byte_alphabet",
    "from_space_mark",
    "kept_apart",
    "looks_like_control",
]

SPACE_MARK = "\u2581"
MOST_PIECES = 1 << 21  # the largest vocabulary in use has 2**18 pieces
_LONGEST_PIECE = 1 << 16  # bytes

# A checkpoint may forget to flag these as special; text that looks like them must not become them.
_CONTROL_NAMES = frozenset({"<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "[INST]", "[/INST]"})


class Kind(IntEnum):
    """Kinds of pieces, numbered as SentencePiece and GGUF number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4  # matched in any text before the merges begin
    UNUSED = 5
    BYTE = 6


NEVER_TEXT = (Kind.CONTROL, Kind.UNKNOWN)  # kinds that plain text never becomes


class AlphabetBytes(Sequence[bytes]):
    """The bytes of byte-level pieces, each found when it is asked for; `instead` has those of some ids.

    >>> from vitral.native import texts_of
    >>> list(AlphabetBytes(texts_of(["ĠA", "<s>"]), {1: b"<s>"}))
    [b' A', b'<s>']
    """

    def __init__(self, pieces: Texts, instead: Mapping[int, bytes]) -> None:
        self._pieces, self._instead = pieces, instead

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, id: int) -> bytes: ...
    @overload
    def __getitem__(self, id: slice) -> list[bytes]: ...
    def __getitem__(self, id: int | slice) -> bytes | list[bytes]:
        if isinstance(id, slice):
            return list(self)[id]
        id = range(len(self))[id]
        found = self._instead.get(id)
        return from_byte_alphabet(self._pieces[id]) if found is None else found

    def __iter__(self) -> Iterator[bytes]:
        found = list(map(from_byte_alphabet, self._pieces))
        for id, data in self._instead.items():
            found[id] = data
        return iter(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def longest(self) -> int:
        """At least the bytes of the longest."""
        return self._pieces.longest


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Id -> piece, bytes and kind; the three are equally long.

    Raises TokenizerError when they contradict each other.
    """

    pieces: Sequence[str]  # as the file spells them
    token_bytes: Sequence[bytes]  # what an id means in the text
    kinds: tuple[Kind, ...]

    def __post_init__(self) -> None:
        size = len(self.pieces)
        if not 0 < size <= MOST_PIECES:
            raise TokenizerError(f"a vocabulary of {size} pieces; allowed: 1 to {MOST_PIECES}")
        if len(self.token_bytes) != size or len(self.kinds) != size:
            found = f"{size} pieces, {len(self.token_bytes)} byte strings, {len(self.kinds)} kinds"
            raise TokenizerError(f"a vocabulary has {found}; they must be equally many")
        data = self.token_bytes
        longest = data.longest if isinstance(data, AlphabetBytes) else max(map(len, data))
        if longest > _LONGEST_PIECE:
            raise TokenizerError(f"a piece of {longest} bytes; at most {_LONGEST_PIECE} are allowed")

    def __len__(self) -> int:
        return len(self.pieces)

    def specials(self) -> dict[str, int]:
        """Text -> id of every piece that plain text can never become.

        The first of two equal pieces wins.
        """
        found: dict[str, int] = {}
        for index in kept_apart(self.kinds):
            if self.kinds[index] in NEVER_TEXT and self.pieces[index]:
                found.setdefault(self.pieces[index], index)
        return found

    def digest(self, settings: Mapping[str, object], more: Iterable[bytes] = ()) -> str:
        """sha256 over pieces, bytes and kinds, the settings, and what else decides the ids (merges, scores)."""
        total = hashlib.sha256(json.dumps(settings, sort_keys=True, ensure_ascii=False).encode())
        for piece, data, kind in zip(self.pieces, self.token_bytes, self.kinds, strict=True):
            spelled = piece.encode("utf-8", "surrogatepass")
            total.update(b"%d %d %d\n%b%b" % (kind, len(spelled), len(data), spelled, data))
        for part in more:
            total.update(b"%d\n%b" % (len(part), part))
        return total.hexdigest()


def kept_apart(kinds: Sequence[Kind]) -> list[int]:
    """Ids of all but normal pieces: few of many, found by identity and without a loop in Python.

    >>> kept_apart([Kind.NORMAL, Kind.CONTROL, Kind.NORMAL])
    [1]
    """
    return list(compress(range(len(kinds)), map(is_not, kinds, repeat(Kind.NORMAL))))


def looks_like_control(text: str) -> bool:
    """Whether a piece is written as control tokens are, whatever flags its file gives it.

    >>> looks_like_control("<|im_start|>"), looks_like_control("    "), looks_like_control("<think>")
    (True, False, False)
    """
    return text in _CONTROL_NAMES or (len(text) > 4 and text.startswith("<|") and text.endswith("|>"))


@cache
def byte_alphabet() -> Mapping[int, str]:
    """GPT-2's byte -> character table: printable Latin-1 stands for itself, the rest follow from U+0100 on.

    >>> byte_alphabet()[0x20], byte_alphabet()[0x41]
    ('Ġ', 'A')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}
    return table | {byte: chr(byte) for byte in printable}


@cache
def _to_latin_1() -> Mapping[int, str]:
    """A table for `str.translate`: each character of the alphabet to that of its byte, other Latin-1 out of Latin-1."""
    outside = dict.fromkeys(range(256), "\uffff")
    return outside | {ord(character): chr(byte) for byte, character in byte_alphabet().items()}


def from_byte_alphabet(piece: str) -> bytes:
    """The bytes a byte-level piece stands for; a piece outside the alphabet stands for its own text."""
    try:
        return piece.translate(_to_latin_1()).encode("latin-1")
    except UnicodeEncodeError:
        return piece.encode("utf-8", "surrogatepass")


def byte_piece(piece: str) -> int | None:
    """The byte that a SentencePiece byte piece stands for, or None.

    >>> byte_piece("<0x0A>"), byte_piece("<s>")
    (10, None)
    """
    if len(piece) != 6 or not piece.startswith("<0x") or piece[5] != ">":
        return None
    try:
        return int(piece[3:5], 16)
    except ValueError:
        return None


def from_space_mark(piece: str, kind: Kind) -> bytes:
    """The bytes a SentencePiece piece stands for.

    Raises TokenizerError for a byte piece that names no byte.
    """
    if kind == Kind.BYTE:
        byte = byte_piece(piece)
        if byte is None:
            raise TokenizerError(f"byte piece {piece!r}; allowed: <0x00> to <0xFF>")
        return bytes([byte])
    text = piece if kind in NEVER_TEXT else piece.replace(SPACE_MARK, " ")
    return text.encode("utf-8", "surrogatepass")
