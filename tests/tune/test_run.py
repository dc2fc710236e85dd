"""A run learns, can be resumed to the same bits, refuses what it must, and leaves a record of all of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tune.conftest import FACTS, write_chats, write_tiny
from vitral.errors import AdapterMismatch, DataError, HardwareError, NumericalError, TensorMismatch, TuneError
from vitral.formats.safetensors import read_safetensors
from vitral.model.spec import MoeSpec
from vitral.provenance.bases import Base
from vitral.tune.after import export_run
from vitral.tune.losses.sft import Sft
from vitral.tune.prepare import prepare
from vitral.tune.recipe import Recipe, parse_recipe
from vitral.tune.record import read_log, read_record
from vitral.tune.run import Evaluation, Event, Rehearsal, Stopping, run_recipe
from vitral.tune.trainer import StepReport, Trainer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(base: Path, file: Path, **parts: dict[str, Any]) -> Recipe:
    run = {"batch": 4, "steps": 6, "learning_rate": 0.02, "save_every": 2, "evaluate_every": 3, "piece_tokens": 250,
           "measure_forgetting": False} | parts.pop("run", {})  # fmt: skip
    lora = {"rank": 4, "dropout": 0.1} | parts.pop("lora", {})
    more = {"train": [str(file)], "context": 256} | parts.pop("data", {})
    return parse_recipe({"model": {"base": str(base)}, **parts, "data": more, "run": run, "lora": lora})


def trained(folder: Path) -> dict[str, bytes]:
    return {
        name: t.raw().tobytes() for name, t in read_safetensors(folder / "adapter/adapter_model.safetensors").items()
    }


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder) if line["event"] == "StepReport"]


def test_a_run_learns_and_leaves_its_record(tiny_chat: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "a.jsonl")
    events: list[Event] = []
    result = run_recipe(recipe(tiny_chat, data, data={"test": [str(write_chats(tmp_path / "t.jsonl", [("What is rain?", "Rain is water.")]))]},
                               run={"steps": 12, "measure_forgetting": True}), tmp_path / "run", on_event=events.append)  # fmt: skip
    steps = [e for e in events if isinstance(e, StepReport)]
    assert [e.step for e in steps] == list(range(1, 13))
    assert steps[-1].loss < steps[0].loss - 1
    assert isinstance(events[0], Rehearsal)
    assert [e.step for e in events if isinstance(e, Evaluation)] == [0, 3, 6, 9, 12]
    record = read_record(tmp_path / "run")
    assert record["finished"] and record["base_digest"] and record["data"][0]["sha256"]
    assert set(record["forgotten"]) == {"neutral", "own_answers"}
    assert result.after.test_loss is not None
    assert result.output.joinpath("adapter_model.safetensors").exists()
    assert losses(tmp_path / "run") == [e.loss for e in steps]


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_resuming_gives_the_bits_of_the_uninterrupted_run(
    tune: str, tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside the second epoch, with dropout, several pieces a step, and two steps lost after the last save."""
    data = write_chats(tmp_path / "a.jsonl")
    wanted = recipe(tiny_chat, data, method={"tune": tune}, run={"steps": 7, "save_every": 3, "learning_rate": 0.002})
    run_recipe(wanted, tmp_path / "whole")
    plain = Trainer.run_step

    def stopping(self: Trainer, source: Any) -> StepReport:
        if self.step == 5:
            raise KeyboardInterrupt
        return plain(self, source)

    monkeypatch.setattr(Trainer, "run_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(wanted, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "run_step", plain)
    torch.manual_seed(99)
    run_recipe(wanted, tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    file = "adapter/adapter_model.safetensors" if tune == "lora" else "model/model.safetensors"
    assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_ctrl_c_saves_the_step_and_leaves_a_run_that_resumes(tiny_chat: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), run={"save_every": 1000})

    told: list[Event] = []

    def press(event: Event) -> None:
        told.append(event)
        if isinstance(event, StepReport) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_recipe(wanted, tmp_path / "run", on_event=press)
    assert isinstance(told[-1], Stopping)
    assert len(losses(tmp_path / "run")) == 2
    assert run_recipe(wanted, tmp_path / "run", resume=True).steps == 6
    run_recipe(wanted, tmp_path / "whole")
    assert trained(tmp_path / "run") == trained(tmp_path / "whole")


@pytest.mark.parametrize("what", ["recipe", "data"])
def test_a_changed_recipe_or_data_set_is_no_continuation(what: str, tiny_chat: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "a.jsonl")
    run_recipe(recipe(tiny_chat, data, run={"steps": 2}), tmp_path / "run")
    other = recipe(tiny_chat, data, run={"steps": 2, "seed": int(what == "recipe")})
    if what == "data":
        write_chats(data, FACTS[::-1])
    with pytest.raises(TuneError, match=what):
        run_recipe(other, tmp_path / "run", resume=True)


def test_a_folder_with_a_run_is_not_written_over(tiny_chat: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), run={"steps": 1})
    run_recipe(wanted, tmp_path / "run")
    with pytest.raises(TuneError, match="resume"):
        run_recipe(wanted, tmp_path / "run")
    with pytest.raises(TuneError, match="has finished"):
        run_recipe(wanted, tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_stops_before_anything_changes(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"))
    plain = Trainer._loss

    def broken(self: Trainer, batch: Any) -> Any:
        loss, metrics = plain(self, batch)
        return (loss * float("nan") if self.step == 3 else loss), metrics

    monkeypatch.setattr(Trainer, "_loss", broken)
    with pytest.raises(NumericalError, match=r"step 4 .*a\.jsonl:"):
        run_recipe(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.setattr(Trainer, "_loss", plain)
    assert run_recipe(wanted, tmp_path / "run", resume=True).steps == 6


@pytest.mark.parametrize(
    ("method", "where"), [((Trainer, "_loss"), "in step 1"), ((Sft, "__call__"), "in the rehearsal")]
)
def test_out_of_memory_says_what_to_lower(
    method: tuple[type, str], where: str, tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(*method, full)
    with pytest.raises(HardwareError, match=f"out of memory {where}.*piece_tokens"):
        run_recipe(recipe(tiny_chat, write_chats(tmp_path / "a.jsonl")), tmp_path / "run")


@pytest.mark.parametrize(("left", "advice"), [(1.1, "run.recompute"), (0.9, "a smaller base")])
def test_a_run_that_memory_does_not_hold_is_refused_before_it_begins(
    left: float, advice: str, tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vitral.tune.estimate as module

    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"))
    cost = prepare(wanted).estimate
    monkeypatch.setattr(module, "available_bytes", lambda: int(left * (cost.weights + cost.optimizer)))
    with pytest.raises(HardwareError, match=f"the run needs about .*GB are free: .*{advice}"):
        run_recipe(wanted, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(module, "available_bytes", lambda: cost.total_bytes)
    module.refuse_too_large(cost)


def test_a_full_disk_keeps_the_state_that_was_whole(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"))
    calls = []

    def full(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        plain(content, file)

    plain = torch.save
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TuneError, match="No space left"):
        run_recipe(wanted, tmp_path / "run")
    monkeypatch.setattr(torch, "save", plain)
    run_recipe(wanted, tmp_path / "run", resume=True)
    run_recipe(wanted, tmp_path / "whole")
    assert trained(tmp_path / "run") == trained(tmp_path / "whole")


def test_early_stop_keeps_the_best_step(tiny_chat: Path, tmp_path: Path) -> None:
    test = write_chats(tmp_path / "t.jsonl", [("What is rain?", "Rain is water from the sky.")])
    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), data={"test": [str(test)]},
                    run={"steps": 60, "evaluate_every": 2, "patience": 2, "learning_rate": 0.1, "schedule": "constant"})  # fmt: skip
    result = run_recipe(wanted, tmp_path / "run")
    assert result.stopped == "patience" and result.steps < 60
    tested = [e["test_loss"] for e in read_record(tmp_path / "run")["evaluations"]]
    assert tested[-1] == min(tested[1:])


def test_replay_trains_on_the_bases_own_answers_too(tiny_chat: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    for share in (0.0, 0.5):
        run_recipe(recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), run={"steps": 1, "replay": share, "piece_tokens": 8192}), tmp_path / f"run{share}",
                   on_event=lambda e: reports.append(e) if isinstance(e, StepReport) else None)  # fmt: skip
    assert reports[1].supervised > reports[0].supervised
    before, after = (read_record(tmp_path / f"run{share}")["estimate"] for share in (0.0, 0.5))
    assert after["activations"] > before["activations"]


def test_going_on_from_an_adapter_starts_where_it_ended(tiny_chat: Path, tmp_path: Path) -> None:
    data = write_chats(tmp_path / "a.jsonl")
    run_recipe(recipe(tiny_chat, data, run={"steps": 10}, lora={"dropout": 0.0}), tmp_path / "one")
    again = recipe(
        tiny_chat, data, model={"base": str(tiny_chat), "adapter": str(tmp_path / "one/adapter")}, run={"steps": 2}
    )
    run_recipe(again, tmp_path / "two")
    assert losses(tmp_path / "two")[0] < losses(tmp_path / "one")[0] - 0.5
    with pytest.raises(AdapterMismatch, match="trained on weights"):
        record = json.loads((tmp_path / "one/adapter/vitral.json").read_text()) | {"base_digest": "0" * 64}
        (tmp_path / "one/adapter/vitral.json").write_text(json.dumps(record))
        run_recipe(again, tmp_path / "three")


def test_an_adapter_of_another_tool_that_names_another_base_is_not_gone_on_from(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_chats(tmp_path / "a.jsonl")
    run_recipe(recipe(tiny_chat, data, run={"steps": 1}), tmp_path / "one")
    adapter = tmp_path / "one/adapter"
    (adapter / "vitral.json").unlink()
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "owner/Zephyr-7B"}))
    again = recipe(tiny_chat, data, model={"base": str(tiny_chat), "adapter": str(adapter)}, run={"steps": 1})
    monkeypatch.setattr(Base, "_names", ("Quellmark-1B",))
    with pytest.raises(TensorMismatch, match="names another base, 'owner/Zephyr-7B'"):
        run_recipe(again, tmp_path / "two")
    monkeypatch.setattr(Base, "_names", ("Zephyr 7B",))
    assert run_recipe(again, tmp_path / "two").steps == 1


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "kto"])
def test_preferences_are_learnt_from_their_records(loss: str, tiny_chat: Path, tmp_path: Path) -> None:
    data = tmp_path / "p.jsonl"
    if loss == "kto":
        rows: list[dict[str, Any]] = [
            {"prompt": q, "completion": a, "label": i % 2 == 0} for i, (q, a) in enumerate(FACTS)
        ]
    else:
        rows = [{"prompt": q, "chosen": a, "rejected": "No idea, go away."} for q, a in FACTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_recipe(
        recipe(tiny_chat, data, method={"loss": loss}, run={"steps": 8}, lora={"dropout": 0.0}), tmp_path / "run"
    )
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    with pytest.raises(DataError, match="conversations or texts"):
        run_recipe(recipe(tiny_chat, data, run={"steps": 1}), tmp_path / "sft")


def test_distillation_learns_from_a_teacher_of_the_same_vocabulary(
    tiny_chat: Path, tiny_mixture: Path, tmp_path: Path
) -> None:
    data = write_chats(tmp_path / "a.jsonl")
    wanted = recipe(tiny_chat, data, method={"loss": "distil", "teacher": str(tiny_mixture)}, run={"steps": 8})
    run_recipe(wanted, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def test_experts_and_router_of_a_mixture_are_trained_with_their_losses(tiny_mixture: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    wanted = recipe(
        tiny_mixture, write_chats(tmp_path / "a.jsonl"), method={"router": True, "balance": 0.01, "router_z": 0.001}
    )
    run_recipe(wanted, tmp_path / "run", on_event=lambda e: reports.append(e) if isinstance(e, StepReport) else None)
    assert reports[-1].loss < reports[0].loss
    assert reports[0].metrics["balance"] == pytest.approx(1, abs=0.5)
    assert any("block_sparse_moe.gate" in name for name in trained(tmp_path / "run"))


def test_a_mixture_with_dense_first_layers_is_trained_and_exported(tmp_path: Path) -> None:
    base, data = write_tiny(tmp_path / "m.gguf", MoeSpec(2, 1, n_leading_dense=1)), write_chats(tmp_path / "a.jsonl")
    wanted = recipe(base, data, method={"tune": "full", "router": True}, run={"measure_forgetting": True})
    result = run_recipe(wanted, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert set(result.after.forgetting) == {"neutral", "own_answers"}
    config = json.loads((result.output / "config.json").read_text())
    assert config["model_type"] == "vitral_mixtral" and config["first_k_dense_replace"] == 1
    run_recipe(recipe(base, data, run={"steps": 2}), tmp_path / "lora")
    export_run(tmp_path / "lora", tmp_path / "adapter", "peft")
    export_run(tmp_path / "lora", tmp_path / "merged.gguf", "gguf")
    run_recipe(recipe(base, data, run={"steps": 2, "replay": 0.5}), tmp_path / "replayed")
