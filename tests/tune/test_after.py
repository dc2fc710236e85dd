"""An export is measured, and one that undid the tuning says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tune.conftest import write_chats
from vitral.errors import TuneError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.provenance.lineage import read_lineage
from vitral.tune.adapter_files import load_adapter
from vitral.tune.after import export_run, summary
from vitral.tune.batch import Batch, Row
from vitral.tune.export import merged_checkpoint
from vitral.tune.forward import Packed, load_model
from vitral.tune.kept import Kept
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe
from vitral.tune.served import engine_of


@pytest.fixture(scope="module")
def finished(tiny_chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a base that came quantised, with small steps: each weight moves less than the base's grid is wide."""
    folder = tmp_path_factory.mktemp("finished")
    convert(tiny_chat, folder / "base.gguf", type="Q4_0")
    recipe = parse_recipe({"model": {"base": str(folder / "base.gguf")},
                           "data": {"train": [str(write_chats(folder / "a.jsonl"))], "context": 256},
                           "run": {"steps": 12, "learning_rate": 2e-4, "schedule": "constant", "measure_forgetting": False},
                           "lora": {"rank": 8, "targets": ["q", "v", "up"]}})  # fmt: skip
    run_recipe(recipe, folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("form", "type_"), [("peft", None), ("gguf-adapter", None), ("safetensors", None), ("gguf", None)]
)
def test_exports_that_do_not_round_keep_all_of_the_tuning(
    form: str, type_: str | None, finished: Path, tmp_path: Path
) -> None:
    kept = export_run(finished, tmp_path / f"out.{form}", form, type_).kept  # type: ignore[arg-type]
    assert kept.share == pytest.approx(1, abs=1e-3)
    assert kept.agreement == 1
    assert kept.tuned_loss < kept.base_loss
    assert kept.warning is None


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_a_merged_export_says_what_it_came_from(form: str, finished: Path, tmp_path: Path) -> None:
    export_run(finished, tmp_path / f"out.{form}", form)  # type: ignore[arg-type]
    [step] = read_lineage(open_checkpoint(tmp_path / f"out.{form}"))[-1:]
    assert step.operation == "tune" and step.parameters["loss"] == "sft"
    assert step.base[0]["weights"] == open_checkpoint(finished.parent / "base.gguf").weights.digest()
    assert [each["name"] for each in step.data] == ["a.jsonl"]


def test_requantising_to_the_bases_own_grid_undoes_the_tuning_and_says_so(finished: Path, tmp_path: Path) -> None:
    fine, coarse = (export_run(finished, tmp_path / f"{t}.gguf", "gguf", t).kept for t in ("Q8_0", "Q4_0"))
    assert fine.share > 0.8 > 0.5 > coarse.share
    assert coarse.warning is not None and "undid" in coarse.warning


def kept(share: float) -> Kept:
    return Kept(5.0, 4.0, 4.0, 1 - share, 1.0, 0.9, 100)


@pytest.mark.parametrize(
    ("share", "message"),
    [(1.0, None), (0.901, None), (0.899, "90 % of the tuning: quantising lost part"), (0.501, "lost part"),
     (0.499, "undid most"), (0.001, "undid most"), (-0.001, "quantising changed more than the tuning did")],
)  # fmt: skip
def test_the_warning_follows_the_share(share: float, message: str | None) -> None:
    warning = kept(share).warning
    assert warning is None if message is None else warning is not None and message in warning


def test_what_is_not_finished_or_in_the_way_is_not_exported(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="is no run"):
        export_run(tmp_path, tmp_path / "out", "peft")
    with pytest.raises(TuneError, match="there already"):
        export_run(finished, tmp_path, "peft")
    with pytest.raises(TuneError, match="no weight type"):
        export_run(finished, tmp_path / "out", "peft", "Q8_0")


def test_a_summary_has_what_runs_are_compared_by(finished: Path) -> None:
    found = summary(finished)
    assert found["finished"] and found["steps"] == 12 and found["tuned"] == "lora 8"


def test_the_engine_serves_what_was_trained(finished: Path) -> None:
    """Merged float32 weights in the engine: the same numbers in another order of sums, and keys and values in f16.

    f16 rounds keys and values by at most 2^-11 of their size, so scores and mixes move by that much of theirs; over two
    layers and the unembedding less than 2 % of the logits' spread is left.
    """
    base = open_checkpoint(finished.parent / "base.gguf")
    model = load_model(base)
    load_adapter(model, finished / "adapter")
    ids = list(range(20, 50))
    rows: dict[int, torch.Tensor] = {}
    from vitral.engine.request import SamplingParams

    engine = engine_of(merged_checkpoint(model, base), context_length=64)

    def keep(position: int, row: object) -> None:
        rows[position] = torch.tensor(row)

    with engine.answer(ids, SamplingParams(max_tokens=0), on_logits=keep) as answer:
        list(answer)
    with torch.no_grad():
        expected = model.logits(Packed.of([ids]))
    found = torch.stack([rows[i] for i in range(len(ids))])
    changed = [name for name, t in merged_checkpoint(model, base).weights.items() if t.type.name == "F32"]
    assert any(name.endswith("attn.q.weight") for name in changed)
    # what did not change is still Q4_0 there, where the engine rounds activations to 8 bits: 2^-8 of each block's largest
    assert float((found - expected).abs().max()) < 0.05 * float(expected.std()) * 4
    plain = load_model(base)
    with torch.no_grad():
        assert float((plain.logits(Packed.of([ids])) - expected).abs().max()) > float((found - expected).abs().max())
    assert Batch.of([Row((1, 2), (False, True))]).total == 1
