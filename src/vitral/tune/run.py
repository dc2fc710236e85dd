"""A run from recipe to result: prepare, rehearse, train, evaluate, save, write what came out."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vitral.engine.memory import peak_bytes
from vitral.errors import TuneError
from vitral.formats.adapters import Adapter, trained_on
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import admitted
from vitral.provenance.bases import Base
from vitral.tune import distributed
from vitral.tune.adapter_files import load_adapter, save_peft
from vitral.tune.adapters import attach, frozen_copy, train_all
from vitral.tune.batch import Batch
from vitral.tune.data.examples import Plain
from vitral.tune.data.load import Item
from vitral.tune.estimate import refuse_too_large
from vitral.tune.export import write_merged
from vitral.tune.files import append_whole, staged, write_whole, writing
from vitral.tune.forgetting import Probes, make_probes, make_replay
from vitral.tune.forward import Transformer, load_model
from vitral.tune.judges import Judge, RewardModel, Verifier, new_head, save_head
from vitral.tune.lessons import BestOfGroup, GroupLesson, Lesson, ValueLesson
from vitral.tune.lora_plan import LoraPlan
from vitral.tune.policy import Policy, Precision
from vitral.tune.prepare import Prepared, prepare
from vitral.tune.recipe import Recipe, recipe_toml
from vitral.tune.record import (
    ADAPTER,
    LOG,
    MODEL,
    begin_record,
    check_same,
    read_log,
    read_record,
    tuned_from,
    write_record,
)
from vitral.tune.rewards import REWARDS
from vitral.tune.rollouts import Rollouts
from vitral.tune.served import engine_of
from vitral.tune.sharded import gather, let_go, part_like, shard, whole
from vitral.tune.source import Order, batches_of, count_units
from vitral.tune.state import load_state, save_state, state_of, trained_parameters
from vitral.tune.tensorboard import append_scalars
from vitral.tune.trainer import Plan, StepReport, Trainer, memory_watched

__all__ = ["STATE", "Evaluation", "Event", "Rehearsal", "Result", "Stopping", "run_recipe"]

STATE = "state.pt"
_SAMPLED = ("grpo", "ppo", "rejection")  # losses over answers that the policy gives


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The test loss after a step, and the loss on what should not be forgotten (nats a token)."""

    step: int
    test_loss: float | None
    metrics: dict[str, float]
    forgetting: dict[str, float]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The largest piece of the run, forwards and backwards once without an update: what it really takes."""

    steps: int
    tokens: int
    seconds: float
    peak_bytes: int
    estimated_bytes: int


@dataclass(frozen=True, slots=True)
class Stopping:
    """Ctrl-C or SIGTERM came in this step, after which the run is saved and ends; a second one ends it at once.

    It is told from within the handler of the signal: whoever takes it should only note it.
    """

    step: int


Event = StepReport | Evaluation | Rehearsal | Stopping
OnEvent = Callable[[Event], object]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left: where, how many steps, and the first and last evaluation."""

    folder: Path
    steps: int
    stopped: str  # "finished" or "patience"
    before: Evaluation
    after: Evaluation
    output: Path


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    repeats: Mapping[str, Any] | None = None,
    on_event: OnEvent = lambda event: None,
) -> Result:
    """Train as a recipe says and leave everything in `folder`: recipe, record, log, state, adapter or model.

    `resume` goes on after the last saved step, to the same bits as without the interruption (on one thread).
    `repeats` is the record of a run that this is to be again: TuneError if what decides it has changed.
    Ctrl-C and SIGTERM save the step and raise KeyboardInterrupt. Raises DataError, RecipeError, AdapterMismatch
    or TuneError before the first step; NumericalError, HardwareError or TuneError where a step cannot be done.
    """
    distributed.begin()
    prepared = prepare(recipe)
    prepared.train.refuse()
    prepared.preflight.refuse()
    _check_processes(recipe, len(prepared.train.items))
    if not resume and (folder / STATE).exists():
        raise TuneError(f"{folder} holds a run already; resume it, or give another folder")
    refuse_too_large(prepared.estimate)
    with memory_watched("before the first step"):
        run = _Run(prepared, folder, on_event)
    return run.go(resume, repeats)


@dataclass
class _DataSource:
    items: Sequence[Item]
    order: Order
    prepared: Prepared
    replay: Sequence[Item] = field(default=())

    def chosen(self, step: int) -> list[Item]:
        found = [self.items[i] for i in self.order.step(step)]
        n = round(self.prepared.recipe.run.replay * len(found)) if self.replay else 0
        return found + [self.replay[(step * n + i) % len(self.replay)] for i in range(n)]

    def batches(self, step: int) -> Sequence[Batch]:
        items, loss = self.chosen(step), self.prepared.loss
        total = count_units(items, loss.unit)
        mine = distributed.share_of(items)
        return batches_of(
            mine, self.prepared.recipe.method.loss, loss.unit, self.prepared.recipe.run.piece_tokens, total
        )

    def places(self, step: int) -> str:
        return ", ".join(item.example.place for item in self.chosen(step)[:5])


class _Run:
    def __init__(self, prepared: Prepared, folder: Path, on_event: OnEvent) -> None:
        self.prepared, self.folder, self.on_event = prepared, folder, on_event
        recipe = prepared.recipe
        self.precision: Precision = _precision(recipe)
        self.plan, self.model = _trainable(prepared)
        self.reference = self._reference()
        self.probes, replay = self._probes()
        watch = bool(recipe.method.balance or recipe.method.router_z)
        self.head = new_head(prepared.base.spec.dim) if recipe.method.loss in ("reward", "ppo") else None
        if recipe.run.shard:
            if self.reference is not None:
                shard(self.reference.model)
            shard(self.model, self.head)
        follow = recipe.method.replay_routing and recipe.method.loss in ("grpo", "ppo")
        policy = Policy(self.model, self.precision, self.head, watch, follow)
        run = recipe.run
        numbers = Plan(prepared.n_steps, run.learning_rate, run.schedule, run.warmup, run.weight_decay, run.clip,
                       recipe.method.balance, recipe.method.router_z)  # fmt: skip
        self.trainer = Trainer(policy, self.reference, prepared.loss, numbers)
        self.source: _DataSource | Rollouts = (
            self._rollouts(policy)
            if recipe.method.loss in _SAMPLED
            else _DataSource(
                prepared.train.items, Order(len(prepared.train.items), run.batch, run.seed), prepared, replay
            )
        )
        self.model.recompute_activations = run.recompute
        self.best: tuple[float, int, dict[str, torch.Tensor]] | None = None
        self.evaluations: list[Evaluation] = []

    def go(self, resume: bool, repeats: Mapping[str, Any] | None = None) -> Result:
        torch.manual_seed(self.prepared.recipe.run.seed)
        n_trained = sum(p.numel() for p in self.trainer.parameters)
        record = begin_record(self.prepared, self.precision, distributed.world_size(), n_trained)
        if repeats is not None:
            check_same(repeats, record, "be another run; put it back")
        if resume:
            before = read_record(self.folder)
            check_same(before, record, "not be a continuation; put it back, or start a new run in another folder")
            if before.get("finished"):
                raise TuneError(
                    f"{self.folder} has finished: there is nothing to go on with; export it, or start a new run (from its "
                    "adapter: model.adapter)"
                )
            self._resume()
        elif distributed.is_first():
            with writing(self.folder, self._then()):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / LOG).write_text("")
            write_whole(self.folder / "recipe.toml", recipe_toml(self.prepared.recipe), self._then())
        if not self.evaluations:
            self._tell(self._rehearse())
            self._tell(self._evaluate())
            self._write(record)
        stopped = self._train()
        if stopped == "patience":
            self._put_back_best()
        for module in (self.model, *([self.head] if self.head is not None else [])):
            gather(module)
        output = self._output(record)
        self._write(record | {"finished": True, "stopped": stopped, "output": str(output)})
        distributed.end()
        return Result(self.folder, self.trainer.step, stopped, self.evaluations[0], self.evaluations[-1], output)

    def _train(self) -> str:
        run, steps = self.prepared.recipe.run, self.prepared.n_steps
        with _interruptible(self._stopping) as interrupted:
            saved = self.trainer.step
            while self.trainer.step < steps:
                report = self.trainer.run_step(self.source)
                if isinstance(self.source, Rollouts):
                    report = replace(report, metrics=report.metrics | self.source.seen)
                self._tell(report)
                step = self.trainer.step
                if step % run.evaluate_every == 0 or step == steps:
                    self._tell(self._evaluate())
                    if self._out_of_patience():
                        self._save()
                        return "patience"
                between = not isinstance(self.source, Rollouts) or self.source.begins(step)
                stopping = distributed.any_of(interrupted())
                if step == steps or (between and (step // run.save_every > saved // run.save_every or stopping)):
                    self._save()
                    saved = step
                if stopping and between and step < steps:
                    raise KeyboardInterrupt
        return "finished"

    def _stopping(self) -> None:
        if distributed.is_first():
            self.on_event(Stopping(self.trainer.step + 1))

    # --- before -------------------------------------------------------------------------------

    def _reference(self) -> Policy | None:
        if not self.prepared.loss.needs_reference and self.prepared.recipe.method.loss != "ppo":
            return None
        if self.prepared.recipe.method.loss != "distil":
            return Policy(frozen_copy(self.model), self.precision)
        teacher = open_checkpoint(admitted(self.prepared.recipe.method.teacher))
        if teacher.spec.vocab_size != self.prepared.base.spec.vocab_size:
            raise TuneError(
                f"the teacher has a vocabulary of {teacher.spec.vocab_size}, the model {self.prepared.base.spec.vocab_size}; "
                "distillation compares token by token and needs the same one"
            )
        return Policy(load_model(teacher).eval(), self.precision)

    def _probes(self) -> tuple[Probes, list[Item]]:
        run, tokenizer, context = self.prepared.recipe.run, self.prepared.tokenizer, self.prepared.recipe.data.context
        if not run.measure_forgetting and not run.replay:
            return Probes((), ()), []
        engine = engine_of(self.prepared.base, threads=torch.get_num_threads(), context_length=min(context, 512))
        probes = make_probes(tokenizer, engine, context) if run.measure_forgetting else Probes((), ())
        rows = make_replay(tokenizer, engine, context) if run.replay else []
        return probes, [Item(Plain("the base's own answer", ""), (row,)) for row in rows]

    def _rollouts(self, policy: Policy) -> Rollouts:
        recipe = self.prepared.recipe
        method, run, items = recipe.method, recipe.run, self.prepared.train.items
        if recipe.data.test or recipe.data.hold_out:
            raise TuneError(
                f"{method.loss} is measured by the reward of its own answers; leave data.test and data.hold_out out"
            )
        judge: Judge = (
            RewardModel(Path(method.reward_model), self.prepared.tokenizer, self.precision)
            if method.reward == "model"
            else Verifier(REWARDS[method.reward], self.prepared.tokenizer)
        )
        lesson: Lesson = GroupLesson(method.group)
        if method.loss == "rejection":
            lesson = BestOfGroup(method.group)
        elif method.loss == "ppo":
            assert self.reference is not None, "made above for ppo"
            lesson = ValueLesson(policy, self.reference, method.beta)
        return Rollouts(self.model, self.prepared.base, self.prepared.tokenizer, items, Order(len(items), run.batch, run.seed), judge,
                        lesson, method.group, method.answer_tokens, run.piece_tokens, recipe.data.context, method.updates,
                        policy.follow_routes)  # fmt: skip

    def _rehearse(self) -> Rehearsal:
        """The largest piece in the whole run; the random numbers are put back, so the run is the same without it."""
        sampled = isinstance(self.source, Rollouts)  # whose answers are not known before their step
        steps = range(1 if sampled else min(self.prepared.n_steps, self.source.order.steps_per_epoch))
        pieces = [batch for step in steps for batch in self.source.batches(step)]
        if not pieces:  # no answer was better than another
            return Rehearsal(self.prepared.n_steps, 0, 0.0, peak_bytes(), self.prepared.estimate.total_bytes)
        largest = max(pieces, key=lambda batch: len(batch.packed.ids))
        state = torch.get_rng_state()
        began = time.perf_counter()
        self.model.train()
        with memory_watched("in the rehearsal of the largest piece, before the first step"):
            loss, _ = self.trainer.loss(self.trainer.policy, self.trainer.reference, largest)
            loss.backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - began
        for parameter in self.trainer.parameters:
            parameter.grad = None
        torch.set_rng_state(state)
        return Rehearsal(
            self.prepared.n_steps, len(largest.packed.ids), seconds, peak_bytes(), self.prepared.estimate.total_bytes
        )

    # --- during -------------------------------------------------------------------------------

    def _evaluate(self) -> Evaluation:
        recipe, test = self.prepared.recipe, self.prepared.test
        loss, metrics = None, dict[str, float]()
        if test is not None:
            batches = batches_of(test.items, recipe.method.loss, self.prepared.loss.unit, recipe.run.piece_tokens)
            loss, metrics = self.trainer.evaluate(batches)
        found = Evaluation(self.trainer.step, loss, metrics, self.probes.measure(self.trainer.policy))
        let_go(self.model)
        self.evaluations.append(found)
        return found

    def _out_of_patience(self) -> bool:
        patience, last = self.prepared.recipe.run.patience, self.evaluations[-1]
        if not patience or last.test_loss is None:
            return False
        if self.best is None or last.test_loss < self.best[0]:
            kept = {name: whole(p).clone() for name, p in trained_parameters(self.model, self.head).items()}
            self.best = (last.test_loss, last.step, kept)
        since = sum(1 for e in self.evaluations if e.step > self.best[1])
        return since >= patience

    def _put_back_best(self) -> None:
        assert self.best is not None, "patience ends only after an evaluation"
        with torch.no_grad():
            for name, parameter in trained_parameters(self.model, self.head).items():
                parameter.copy_(part_like(self.best[2][name], parameter))
        self.evaluations.append(self._evaluate())

    def _tell(self, event: StepReport | Evaluation | Rehearsal) -> None:
        if distributed.is_first():
            line = {"event": type(event).__name__, **asdict(event)}
            append_whole(self.folder / LOG, (json.dumps(line) + "\n").encode(), self._then())
            if not isinstance(event, Rehearsal):
                append_scalars(self.folder / "tensorboard", event.step, _scalars(event), then=self._then())
            self.on_event(event)

    def _save(self) -> None:
        facts = {"step": self.trainer.step, "evaluations": [asdict(e) for e in self.evaluations]}
        facts["best"] = list(self.best) if self.best is not None else []
        state = state_of(trained_parameters(self.model, self.head), self.trainer.optimizer, facts)
        if distributed.is_first():
            save_state(self.folder / STATE, state, self._then())

    def _then(self) -> str:
        """What to do once there is room again."""
        if (self.folder / STATE).exists():
            return f"make room and go on with: vitral tune resume {self.folder}; the last saved step is whole"
        return "make room and run it again; no step was saved yet"

    def _resume(self) -> None:
        facts = load_state(self.folder / STATE, trained_parameters(self.model, self.head), self.trainer.optimizer)
        self.trainer.step = facts["step"]
        self.evaluations = [Evaluation(**e) for e in facts["evaluations"]]
        if facts["best"]:
            loss, step, kept = facts["best"]
            self.best = (loss, step, kept)
        if distributed.is_first():
            kept = [line for line in read_log(self.folder) if line.get("step", 0) <= self.trainer.step]
            write_whole(self.folder / LOG, "".join(json.dumps(line) + "\n" for line in kept), self._then())

    # --- after --------------------------------------------------------------------------------

    def _output(self, record: dict[str, Any]) -> Path:
        folder = self.folder / (ADAPTER if self.plan is not None else MODEL)
        if distributed.is_first():
            if self.plan is not None:
                with writing(folder, self._then()):  # files of an adapter are written over
                    save_peft(self.model, self.plan, folder, self._lineage(record))
            elif not folder.exists():
                from vitral.conversion import tokenizer_files

                lineage = json.dumps(self._lineage(record), indent=2, default=str) + "\n"
                with staged(folder, self._then()) as place:
                    write_merged(self.model, self.prepared.base, place, "safetensors",
                                 tokenizer=tokenizer_files(self.prepared.base.path, "safetensors"),
                                 notes=tuned_from(self.prepared.base, record))  # fmt: skip
                    (place / "vitral.json").write_text(lineage)
            if self.head is not None and self.prepared.recipe.method.loss == "reward":
                with writing(folder, self._then()):
                    save_head(self.head, folder)
        return folder

    def _lineage(self, record: dict[str, Any]) -> dict[str, Any]:
        """What travels with the result: where it comes from and under which licences."""
        names = ("base", "base_digest", "base_vectors", "base_types", "base_licence", "tokenizer_digest",
                 "template_digest", "data", "data_licence", "recipe", "versions")  # fmt: skip
        return {name: record[name] for name in names} | {"steps": self.trainer.step}

    def _write(self, record: dict[str, Any]) -> None:
        if distributed.is_first():
            first, last = self.evaluations[0], self.evaluations[-1]
            rise = {name: last.forgetting[name] - first.forgetting[name] for name in first.forgetting}
            write_record(
                self.folder,
                record | {"evaluations": [asdict(e) for e in self.evaluations], "forgotten": rise},
                self._then(),
            )


def _trainable(prepared: Prepared) -> tuple[LoraPlan | None, Transformer]:
    """The model with what is trained in it: an adapter (fresh, or gone on from), or all of it."""
    recipe = prepared.recipe
    model = load_model(prepared.base)
    if recipe.method.tune == "full":
        if recipe.model.adapter:
            raise TuneError("model.adapter is gone on from as an adapter; merge it first to tune everything")
        train_all(model, recipe.method.router)
        return None, model
    if recipe.model.adapter:
        folder = Path(recipe.model.adapter)
        plan = load_adapter(model, folder, prepared.base.weights.digest())
        said = trained_on(folder)
        if said.digest is None:  # of another tool: its base is known by name alone
            Base(prepared.base).accept(Adapter(folder, {}, "", said))
        return plan, model
    plan = recipe.adapter_plan
    attach(model, plan, recipe.run.seed)
    return plan, model


def _check_processes(recipe: Recipe, n_items: int) -> None:
    """Raise TuneError where several processes cannot share what the recipe asks for."""
    processes = distributed.world_size()
    if recipe.run.shard and processes == 1:
        raise TuneError(
            "run.shard divides the model among processes, and there is one; start several: "
            "torchrun --nproc-per-node 2 -m vitral tune run ..., or leave run.shard out"
        )
    if processes > 1 and recipe.method.loss == "kto":
        raise TuneError("kto compares each item of a step with the one before it; run it in one process")
    if recipe.run.shard and min(recipe.run.batch, n_items) < processes:
        raise TuneError(
            f"a step has {min(recipe.run.batch, n_items)} items for {processes} processes; with run.shard each needs "
            "one: raise run.batch, give more data, or start fewer"
        )


def _scalars(event: StepReport | Evaluation) -> dict[str, float]:
    """What TensorBoard shows of an event, under train/ and test/."""
    if isinstance(event, StepReport):
        found = {"loss": event.loss, "learning_rate": event.learning_rate, "gradient_norm": event.gradient_norm}
        return {f"train/{name}": value for name, value in (found | event.metrics).items()}
    loss = {} if event.test_loss is None else {"loss": event.test_loss}
    return {f"test/{name}": value for name, value in (loss | event.metrics | event.forgetting).items()}


def _precision(recipe: Recipe) -> Precision:
    """bfloat16 where the processor multiplies it in hardware; elsewhere it is slower than float32."""
    if recipe.run.precision != "auto":
        return recipe.run.precision
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


@contextmanager
def _interruptible(noted: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are noted, which `noted` is told, and obeyed at the end of a step; a second one at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        with nullcontext():
            yield asked.is_set
        return

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        noted()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
