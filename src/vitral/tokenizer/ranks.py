"""Rank-list BPE on the library `tiktoken`: Llama 3's `tokenizer.model` and Mistral's `tekken.json`.

A rank list holds byte strings; the lower its rank, the earlier a string is merged.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitral.errors import TokenizerError
from vitral.tokenizer.bpe import guarded
from vitral.tokenizer.pretokenizer import pretokenizer
from vitral.tokenizer.special import Special, Specials
from vitral.tokenizer.stream import SpaceRule
from vitral.tokenizer.tokenizer import END_OF_TURN, Tokenizer, token_ids_by_text
from vitral.tokenizer.vocab import MOST_PIECES, Kind, Vocabulary

__all__ = ["from_tekken", "from_tiktoken", "looks_like_tekken", "looks_like_tiktoken"]

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,8})")

# Llama 3.1 to 3.3 name these of the 256 control tokens behind the ranks; the others are reserved, numbered from 0.
# Source: Meta, llama-models `models/llama3/tokenizer.py`, and the tokenizer.json of Llama 3.1.
_LLAMA3_TOTAL = 256
_LLAMA3 = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}

# tekken.json before version v8 may leave its first control tokens unnamed. Source: mistral-common, `tekken.py`.
_TEKKEN = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
    ),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_TEKKEN_FORMATS = {"v2": "mistral-v3-tekken", "v3": "mistral-v3-tekken", "v7": "mistral-v7-tekken"}


class RankCodec:
    """`tiktoken` behind the Codec protocol; `offset` is the id of rank 0."""

    def __init__(self, pattern: str, ranks: Mapping[bytes, int], offset: int) -> None:
        from tiktoken import Encoding

        self._offset = offset
        self._library = guarded(
            lambda: Encoding("vitral", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={}), "the rank list"
        )

    def encode(self, text: str, after_special: bool) -> list[int]:
        ranks = guarded(lambda: self._library.encode_ordinary(text), "the text")
        return [rank + self._offset for rank in ranks] if self._offset else ranks


def looks_like_tiktoken(head: bytes) -> bool:
    """Whether a file begins as a tiktoken rank list does: Base64, a space, a number."""
    line = head.split(b"\n", 1)[0].rstrip(b"\r")
    return _LINE.fullmatch(line) is not None


def looks_like_tekken(definition: Mapping[str, Any]) -> bool:
    """Whether the content of a JSON file is that of a `tekken.json`."""
    return isinstance(definition.get("vocab"), list) and isinstance(definition.get("config"), dict)


def from_tiktoken(data: bytes) -> Tokenizer:
    """A Llama 3 tokenizer from the rank list that Meta ships as `tokenizer.model`. Raises TokenizerError."""
    strings: list[bytes] = []
    for number, line in enumerate(data.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or int(match[2]) != len(strings):
            raise TokenizerError(f"line {number} of the rank list is {line[:40]!r}; expected Base64 and {len(strings)}")
        if len(strings) == MOST_PIECES:
            raise TokenizerError(f"the rank list has over {MOST_PIECES} lines; that many are not allowed")
        strings.append(_base64(match[1], f"line {number}"))
    reserved = iter(range(_LLAMA3_TOTAL))
    names = [_LLAMA3.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(_LLAMA3_TOTAL)]
    pre = pretokenizer("llama-bpe")
    return _build("tiktoken", pre.patterns[0], strings, names, specials_first=False, bos=names[0], eos=names[1])


def from_tekken(definition: Mapping[str, Any]) -> Tokenizer:
    """A Mistral tokenizer from the content of a `tekken.json`. Raises TokenizerError."""
    config = definition["config"]
    pattern, size = config.get("pattern"), config.get("default_vocab_size")
    n_special = config.get("default_num_special_tokens")
    if not isinstance(pattern, str) or type(size) is not int or type(n_special) is not int:
        raise TokenizerError(
            "tekken.json: 'config' needs 'pattern', 'default_vocab_size' and 'default_num_special_tokens'"
        )
    n_ranks = size - n_special
    if not (0 < n_special < size <= MOST_PIECES and n_ranks <= len(definition["vocab"])):
        found = f"{size} ids of which {n_special} are special, and {len(definition['vocab'])} entries"
        raise TokenizerError(f"tekken.json promises {found}; these do not fit together")
    strings = [_tekken_string(entry, rank) for rank, entry in enumerate(definition["vocab"][:n_ranks])]
    names = _tekken_names(definition.get("special_tokens"), n_special)
    tokenizer = _build("tekken", pattern, strings, names, specials_first=True, bos="<s>", eos="</s>")
    return replace(tokenizer, chat_format=_TEKKEN_FORMATS.get(str(config.get("version"))))


def _build(
    kind: str, pattern: str, strings: Sequence[bytes], names: Sequence[str], *, specials_first: bool, bos: str, eos: str
) -> Tokenizer:
    offset = len(names) if specials_first else 0
    ranks = {string: rank for rank, string in enumerate(strings)}
    if len(ranks) != len(strings):
        raise TokenizerError("a byte string stands in the rank list twice; which rank is meant cannot be known")
    if missing := next((byte for byte in range(256) if bytes([byte]) not in ranks), None):
        raise TokenizerError(f"the rank list has no string for byte {missing}; all 256 are needed")
    shown = [string.decode("utf-8", "backslashreplace") for string in strings]
    special_bytes = [name.encode() for name in names]
    kinds = [Kind.UNKNOWN if name == "<unk>" else Kind.CONTROL for name in names]
    parts = [(list(names), special_bytes, kinds), (shown, list(strings), [Kind.NORMAL] * len(strings))]
    first, second = parts if specials_first else parts[::-1]
    vocabulary = Vocabulary((*first[0], *second[0]), (*first[1], *second[1]), (*first[2], *second[2]))
    specials = vocabulary.specials()
    return Tokenizer(
        kind=kind,
        vocabulary=vocabulary,
        codec=RankCodec(pattern, ranks, offset),
        specials=Specials(Special(id, text) for text, id in specials.items()),
        space=SpaceRule.NEVER,
        fingerprint=lambda: vocabulary.digest({"library": "tiktoken", "pattern": pattern, "offset": offset}),
        bos_id=specials.get(bos),
        eos_id=specials.get(eos),
        unk_id=specials.get("<unk>"),
        pad_id=specials.get("<pad>", specials.get("<|finetune_right_pad_id|>")),
        eos_ids=token_ids_by_text(vocabulary, END_OF_TURN),
        add_bos=bos in specials,
    )


def _base64(text: bytes | str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise TokenizerError(f"{where} of the vocabulary is not Base64") from None


def _tekken_string(entry: Any, rank: int) -> bytes:
    if not isinstance(entry, dict) or entry.get("rank") != rank or not isinstance(entry.get("token_bytes"), str):
        raise TokenizerError(
            f"tekken.json: entry {rank} of 'vocab' is {str(entry)[:80]}; expected its rank and 'token_bytes'"
        )
    return _base64(entry["token_bytes"], f"entry {rank}")


def _tekken_names(entries: Any, total: int) -> list[str]:
    """Texts of the control tokens by id; those without a name are called <SPECIAL_id>."""
    if entries is None:
        entries = [{"rank": rank, "token_str": text} for rank, text in enumerate(_TEKKEN)]
    if not isinstance(entries, list) or len(entries) > total:
        raise TokenizerError(f"tekken.json: 'special_tokens' must be a list of at most {total} entries")
    names = [f"<SPECIAL_{id}>" for id in range(total)]
    for entry in entries:
        rank, text = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, dict) else (None, None)
        if type(rank) is not int or not 0 <= rank < total or not isinstance(text, str) or not text:
            raise TokenizerError(f"tekken.json: a special token is {str(entry)[:80]}; it needs 'rank' and 'token_str'")
        names[rank] = text
    if len(set(names)) != total:
        raise TokenizerError("tekken.json: two special tokens have the same text")
    return names
