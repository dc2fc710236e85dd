"""The 260,000-parameter Llama of llama2.c: text and losses computed apart, in float64, from the stored weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.language_model import LanguageModel
from vitral.loading import load
from vitral.native import available


@pytest.fixture(scope="module")
def expected(data_dir: Path) -> dict[str, Any]:
    return json.loads((data_dir / "model-stories260k" / "expected.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=[(isa, threads) for isa in available() for threads in (1, 2)])
def model(data_dir: Path, request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    # A cache in bfloat16, the default, moves a mean loss by up to 3e-3: what was computed apart has none.
    isa, threads = request.param
    path = data_dir / "model-stories260k" / "stories260K.bin"
    with load(path, isa=isa, threads=threads, kv_type="f32") as loaded:
        yield loaded


def test_the_stories_are_told_word_for_word(model: LanguageModel, expected: dict[str, Any]) -> None:
    for story in expected["greedy"]:
        wanted = story["generated_ids"]
        told = model.generate(ids=story["prompt_ids"], max_tokens=len(wanted), ignore_eos=True)
        assert list(told.token_ids) == wanted
        assert model.tokenizer.encode(story["prompt"]) == story["prompt_ids"]
        assert (story["prompt"] + told.text).strip() == story["text"].strip()


def test_losses_and_perplexity_are_those_expected(model: LanguageModel, expected: dict[str, Any]) -> None:
    for sentence in expected["perplexity"]:
        assert model.tokenizer.encode(sentence["text"]) == sentence["ids"]
        found = model.perplexity(sentence["text"])
        assert found.tokens == sentence["tokens_scored"]
        assert found.mean_nll * found.tokens == pytest.approx(sentence["sum_nll"], abs=2e-4)
        assert found.mean_nll == pytest.approx(sentence["mean_nll"], abs=1e-5)
        assert found.value == pytest.approx(sentence["perplexity"], abs=2e-5)


def test_the_most_likely_next_tokens_are_those_expected(model: LanguageModel, expected: dict[str, Any]) -> None:
    for case in expected["next_token"]:
        answer = model.generate(ids=case["ids"], max_tokens=1, ignore_eos=True, logprobs=len(case["next_top"]))
        assert answer.logprobs is not None
        for (token, logprob), (id, piece, wanted) in zip(answer.logprobs[0].top, case["next_top"], strict=True):
            assert token == id
            assert model.tokenizer.token_bytes(token).decode() == piece
            assert logprob == pytest.approx(wanted, abs=1e-5)


def test_a_cache_in_bfloat16_tells_the_same_stories(data_dir: Path, expected: dict[str, Any]) -> None:
    with load(data_dir / "model-stories260k" / "stories260K.bin", threads=2) as model:
        for story in expected["greedy"]:
            wanted = story["generated_ids"]
            told = model.generate(ids=story["prompt_ids"], max_tokens=len(wanted), ignore_eos=True)
            assert list(told.token_ids) == wanted
        for sentence in expected["perplexity"]:
            assert model.perplexity(sentence["text"]).mean_nll == pytest.approx(sentence["mean_nll"], abs=3e-3)


def test_every_instruction_set_gives_the_same_logits(data_dir: Path, expected: dict[str, Any]) -> None:
    ids = expected["greedy"][0]["prompt_ids"] + expected["greedy"][0]["generated_ids"]
    seen = set()
    for isa in available():
        with load(data_dir / "model-stories260k" / "stories260K.bin", isa=isa, threads=2) as loaded:
            seen.add(np.asarray(loaded.logits(ids)).tobytes())
    assert len(seen) == 1
