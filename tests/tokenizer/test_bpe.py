"""Merge lists: GGUF's pre-tokenisers against tiktoken, tokenizer.json against transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vitral.errors import TokenizerError
from vitral.tokenizer import Tokenizer, from_gguf, from_path
from vitral.tokenizer.pretokenizer import known_pretokenizers
from vitral.tokenizer.stream import SpaceRule
from vitral.tokenizer.vocab import byte_alphabet

# The original patterns of the models, written down here apart from our catalogue. More than one: each cuts further.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
ORIGINALS = {
    "llama-bpe": [_CONTRACTION + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL],
    "qwen2": [_CONTRACTION + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL],
    "tekken": [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
    ],
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
N_MERGES = 3000


@pytest.fixture(scope="module")
def small(lines: list[str]) -> tuple[list[str], list[str]]:
    """Pieces and merges of a byte-level vocabulary trained on the lines, words cut as loosely as GPT-2 does."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(byte_alphabet().values())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256 + N_MERGES, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(lines[::3], trainer)
    model = json.loads(library.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    return pieces, [" ".join(pair) for pair in model["merges"]]


def metadata(pieces: Sequence[str], merges: Sequence[str], pre: str, /, **more: Any) -> dict[str, Any]:
    control = ["<|begin|>", "<|im_end|>"]
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [*pieces, *control],
        "token_type": [1] * len(pieces) + [3] * len(control),
        "merges": list(merges),
        "bos_token_id": len(pieces),
        "eos_token_id": len(pieces) + 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | more).items() if value is not None}


def test_the_originals_are_all_that_the_catalogue_knows() -> None:
    ours = {entry.name for entry in known_pretokenizers().values()}
    assert ours - set(ORIGINALS) == {"smaug-bpe"}  # llama-bpe without ignore_merges


@pytest.mark.parametrize("pre", sorted(ORIGINALS))
def test_words_are_cut_and_merged_as_tiktoken_does(
    pre: str, small: tuple[list[str], list[str]], lines: list[str]
) -> None:
    regex, tiktoken = pytest.importorskip("regex"), pytest.importorskip("tiktoken")
    pieces, merges = small
    tokenizer = from_gguf(metadata(pieces, merges, pre, add_bos_token=False))
    ranks = {tokenizer.token_bytes(id): id for id in range(len(pieces))}
    oracle = tiktoken.Encoding("oracle", pat_str=ORIGINALS[pre][-1], mergeable_ranks=ranks, special_tokens={})
    cuts = [regex.compile(f"({pattern})") for pattern in ORIGINALS[pre]]
    for line in [*lines[::4], *_HARD]:
        words = [line]
        for cut in cuts:
            words = [part for word in words for part in cut.split(word) if part]
        expected = [id for word in words for id in oracle._encode_single_piece(word)]
        if len(cuts) == 1:
            assert expected == oracle.encode_ordinary(line)
        assert tokenizer.encode(line) == expected, line
        assert tokenizer.decode(expected) == line


_HARD = [
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 ½ Ⅷ ٣٣٣٣",
    "I've been 'told he's there, 'RE you sure? 'M not sure I'LL make it, 'D you like some tea? We'Ve a'lL",
    "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙",
    "нещо на Български កាន់តែពិសេសអាច ?我想在apple工作1314151天～",
    "a\u00a0b\u2003c\u3000d \u0301e e\u0301 ǅ ʰ ﬁ",
    "https://example.org/a_b/c?d=e&f=1,000.50 //// /// \\\\ ``` $x^2$ <= >= != |||",
    "trailing   ",
    "\r\n\r\n x\r",
    "\x00\x01\x7f\x80",
]


def test_an_unknown_pre_tokeniser_is_an_error_that_names_the_known_ones(small: tuple[list[str], list[str]]) -> None:
    with pytest.raises(TokenizerError, match=r"'llama-bpf' is not known; did you mean 'llama-bpe'\?.*smollm"):
        from_gguf(metadata(*small, "llama-bpf"))


def test_bos_follows_the_pre_tokeniser_where_the_file_is_silent(small: tuple[list[str], list[str]]) -> None:
    pieces, merges = small
    assert from_gguf(metadata(pieces, merges, "llama-bpe")).encode("") == [len(pieces)]
    assert from_gguf(metadata(pieces, merges, "gpt-2")).encode("") == []
    both = from_gguf(metadata(pieces, merges, "gpt-2", add_bos_token=True, add_eos_token=True))
    assert both.encode("") == [len(pieces), len(pieces) + 1]


def test_merges_and_pre_tokeniser_count_in_the_digest(small: tuple[list[str], list[str]]) -> None:
    pieces, merges = small
    digests = {
        from_gguf(metadata(pieces, merges, "gpt-2")).digest,
        from_gguf(metadata(pieces, merges[:-1], "gpt-2")).digest,
        from_gguf(metadata(pieces, merges, "smollm")).digest,
        from_gguf(metadata(pieces, merges, "gpt-2", eos_token_id=None)).digest,
    }
    assert len(digests) == 4
    same = metadata(pieces, merges, "gpt-2") | {"tokenizer.chat_template": "x"}
    assert from_gguf(same).digest in digests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "has no 'tokenizer.ggml.tokens'"),
        ({"model": "bert"}, "'llama' or 'gpt2'"),
        ({"token_type": [1, 2]}, "equally many"),
        ({"token_type": [9] * (N_MERGES + 258)}, "type 9"),
        ({"merges": ["a b c"]}, "not two pieces"),
        ({"merges": ["q zzzz"]}, "no piece of the vocabulary"),
        ({"merges": [1]}, "list of str"),
        ({"bos_token_id": 10**6}, "bos id is 1000000"),
        ({"bos_token_id": "1"}, "whole number"),
        ({"add_bos_token": 1}, "true and false"),
        ({"eot_token_id": -5}, "end of turn"),
    ],
)
def test_wrong_metadata_is_a_typed_error(
    change: dict[str, Any], message: str, small: tuple[list[str], list[str]]
) -> None:
    with pytest.raises(TokenizerError, match=message):
        from_gguf(metadata(*small, "gpt-2", **change))


def test_a_piece_that_stands_twice_is_refused(small: tuple[list[str], list[str]]) -> None:
    pieces, merges = small
    with pytest.raises(TokenizerError, match="twice"):
        from_gguf(metadata([*pieces, pieces[300]], merges, "gpt-2"))


@pytest.fixture(scope="module", params=["legacy", "first"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llama2: Tokenizer) -> Path:
    """A checkpoint folder with a tokenizer.json of Llama 2's pieces, as old and as new conversions write it."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    vocab = {piece: id for id, piece in enumerate(llama2.vocabulary.pieces)}
    merges = convert.generate_merges(vocab, {piece: -id for piece, id in vocab.items()})
    added = [_added(32000, "<|im_start|>", special=False), _added(32001, "<|im_end|>", rstrip=True, lstrip=True)]
    added += [_added(32002, "  cell  ", special=False)]
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*(_added(id, llama2.piece(id)) for id in range(3)), *added],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _template("<s>"),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "fuse_unk": True}
        | {"dropout": None, "unk_token": "<unk>", "ignore_merges": False},
    }
    if request.param == "first":
        space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
        definition |= {"normalizer": None, "pre_tokenizer": space}
    path = tmp_path_factory.mktemp(f"hf-{request.param}")
    (path / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"clean_up_tokenization_spaces": False}))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 32001]}))
    return path


def _added(id: int, content: str, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content} | usual | flags


def _template(bos: str) -> dict[str, Any]:
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [first, text, {"Sequence": {"id": "B", "type_id": 0}}]
    names = {bos: {"id": bos, "ids": [1], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": [first, text], "pair": pair, "special_tokens": names}


_SPECIAL_TEXTS = [
    "Hello</s>Hello </s> Hello",
    "<s>Hello<s> <unk> x",
    "<|im_start|>user\nHi there  <|im_end|>\n  <|im_start|>assistant\n",
    " leading and trailing </s>",
    "a  cell  b",
    "<|im_start|><|im_end|></s>日本🙂",
    "",
]


def test_transformers_gives_the_same_ids_special_tokens_included(folder: Path, lines: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    ours = from_path(folder)
    texts = [*_SPECIAL_TEXTS, *lines[::8]]
    expected = [ids[1:] if ids[:2] == [1, 1] else ids for ids in oracle(texts)["input_ids"]]  # we never double BOS
    assert [ours.encode(text, parse_special=True) for text in texts] == expected
    plain = [text for text in lines[::40] if "<unk>" not in text]
    decoded = [oracle.decode(ids, skip_special_tokens=True) for ids in oracle(plain)["input_ids"]]
    assert [ours.decode(ours.encode(text), skip_special=True) for text in plain] == decoded


def test_text_stays_text_unless_asked(folder: Path) -> None:
    ours = from_path(folder)
    for text in _SPECIAL_TEXTS:
        ids = ours.encode(text, add_special=False)
        assert ours.special_ids.isdisjoint(ids)
        # The files themselves lose a space: "first" adds none where one stands, "legacy" adds one after an added token.
        if "cell" not in text:
            assert ours.decode(ids).strip() == text.strip()


def test_the_folder_says_which_tokens_end_a_turn(folder: Path) -> None:
    ours = from_path(folder)
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (1, 2, 0)
    assert ours.eos_ids == {2, 32001}
    assert ours.space in (SpaceRule.FRAGMENT, SpaceRule.START)
    assert 32000 in ours.special_ids  # the file forgot to say so
    assert 32002 not in ours.special_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "'BPE'"),
        ({"model": None}, "no 'model' object"),
        ({"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}, "has id 'x'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 10**6}, "merges": []}}, "too many ids are missing"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "q"]]}, "added_tokens": []},
            "refuses the vocabulary",
        ),
        ({"added_tokens": [{"id": 0}]}, "an added token"),
        ({"added_tokens": [_added(5, "x")]}, "both"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "refuses"),
    ],
)
def test_a_wrong_tokenizer_json_is_a_typed_error(
    change: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text("utf-8")) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), "utf-8")
    with pytest.raises(TokenizerError, match=message):
        from_path(tmp_path)


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm"])  # the first looks whole words up
def test_a_part_of_the_vocabulary_gives_the_ids_of_the_whole(
    pre: str, small: tuple[list[str], list[str]], lines: list[str]
) -> None:
    given = metadata(*small, pre, add_bos_token=False)
    texts = [line[:200] for line in lines[1:400:29]] + ["", " ", "\U0001f600 ol\u00e1", "aaaa aaa", "<|im_end|>"]
    whole = from_gguf(given)
    for _ in range(20):
        whole.encode("a few texts, after which the library has read it all")
    assert "_main" in vars(whole.codec)
    for text in texts:
        part = from_gguf(given)
        assert part.encode(text) == whole.encode(text)
        assert "_main" not in vars(part.codec)


def test_a_text_inside_of_the_last_one_needs_no_part_of_its_own(small: tuple[list[str], list[str]]) -> None:
    tokenizer = from_gguf(metadata(*small, "smollm", add_bos_token=False))
    first = tokenizer.encode("one two\n")
    part = vars(tokenizer.codec)["_part"]
    assert tokenizer.decode(first) == "one two\n"
    assert tokenizer.decode(tokenizer.encode("two")) == "two"
    assert vars(tokenizer.codec)["_part"] is part


def test_a_merge_of_what_is_no_piece_is_refused(small: tuple[list[str], list[str]]) -> None:
    pieces, merges = small
    with pytest.raises(TokenizerError, match="'unheard'"):
        from_gguf(metadata(pieces, [*merges, "unheard of"], "smollm"))
