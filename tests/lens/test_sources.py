"""Credit for a source: exact for a model whose answer is known, and adds up for a real one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lens.models import glass_of
from vitral.errors import RequestError
from vitral.lens import answer_log_probability, occlude, source_scores

BEFORE, AFTER, ANSWER = [1, 2], [3], [50, 51]
SOURCES = {"a": [10, 11], "b": [20], "c": [30, 31, 32]}


def counting(ids: list[int]) -> np.ndarray:
    """Logits by hand: the answer's tokens gain 2 if 10 was said, 1 if 20 was, and 1 more if both were."""
    worth = 2 * (10 in ids) + (20 in ids) + (10 in ids and 20 in ids)
    logits = np.full((len(ids), 60), -40.0, np.float32)
    logits[:, [50, 51]] = worth - 20.0
    logits[:, 0] = 20.0  # takes nearly all: log p of the rest moves as their logits do
    return logits


def test_shapley_values_share_what_sources_do_together() -> None:
    found = source_scores(counting, BEFORE, SOURCES, AFTER, ANSWER)
    assert found.left_out.tolist() == pytest.approx([6, 4, 0], abs=1e-4)  # two tokens
    assert found.shapley is not None
    assert found.shapley.tolist() == pytest.approx([5, 3, 0], abs=1e-4)
    assert found.full - found.empty == pytest.approx(8, abs=1e-4)


def test_shapley_values_add_up_to_the_whole_on_a_model() -> None:
    glass = glass_of("mixtral")
    found = source_scores(glass.logits, BEFORE, SOURCES, AFTER, ANSWER)
    assert found.shapley is not None
    assert found.shapley.sum() == pytest.approx(found.full - found.empty, abs=1e-9)
    by_hand = answer_log_probability(glass.logits, [1, 2, 20, 30, 31, 32, 3], ANSWER)
    assert found.left_out[0] == pytest.approx(found.full - by_hand, abs=1e-12)


def test_occlusion_sees_the_token_that_matters() -> None:
    assert occlude(counting, [1, 10, 3], ANSWER, 5).tolist() == pytest.approx([0, 4, 0], abs=1e-4)


def test_too_many_sources_for_all_subsets_are_refused_and_counted_one_by_one() -> None:
    many = {str(i): [i] for i in range(11)}
    with pytest.raises(RequestError, match="shapley=False"):
        source_scores(counting, BEFORE, many, AFTER, ANSWER)
    assert source_scores(counting, BEFORE, many, AFTER, ANSWER, shapley=False).left_out.shape == (11,)
