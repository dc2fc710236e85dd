"""Perplexity on WikiText-2: the recorded comparison with transformers holds, and ours is still what it was then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.perplexity import ALLOWED, cut
from benchmarks.record import RESULTS
from vitral.loading import load


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """What `python -m benchmarks.perplexity` wrote down."""
    return json.loads((RESULTS / "perplexity.json").read_text("utf-8"))


def test_the_recorded_perplexity_is_near_that_of_transformers(recorded: dict[str, Any]) -> None:
    assert recorded["windows"] >= 30
    ours, theirs = recorded["vitral"]["perplexity"], recorded["transformers"]["perplexity"]
    assert recorded["difference"] == pytest.approx(ours / theirs - 1)
    assert abs(recorded["difference"]) <= ALLOWED


def test_windows_have_the_recorded_losses(recorded: dict[str, Any], smollm2: Path, data_dir: Path) -> None:
    window = recorded["window"]
    with load(smollm2, context_length=window) as model:
        text = (data_dir / recorded["text"]).read_text("utf-8")[:20_000]
        for i, ids in enumerate(cut(model.tokenizer.encode(text), 2)):
            loss = model.perplexity(ids, window=window, stride=window).mean_nll
            assert loss == pytest.approx(recorded["vitral"]["window_mean_nll"][i], abs=1e-6)
            # A single window wanders by more than the mean of many.
            assert loss == pytest.approx(recorded["transformers"]["window_mean_nll"][i], abs=0.015)
