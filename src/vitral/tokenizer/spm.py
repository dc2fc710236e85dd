"""SentencePiece vocabularies (Llama 1 and 2, Mistral v1 to v7, llama2.c) on the library `sentencepiece`."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from vitral.errors import TokenizerError
from vitral.tokenizer.protobuf import Piece, PieceModel, read_model, write_model
from vitral.tokenizer.special import Special, Specials
from vitral.tokenizer.stream import SpaceRule
from vitral.tokenizer.tokenizer import END_OF_TURN, Tokenizer, token_ids_by_text
from vitral.tokenizer.vocab import SPACE_MARK, Kind, Vocabulary, byte_piece, from_space_mark, looks_like_control

__all__ = ["from_llama2c", "from_model_bytes", "from_pieces", "looks_like_llama2c"]

# Vocabularies without control tokens for turns, by the sha256 of their pieces 259 to 31,999: the chat format of the
# instruct models that have them. Base models have them too; a checkpoint that knows better brings a template.
_FORMATS = {
    "4c5badf7b7df213a": "llama2",  # Llama 1 and 2
    "53a6491d97106561": "mistral-v1",  # Mistral 7B v0.1 and v0.2, Mixtral 8x7B v0.1
}


class SentencePieceCodec:
    """`sentencepiece` behind the Codec protocol."""

    def __init__(self, model: PieceModel, rule: SpaceRule) -> None:
        self._model, self._rule = model, rule
        self._main = _load(model)

    @cached_property
    def _without_prefix(self) -> Any:
        return _load(replace(self._model, dummy_prefix=False))

    def encode(self, text: str, after_special: bool) -> list[int]:
        processor = self._main
        if after_special and (
            self._rule is SpaceRule.START or (self._rule is SpaceRule.UNLESS_SPACE and text[0] == " ")
        ):
            processor = self._without_prefix
        ids: list[int] = processor.encode(text, out_type=int)
        return ids


def from_model_bytes(data: bytes, added: Mapping[int, tuple[str, bool]] | None = None) -> Tokenizer:
    """A tokenizer from the bytes of a `tokenizer.model`.

    `added` holds tokens that a checkpoint puts beside or behind it: id -> (text, control). Raises TokenizerError.
    """
    model = read_model(data)
    pieces = list(model.pieces)
    for id, (text, control) in sorted((added or {}).items()):
        kind = Kind.CONTROL if control else Kind.USER
        if id < 0:
            raise TokenizerError(f"added token {text!r} has id {id}; ids begin at 0")
        if id == len(pieces):
            pieces.append(Piece(text, 0.0, kind))
        elif id > len(pieces):
            raise TokenizerError(f"added token {text!r} has id {id}; the next free one is {len(pieces)}")
        elif pieces[id].text != text:
            raise TokenizerError(
                f"added token {text!r} has id {id}, which is {pieces[id].text!r} in the SentencePiece model"
            )
        elif control and pieces[id].kind == Kind.NORMAL:
            pieces[id] = Piece(text, 0.0, kind)
    return from_pieces(replace(model, pieces=tuple(pieces)))


def from_pieces(
    model: PieceModel,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    unk_id: int | None = None,
    pad_id: int | None = None,
    eos_ids: Sequence[int] = (),
    add_bos: bool = True,
    add_eos: bool = False,
) -> Tokenizer:
    """A tokenizer from a model; ids that are not given are found by their usual texts. Raises TokenizerError."""
    texts = [piece.text for piece in model.pieces]
    unk_id = _first(unk_id, [id for id, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN])
    bos_id = _first(bos_id, [id for id, text in enumerate(texts[:256]) if text.strip() == "<s>"])
    eos_id = _first(eos_id, [id for id, text in enumerate(texts[:256]) if text.strip() == "</s>"])
    named = (bos_id, eos_id, pad_id, *eos_ids)
    model = replace(model, pieces=_marked(model.pieces, unk_id, named))
    vocabulary = Vocabulary(
        tuple(texts),
        tuple(from_space_mark(piece.text, piece.kind) for piece in model.pieces),
        tuple(piece.kind for piece in model.pieces),
    )
    rule = SpaceRule.NEVER
    if model.dummy_prefix:
        rule = SpaceRule.UNLESS_SPACE if "[INST]" in vocabulary.specials() else SpaceRule.FRAGMENT
    settings = {"library": "sentencepiece", "space": rule.value, "squeeze": model.squeeze_spaces}
    settings["byte_fallback"] = model.byte_fallback
    scores = struct.pack(f"<{len(model.pieces)}f", *(piece.score for piece in model.pieces))
    return Tokenizer(
        kind="spm",
        vocabulary=vocabulary,
        codec=SentencePieceCodec(model, rule),
        specials=Specials(Special(id, text) for text, id in vocabulary.specials().items()),
        space=rule,
        fingerprint=lambda: vocabulary.digest(settings, [scores]),
        bos_id=bos_id,
        eos_id=eos_id,
        unk_id=unk_id,
        pad_id=pad_id,
        eos_ids=frozenset(eos_ids)
        | token_ids_by_text(vocabulary, END_OF_TURN)
        | ({eos_id} if eos_id is not None else set()),
        add_bos=add_bos and bos_id is not None,
        add_eos=add_eos,
        chat_format=None if rule is SpaceRule.UNLESS_SPACE else _FORMATS.get(_fingerprint(texts)),
    )


def looks_like_llama2c(data: bytes) -> bool:
    """Whether bytes are a vocabulary file of llama2.c: a length, then score, length and text of each piece."""
    if len(data) < 16:
        return False
    longest, at = struct.unpack_from("<i", data)[0], 4
    if not 0 < longest < 1 << 12:
        return False
    while at + 8 <= len(data):
        at += 8 + min(struct.unpack_from("<I", data, at + 4)[0], len(data))
    return at == len(data)


def from_llama2c(data: bytes) -> Tokenizer:
    """A tokenizer from llama2.c's vocabulary file: 0 is unknown, 1 BOS, 2 EOS, then 256 bytes, then scored pieces.

    Source: llama2.c, `tokenizer.py` (export) and `run.c` (best score first). Raises TokenizerError.
    """
    pieces: list[Piece] = []
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise TokenizerError(f"byte {at}: a llama2.c vocabulary ends inside a piece; the file is cut off")
        score, length = struct.unpack_from("<fI", data, at)
        at += 8
        if length > len(data) - at:
            raise TokenizerError(
                f"byte {at}: a piece of {length} bytes, {len(data) - at} are left; the file is cut off"
            )
        try:
            text = data[at : at + length].decode()
        except UnicodeDecodeError:
            raise TokenizerError(f"byte {at}: a piece of a llama2.c vocabulary is not UTF-8") from None
        at += length
        pieces.append(_llama2c_piece(len(pieces), text, score))
    if len(pieces) < 259:
        raise TokenizerError(
            f"a llama2.c vocabulary of {len(pieces)} pieces; it holds at least 259 (3 control, 256 bytes)"
        )
    return from_pieces(PieceModel(tuple(pieces), dummy_prefix=True, squeeze_spaces=False, byte_fallback=True))


def _llama2c_piece(id: int, text: str, score: float) -> Piece:
    if id < 3:
        return Piece(("<unk>", "<s>", "</s>")[id], 0.0, Kind.UNKNOWN if id == 0 else Kind.CONTROL)
    if byte_piece(text) is not None:
        return Piece(text, 0.0, Kind.BYTE)
    return Piece(text.replace(" ", SPACE_MARK), score, Kind.NORMAL)


def _fingerprint(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts[259:32000]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _first(given: int | None, found: list[int]) -> int | None:
    return given if given is not None else (found[0] if found else None)


def _marked(pieces: Sequence[Piece], unk_id: int | None, named: Sequence[int | None]) -> tuple[Piece, ...]:
    """The pieces, those that the checkpoint names as special marked as such, whatever their kind said."""
    if unk_id is None or not 0 <= unk_id < len(pieces):
        raise TokenizerError(
            f"the SentencePiece vocabulary's unknown piece is {unk_id}; one of its {len(pieces)} must be it"
        )
    marked = list(pieces)
    texts = {piece.text for piece in pieces}
    for id, piece in enumerate(pieces):
        if not math.isfinite(piece.score):
            raise TokenizerError(f"piece {id} {piece.text!r} has the score {piece.score}; scores are finite")
        spaced = piece.text.replace(" ", SPACE_MARK)
        if piece.kind == Kind.USER and spaced not in texts:
            marked[id] = replace(piece, text=spaced)  # GGUF spells these plainly
        if id == unk_id:
            marked[id] = replace(piece, kind=Kind.UNKNOWN)
        elif (
            piece.kind == Kind.UNKNOWN
            or (id in named and piece.kind == Kind.NORMAL)
            or (piece.kind == Kind.USER and (id in named or looks_like_control(piece.text)))
        ):
            marked[id] = replace(piece, kind=Kind.CONTROL)
    return tuple(marked)


def _load(model: PieceModel) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=write_model(model))
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(f"sentencepiece refuses the vocabulary: {' '.join(str(error).split())}") from None
