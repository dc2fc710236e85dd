"""Small models for the tests of where they come from."""

from __future__ import annotations

import json
from pathlib import Path

from tests.formats import tiny
from tests.provenance.hostile import PLAIN

CARD = """---
license: other
license_name: mrl
base_model:
- someone/base-7b
datasets: [someone/chats, other/books]
language:
- en
- pt
---
# A model
"""


def folder_model(folder: Path) -> Path:
    """A safetensors folder with a card, a licence, a template and a small tokenizer."""
    tiny.safetensors()[2].write(folder)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5, "c": 6, "d": 7}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": ["a b"],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN, "eos_token": "</s>"}))
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("You may look at it.\n")
    return folder
