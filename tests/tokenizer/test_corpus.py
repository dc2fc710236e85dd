"""Real text: our ids against independent libraries, line by line, and back again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tokenizer.conftest import need
from vitral.tokenizer import Tokenizer
from vitral.tokenizer.vocab import SPACE_MARK


def test_there_are_20000_lines(lines: list[str]) -> None:
    assert len(lines) >= 20_000


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_sentencepiece_itself_gives_the_same_ids(
    name: str, data_dir: Path, lines: list[str], request: pytest.FixtureRequest
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(need(data_dir / "tokenizer-mistral" / name)))
    ours: Tokenizer = request.getfixturevalue("mistral_v1" if name.endswith("v1") else "mistral_v3")
    expected = oracle.encode(lines)
    assert [ours.encode(line, add_special=False) for line in lines] == expected
    assert [ours.decode(ids) for ids in expected] == [line.replace(SPACE_MARK, " ") for line in lines]


def test_transformers_gives_the_same_ids_for_smollm2(smol: Tokenizer, smollm2: Path, lines: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    oracle = _from_gguf(smollm2)
    # Reading GGUF, transformers 5.24 forgets that SmolLM2 cuts digits apart, as the model's tokenizer.json says it does.
    cut = [tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizers.pre_tokenizers.ByteLevel(False)]
    oracle.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(cut)
    _same(smol, oracle, lines)
    assert [smol.decode(smol.encode(line)) for line in lines] == lines


def test_transformers_gives_the_same_ids_for_llama2(llama2: Tokenizer, data_dir: Path, lines: list[str]) -> None:
    oracle = _from_gguf(data_dir / "tokenizer-llama-cpp" / "ggml-vocab-llama-spm.gguf")
    # It always parses control tokens, and puts no space before a text that begins with one (llama.cpp and Meta do).
    _same(llama2, oracle, [line.strip() for line in lines if "<unk>" not in line])


def test_mistral_common_gives_the_same_ids_for_tekken(tekken: Tokenizer, mistral_data: Path, lines: list[str]) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    oracle = Tekkenizer.from_file(mistral_data / "tekken_240718.json")
    for line in lines:
        ids = tekken.encode(line)
        assert ids == oracle.encode(line, bos=True, eos=False)
        assert tekken.decode(ids, skip_special=True) == line


@pytest.mark.parametrize("vocabulary", ["smol", "llama2", "mistral_v3", "tekken", "stories"])
def test_streams_give_the_text_of_all_ids_at_once(
    vocabulary: str, lines: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary)
    for line in lines[::20]:
        ids = tokenizer.encode(line)
        stream = tokenizer.stream()
        pieces = [stream.push(id) for id in ids]
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in line
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("vocabulary", ["smol", "llama2", "mistral_v3", "tekken"])
def test_offsets_cover_the_text(vocabulary: str, lines: list[str], request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(vocabulary)
    for line in lines[::20]:
        if SPACE_MARK in line:
            continue
        ids, spans = tokenizer.encode_with_offsets(line)
        assert len(ids) == len(spans)
        assert {place for start, end in spans for place in range(start, end)} == set(range(len(line)))
        for id, (start, end) in zip(ids, spans, strict=True):
            if tokenizer.is_special(id):
                assert start == end
            else:
                text = tokenizer.token_bytes(id)
                assert text in (" " + line[start:end]).encode()


def _from_gguf(file: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)


def _same(ours: Tokenizer, oracle: Any, lines: list[str]) -> None:
    expected = oracle(lines, add_special_tokens=False)["input_ids"]
    got = [ours.encode(line, add_special=False) for line in lines]
    wrong = [(line, g, e) for line, g, e in zip(lines, got, expected, strict=True) if g != e]
    assert wrong == []
