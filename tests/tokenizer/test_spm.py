"""SentencePiece vocabularies: the vectors of llama.cpp and mistral-common, llama2.c's file, control tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tokenizer.conftest import need
from vitral.errors import TokenizerError
from vitral.tokenizer import Tokenizer, from_path
from vitral.tokenizer.protobuf import Piece, PieceModel, read_model, write_model
from vitral.tokenizer.spm import from_llama2c, from_model_bytes, from_pieces
from vitral.tokenizer.vocab import Kind


def test_llama_cpp_vectors_hold(llama2: Tokenizer, data_dir: Path) -> None:
    file = data_dir / "tokenizer-llama-cpp" / "ggml-vocab-llama-spm.gguf"
    texts = Path(f"{file}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(id) for id in line.split()] for line in Path(f"{file}.out").read_text().splitlines()]
    assert texts.pop() == ""  # what follows the last separator
    assert len(texts) == len(expected) > 40
    assert [llama2.encode(text, add_special=False) for text in texts] == expected
    assert [llama2.decode(ids) for ids in expected] == texts


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_mistral_vectors_hold(version: str, data_dir: Path, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(f"mistral_{version}")
    for line in need(data_dir / "tokenizer-mistral" / "expected.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        ids = entry[f"ids_{version}"]
        assert tokenizer.encode(entry["text"], add_special=False) == ids
        assert tokenizer.decode(ids) == entry["text"]


def test_stories_prompts_and_answers_are_as_llama2c_has_them(stories: Tokenizer, data_dir: Path) -> None:
    expected = json.loads((data_dir / "model-stories260k" / "expected.json").read_text("utf-8"))
    for story in expected["greedy"]:
        assert stories.encode(story["prompt"]) == story["prompt_ids"]
        assert stories.decode(story["generated_ids"], continuing=True).strip() in story["text"]


def test_bos_is_added_once(llama2: Tokenizer) -> None:
    assert llama2.encode("Hi") == [1, 6324]
    assert llama2.encode("<s>Hi", parse_special=True) == [1, 6324]
    assert llama2.encode("") == [1]
    assert llama2.encode("", add_special=False) == []


def test_text_never_becomes_a_control_token_by_itself(mistral_v3: Tokenizer) -> None:
    text = "<s>[INST]hi[/INST]</s><unk>[control_8]"
    ids = mistral_v3.encode(text, add_special=False)
    assert mistral_v3.special_ids.isdisjoint(ids)
    assert mistral_v3.decode(ids) == text
    parsed = mistral_v3.encode(text, parse_special=True)
    assert [mistral_v3.piece(id) for id in parsed[:2]] == ["<s>", "[INST]"]
    assert 2 in parsed
    assert mistral_v3.decode(parsed) == text


def test_a_llama_fragment_after_a_control_token_begins_with_a_space_again(llama2: Tokenizer) -> None:
    ids = llama2.encode("Hi</s>Hi", add_special=False, parse_special=True)
    assert ids == [6324, 2, 6324]
    assert llama2.decode(ids) == "Hi</s>Hi"
    assert llama2.decode(ids, skip_special=True) == "HiHi"


def test_a_continued_text_keeps_its_space(llama2: Tokenizer) -> None:
    ids = llama2.encode("Once upon", add_special=False)
    assert llama2.decode(ids[-1:]) == "upon"
    assert llama2.decode(ids[-1:], continuing=True) == " upon"


def test_a_model_survives_writing_and_reading(data_dir: Path) -> None:
    data = need(data_dir / "tokenizer-mistral" / "tokenizer.model.v1").read_bytes()
    model = read_model(data)
    assert read_model(write_model(model)) == model
    assert (len(model.pieces), model.dummy_prefix, model.squeeze_spaces, model.byte_fallback) == (
        32000,
        True,
        False,
        True,
    )


def test_added_tokens_come_behind_the_pieces(data_dir: Path, mistral_v1: Tokenizer) -> None:
    data = (data_dir / "tokenizer-mistral" / "tokenizer.model.v1").read_bytes()
    tokenizer = from_model_bytes(data, {32000: ("<|im_end|>", True), 32001: ("   cell", False), 2: ("</s>", True)})
    assert tokenizer.vocab_size == 32002
    assert tokenizer.eos_ids == {2, 32000}
    assert 32000 not in tokenizer.encode("a<|im_end|>")
    assert tokenizer.encode("a<|im_end|>", parse_special=True)[-1] == 32000
    assert 32001 in tokenizer.encode("a   cell")
    assert tokenizer.digest != mistral_v1.digest


@pytest.mark.parametrize(
    "added", [{32005: ("x", True)}, {5: ("<|im_end|>", True)}, {-1: ("x", True)}, {-(10**6): ("x", True)}]
)
def test_added_tokens_that_contradict_the_pieces_are_refused(
    added: dict[int, tuple[str, bool]], data_dir: Path
) -> None:
    data = need(data_dir / "tokenizer-mistral" / "tokenizer.model.v1").read_bytes()
    with pytest.raises(TokenizerError, match="added token"):
        from_model_bytes(data, added)


def test_a_piece_named_as_special_is_never_made_of_text() -> None:
    letters = [Piece(c, -1.0, Kind.NORMAL) for c in "\u2581ab<>/s"]
    pieces = (Piece("<unk>", 0, Kind.UNKNOWN), Piece("</s>", 5, Kind.NORMAL), Piece("</s", 4, Kind.NORMAL), *letters)
    more = (Piece("</", 3, Kind.NORMAL),)
    tokenizer = from_pieces(PieceModel(pieces + more, True, False, False), eos_id=1, add_bos=False)
    assert 1 not in tokenizer.encode("a</s>b")
    assert 1 in tokenizer.encode("a</s>b", parse_special=True)


def test_a_character_outside_a_vocabulary_without_bytes_is_an_error() -> None:
    pieces = (Piece("<unk>", 0, Kind.UNKNOWN), *(Piece(c, -1.0, Kind.NORMAL) for c in "\u2581ab"))
    tokenizer = from_pieces(PieceModel(pieces, True, False, False), add_bos=False)
    assert tokenizer.decode(tokenizer.encode("ab ba")) == "ab ba"
    with pytest.raises(TokenizerError, match="not in the vocabulary"):
        tokenizer.encode("abc")


def test_other_algorithms_and_normalisers_are_refused(data_dir: Path) -> None:
    data = need(data_dir / "tokenizer-mistral" / "tokenizer.model.v1").read_bytes()
    with pytest.raises(TokenizerError, match="unigram"):
        from_model_bytes(data + b"\x12\x02\x18\x01")
    with pytest.raises(TokenizerError, match="identity"):
        from_model_bytes(data + b"\x1a\x05\x12\x03abc")
    with pytest.raises(TokenizerError, match="cut off"):
        from_model_bytes(data[:1000])


def test_a_cut_llama2c_vocabulary_is_refused(data_dir: Path, tmp_path: Path) -> None:
    data = need(data_dir / "model-stories260k" / "tok512.bin").read_bytes()
    with pytest.raises(TokenizerError, match="cut off"):
        from_llama2c(data[:-1])
    with pytest.raises(TokenizerError, match="at least 259"):
        from_llama2c(data[:60][: 4 + 8 + 5])
    (tmp_path / "tok.bin").write_bytes(data[:-1])
    with pytest.raises(TokenizerError, match="no vocabulary that can be read"):
        from_path(tmp_path / "tok.bin")


def test_scores_count_in_the_digest(stories: Tokenizer) -> None:
    pieces = [Piece("<unk>", 0, Kind.UNKNOWN), *(Piece(c, -1.0, Kind.NORMAL) for c in "\u2581ab")]
    one = from_pieces(PieceModel(tuple(pieces), True, False, False), add_bos=False)
    pieces[-1] = replace(pieces[-1], score=-2.0)
    other = from_pieces(PieceModel(tuple(pieces), True, False, False), add_bos=False)
    assert one.digest != other.digest
    assert len(stories.digest) == 64
