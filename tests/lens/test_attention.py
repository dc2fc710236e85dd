"""Head scores on patterns whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lens.models import glass_of
from vitral.errors import RequestError
from vitral.lens import head_scores, repeated_sequence, retrieval_scores, top_heads

IDS = [9, 4, 5, 6, 4, 5, 6]  # a first token, then three twice


def attends(*places: int) -> np.ndarray:
    pattern = np.zeros((len(places), len(places)), np.float32)
    pattern[np.arange(len(places)), places] = 1
    return pattern


def test_each_score_is_one_for_the_head_that_it_names_and_zero_for_the_others() -> None:
    heads = [
        attends(0, 0, 1, 2, 3, 4, 5),  # the token before
        attends(0, 1, 2, 3, 4, 5, 6),  # itself
        attends(0, 0, 0, 0, 0, 0, 0),  # the first
        attends(0, 1, 2, 3, 1, 2, 3),  # its earlier copy
        attends(0, 1, 2, 3, 2, 3, 4),  # what came after its earlier copy
    ]
    found = head_scores({"blocks.0.attn.hook_pattern": np.stack(heads)}, IDS)
    assert found.previous_token[0].tolist() == pytest.approx([1, 0, 1 / 6, 0, 0])
    assert found.current_token[0, 1] == 1
    assert found.first_token[0, 2] == 1
    assert found.duplicate[0].tolist() == [0, 0, 0, 1, 0]
    assert found.induction[0].tolist() == [0, 0, 0, 0, 1]
    assert (found.entropy == 0).all()


def test_induction_is_the_mean_of_the_stripe_n_less_one_back() -> None:
    """The usual definition (Olsson et al.) on the usual sequence, from a real forward pass."""
    glass = glass_of("llama-2")
    ids = repeated_sequence(glass.spec, 8, bos=1, low=2)
    values = glass.run(ids, ["*.hook_pattern"])
    stripe = np.stack([values[f"blocks.{i}.attn.hook_pattern"].diagonal(-7, 1, 2)[:, -8:].mean(-1) for i in range(2)])
    found = head_scores(values, ids)
    np.testing.assert_allclose(found.induction, stripe, rtol=1e-5)
    entropy = [-(p * np.log(np.maximum(p, 1e-45))).sum(-1).mean(-1) for p in values.values()]
    np.testing.assert_allclose(sorted(found.entropy.reshape(-1)), sorted(np.ravel(entropy)), rtol=1e-4)


def test_without_repeated_tokens_there_is_no_induction_score_and_json_says_null() -> None:
    found = head_scores({"blocks.0.attn.hook_pattern": attends(0, 1, 2)[None]}, [1, 2, 3])
    assert np.isnan(found.induction).all()
    assert found.to_json()["induction"] == [[None]]


def test_a_retrieval_head_copies_the_needle_from_its_place() -> None:
    ids = [1, 7, 8, 2, 3, 7, 8]  # the needle 7 8 at places 1 and 2, repeated from place 5 on
    copies = attends(0, 0, 0, 0, 1, 2, 0)
    half = attends(0, 0, 0, 0, 1, 1, 0)
    found = retrieval_scores({"blocks.0.attn.hook_pattern": np.stack([copies, half])}, ids, [1, 2], 5)
    assert found.tolist() == [[1.0, 0.5]]


def test_patterns_that_are_missing_or_of_another_prompt_are_refused() -> None:
    with pytest.raises(RequestError, match="record"):
        head_scores({}, IDS)
    with pytest.raises(RequestError, match="shape"):
        head_scores({"blocks.0.attn.hook_pattern": attends(0, 1)[None]}, IDS)


def test_top_heads_are_largest_first() -> None:
    assert top_heads(np.array([[0.2, 0.2], [0.9, 0.1]]), 3) == [(1, 0), (0, 0), (0, 1)]
