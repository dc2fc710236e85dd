from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

import vitral
from tests.serve.conftest import TINY
from tests.serve.live import Live
from vitral.language_model import LanguageModel

ONCE = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def alone(tiny_path: str) -> Iterator[LanguageModel]:
    with vitral.load(tiny_path, threads=1) as model:
        yield model


def test_a_completion_is_the_one_of_the_library(server: Live, alone: LanguageModel) -> None:
    answer = server.post("/v1/completions", ONCE).json()
    assert answer["choices"][0]["text"] == alone.generate("Once upon a time", max_tokens=12).text
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_seed_gives_the_sampled_text_of_the_library(server: Live, alone: LanguageModel) -> None:
    body = {**ONCE, "temperature": 1.0, "seed": 7, "top_p": 0.9, "frequency_penalty": 0.5}
    wanted = alone.generate(
        "Once upon a time", max_tokens=12, temperature=1.0, seed=7, top_p=0.9, frequency_penalty=0.5
    )
    assert server.post("/v1/completions", body).json()["choices"][0]["text"] == wanted.text


def test_a_stream_joined_is_the_answer(server: Live) -> None:
    whole = server.post("/v1/completions", ONCE).json()
    events = list(server.events("/v1/completions", {**ONCE, "stream_options": {"include_usage": True}}))
    assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == whole["choices"][0]["text"]
    assert events[-1]["usage"] == {
        **whole["usage"],
        "prompt_tokens_details": events[-1]["usage"]["prompt_tokens_details"],
    }
    assert events[-2]["choices"][0]["finish_reason"] == "length"


def test_token_ids_are_a_prompt_like_their_text(server: Live, alone: LanguageModel) -> None:
    ids = alone.tokenizer.encode("Once upon a time")
    both = server.post("/v1/completions", {**ONCE, "prompt": [ids, ids]}).json()["choices"]
    text = server.post("/v1/completions", ONCE).json()["choices"][0]["text"]
    assert [choice["text"] for choice in both] == [text, text]


def test_echo_scores_the_prompt_as_the_library_does(server: Live, alone: LanguageModel) -> None:
    body = {**ONCE, "max_tokens": 0, "echo": True, "logprobs": 2}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    wanted = alone.generate("Once upon a time", max_tokens=0, prompt_logprobs=2)
    assert choice["text"] == "Once upon a time"
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert wanted.prompt_logprobs is not None
    assert logprobs["token_logprobs"][1:] == [score.logprob for score in wanted.prompt_logprobs]
    assert all(len(top) == 2 for top in logprobs["top_logprobs"][1:])
    ends = [*logprobs["text_offset"][2:], len(choice["text"])]
    pieces = [choice["text"][a:b] for a, b in zip(logprobs["text_offset"][1:], ends, strict=True)]
    assert "".join(pieces) == choice["text"]
    assert pieces[1] == " upon"


def test_n_answers_are_those_of_n_seeds(server: Live) -> None:
    sampled = {**ONCE, "temperature": 1.0}
    both = server.post("/v1/completions", {**sampled, "seed": 5, "n": 2}).json()
    single = [server.post("/v1/completions", {**sampled, "seed": seed}).json() for seed in (5, 6)]
    assert [c["text"] for c in both["choices"]] == [s["choices"][0]["text"] for s in single]
    assert both["usage"]["prompt_tokens"] == single[0]["usage"]["prompt_tokens"]


def test_a_stop_string_ends_the_answer_and_is_not_shown(server: Live) -> None:
    whole = server.post("/v1/completions", ONCE).json()["choices"][0]["text"]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
    answer = server.post("/v1/completions", {**ONCE, "stop": [stop]}).json()
    assert answer["choices"][0]["text"] == whole[: whole.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 12


def test_logit_bias_forbids_a_token(server: Live, alone: LanguageModel) -> None:
    first = alone.generate("Once upon a time", max_tokens=1).token_ids[0]
    answer = server.post("/v1/completions", {**ONCE, "logit_bias": {str(first): -100}}).json()
    assert answer["choices"][0]["text"] != server.post("/v1/completions", ONCE).json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokns": 3}, "max_tokns"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 10_000}, "n"),
        ({"logprobs": 10**6}, "logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"seed": 1.5}, "seed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_served_is_a_400_that_names_it(server: Live, change: dict[str, object], param: str) -> None:
    response = server.post("/v1/completions", {**ONCE, **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] is not None
    assert error["param"].startswith(param)
    assert error["type"] == "invalid_request_error"


def test_a_prompt_that_does_not_fit_is_an_error_with_the_counts(server: Live) -> None:
    response = server.post("/v1/completions", {**ONCE, "prompt": [1] * 600})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "600" in response.json()["error"]["message"]
    assert "512" in response.json()["error"]["message"]


def test_scores_and_ranks_follow_the_log_probabilities(server: Live) -> None:
    scored = server.post(
        "/v1/score", {"model": TINY, "text_1": "Once upon", "text_2": [" a time", " a dog zoo"]}
    ).json()
    assert scored["data"][0]["mean"] > scored["data"][1]["mean"]
    body = {"model": TINY, "query": "Where did Lily play?", "documents": ["xx yy", "Lily went to the park to play."]}
    ranked = server.post("/v1/rerank", {**body, "top_n": 1}).json()
    assert len(ranked["results"]) == 1
    assert 0 < ranked["results"][0]["relevance_score"] < 1


def test_embeddings_have_length_one_and_do_not_depend_on_company(server: Live) -> None:
    one = server.post("/v1/embeddings", {"model": TINY, "input": "A small cat"}).json()
    many = server.post("/v1/embeddings", {"model": TINY, "input": ["A dog", "A small cat", "Sun"]}).json()
    vector = one["data"][0]["embedding"]
    assert many["data"][1]["embedding"] == vector
    assert math.isclose(math.fsum(x * x for x in vector), 1, rel_tol=1e-6)
    last = server.post("/v1/embeddings", {"model": TINY, "input": "A small cat", "pooling": "last"}).json()
    assert last["data"][0]["embedding"] != vector


def test_tokenize_with_offsets_and_back(server: Live) -> None:
    text = "Lily saw a café"
    found = server.post("/v1/tokenize", {"model": TINY, "text": text, "offsets": True}).json()
    assert found["count"] == len(found["ids"]) == len(found["offsets"])
    assert found["offsets"][-1][1] == len(text)
    back = server.post("/v1/detokenize", {"model": TINY, "ids": found["ids"], "skip_special": True}).json()
    assert back["text"] == text
