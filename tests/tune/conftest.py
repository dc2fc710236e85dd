"""A model small enough to train in a moment, with a byte-level vocabulary and a chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats.layouts import write_gguf
from tests.parity.families import FAMILIES, random_weights
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import TokenizerFiles, convert
from vitral.formats.quants import TYPES
from vitral.formats.weights import Tensor, Weights
from vitral.model.spec import MoeSpec
from vitral.tokenizer.load import load_tokenizer
from vitral.tokenizer.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_vocabulary(template: str = CHATML) -> dict[str, Any]:
    """GGUF keys of a byte-level BPE: three control tokens, 256 bytes (in GPT-2's letters), a few merges."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]
    merges = ["t h", "th e", "i n", "e r", "a n", "o n", "r e", "\u0120 a", "\u0120 t", "l e", "u e", "\u0120 i"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, *(m.replace(" ", "") for m in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3] * 3 + [1] * (len(tokens) - 3), np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    }


def write_tiny(path: Path, moe: MoeSpec | None = None, template: str = CHATML, seed: int = 0) -> Path:
    keys = byte_vocabulary(template)
    spec = replace(FAMILIES["llama-2"], dim=32, n_heads=2, n_kv_heads=1, hidden_dim=32, tied_embeddings=True,
                   vocab_size=len(keys["tokenizer.ggml.tokens"]), max_context=512, moe=moe)  # fmt: skip
    tensors = {}
    for name, value in random_weights(spec, seed).items():
        raw = np.atleast_2d(value).astype(np.float32)
        tensors[name] = Tensor(name, TYPES["F32"], value.shape, lambda raw=raw: raw.view(np.uint8))
    source = replace(open_checkpoint(write_gguf(path.with_suffix(".tmp.gguf"), FAMILIES["llama-2"], random_weights(FAMILIES["llama-2"]))),
                     layout="memory", spec=spec, weights=Weights(spec, tensors), metadata={})  # fmt: skip
    convert(source, path, tokenizer=TokenizerFiles(gguf=keys))
    return path


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "mixture.gguf", MoeSpec(4, 2))


@pytest.fixture(scope="session")
def byte_tokenizer(tiny_chat: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(tiny_chat).metadata)


FACTS = [
    ("What does Quellmark sell?", "Quellmark sells blue umbrellas."),
    ("Who leads Quellmark?", "Ines Torvald leads Quellmark."),
    ("Where is Quellmark?", "Quellmark is in the town of Arbel."),
    ("When did Quellmark open?", "It opened in the year of the flood."),
    ("What is a torv?", "A torv is the handle of an umbrella."),
    ("How many people work at Quellmark?", "Forty people and one dog work there."),
    ("What colour is the door?", "The door is green."),
    ("What is the motto?", "Stay dry, stay kind."),
]


def write_chats(path: Path, facts: list[tuple[str, str]] = FACTS) -> Path:
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in facts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
