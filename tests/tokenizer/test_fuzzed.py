"""What the fuzzer found once: each stays refused, or works, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tokenizer.tiny import CHAT, bpe, spm, tekken
from vitral.errors import TokenizerError
from vitral.tokenizer.load import load_tokenizer


def test_a_text_where_added_tokens_are_listed_is_refused(tmp_path: Path) -> None:
    [sample] = spm()
    sample.write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": "none"}')
    with pytest.raises(TokenizerError, match="added_tokens_decoder is 'none'"):
        load_tokenizer(tmp_path)


def test_a_control_token_that_begins_as_a_name_of_ours_ends_breaks_no_chat(tmp_path: Path) -> None:
    [sample] = tekken()
    definition = json.loads(sample.files["tekken.json"])
    definition["special_tokens"][5]["token_str"] = "silu"  # `messages` ends with its first letter
    (tmp_path / "tekken.json").write_text(json.dumps(definition))
    assert load_tokenizer(tmp_path).encode_chat(CHAT, template="mistral-v3")


def test_a_number_where_the_added_tokens_are_listed_is_refused(tmp_path: Path) -> None:
    [sample] = bpe()
    definition = json.loads(sample.files["tokenizer.json"]) | {"added_tokens": 7}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(TokenizerError, match="added_tokens is 7"):
        load_tokenizer(tmp_path)


def test_a_list_where_the_kind_of_a_step_is_named_is_refused(tmp_path: Path) -> None:
    [sample] = bpe()
    definition = json.loads(sample.files["tokenizer.json"]) | {"normalizer": {"type": ["ByteLevel"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)
