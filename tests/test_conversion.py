"""A converted model speaks as before: its tokenizer and chat template come along."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.formats import tiny
from vitral.conversion import convert
from vitral.errors import UnsafeFile
from vitral.formats.checkpoint import open_checkpoint
from vitral.tokenizer.load import load_tokenizer

CHAT = [{"role": "user", "content": "Olá! What is 2 + 2?"}]


def test_stories260k_goes_through_both_layouts_with_its_tokenizer(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "model-stories260k"
    first = load_tokenizer(source)
    convert(source / "stories260K.bin", tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "hf", layout="safetensors")
    convert(tmp_path / "hf", tmp_path / "again.gguf")
    digest = open_checkpoint(source).weights.digest()
    for path in (tmp_path / "m.gguf", tmp_path / "hf", tmp_path / "again.gguf"):
        checkpoint = open_checkpoint(path)
        assert checkpoint.weights.digest() == digest
        again = load_tokenizer(checkpoint.metadata if checkpoint.layout == "gguf" else path)
        assert again.encode("Once upon a time, ção\n") == first.encode("Once upon a time, ção\n")
        assert (again.bos_id, again.eos_ids) == (first.bos_id, first.eos_ids)


def test_the_embedded_model_becomes_a_folder_that_transformers_reads(smollm2: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    convert(smollm2, tmp_path / "hf", layout="safetensors", type="F16")
    first, again = load_tokenizer(open_checkpoint(smollm2).metadata), load_tokenizer(tmp_path / "hf")
    assert again.encode_chat(CHAT) == first.encode_chat(CHAT)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False) == first.encode_chat(CHAT)
    assert theirs.encode("x = 12345\n\n  y") == first.encode("x = 12345\n\n  y")


def test_a_model_without_a_tokenizer_is_written_without(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["mistral"]()[0].write(tmp_path / "source")
    convert(source, tmp_path / "m.gguf")
    assert "tokenizer.ggml.model" not in open_checkpoint(tmp_path / "m.gguf").metadata


def test_a_broken_tokenizer_is_an_error_not_left_out(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["mistral"]()[0].write(tmp_path / "source")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(UnsafeFile, match="not JSON"):
        convert(source, tmp_path / "m.gguf")
    shutil.rmtree(source)
