"""Expert statistics beside counts made by hand, and Mixtral's chance levels."""

from __future__ import annotations

import numpy as np
import pytest

from vitral.errors import RequestError
from vitral.lens import (
    agreement,
    coactivation,
    cut_margin,
    domain_specialisation,
    load,
    repetition,
    vocabulary_specialisation,
)

ROUTES = np.array([[0, 1], [0, 2], [1, 0], [0, 1]])


def test_load_counts_and_measures_evenness() -> None:
    found = load(ROUTES, 4)
    assert found.counts.tolist() == [4, 3, 1, 0]
    p = np.array([4, 3, 1]) / 8
    assert found.entropy == pytest.approx(-(p * np.log(p)).sum() / np.log(4))
    assert found.effective == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert found.imbalance == 2.0 and found.dead == (3,)
    even = load(np.array([[0, 1], [2, 3]]), 4)
    assert even.entropy == pytest.approx(1) and even.imbalance == 1


def test_published_shares_of_mixtral_give_the_published_entropy() -> None:
    """Mixtral-8x7B-v0.1, book, layer 15 (allenai/OLMoE routing output): H / ln 8 = .9824."""
    shares = [12.67, 13.89, 16.18, 5.04, 13.12, 11.99, 14.71, 12.40]
    routes = np.repeat(np.arange(8), np.rint(np.array(shares) * 100).astype(int))[:, None]
    assert load(routes, 8).entropy == pytest.approx(0.9824, abs=1e-4)


def test_coactivation_is_conditional_on_the_row() -> None:
    found = coactivation(ROUTES, 4)
    assert found[0].tolist() == [1, 3 / 4, 1 / 4, 0]
    assert found[1].tolist() == [1, 1, 0, 0]
    assert found[3].tolist() == [0, 0, 0, 0]


def test_agreement_ignores_ranks() -> None:
    assert agreement(ROUTES, ROUTES[:, ::-1]).tolist() == [1, 1, 1, 1]
    assert agreement(ROUTES, np.array([[0, 1], [0, 3], [2, 3], [1, 0]])).tolist() == [1, 0.5, 0, 1]


def test_repetition_at_chance_is_mixtrals_table_5() -> None:
    rng = np.random.default_rng(0)
    routes = np.argsort(rng.random((40_000, 8)), axis=1)[:, :2]
    first, shared = repetition(routes)
    assert first == pytest.approx(0.125, abs=0.01) and shared == pytest.approx(1 - 6 / 8 * 5 / 7, abs=0.01)
    assert repetition(ROUTES) == (1 / 3, 1.0)


def test_specialisation_by_domain_and_by_word() -> None:
    assert domain_specialisation({"a": ROUTES, "b": ROUTES[:2]}, 4)["b"].tolist() == [1, 0.5, 0.5, 0]
    found = vocabulary_specialisation(ROUTES, [7, 7, 8, 7], 4)
    assert found[8].tolist() == [1, 1, 0, 0] and found[7].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_the_cut_margin_is_the_distance_to_another_route() -> None:
    assert cut_margin(np.array([[0.5, 0.1, 0.3, 0.1]]), 2).tolist() == pytest.approx([0.2])


def test_routes_of_another_model_are_refused() -> None:
    with pytest.raises(RequestError, match="experts from 0 to 1"):
        load(ROUTES, 2)
    with pytest.raises(RequestError, match="same tokens"):
        agreement(ROUTES, ROUTES[:2])
    with pytest.raises(RequestError, match="one for each"):
        vocabulary_specialisation(ROUTES, [1], 4)
