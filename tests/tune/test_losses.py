"""Losses and gradients are those of TRL on the same batch; PPO's are those worked out by hand.

The referees' models are transformers' Llama and Mixtral with our weights, PEFT's LoRA with our numbers in it.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity.families import FAMILIES, random_weights
from tests.parity.test_transformers import their_model
from tests.tune.models import tiny
from vitral.formats.mapping import hf_name
from vitral.tune.adapters import adapters_of, attach, frozen_copy
from vitral.tune.batch import Batch, Row
from vitral.tune.lora_plan import LoraPlan
from vitral.tune.losses import Loss
from vitral.tune.losses.distil import Distil
from vitral.tune.losses.dpo import Dpo
from vitral.tune.losses.grpo import Grpo
from vitral.tune.losses.kto import Kto
from vitral.tune.losses.orpo import Orpo
from vitral.tune.losses.ppo import Ppo
from vitral.tune.losses.reward import RewardRanking
from vitral.tune.losses.sft import Sft
from vitral.tune.policy import Policy

BOTH = pytest.mark.parametrize("family", ["llama-3.1", "mixtral"])
PARTS = ("q", "k", "v", "o")


def row(rng: np.random.Generator, prompt: list[int], n: int) -> Row:
    answer = rng.integers(3, 160, n).tolist()
    return Row((*prompt, *answer), (False,) * len(prompt) + (True,) * n)


def rows(seed: int, n: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [row(rng, rng.integers(3, 160, 3 + i).tolist(), 4 + (5 * i) % 7) for i in range(n)]


def pairs(seed: int, n: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 160, 3 + i).tolist() for i in range(n)]
    return [row(rng, p, 4 + i) for i, p in enumerate(prompts)] + [row(rng, p, 6 - i) for i, p in enumerate(prompts)]


class Twins:
    """Our model and theirs with the same weights and the same adapters, whose B is not zero."""

    def __init__(self, family: str, kind: str = "lora") -> None:
        from peft import LoraConfig, get_peft_model

        spec = FAMILIES[family]
        self.model = tiny(family)
        plan = LoraPlan(rank=4, alpha=8, kind=kind, targets=PARTS)  # type: ignore[arg-type]
        attach(self.model, plan)
        self.reference = frozen_copy(self.model)  # B is zero: the base itself
        config = LoraConfig(r=4, lora_alpha=8, target_modules=[f"{p}_proj" for p in PARTS], use_rslora=kind == "rslora",
                            use_dora=kind == "dora")  # fmt: skip
        self.base = their_model(spec, random_weights(spec))
        self.theirs = get_peft_model(their_model(spec, random_weights(spec)), config)
        for model in (self.base, self.theirs):
            give_log_probs(model)
        generator = torch.Generator().manual_seed(3)
        names = {
            name: f"base_model.model.{hf_name(name + '.weight').removesuffix('.weight')}"
            for name in adapters_of(self.model)
        }
        modules = dict(self.theirs.named_modules())
        self.matched = []
        for name, ours in adapters_of(self.model).items():
            ours.b.data.normal_(0, 0.05, generator=generator)
            twin = modules[names[name]]
            twin.lora_A["default"].weight.data.copy_(ours.a.data)
            twin.lora_B["default"].weight.data.copy_(ours.b.data)
            self.matched += [(ours.a, twin.lora_A["default"].weight), (ours.b, twin.lora_B["default"].weight)]
            if kind == "dora":
                self.matched.append((ours.magnitude, twin.lora_magnitude_vector["default"].weight))  # type: ignore[attr-defined]

    def agree(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4)
        ours.backward()
        theirs.backward()
        largest = max(float(p.grad.abs().max()) for _, p in self.matched)
        assert largest > 0
        for mine, twin in self.matched:
            assert torch.allclose(mine.grad, twin.grad, rtol=1e-4, atol=1e-4 * largest)


def give_log_probs(model: torch.nn.Module) -> None:
    """TRL's trainers patch a model so that it gives the labels' log-probabilities; here by plain softmax."""
    plain = model.forward

    def forward(
        *ids: torch.Tensor, labels: torch.Tensor | None = None, fused_lm_head: bool = False, **inputs: object
    ) -> object:
        if not fused_lm_head:
            return plain(*ids, labels=labels, **inputs)
        logits = plain(*ids, **inputs).logits[:, :-1]
        wanted = labels[:, 1:]
        found = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        zeros = torch.zeros_like(found)
        return SimpleNamespace(log_probs=torch.where(wanted < 0, zeros, found), entropy=zeros, entropies=zeros,
                               mean_logits=zeros, is_top1=zeros.bool(), num_correct_tokens=zeros, predictions=wanted, logits=logits)  # fmt: skip

    model.forward = forward  # type: ignore[method-assign]


def padded(some: list[Row]) -> dict[str, torch.Tensor]:
    """As TRL's collators make it: right padding, an attention mask, a completion mask."""
    longest = max(len(r.ids) for r in some)
    pad = lambda values: [*values, *[0] * (longest - len(values))]  # noqa: E731
    return {
        "input_ids": torch.tensor([pad(r.ids) for r in some]),
        "attention_mask": torch.tensor([pad([1] * len(r.ids)) for r in some]),
        "completion_mask": torch.tensor([pad([int(s) for s in r.supervised]) for r in some]),
    }


def labels(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)


def trainer(cls: type, **attributes: object) -> SimpleNamespace:
    """What a TRL loss reads of its trainer, without the trainer's loop around it."""
    from accelerate import Accelerator

    known = {"accelerator": Accelerator(cpu=True), "aux_loss_enabled": False, "_metrics": _Any(), "label_smoothing": 0.0,
             "_entropy_bonus_enabled": False, "_tp_size": 1, "_total_train_tokens": 0, "is_encoder_decoder": False, "padding_value": 0}  # fmt: skip
    made = cls.__new__(cls)
    for name, value in (known | attributes).items():
        setattr(made, name, value)
    return made


class _Any(dict):
    def __missing__(self, key: object) -> object:
        from collections import defaultdict

        return self.setdefault(key, defaultdict(list))


@BOTH
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_sft_is_the_loss_that_trl_and_peft_compute(family: str, kind: str) -> None:
    some, twins = rows(1, 4), Twins(family, kind)
    batch = Batch.of(some)
    inputs = padded(some)
    theirs = twins.theirs(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels(inputs), use_cache=False
    ).loss
    loss, _ = Sft()(Policy(twins.model), None, batch)
    twins.agree(loss, theirs)


@BOTH
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_dpo_is_trls(family: str, kind: str) -> None:
    from trl import DPOTrainer

    some, twins = pairs(2, 3), Twins(family)
    inputs = padded(some)
    args = SimpleNamespace(
        use_liger_kernel=False, gradient_checkpointing_kwargs=None, ld_alpha=None, f_divergence_type="reverse_kl"
    )
    them = trainer(DPOTrainer, beta=0.3, loss_types=[kind], loss_weights=[1.0], args=args, model=twins.theirs,
                   ref_model=twins.base, precompute_ref_logps=False, f_divergence_type="reverse_kl", ld_alpha=None,
                   use_weighting=False)  # fmt: skip
    theirs = them._compute_loss(twins.theirs, inputs, False)
    loss, metrics = Dpo(0.3, kind)(Policy(twins.model), Policy(twins.reference), Batch.of(some, total=3))  # type: ignore[arg-type]
    twins.agree(loss, theirs)
    assert 0 <= metrics["accuracy"] <= 1


@BOTH
def test_kto_is_trls(family: str) -> None:
    from trl import KTOTrainer

    some, twins, rng = rows(3, 4), Twins(family), np.random.default_rng(4)
    others = [row(rng, list(r.ids[: r.supervised.index(True)]), 5) for r in some]
    good = torch.tensor([True, False, True, False])
    inputs = padded(some) | {f"KL_{k}": v for k, v in padded(others).items()} | {"label": good.tolist()}
    inputs["label"] = good
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False)
    them = trainer(KTOTrainer, beta=0.3, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.5, model=twins.theirs,
                   ref_model=twins.base, precompute_ref_logps=False, calculate_KL=True, args=args)  # fmt: skip
    theirs = them._compute_loss(twins.theirs, inputs, False)
    batch = Batch.of([*some, *others], total=4, columns={"good": good})
    loss, _ = Kto(0.3, bad_weight=1.5)(Policy(twins.model), Policy(twins.reference), batch)
    twins.agree(loss, theirs)


@BOTH
def test_orpo_is_trls(family: str) -> None:
    from trl.experimental.orpo import ORPOTrainer

    rng, twins = np.random.default_rng(5), Twins(family)
    prompt = rng.integers(3, 160, 4).tolist()
    some = [
        row(rng, prompt, n) for n in (6, 6, 3, 8)
    ]  # chosen of one length: TRL's mean over tokens is ours over pairs
    inputs = padded(some)
    halves = {f"{name}_{what}": value for what, whole in (("input_ids", inputs["input_ids"]), ("labels", labels(inputs)),
              ("attention_mask", inputs["attention_mask"])) for name, value in zip(("chosen", "rejected"), whole.chunk(2))}  # fmt: skip
    them = trainer(ORPOTrainer, beta=0.3)
    theirs = them.get_batch_loss_metrics(twins.theirs, halves)[0]
    loss, _ = Orpo(0.3, prompt_loss=True)(Policy(twins.model), None, Batch.of(some, total=2))
    twins.agree(loss, theirs)


@BOTH
def test_orpo_without_the_prompt_is_the_papers_loss(family: str) -> None:
    some, model = pairs(6, 2), tiny(family)
    batch = Batch.of(some, total=2)
    mean = [float(part.mean()) for part in Policy(model).logprobs(batch).split(batch.counts.tolist())]
    odds = [m - np.log1p(-np.exp(m)) for m in mean]
    by_hand = np.mean([-mean[i] + 0.3 * np.log1p(np.exp(odds[2 + i] - odds[i])) for i in range(2)])
    assert float(Orpo(0.3)(Policy(model), None, batch)[0]) == pytest.approx(by_hand, rel=1e-5)


@BOTH
def test_reward_ranking_is_trls(family: str) -> None:
    from trl import RewardTrainer

    some, twins = pairs(7, 2), Twins(family)
    head = torch.nn.Linear(64, 1, bias=False)
    inputs = padded(some)
    ends = torch.tensor([len(r.ids) - 1 for r in some])

    def scored(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> SimpleNamespace:
        states = twins.theirs.base_model.model.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        )
        return SimpleNamespace(logits=head(states.last_hidden_state[torch.arange(len(some)), ends]))

    margin = torch.tensor([0.2, 0.5])
    args = SimpleNamespace(center_rewards_coefficient=0.1)
    them = trainer(RewardTrainer, model=torch.nn.Identity(), args=args)
    del inputs["completion_mask"]
    theirs = them.compute_loss(lambda **i: scored(**i), inputs | {"margin": margin})
    batch = Batch.of(some, total=2, columns={"margin": margin})
    loss, _ = RewardRanking(0.1 * 1)(Policy(twins.model, head=head), None, batch)
    twins.agree(loss, theirs)


@BOTH
def test_grpo_is_trls(family: str) -> None:
    from trl import GRPOTrainer

    rng, twins = np.random.default_rng(8), Twins(family)
    prompt = rng.integers(3, 160, 4).tolist()
    some = [row(rng, prompt, n) for n in (5, 7, 3)]
    batch = Batch.of(some, total=3)
    with torch.no_grad():
        now, ref = (Policy(m).logprobs(batch) for m in (twins.model, twins.reference))
    then = now + torch.from_numpy(rng.normal(0, 0.3, len(now))).float()
    advantage = torch.tensor([1.2, -0.7, 0.1])
    inputs = padded(some)

    def wide(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(values.split(batch.counts.tolist()), batch_first=True)

    def per_token(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, keep: int, **_: object) -> tuple:
        logp = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -keep - 1 : -1].log_softmax(-1)
        return logp.gather(-1, ids[:, -keep:, None])[..., 0], torch.zeros(len(ids), keep), None

    args = SimpleNamespace(use_bias_correction_kl=False, delta=None)
    them = trainer(GRPOTrainer, beta=0.04, loss_type="grpo", epsilon_low=0.2, epsilon_high=0.2, args=args, model=twins.theirs,
                   importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None,
                   use_vllm=False, use_liger_kernel=False, _get_per_token_logps_and_entropies=per_token,
                   current_gradient_accumulation_steps=1, vllm_importance_sampling_correction=False)  # fmt: skip
    theirs = them._compute_loss(twins.theirs, {
        "prompt_ids": inputs["input_ids"][:, :4], "prompt_mask": inputs["attention_mask"][:, :4],
        "completion_ids": inputs["input_ids"][:, 4:], "completion_mask": inputs["attention_mask"][:, 4:],
        "advantages": advantage, "old_per_token_logps": wide(then), "ref_per_token_logps": wide(ref),
    })  # fmt: skip
    batch = Batch.of(some, total=3, columns={"advantage": advantage, "logprob": then})
    loss, metrics = Grpo()(Policy(twins.model), Policy(twins.reference), batch)
    twins.agree(loss, theirs)
    assert metrics["divergence"] > 0


def test_ppo_is_the_case_worked_by_hand() -> None:
    """Two tokens; probabilities moved by factors 1.5 and 0.9 since sampling, values from 0.0 to 0.5 and 0.1."""

    class Fixed(Policy):
        def __init__(self) -> None:
            self.logp = torch.tensor([np.log(1.5), np.log(0.9)], requires_grad=True)
            self.value = torch.tensor([0.5, 0.1], requires_grad=True)

        def logprobs(self, batch: Batch) -> torch.Tensor:
            return self.logp

        def scores(self, batch: Batch) -> torch.Tensor:
            return self.value

    columns = {"logprob": torch.zeros(2), "advantage": torch.tensor([2.0, -1.0]), "return": torch.tensor([1.0, 1.0]),
               "value": torch.zeros(2)}  # fmt: skip
    policy = Fixed()
    batch = Batch.of([Row((1, 2, 3), (False, True, True))], columns=columns)
    loss, metrics = Ppo(clip=0.2, value_weight=0.1)(policy, None, batch)
    # token 1: -min(1.5 * 2, 1.2 * 2) = -2.4, clipped; token 2: -min(-0.9, -0.9) = 0.9
    # values: 0.5 is held at 0.2: max(0.25, 0.64) / 2 = 0.32; 0.1 is free: 0.81 / 2 = 0.405
    assert float(loss) == pytest.approx((-2.4 + 0.9 + 0.1 * (0.32 + 0.405)) / 2, rel=1e-6)
    loss.backward()
    assert policy.logp.grad.tolist() == pytest.approx([0.0, 0.45])
    assert policy.value.grad.tolist() == pytest.approx([0.0, 0.1 * (0.1 - 1.0) / 2])
    assert metrics["clipped"] == 0.5


@BOTH
def test_distillation_from_oneself_costs_nothing_and_from_another_its_divergence(family: str) -> None:
    model, teacher, batch = tiny(family), tiny(family, seed=1), Batch.of(rows(9, 3))
    assert abs(float(Distil()(Policy(model), Policy(model), batch)[0])) < 1e-6
    loss, metrics = Distil()(Policy(model), Policy(teacher), batch)
    p = teacher.logits(batch.packed)[batch.places].log_softmax(-1)
    q = model.logits(batch.packed)[batch.places].log_softmax(-1)
    assert float(loss) == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="sum")) / batch.total, rel=1e-5)
    assert metrics["cross_entropy"] == pytest.approx(float(Sft()(Policy(model), None, batch)[0]), rel=1e-5)


@pytest.mark.parametrize("loss", [Sft(), Dpo(), Dpo(kind="ipo"), Orpo(), Orpo(prompt_loss=True)])
def test_a_step_cut_into_several_batches_has_the_same_loss_and_gradients(loss: Loss) -> None:
    some, twins = pairs(10, 4), Twins("llama-3.1")
    total = {"tokens": sum(r.n_supervised for r in some), "pairs": 4}[loss.unit]
    grads = []
    for cuts in ([range(4)], [range(1), range(1, 4)]):
        twins.model.zero_grad()
        value = 0.0
        for cut in cuts:
            part = Batch.of([some[i] for i in cut] + [some[4 + i] for i in cut], total=total)
            piece, _ = loss(Policy(twins.model), Policy(twins.reference), part)
            piece.backward()
            value += float(piece)
        grads.append((value, [ours.grad.clone() for ours, _ in twins.matched]))
    assert grads[0][0] == pytest.approx(grads[1][0], rel=1e-5)
    for one, other in zip(grads[0][1], grads[1][1], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_first_step_of_dpo_has_no_margin() -> None:
    model = tiny()
    attach(model, LoraPlan(rank=4, targets=PARTS))
    loss, metrics = Dpo()(Policy(model), Policy(frozen_copy(model)), Batch.of(pairs(11, 2), total=2))
    assert float(loss) == pytest.approx(np.log(2), rel=1e-6)
    assert metrics["margin"] == 0


def test_masked_tokens_carry_no_loss() -> None:
    """Exactly zero gradient of the logits at every place but the supervised ones, the end token's included."""
    model, some = tiny("llama-2"), rows(12, 3)
    batch = Batch.of(some)
    seen = {}
    policy = Policy(model)
    hidden = model(batch.packed).detach().requires_grad_(True)
    policy._forward = lambda packed, tap: hidden
    Sft()(policy, None, batch)[0].backward()
    seen = hidden.grad.abs().sum(-1) > 0
    assert seen.nonzero()[:, 0].tolist() == batch.places.tolist()


def test_long_batches_compute_logits_in_pieces_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    some, grads = rows(13, 4), []
    for limit in (1 << 26, 160 * 5):
        monkeypatch.setattr("vitral.tune.policy._LARGEST_LOGITS", limit)
        model = tiny("llama-3.2-tied").requires_grad_(True)
        Sft()(Policy(model), None, Batch.of(some))[0].backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name in grads[0]:
        assert torch.allclose(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-7), name
