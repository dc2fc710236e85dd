from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.doubles import HashForward
from tests.engine.test_native import weights
from vitral.engine.engine import Engine
from vitral.engine.measure import Plan, StreamingRead, bytes_per_token, measure
from vitral.errors import NumericalError, SettingsError

PLAN = Plan(prompt=20, answer=5, together=3, turns=2)


class Counting(HashForward):
    """Counts the tokens and the steps it computes."""

    def __init__(self) -> None:
        super().__init__(vocab_size=50)
        self.batches: list[int] = []

    def __call__(self, batch: Any) -> Any:
        self.batches.append(len(batch.ids))
        return super().__call__(batch)


def test_every_figure_has_a_value_for_each_turn() -> None:
    forward = Counting()
    seen: list[tuple[int, int]] = []
    engine = Engine(forward, context_length=64)
    figures = measure(
        engine,
        PLAN,
        vocab_size=50,
        token_bytes=1 << 20,
        threads=1,
        on_turn=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 12) for i in range(1, 13)]
    by_name = {figure.name: figure for figure in figures}
    assert list(by_name) == [
        "prefill, 20 tokens",
        "decode, one sequence",
        "decode, 3 sequences together",
        "first token after 16",
        "streaming read, same moment",
        "share of it that decode uses",
        "resident memory",
    ]
    for figure in figures:
        assert len(figure.values) == (1 if figure.name == "resident memory" else PLAN.turns)
        assert min(figure.values) > 0
        assert min(figure.values) <= figure.median <= max(figure.values)
    rate, read = by_name["decode, one sequence"], by_name["streaming read, same moment"]
    for share, tokens, gb in zip(by_name["share of it that decode uses"].values, rate.values, read.values, strict=True):
        assert share == pytest.approx(100 * tokens * (1 << 20) / (gb * 1e9))
    assert engine.idle


def test_what_runs_is_what_the_plan_says() -> None:
    forward = Counting()
    measure(Engine(forward, context_length=64), PLAN, vocab_size=50, token_bytes=1, threads=1)
    turns = PLAN.turns + 1
    prompts = turns * (16 + 20 + 16 + 3 * 16)
    answers = turns * (4 + 3 * 4)  # the last token of an answer is never read
    assert sum(forward.batches) == prompts + answers
    assert 3 in forward.batches  # sequences that decode together


def test_a_fault_of_the_model_is_not_measured_but_raised() -> None:
    forward = Counting()
    forward.poison = 3
    with pytest.raises(NumericalError):
        measure(Engine(forward, context_length=64), PLAN, vocab_size=4, token_bytes=1, threads=1)


@pytest.mark.parametrize("change", [{"prompt": 0}, {"answer": 1}, {"together": 65}, {"turns": 0}])
def test_a_plan_that_cannot_be_measured_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="allowed"):
        Plan(**change)


def test_a_token_reads_the_chosen_experts_and_one_row_of_an_untied_embedding() -> None:
    some = weights("mixtral", "Q8_0")
    spec = some.spec
    assert spec.moe is not None and not spec.tied_embeddings
    expected = 0.0
    for name, tensor in some.items():
        n = tensor.raw().nbytes
        if ".experts." in name:
            n = n * spec.moe.n_experts_per_token / spec.moe.n_experts
        elif name == "embed.weight":
            n = n / spec.vocab_size
        expected += n
    assert bytes_per_token(some) == round(expected) < some.n_bytes()
    tied = weights("llama-3.2-tied", "Q8_0")
    assert bytes_per_token(tied) == tied.n_bytes()


def test_the_streaming_read_reads_the_working_set_within_bounds() -> None:
    probe = StreamingRead(1, 2)
    assert probe.n_bytes == 64 << 20
    assert np.isfinite(probe()) and probe() > 1e8
