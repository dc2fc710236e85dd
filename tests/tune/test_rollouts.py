"""Answers sampled by our own engine carry the trainer's log-probabilities, and rewards are followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vitral.errors import ContextOverflow, DataError, TuneError
from vitral.formats.checkpoint import open_checkpoint
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.adapters import attach
from vitral.tune.data.load import load_data
from vitral.tune.forward import load_model
from vitral.tune.lora_plan import LoraPlan
from vitral.tune.losses.grpo import Grpo
from vitral.tune.policy import Policy
from vitral.tune.recipe import parse_recipe
from vitral.tune.record import read_log
from vitral.tune.rewards import REWARDS
from vitral.tune.rollouts import Rollouts
from vitral.tune.run import run_recipe
from vitral.tune.source import Order
from vitral.tune.trainer import Plan, Trainer


def tasks(path: Path) -> Path:
    path.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(4)))
    return path


def rollouts(base: Path, data: Path, tokenizer: Tokenizer, reward: object, tokens: int = 12) -> Rollouts:
    model = load_model(base)
    attach(model, LoraPlan(4))
    items = load_data([data], tokenizer, 256).items
    return Rollouts(model, open_checkpoint(base), tokenizer, items, Order(4, 2, 7), reward, 6, tokens, 400, 128)  # type: ignore[arg-type]


def letters(answer: str, expected: str) -> float:
    return sum(c.isascii() and c.isalpha() for c in answer) / max(len(answer), 1)


@pytest.mark.parametrize("base", ["tiny_chat", "tiny_mixture"])
def test_the_engines_logprobs_are_the_trainers(
    base: str, request: pytest.FixtureRequest, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    """Both in float32 but for keys and values, which the engine keeps in f16: 2^-11 of each, passed on over two layers.

    Where two experts are all but equally likely, that much may choose the other one: such tokens are rare.
    """
    apart: list[float] = []
    source = rollouts(request.getfixturevalue(base), tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    batches = source.batches(0)
    assert len(batches) > 1
    for batch in batches:
        assert batch.total == 12
        with torch.no_grad():
            ours = Policy(source.model).logprobs(batch)
        apart += (ours - batch.columns["logprob"]).abs().tolist()
        assert batch.columns["advantage"].shape == (batch.n_sequences,)
    assert sum(gap >= 5e-3 for gap in apart) <= (0.03 * len(apart) if base == "tiny_mixture" else 0)


def test_a_step_samples_the_same_answers_again_and_another_step_others(
    tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    source = rollouts(tiny_chat, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    one, again, other = (torch.cat([b.packed.ids for b in source.batches(step)]) for step in (0, 0, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one[:40], other[:40])


def test_what_is_rewarded_becomes_likelier(tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    source = rollouts(tiny_chat, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    trainer = Trainer(Policy(source.model), None, Grpo(beta=0.0), Plan(20, 0.02, "constant", 0.0))
    seen = []
    for _ in range(20):
        report = trainer.run_step(source)
        seen.append(source.seen["reward"])
        assert report.metrics["moved"] < 1e-2
    assert sum(seen[-5:]) > 1.5 * sum(seen[:5])


def test_a_recipe_drives_it_and_it_resumes_to_the_same_answers(tiny_chat: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = parse_recipe({"model": {"base": str(tiny_chat)}, "data": {"train": [str(tasks(tmp_path / "t.jsonl"))], "context": 128},
                           "method": {"loss": "grpo", "reward": "contains", "group": 3, "answer_tokens": 8},
                           "run": {"steps": 4, "batch": 2, "save_every": 2, "measure_forgetting": False}})  # fmt: skip
    run_recipe(recipe, tmp_path / "whole")
    steps = [line for line in read_log(tmp_path / "whole") if line["event"] == "StepReport"]
    assert {"reward", "answer_tokens", "divergence"} <= set(steps[0]["metrics"])
    plain = Trainer.run_step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stopping(self: Trainer, source: object) -> object:
            if self.step == 3:
                raise KeyboardInterrupt
            return plain(self, source)  # type: ignore[arg-type]

        patch.setattr(Trainer, "run_step", stopping)
        run_recipe(recipe, tmp_path / "cut")
    run_recipe(recipe, tmp_path / "cut", resume=True)
    losses = [
        [line["loss"] for line in read_log(tmp_path / name) if line["event"] == "StepReport"]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_questions_that_do_not_fit_or_have_no_answer_are_refused(
    tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    with pytest.raises(ContextOverflow, match="answer_tokens"):
        rollouts(tiny_chat, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters, tokens=120).batches(0)
    (tmp_path / "c.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    given = {"model": {"base": str(tiny_chat)}, "method": {"loss": "grpo"}}
    with pytest.raises(DataError, match="verifiable"):
        run_recipe(parse_recipe({**given, "data": {"train": [str(tmp_path / "c.jsonl")]}}), tmp_path / "a")
    with pytest.raises(TuneError, match="reward of its own"):
        run_recipe(
            parse_recipe({**given, "data": {"train": [str(tmp_path / "t.jsonl")], "hold_out": 0.5}}), tmp_path / "b"
        )


def test_rewards_are_zero_or_one() -> None:
    assert {reward("about 7", "7") for reward in REWARDS.values()} == {0.0, 1.0}
