"""Sampling against transformers' logits processors and torch: the same candidates, order and log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.test_native import engine, prompts
from vitral.engine import sampler
from vitral.engine.engine import Engine
from vitral.engine.request import Finished, NewToken, PromptScored, SamplingParams

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch==2.13.0")
transformers = pytest.importorskip("transformers")
from transformers.generation import logits_process as theirs  # noqa: E402  (after the check that it is there)

CASE = ("llama-3.1", "Q4_1")
SETS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.6},
    "top-k": {"temperature": 1.0, "top_k": 5},
    "top-p": {"temperature": 1.3, "top_p": 0.7},
    "min-p": {"temperature": 1.0, "min_p": 0.2},
    "repetition": {"temperature": 1.0, "repetition_penalty": 1.7},
    "repetition-below-1": {"temperature": 0.9, "repetition_penalty": 0.6},
    "presence": {"temperature": 0.8, "presence_penalty": 1.5},
    "frequency": {"temperature": 0.8, "frequency_penalty": -1.2},
    "bias": {"temperature": 1.0, "logit_bias": {3: 4.0, 7: -2.5, 9: float("-inf")}},
    "all": {
        "temperature": 1.1,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {1: 1.0},
    },
    "greedy-with-penalties": {"repetition_penalty": 3.0, "frequency_penalty": 1.0},
}


def probabilities(logits: np.ndarray, params: SamplingParams, ids: list[int], n_prompt: int) -> np.ndarray:
    """What transformers would draw from, (V,), in the order of steps that `sampler` states."""
    seen = torch.tensor([ids])
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    steps: list[Any] = []
    if params.logit_bias:
        steps.append(theirs.SequenceBiasLogitsProcessor({(t,): float(b) for t, b in params.logit_bias.items()}))
    if params.repetition_penalty != 1.0:
        steps.append(theirs.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    for step in steps:
        scores = step(seen, scores)
    counts = torch.bincount(torch.tensor(ids[n_prompt:], dtype=torch.int64), minlength=scores.shape[1])
    # OpenAI's formula, which transformers does not have
    scores = scores - counts * params.frequency_penalty - (counts > 0) * params.presence_penalty
    if params.temperature == 0:
        return np.eye(scores.shape[1])[int(scores.argmax())]
    steps = [theirs.TemperatureLogitsWarper(float(params.temperature))]
    if params.min_p:
        steps.append(theirs.MinPLogitsWarper(params.min_p))
    if params.top_k:
        steps.append(theirs.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(theirs.TopPLogitsWarper(params.top_p))
    for step in steps:
        scores = step(seen, scores)
    return torch.softmax(scores, -1)[0].numpy()


def drawn_by(p: np.ndarray, luck: float) -> set[int]:
    """The tokens that a number chooses, laid out from most to least likely; two where it falls on a border."""
    order = np.argsort(-p, kind="stable")
    sums = np.cumsum(p[order])
    found = {int(order[min(np.searchsorted(sums, luck + e, side="right"), len(p) - 1)]) for e in (-1e-9, 1e-9)}
    return {token for token in found if p[token] > 0}


@pytest.mark.parametrize("name", [name for name in SETS if name != "greedy-with-penalties"])
def test_every_parameter_leaves_the_candidates_of_transformers(name: str) -> None:
    params = SamplingParams(**SETS[name])
    rng = np.random.default_rng(len(name))
    for _ in range(40):
        logits = (rng.standard_normal(50) * 3).astype(np.float32)
        ids = rng.integers(0, 50, 12).tolist()
        p = probabilities(logits, params, ids, 5)
        counts = {token: ids[5:].count(token) for token in ids[5:]}
        adjusted = sampler.adjust(logits, params, ids, counts)
        lucks = np.concatenate([[0.0, 1 - 1e-6], rng.random(100)])
        for luck in lucks:
            assert sampler.draw(adjusted, params, float(luck)) in drawn_by(p, float(luck))


def answered(e: Engine, jobs: list[tuple[list[int], SamplingParams]]) -> list[tuple[list[int], np.ndarray, list[Any]]]:
    """Tokens, logits and scores of requests that run together."""
    rows: list[list[np.ndarray]] = [[] for _ in jobs]
    tokens: list[list[int]] = [[] for _ in jobs]
    scores: list[list[Any]] = [[] for _ in jobs]
    number = {}
    for i, (prompt, params) in enumerate(jobs):
        number[e.add(prompt, params, on_logits=lambda _, row, i=i: rows[i].append(row.copy()))] = i
    while not e.idle:
        for event in e.step():
            i = number[event.request_id]
            match event:
                case NewToken(_, token, score):
                    tokens[i].append(token)
                    scores[i].append(score)
                case PromptScored(_, prompt_scores):
                    scores[i] = [*prompt_scores, *scores[i]]
                case Finished(_, _, _, error):
                    assert error is None
    return [(tokens[i], np.stack(rows[i]), scores[i]) for i in range(len(jobs))]


def test_every_token_of_a_mixed_batch_is_the_one_that_transformers_would_draw() -> None:
    jobs = [
        (prompts()[i % 16], SamplingParams(**more, seed=1000 + i, max_tokens=12))
        for i, more in enumerate([*SETS.values(), *SETS.values()])
    ]
    together = answered(engine(CASE, threads=2), jobs)
    for (prompt, params), (tokens, logits, _) in zip(jobs, together, strict=True):
        ids = list(prompt)
        for token in tokens:
            key = np.array([params.seed, 0], np.uint64)
            counter = np.array([len(ids), 0, 0, 0], np.uint64)
            luck = np.random.Generator(np.random.Philox(key=key, counter=counter)).random()
            p = probabilities(logits[len(ids) - 1], params, ids, len(prompt))
            assert token in drawn_by(p, float(luck)), params
            ids.append(token)
    for i in (3, 10, 15):
        assert answered(engine(CASE), [jobs[i]])[0][0] == together[i][0]


def test_another_seed_gives_another_text_and_the_same_seed_the_same() -> None:
    texts = [
        answered(engine(CASE), [(prompts()[3], SamplingParams(temperature=2.0, seed=seed, max_tokens=20))])[0][0]
        for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2] != texts[1]


def test_log_probabilities_of_prompt_and_answer_are_torchs() -> None:
    params = SamplingParams(
        temperature=1.0, seed=4, max_tokens=8, logprobs=5, prompt_logprobs=3, repetition_penalty=2.0
    )
    prompt = prompts()[7]
    ((tokens, logits, scores),) = answered(engine(CASE, step_tokens=3), [(prompt, params)])
    ids = [*prompt, *tokens]
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1).numpy()
    assert len(scores) == len(ids) - 1
    for place, score in enumerate(scores):
        n = 3 if place + 1 < len(prompt) else 5
        assert score.token == ids[place + 1]
        assert score.logprob == pytest.approx(expected[place][score.token], abs=1e-12)
        best = np.argsort(-expected[place], kind="stable")[:n]
        assert [token for token, _ in score.top] == best.tolist()
        assert [logprob for _, logprob in score.top] == pytest.approx(expected[place][best], abs=1e-12)
