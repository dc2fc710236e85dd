"""A tokenizer in the words of other programs: GGUF keys, or the files of a Hugging Face folder.

What a tokenizer was read from does not matter; what is written gives the same ids when read again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitral.errors import TokenizerError
from vitral.tokenizer.bpe import LibraryCodec, MergesCodec
from vitral.tokenizer.gguf import from_gguf
from vitral.tokenizer.pretokenizer import known_pretokenizers
from vitral.tokenizer.protobuf import write_model
from vitral.tokenizer.ranks import RankCodec
from vitral.tokenizer.spm import SentencePieceCodec
from vitral.tokenizer.stream import SpaceRule
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tokenizer.vocab import Kind, byte_alphabet

__all__ = ["to_files", "to_gguf"]

_BYTE_LEVEL_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"


def to_gguf(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys `tokenizer.ggml.*` and `tokenizer.chat_template*` of a GGUF file.

    Raises TokenizerError for a way of cutting text into words that GGUF has no name for.
    """
    found: dict[str, Any] = {}
    codec = tokenizer.codec
    if isinstance(codec, SentencePieceCodec):
        model = codec._model
        found = _sentencepiece(tokenizer, [piece.score for piece in model.pieces])
        found["tokenizer.ggml.add_space_prefix"] = model.dummy_prefix
        found["tokenizer.ggml.remove_extra_whitespaces"] = model.squeeze_spaces
    elif isinstance(codec, RankCodec):
        found = _ranks(tokenizer)
    elif isinstance(codec, LibraryCodec | MergesCodec) and _is_byte_level(codec.definition):
        found = _byte_level(tokenizer, codec.definition)
    elif isinstance(codec, LibraryCodec):
        merges = [_pair(merge) for merge in codec.definition["model"].get("merges") or []]
        found = _sentencepiece(tokenizer, _scores_of(tokenizer.vocabulary.pieces, merges))
        found["tokenizer.ggml.add_space_prefix"] = tokenizer.space is not SpaceRule.NEVER
    else:
        raise TokenizerError(f"a tokenizer of kind {tokenizer.kind!r} cannot be written to GGUF")
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "padding": tokenizer.pad_id}
    more = sorted(tokenizer.eos_ids - {tokenizer.eos_id})
    named |= dict(zip(("eot", "eom"), more, strict=False))
    found |= {f"tokenizer.ggml.{name}_token_id": np.uint32(id) for name, id in named.items() if id is not None}
    found["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
    found["tokenizer.ggml.add_eos_token"] = tokenizer.add_eos
    for name, source in tokenizer.templates.items():
        found["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = source
    return found


def to_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """File name -> content, for a folder that Hugging Face programs and `from_path` read."""
    if isinstance(tokenizer.codec, RankCodec):
        tokenizer = from_gguf(_plain(to_gguf(tokenizer)))
    found: dict[str, bytes] = {}
    if isinstance(tokenizer.codec, SentencePieceCodec):
        found["tokenizer.model"] = write_model(tokenizer.codec._model)
    elif isinstance(tokenizer.codec, LibraryCodec | MergesCodec):
        found["tokenizer.json"] = _dumped(_definition(tokenizer, tokenizer.codec.definition))
    else:
        raise TokenizerError(f"a tokenizer of kind {tokenizer.kind!r} cannot be written to files")
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if "tokenizer.model" in found else "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        **{f"{name}_token": tokenizer.piece(id) for name, id in named.items() if id is not None},
    }
    if tokenizer.templates:
        config["chat_template"] = [
            {"name": name, "template": source} for name, source in sorted(tokenizer.templates.items())
        ]
        if list(tokenizer.templates) == ["default"]:
            config["chat_template"] = tokenizer.templates["default"]
    found["tokenizer_config.json"] = _dumped(config)
    if tokenizer.eos_ids:
        found["generation_config.json"] = _dumped({"eos_token_id": sorted(tokenizer.eos_ids)})
    return found


def _dumped(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "surrogatepass")


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in found.items()}


def _listed(model: str, pre: str, tokenizer: Tokenizer, pieces: Sequence[str]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": _without_twins(pieces),
        "tokenizer.ggml.token_type": np.array(tokenizer.vocabulary.kinds, np.int32),
    }


def _without_twins(pieces: Sequence[str]) -> list[str]:
    """The pieces; unused ids, which have no text, get one of their own."""
    return [piece or f"[UNUSED_{id}]" for id, piece in enumerate(pieces)]


def _sentencepiece(tokenizer: Tokenizer, scores: Sequence[float]) -> dict[str, Any]:
    found = _listed("llama", "default", tokenizer, tokenizer.vocabulary.pieces)
    return found | {"tokenizer.ggml.scores": np.array(scores, np.float32)}


def _scores_of(pieces: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores that make SentencePiece merge in the order of a merge list: minus the first rank of each result."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(piece, len(merges) + id)) for id, piece in enumerate(pieces)]


def _byte_level(tokenizer: Tokenizer, definition: Mapping[str, Any]) -> dict[str, Any]:
    found = _listed("gpt2", _pre_name(definition), tokenizer, tokenizer.vocabulary.pieces)
    merges = [" ".join(_pair(merge)) for merge in definition["model"].get("merges") or []]
    return found | {"tokenizer.ggml.merges": merges}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte_level(definition: Mapping[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(definition.get("pre_tokenizer")))


def _steps(part: Any) -> list[Mapping[str, Any]]:
    if not isinstance(part, dict):
        return []
    return [s for p in part["pretokenizers"] for s in _steps(p)] if part.get("type") == "Sequence" else [part]


def _pre_name(definition: Mapping[str, Any]) -> str:
    """GGUF's name for the way this definition cuts text into words."""
    patterns: list[str] = []
    for step in _steps(definition.get("pre_tokenizer")):
        if step.get("type") == "Split" and isinstance(step.get("pattern"), dict):
            patterns.append(str(step["pattern"].get("Regex", step["pattern"].get("String"))))
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            patterns.append("\\p{N}")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            patterns.append(_BYTE_LEVEL_PATTERN)
        elif step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
            raise TokenizerError("the tokenizer puts a space before each text, which GGUF's byte-level kind cannot say")
    ignores = bool(definition["model"].get("ignore_merges"))
    for name, known in known_pretokenizers().items():
        if [_same(p) for p in known.patterns] == [_same(p) for p in patterns] and known.ignore_merges == ignores:
            return name
    raise TokenizerError(f"the tokenizer cuts text into words by {patterns}, which GGUF has no name for")


def _same(pattern: str) -> str:
    """A pattern without what makes no difference: GPT-2's last alternative catches nothing that is left."""
    return pattern.removesuffix("|\\s+") if pattern.startswith("'s|'t") else pattern


def _ranks(tokenizer: Tokenizer) -> dict[str, Any]:
    """A rank list as byte-level merges: each string is merged from the two that lower ranks leave of it."""
    alphabet = byte_alphabet()
    kinds, data = tokenizer.vocabulary.kinds, tokenizer.vocabulary.token_bytes
    ordinary = [id for id, kind in enumerate(kinds) if kind == Kind.NORMAL]
    ranks = {data[id]: rank for rank, id in enumerate(ordinary)}

    def spelled(part: bytes) -> str:
        return "".join(alphabet[byte] for byte in part)

    merges = []
    for string, rank in ranks.items():
        parts = _split_by(ranks, string, rank)
        if len(parts) == 2:
            merges.append(f"{spelled(parts[0])} {spelled(parts[1])}")
    normal = set(ordinary)
    pieces = [spelled(d) if id in normal else d.decode() for id, d in enumerate(data)]
    pre = "llama-bpe" if tokenizer.kind == "tiktoken" else "tekken"
    return _listed("gpt2", pre, tokenizer, pieces) | {"tokenizer.ggml.merges": merges}


def _split_by(ranks: Mapping[bytes, int], string: bytes, below: int) -> list[bytes]:
    """What is left of a string after all merges of a rank under `below`."""
    parts = [string[i : i + 1] for i in range(len(string))]
    while len(parts) > 2:
        best, at = below, -1
        for i in range(len(parts) - 1):
            rank = ranks.get(parts[i] + parts[i + 1], below)
            if rank < best:
                best, at = rank, i
        if at < 0:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _definition(tokenizer: Tokenizer, definition: Mapping[str, Any]) -> dict[str, Any]:
    """A whole tokenizer.json."""
    found: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, **definition}
    if _is_byte_level(definition):
        found["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        found["post_processor"] = _framed(tokenizer.piece(tokenizer.bos_id), tokenizer.bos_id)
    model = definition["model"]
    found["model"] = {"type": "BPE", "dropout": None, "unk_token": None, **model}
    return found


def _framed(text: str, id: int) -> dict[str, Any]:
    first: list[dict[str, Any]] = [
        {"SpecialToken": {"id": text, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"SpecialToken": {"id": text, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    }
