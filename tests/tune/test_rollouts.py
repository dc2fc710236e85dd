"""Answers sampled by our own engine carry the trainer's log-probabilities, and rewards are followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tune.conftest import write_tiny
from vitral.errors import ContextOverflow, DataError, RecipeError, TuneError
from vitral.formats.checkpoint import open_checkpoint
from vitral.model.reference import Reference
from vitral.model.spec import MoeSpec
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune.adapters import attach, frozen_copy
from vitral.tune.after import export_run
from vitral.tune.batch import Batch, Row
from vitral.tune.data.encode import prompt_ids
from vitral.tune.data.load import load_data
from vitral.tune.forward import load_model
from vitral.tune.judges import RewardModel, Verifier, new_head
from vitral.tune.lessons import BestOfGroup, GroupLesson, ValueLesson
from vitral.tune.lora_plan import LoraPlan
from vitral.tune.losses.grpo import Grpo
from vitral.tune.losses.ppo import Ppo
from vitral.tune.losses.sft import Sft
from vitral.tune.policy import Policy
from vitral.tune.recipe import parse_recipe
from vitral.tune.record import read_log
from vitral.tune.rewards import REWARDS
from vitral.tune.rollouts import Rollouts
from vitral.tune.run import run_recipe
from vitral.tune.sampled import Sampled
from vitral.tune.source import Order
from vitral.tune.trainer import Plan, Trainer


def tasks(path: Path) -> Path:
    path.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(4)))
    return path


def rollouts(base: Path, data: Path, tokenizer: Tokenizer, reward: object, tokens: int = 12) -> Rollouts:
    model = load_model(base)
    attach(model, LoraPlan(4))
    items = load_data([data], tokenizer, 256).items
    judge = Verifier(reward, tokenizer)  # type: ignore[arg-type]
    return Rollouts(
        model, open_checkpoint(base), tokenizer, items, Order(4, 2, 7), judge, GroupLesson(6), 6, tokens, 400, 128
    )


def letters(answer: str, expected: str) -> float:
    return sum(c.isascii() and c.isalpha() for c in answer) / max(len(answer), 1)


@pytest.mark.parametrize("base", ["tiny_chat", "tiny_mixture"])
def test_the_engines_logprobs_are_the_trainers(
    base: str, request: pytest.FixtureRequest, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    """Both in float32, keys and values too: only the order of sums differs.

    Where two experts are all but equally likely, that much would choose the other one, did routes not say which.
    """
    apart: list[float] = []
    source = rollouts(request.getfixturevalue(base), tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    source.routes = True
    batches = source.batches(0)
    assert len(batches) > 1
    for batch in batches:
        assert batch.total == 12
        with torch.no_grad():
            ours = Policy(source.model, follow_routes=True).logprobs(batch)
        apart += (ours - batch.columns["logprob"]).abs().tolist()
        assert batch.columns["advantage"].shape == (batch.n_sequences,)
    assert max(apart) < 1e-4


@pytest.fixture(scope="module")
def dense_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "m.gguf", MoeSpec(4, 2, n_leading_dense=1))


def test_answers_bring_the_engines_expert_choices_and_a_policy_follows_them(
    dense_first: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    """The engine's choices are the reference's. A trainer whose router prefers others still goes where they went."""
    source = rollouts(dense_first, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    source.routes = True
    batch = source.batches(0)[0]
    routes, ends = batch.routes, torch.tensor(batch.packed.lengths).cumsum(0) - 1
    assert routes is not None and routes.shape == (len(batch.packed.ids), 1, 2)
    assert (routes[ends] == -1).all(), "the last token of an answer is not read"
    checkpoint, chosen = open_checkpoint(dense_first), list[torch.Tensor]()

    def see(name: str, value: np.ndarray[Any, Any]) -> None:
        if name == "blocks.1.mlp.hook_expert_indices":
            chosen.append(torch.from_numpy(value.copy()))

    reference = Reference(checkpoint.spec, checkpoint.weights.law())
    for ids in batch.packed.ids.split(batch.packed.lengths):
        reference.forward(ids.tolist(), on_tap=see)
    read = routes[:, 0, 0] >= 0
    assert torch.equal(routes[read][:, 0], torch.cat(chosen)[read].long())

    router = source.model.get_parameter("blocks.1.mlp.router.weight").requires_grad_()
    with torch.no_grad():
        router.copy_(router.flip(0))
    policy = Policy(source.model, follow_routes=True)
    logprobs = policy.logprobs(batch)
    assert 0.2 < policy.rerouted["blocks.1.mlp.hook_expert_indices"] <= 1
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert router.grad is not None and float(router.grad.abs().max()) > 0
    with torch.no_grad():
        alone = Policy(source.model).logprobs(batch)
    assert float((alone - logprobs.detach()).abs().max()) > 0.01


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_recipe_says_whether_routes_are_followed(method: str, dense_first: Path, tmp_path: Path) -> None:
    for follow in (True, False):
        recipe = parse_recipe({"model": {"base": str(dense_first)}, "data": {"train": [str(tasks(tmp_path / "t.jsonl"))], "context": 128},
                               "method": {"loss": method, "reward": "contains", "group": 2, "answer_tokens": 4, "replay_routing": follow},
                               "run": {"steps": 1, "batch": 2, "measure_forgetting": False, "precision": "float32"}})  # fmt: skip
        run_recipe(recipe, tmp_path / str(follow))
        [step] = [line for line in read_log(tmp_path / str(follow)) if line["event"] == "StepReport"]
        assert step["metrics"]["rerouted"] < 0.05 if follow else "rerouted" not in step["metrics"]


def test_a_step_samples_the_same_answers_again_and_another_step_others(
    tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    source, fresh = (rollouts(tiny_chat, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters) for _ in range(2))
    one, again, other = (
        torch.cat([b.packed.ids for b in who.batches(step)]) for who, step in ((source, 0), (fresh, 0), (source, 2))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one[:40], other[:40])


def test_what_is_rewarded_becomes_likelier(tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    source = rollouts(tiny_chat, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    source.group, source.lesson = 12, GroupLesson(12)
    trainer = Trainer(Policy(source.model), None, Grpo(beta=0.0), Plan(20, 0.005, "constant", 0.0))
    seen = []
    for _ in range(20):
        report = trainer.run_step(source)
        seen.append(source.seen["reward"])
        assert report.metrics["moved"] < 1e-2
    assert sum(seen[-5:]) > 2 * sum(seen[:5])


@pytest.mark.parametrize("method", ["rejection", "ppo"])
def test_the_other_methods_follow_the_reward_too(
    method: str, tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    source = rollouts(tiny_chat, tasks(tmp_path / "t.jsonl"), byte_tokenizer, letters)
    source.group, plan = 12, Plan(16, 0.01, "constant", 0.0)
    if method == "ppo":
        policy = Policy(source.model, head=new_head(source.model.spec.dim))
        source.lesson, source.updates = ValueLesson(policy, Policy(frozen_copy(source.model)), 0.01), 2
        trainer = Trainer(policy, None, Ppo(), plan)
    else:
        source.lesson = BestOfGroup(12)
        trainer = Trainer(Policy(source.model), None, Sft(), plan)
    seen = []
    for _ in range(16):
        trainer.run_step(source)
        seen.append(source.seen["reward"])
    assert sum(seen[-4:]) > 1.3 * sum(seen[:4])
    if method == "ppo":
        assert seen[0] == seen[1], "two updates learn from the same answers"


def test_of_each_group_the_best_answer_is_learnt_and_of_equals_none() -> None:
    found = [Sampled((1, 2), (n, 9), (-1.0, -1.0)) for n in range(3, 9)]
    [batch] = BestOfGroup(3)(found, torch.tensor([0.0, 1.0, 0.5, 2.0, 2.0, 2.0]), 100)
    assert batch.packed.ids.tolist() == [1, 2, 4, 9]
    assert batch.labels.tolist() == [4, 9] and batch.total == 2
    assert BestOfGroup(3)(found[:3], torch.ones(3), 100) == []


def test_ppos_advantages_are_those_of_a_case_worked_by_hand(tiny_chat: Path) -> None:
    """Values are 0 (a fresh head) and the reference is the policy, so only rewards and the decay 0.95 are left."""
    model = load_model(tiny_chat)
    policy = Policy(model, head=new_head(model.spec.dim))
    batch = Batch.of([Row((1, 40, 41, 42), (False, True, True, True)), Row((1, 50, 51), (False, True, True))])
    with torch.no_grad():
        then = policy.logprobs(batch).tolist()
    found = [Sampled((1,), (40, 41, 42), tuple(then[:3])), Sampled((1,), (50, 51), tuple(then[3:]))]
    [made] = ValueLesson(policy, policy, 0.5)(found, torch.tensor([1.0, -1.0]), 100)
    plain = torch.tensor([0.95**2, 0.95, 1.0, -0.95, -1.0])
    assert torch.allclose(made.columns["advantage"], (plain - plain.mean()) / plain.std(), atol=1e-5)
    assert torch.allclose(made.columns["return"], plain, atol=1e-6)
    assert made.total == 5


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_recipe_drives_it_and_it_resumes_to_the_same_answers(method: str, tiny_chat: Path, tmp_path: Path) -> None:
    """Two updates from the same answers in PPO; stopped between two of them, the run goes on from before both."""
    torch.set_num_threads(1)
    recipe = parse_recipe({"model": {"base": str(tiny_chat)}, "data": {"train": [str(tasks(tmp_path / "t.jsonl"))], "context": 128},
                           "method": {"loss": method, "reward": "contains", "group": 3, "answer_tokens": 8,
                                      "updates": 2 if method == "ppo" else 1},
                           "run": {"steps": 4, "batch": 2, "save_every": 2, "measure_forgetting": False}})  # fmt: skip
    run_recipe(recipe, tmp_path / "whole")
    steps = [line for line in read_log(tmp_path / "whole") if line["event"] == "StepReport"]
    assert {"reward", "answer_tokens", "clipped"} <= set(steps[0]["metrics"])
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


def test_a_reward_model_is_trained_from_pairs_and_then_rewards(
    tiny_chat: Path, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    """It learns that answers without digits are preferred; rejection sampling then asks it."""
    rows = [{"prompt": f"{n} + 1?", "chosen": "ab cd", "rejected": "12 34"} for n in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"steps": 8, "batch": 4, "learning_rate": 0.01, "measure_forgetting": False}
    pairs = {"train": [str(tmp_path / "p.jsonl")], "context": 128}
    given = {"model": {"base": str(tiny_chat)}, "data": pairs, "method": {"loss": "reward"}, "run": run}
    result = run_recipe(parse_recipe(given), tmp_path / "judge")
    steps = [line for line in read_log(tmp_path / "judge") if line["event"] == "StepReport"]
    assert steps[-1]["metrics"]["accuracy"] == 1
    assert (result.output / "score.safetensors").exists()
    judge = RewardModel(tmp_path / "judge", byte_tokenizer)
    prompt = tuple(prompt_ids(({"role": "user", "content": "9 + 1?"},), byte_tokenizer))
    good, bad = (Sampled(prompt, (*byte_tokenizer.encode(text), 2), ()) for text in ("ab cd", "12 34"))
    scores = judge([good, bad], [])
    assert scores[0] > scores[1]
    asked = {"train": [str(tasks(tmp_path / "t.jsonl"))], "context": 128}
    method = {
        "loss": "rejection",
        "reward": "model",
        "reward_model": str(tmp_path / "judge"),
        "group": 3,
        "answer_tokens": 6,
    }
    run_recipe(
        parse_recipe({**given, "data": asked, "method": method, "run": run | {"steps": 2, "batch": 2}}),
        tmp_path / "best",
    )
    assert all(line["loss"] > 0 for line in read_log(tmp_path / "best") if line["event"] == "StepReport")
    with pytest.raises(TuneError, match="method.reward_model"):
        export_run(tmp_path / "judge", tmp_path / "x", "peft")
    with pytest.raises(TuneError, match="no finished run of the loss reward"):
        RewardModel(tmp_path / "best", byte_tokenizer)
    with pytest.raises(RecipeError, match="needs it"):
        parse_recipe({**given, "method": {"loss": "ppo", "reward": "model"}})


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
