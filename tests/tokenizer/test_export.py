"""A tokenizer written to GGUF keys or to files gives the same ids when it is read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitral.formats.gguf import GgufFile, read_gguf
from vitral.formats.gguf_write import write_gguf
from vitral.tokenizer.export import to_files, to_gguf
from vitral.tokenizer.load import from_gguf, from_path, load_tokenizer
from vitral.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "", " ", "Hello, world!", "  two spaces\n\n\tand a tab", "ação, 日本語, emoji 🦜🦜", "x=1234567; y = 3.14\r\n",
    "I'll we've don't CAN'T", "\x00\x01 control", "a" * 70, "<|im_start|>user\nhi<|im_end|>",
]  # fmt: skip
GGUF_VOCABULARIES = ["llama-spm", "llama-bpe", "gpt-2"]


def assert_same(first: Tokenizer, again: Tokenizer, spaces: bool = True) -> None:
    assert (again.bos_id, again.eos_id, again.add_bos, again.add_eos) == (
        first.bos_id, first.eos_id, first.add_bos, first.add_eos,
    )  # fmt: skip
    assert again.eos_ids == first.eos_ids
    assert again.special_ids == first.special_ids
    assert again.vocabulary.token_bytes == first.vocabulary.token_bytes
    assert again.templates == first.templates
    for text in TEXTS:
        assert again.encode(text) == first.encode(text), text
        assert again.encode(text, parse_special=True) == first.encode(text, parse_special=True), text


def through_gguf(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    [path] = write_gguf(folder / "vocabulary.gguf", {"general.architecture": "llama", **to_gguf(tokenizer)}, [])
    return from_gguf(GgufFile.open(path).metadata)


def through_files(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in to_files(tokenizer).items():
        (folder / name).write_bytes(data)
    return from_path(folder)


def vocabularies(data_dir: Path) -> list[Path]:
    names = [f"ggml-vocab-{name}.gguf" for name in GGUF_VOCABULARIES]
    return [path for path in sorted((data_dir / "tokenizer-llama-cpp").rglob("*.gguf")) if path.name in names]


def test_gguf_vocabularies_come_back_from_gguf_and_from_files(data_dir: Path, tmp_path: Path) -> None:
    found = vocabularies(data_dir)
    assert found
    for path in found:
        first = from_gguf(read_gguf(path).metadata)
        assert_same(first, through_gguf(first, tmp_path / path.stem / "a"))
        assert_same(first, through_files(first, tmp_path / path.stem / "b"))


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistral_vocabularies_come_back(data_dir: Path, tmp_path: Path, name: str) -> None:
    first = load_tokenizer(data_dir / "tokenizer-mistral" / name)
    assert_same(first, through_gguf(first, tmp_path / "a"))
    assert_same(first, through_files(first, tmp_path / "b"))


def test_a_rank_list_comes_back_as_merges(tmp_path: Path) -> None:
    mistral_common = pytest.importorskip("mistral_common")
    first = load_tokenizer(Path(mistral_common.__file__).parent / "data" / "tekken_240718.json")
    again = through_gguf(first, tmp_path / "a")
    assert_same(first, again)
    assert_same(first, through_files(again, tmp_path / "b"))


def test_the_vocabulary_of_llama2c_comes_back(data_dir: Path, tmp_path: Path) -> None:
    first = load_tokenizer(data_dir / "model-stories260k" / "tok512.bin")
    assert_same(first, through_gguf(first, tmp_path / "a"))
    assert_same(first, through_files(first, tmp_path / "b"))


def test_the_embedded_model_keeps_its_chat_template(smollm2: Path, tmp_path: Path) -> None:
    first = from_gguf(GgufFile.open(smollm2).metadata)
    assert first.templates
    assert_same(first, through_gguf(first, tmp_path / "a"))
    assert_same(first, through_files(first, tmp_path / "b"))
