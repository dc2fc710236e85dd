"""The embedded model's answers are the recorded ones, token for token."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.questions import QUESTIONS, answers, recorded
from vitral.loading import load
from vitral.native import available


def test_every_question_has_its_answer_and_text(smollm2: Path) -> None:
    entries = recorded()
    assert [entry["question"] for entry in entries] == list(QUESTIONS)
    with load(smollm2, context_length=256, threads=2) as model:
        found = answers(model, range(len(QUESTIONS)))
        for i, entry in enumerate(entries):
            assert found[i] == entry["token_ids"], entry["question"]
            assert model.tokenizer.decode(found[i], skip_special=True) == entry["text"]


def test_one_thread_and_one_request_at_a_time_give_the_same(smollm2: Path) -> None:
    with load(smollm2, context_length=256, threads=1) as model:
        for i in (4, 16):
            assert answers(model, [i])[i] == recorded()[i]["token_ids"]


@pytest.mark.parametrize("isa", available()[:-1])
def test_every_other_instruction_set_begins_the_same(smollm2: Path, isa: str) -> None:
    # The scalar kernels do a few tokens a second: `python -m tests.golden.questions --isa scalar` compares all.
    with load(smollm2, context_length=256, threads=2, isa=isa) as model:
        assert answers(model, [1], 3)[1] == recorded()[1]["token_ids"][:3]
