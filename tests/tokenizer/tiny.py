"""The smallest valid vocabulary of every kind, as files, for the fuzzer; and what it does with each.

Written from the descriptions of the formats: `tokenizer.json` of Hugging Face, SentencePiece's protocol buffer,
Meta's rank list, Mistral's `tekken.json`, llama2.c's binary, and the same vocabularies in GGUF's metadata.
"""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.formats.tiny import GgufParts, Sample, assemble_gguf, gguf_value
from vitral.errors import TemplateError
from vitral.formats.gguf import GgufFile
from vitral.tokenizer.load import load_tokenizer
from vitral.tokenizer.vocab import byte_alphabet

TEXT = "Olá, world: 12 345 \n\t<s>[INST] 🪟 <|im_start|>"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Oi, <s>?"},
    {"role": "assistant", "content": "Tudo bem."},
    {"role": "user", "content": "2 + 2"},
]
TEMPLATE = (
    "{%- set ns = namespace(n=0) -%}{{ bos_token }}{% for m in messages if m['content'] is defined %}"
    "{%- if m.role == 'system' and loop.first -%}<|im_start|>{{ m['content'] | trim }}{%- else -%}"
    "{%- set ns.n = ns.n + 1 -%}<|im_start|>{{ m.role ~ '\\n' + m.content[:400] }}<|im_end|>\n{%- endif -%}"
    "{% endfor %}{% macro tool(t) %}{{ t | tojson }}{% endmacro %}{% for t in tools or [] %}{{ tool(t) }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BYTES = list(byte_alphabet().values())
_MERGES = [("a", "l"), ("r", "l"), ("Ġ", "w"), ("o", "rl")]
_PIECES = [*_BYTES, *("".join(pair) for pair in _MERGES)]
_PATTERN = r"\p{L}+|\p{N}{1,3}|[^\r\n\p{L}\p{N}]+|\s+"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def bpe() -> list[Sample]:
    """Byte-level BPE as Hugging Face keeps it, with all that may lie beside it."""
    n = len(_PIECES)
    added = [{"id": n + i, "content": text, "special": True} for i, text in enumerate(["<|im_start|>", "<|im_end|>"])]
    split = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": level,
        "model": {
            "type": "BPE",
            "ignore_merges": False,
            "vocab": {piece: id for id, piece in enumerate(_PIECES)},
            "merges": [list(pair) for pair in _MERGES],
        },
    }
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": True}
    beside = {
        "tokenizer_config.json": _json(config | {"chat_template": [{"name": "default", "template": TEMPLATE}]}),
        "special_tokens_map.json": _json({"pad_token": "<|im_end|>"}),
        "generation_config.json": _json({"eos_token_id": [n + 1]}),
    }
    return [Sample("bpe", {"tokenizer.json": _json(definition)} | beside, "")]


def _message(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + _varint(n >> 7)


_SCORED = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
_SCORED += [(text, -float(i), 1) for i, text in enumerate(["▁", "a", "l", "o", "▁w", "al", "or", "rl"])]
_NAMED = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]


def spm() -> list[Sample]:
    """A SentencePiece model, byte for byte, with tokens added beside it."""
    pieces = b""
    for text, score, kind in [*_NAMED, *_SCORED]:
        pieces += _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))
    trainer = bytes([3 << 3, 2]) + b"\x98\x02\x01"  # model_type BPE, byte_fallback (35) true
    normaliser = _message(1, b"identity") + bytes([3 << 3, 1, 4 << 3, 0])
    model = pieces + _message(2, trainer) + _message(3, normaliser)
    n = len(_NAMED) + len(_SCORED)
    beside = {
        "added_tokens.json": _json({"<|im_end|>": n}),
        "tokenizer_config.json": _json(
            {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "add_bos_token": True,
                "added_tokens_decoder": {str(n): {"content": "<|im_end|>", "special": True}},
            }
        ),
        "chat_template.jinja": TEMPLATE.encode(),
    }
    return [Sample("spm", {"tokenizer.model": model} | beside, "")]


def _ranks() -> list[bytes]:
    return [bytes([byte]) for byte in range(256)] + [b"al", b"or", b" w"]


def tiktoken() -> list[Sample]:
    """Meta's rank list."""
    lines = [base64.b64encode(string) + b" %d" % rank for rank, string in enumerate(_ranks())]
    return [Sample("tiktoken", {"tokenizer.model": b"\n".join(lines) + b"\n"}, "")]


def tekken() -> list[Sample]:
    """Mistral's `tekken.json`."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(string).decode(), "token_str": string.decode("utf-8", "replace")}
        for rank, string in enumerate(_ranks())
    ]
    definition = {
        "config": {
            "pattern": _PATTERN,
            "num_vocab_tokens": len(vocab),
            "default_vocab_size": len(vocab) + len(names),
            "default_num_special_tokens": len(names),
            "version": "v7",
        },
        "vocab": vocab,
        "special_tokens": [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(names)],
    }
    return [Sample("tekken", {"tekken.json": _json(definition)}, "")]


def llama2c() -> list[Sample]:
    """llama2.c's vocabulary: the longest length, then score, length and text of each piece."""
    out = struct.pack("<i", 8)
    for text, score, _ in [("<unk>", 0.0, 0), ("\n<s>\n", 0.0, 0), ("\n</s>\n", 0.0, 0), *_SCORED]:
        piece = text.replace("▁", " ").encode()
        out += struct.pack("<fI", score, len(piece)) + piece
    return [Sample("llama2c vocabulary", {"tokenizer.bin": out}, "")]


def template() -> list[Sample]:
    """A chat template alone."""
    return [Sample("template", {"chat_template.jinja": TEMPLATE.encode()}, "chat_template.jinja")]


def gguf_vocabularies() -> list[GgufParts]:
    """Vocabularies in GGUF's metadata, with merges and with scores; no tensors."""
    kinds = [1] * len(_PIECES) + [3, 3]
    merges = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*_PIECES, "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _MERGES],
        "tokenizer.ggml.bos_token_id": len(_PIECES),
        "tokenizer.ggml.eos_token_id": len(_PIECES) + 1,
        "tokenizer.chat_template": TEMPLATE,
    }
    scores = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in [*_NAMED, *_SCORED]],
        "tokenizer.ggml.scores": [score for _, score, _ in [*_NAMED, *_SCORED]],
        "tokenizer.ggml.token_type": [kind for _, _, kind in [*_NAMED, *_SCORED]],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 1,
    }
    return [GgufParts(tuple((k, gguf_value(v)) for k, v in one.items()), (), b"") for one in (merges, scores)]


def gguf() -> list[Sample]:
    """`gguf_vocabularies` as files."""
    return [Sample("gguf vocabulary", {"model.gguf": assemble_gguf(p)}, "model.gguf") for p in gguf_vocabularies()]


VOCABULARIES: dict[str, Callable[[], list[Sample]]] = {
    "bpe": bpe,
    "spm": spm,
    "tiktoken": tiktoken,
    "tekken": tekken,
    "llama2c-vocabulary": llama2c,
    "gguf-vocabulary": gguf,
    "template": template,
}


def use(path: Path) -> None:
    """The code under test: open a vocabulary, turn a text into ids and back, and render a chat with each template."""
    from vitral.tokenizer.chat import render

    if path.suffix == ".jinja":
        source = path.read_text("utf-8", "replace")
        render(source, CHAT, variables={"bos_token": "<s>"})
        render(source, CHAT, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
        return
    tokenizer = load_tokenizer(GgufFile.open(path).metadata if path.suffix == ".gguf" else path)
    ids, spans = tokenizer.encode_with_offsets(TEXT, parse_special=True)
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert len(spans) == len(ids)
    tokenizer.decode(ids)
    assert len(tokenizer.digest) == 64
    with contextlib.suppress(TemplateError):  # a vocabulary without a template is whole
        tokenizer.encode_chat(CHAT)
