"""SentencePiece's model file: as much of protocol buffers as it needs, reading and writing.

Source: sentencepiece's `sentencepiece_model.proto`. A file from a stranger is read here, bounded, and only what we
understand goes on to the library, in a file written anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vitral.errors import TokenizerError
from vitral.tokenizer.vocab import MOST_PIECES, Kind

__all__ = ["Piece", "PieceModel", "looks_like_model", "read_model", "write_model"]

BPE = 2  # TrainerSpec.ModelType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry: the higher its score, the earlier it is merged."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class PieceModel:
    """A SentencePiece BPE model with the identity normaliser."""

    pieces: tuple[Piece, ...]
    dummy_prefix: bool
    squeeze_spaces: bool
    byte_fallback: bool


def looks_like_model(head: bytes) -> bool:
    """Whether bytes begin as a SentencePiece model does: with a piece that begins with its text."""
    return len(head) > 4 and head[0] == 0x0A and 2 <= head[1] < 0x80 and head[2] == 0x0A and head[3] <= head[1]


def read_model(data: bytes) -> PieceModel:
    """Read a model.

    Raises TokenizerError for bytes that are no such model, another algorithm than BPE, or a normaliser with rules.
    """
    pieces: list[Piece] = []
    # The defaults of the .proto file.
    algorithm, byte_fallback, dummy_prefix, squeeze, escape, suffix = 1, False, True, True, True, False
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(value))
            if len(pieces) > MOST_PIECES:
                raise TokenizerError(f"a SentencePiece model with over {MOST_PIECES} pieces; that many are not allowed")
        elif number == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
            algorithm = _number(trainer, 3, 1)
            suffix = bool(_number(trainer, 24, 0))
            byte_fallback = bool(_number(trainer, 35, 0))
        elif number == 3 and isinstance(value, bytes):
            normalizer = dict(_fields(value))
            if normalizer.get(2):
                raise TokenizerError(
                    "the SentencePiece model rewrites text by rules; only the identity normaliser is allowed"
                )
            dummy_prefix, squeeze = bool(_number(normalizer, 3, 1)), bool(_number(normalizer, 4, 1))
            escape = bool(_number(normalizer, 5, 1))
    if algorithm != BPE:
        name = _ALGORITHMS.get(algorithm, str(algorithm))
        raise TokenizerError(
            f"a SentencePiece model of type {name}; Llama and Mistral use bpe, the only type that is read"
        )
    if suffix or not escape:
        raise TokenizerError("the SentencePiece model treats spaces unlike Llama and Mistral do; it cannot be used")
    return PieceModel(tuple(pieces), dummy_prefix, squeeze, byte_fallback)


def write_model(model: PieceModel) -> bytes:
    """The bytes that `sentencepiece` loads."""
    out = bytearray()
    for piece in model.pieces:
        text = piece.text.encode("utf-8", "surrogatepass")
        body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", piece.score)
        body += b"\x18" + _varint(piece.kind)
        out += b"\x0a" + _varint(len(body)) + body
    trainer = b"\x18" + _varint(BPE) + _varint(35 << 3) + _varint(model.byte_fallback)
    normalizer = b"\x0a\x08identity" + bytes([0x18, model.dummy_prefix, 0x20, model.squeeze_spaces, 0x28, 1])
    out += b"\x12" + _varint(len(trainer)) + trainer + b"\x1a" + _varint(len(normalizer)) + normalizer
    return bytes(out)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            try:
                text = value.decode()
            except UnicodeDecodeError:
                raise TokenizerError(f"the SentencePiece piece {value[:40]!r} is not UTF-8") from None
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            if value not in Kind.__members__.values():
                raise TokenizerError(f"a SentencePiece piece of type {value}; allowed: 1 to 6")
            kind = Kind(value)
    return Piece(text, score, kind)


def _number(fields: dict[int, int | float | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise TokenizerError(f"field {number} of the SentencePiece model is not a number")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Field numbers and values of one message: whole numbers, float32, bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire == _BYTES:
            length, at = _read_varint(data, at)
        elif length == 0:
            raise TokenizerError(f"byte {at}: protocol buffer field type {wire}; this is not a SentencePiece model")
        if length > len(data) - at:
            raise TokenizerError(
                f"byte {at}: a field of {length} bytes, {len(data) - at} are left; the model is cut off"
            )
        chunk = data[at : at + length]
        yield number, struct.unpack("<f", chunk)[0] if wire == _FIXED32 else chunk
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise TokenizerError(f"byte {at}: a number without an end; this is not a SentencePiece model, or it is cut off")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
