"""A tokenizer from the metadata of a GGUF file (keys `tokenizer.ggml.*`, `tokenizer.chat_template*`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitral.errors import TokenizerError
from vitral.native import Texts, texts_of
from vitral.tokenizer.bpe import Named, from_merges
from vitral.tokenizer.pretokenizer import pretokenizer
from vitral.tokenizer.protobuf import Piece, PieceModel
from vitral.tokenizer.spm import from_pieces
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tokenizer.vocab import MOST_PIECES, Kind

__all__ = ["from_gguf"]

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_ENDS = ("eot_token_id", "eom_token_id")


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from GGUF key/values.

    Raises TokenizerError for a missing key, a vocabulary of another family, or an unknown pre-tokeniser.
    """
    model = _text(metadata, "model")
    pieces = _texts(metadata, "tokens")
    kinds = _kinds(metadata, len(pieces))
    if model == "llama":
        tokenizer = _sentencepiece(metadata, pieces.tolist(), kinds)
    elif model == "gpt2":
        pre = pretokenizer(_text(metadata, "pre"))
        merges = _texts(metadata, "merges")
        tokenizer = from_merges(pieces, kinds, merges, pre, _named(metadata, add_bos=pre.add_bos))
    else:
        raise TokenizerError(f"the GGUF vocabulary is of type {model!r}; Llama and Mistral use 'llama' or 'gpt2'")
    return tokenizer.with_templates(_templates(metadata))


def _sentencepiece(metadata: Mapping[str, Any], pieces: Sequence[str], kinds: Sequence[Kind]) -> Tokenizer:
    scores = _list(metadata, "scores", float)
    if len(scores) != len(pieces):
        raise TokenizerError(
            f"the GGUF vocabulary has {len(pieces)} pieces and {len(scores)} scores; they must be equally many"
        )
    named = _named(metadata, add_bos=True)
    model = PieceModel(
        tuple(map(Piece, pieces, scores, kinds)),
        dummy_prefix=_flag(metadata, "add_space_prefix", True),
        squeeze_spaces=_flag(metadata, "remove_extra_whitespaces", False),
        byte_fallback=Kind.BYTE in kinds,
    )
    return from_pieces(
        model,
        bos_id=named.bos_id,
        eos_id=named.eos_id,
        unk_id=named.unk_id if named.unk_id is not None or Kind.UNKNOWN in kinds else 0,
        pad_id=named.pad_id,
        eos_ids=named.eos_ids,
        add_bos=bool(named.add_bos),
        add_eos=bool(named.add_eos),
    )


def _named(metadata: Mapping[str, Any], *, add_bos: bool) -> Named:
    return Named(
        bos_id=_id(metadata, "bos_token_id"),
        eos_id=_id(metadata, "eos_token_id"),
        unk_id=_id(metadata, "unknown_token_id"),
        pad_id=_id(metadata, "padding_token_id"),
        eos_ids=tuple(id for id in (_id(metadata, key) for key in _ENDS) if id is not None),
        add_bos=_flag(metadata, "add_bos_token", add_bos),
        add_eos=_flag(metadata, "add_eos_token", False),
    )


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates: the plain key is the default one, `tokenizer.chat_template.<name>` the others."""
    found: dict[str, str] = {}
    for key, value in metadata.items():
        if key == _TEMPLATE or (key.startswith(_TEMPLATE + ".") and isinstance(value, str)):
            if not isinstance(value, str):
                raise TokenizerError(
                    f"the GGUF key {key!r} is of type {type(value).__name__}; a chat template is a string"
                )
            found[key.removeprefix(_TEMPLATE).removeprefix(".") or "default"] = value
    return found


def _kinds(metadata: Mapping[str, Any], size: int) -> list[Kind]:
    numbers = _list(metadata, "token_type", int) if _PREFIX + "token_type" in metadata else [1] * size
    if len(numbers) != size:
        raise TokenizerError(
            f"the GGUF vocabulary has {size} pieces and {len(numbers)} types; they must be equally many"
        )
    kinds = {kind.value: kind for kind in Kind}
    try:
        return list(map(kinds.__getitem__, numbers))
    except KeyError:
        wrong = next(number for number in numbers if number not in Kind.__members__.values())
        raise TokenizerError(f"a piece of the GGUF vocabulary has the type {wrong}; allowed: 1 to 6") from None


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """A list of one kind; NumPy arrays become lists."""
    value = metadata.get(_PREFIX + key)
    if value is None:
        raise TokenizerError(f"the GGUF file has no {_PREFIX + key!r}; a vocabulary needs it, convert the model anew")
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list) or not set(map(type, value)) <= {kind}:
        raise TokenizerError(f"the GGUF key {_PREFIX + key!r} must be a list of {kind.__name__}")
    if len(value) > 2 * MOST_PIECES:
        raise TokenizerError(
            f"the GGUF key {_PREFIX + key!r} has {len(value)} entries; at most {2 * MOST_PIECES} are allowed"
        )
    return value


def _texts(metadata: Mapping[str, Any], key: str) -> Texts:
    """The same of strings, which stay where they are."""
    value = metadata.get(_PREFIX + key)
    if isinstance(value, Texts) and len(value) <= 2 * MOST_PIECES:
        return value
    try:
        return texts_of(_list(metadata, key, str))
    except UnicodeEncodeError:
        raise TokenizerError(f"the GGUF key {_PREFIX + key!r} holds a string with half of a character") from None


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, str):
        raise TokenizerError(
            f"the GGUF file has no text at {_PREFIX + key!r}; a vocabulary needs it, convert the model anew"
        )
    return value


def _id(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(_PREFIX + key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TokenizerError(f"the GGUF key {_PREFIX + key!r} is {value!r}; a token id is a whole number")
    return None if value is None or value == 0xFFFFFFFF or value == -1 else value


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(_PREFIX + key, default)
    if not isinstance(value, bool):
        raise TokenizerError(f"the GGUF key {_PREFIX + key!r} is {value!r}; allowed: true and false")
    return value
