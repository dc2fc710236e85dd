"""An adapter that was trained is loaded into the running engine as it is: the numbers are the trainer's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.tune.conftest import write_chats
from vitral.engine.adapters import Adapters, LoadedAdapter
from vitral.engine.engine import Engine
from vitral.engine.native import NativeForward
from vitral.engine.request import SamplingParams
from vitral.formats.adapters import read_adapter
from vitral.formats.checkpoint import open_checkpoint
from vitral.provenance.bases import Base
from vitral.tune.adapter_files import load_adapter
from vitral.tune.after import export_run
from vitral.tune.forward import Packed, load_model
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe
from vitral.tune.served import engine_of

IDS = list(range(20, 60))


def logits_of(engine: Engine, adapter: LoadedAdapter | None = None) -> torch.Tensor:
    rows: dict[int, torch.Tensor] = {}

    def keep(position: int, row: object) -> None:
        rows[position] = torch.tensor(row)

    with engine.answer(IDS, SamplingParams(max_tokens=0), on_logits=keep, adapter=adapter) as answer:
        list(answer)
    return torch.stack([rows[i] for i in range(len(IDS))])


@pytest.mark.parametrize("base", ["tiny_chat", "tiny_mixture"])
def test_the_hot_adapter_the_trainer_and_the_merged_export_are_one_model(
    base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Weights, keys and values in float32: only the order of sums differs. Without the adapter it is far more."""
    path: Path = request.getfixturevalue(base)
    targets = ["q", "k", "v", "o", "up", "down"] if base == "tiny_chat" else ["q", "v", "o"]
    wanted: Mapping[str, object] = {
        "model": {"base": str(path)}, "data": {"train": [str(write_chats(tmp_path / "a.jsonl"))], "context": 256},
        "lora": {"rank": 4, "targets": targets},
        "run": {"steps": 6, "batch": 4, "learning_rate": 0.02, "measure_forgetting": False},
    }  # fmt: skip
    run_recipe(parse_recipe(wanted), tmp_path / "run")
    checkpoint = open_checkpoint(path)
    engine = engine_of(checkpoint, context_length=64)
    assert isinstance(engine.forward, NativeForward)
    adapter = read_adapter(tmp_path / "run/adapter", checkpoint.spec)
    assert Base(checkpoint).accept(adapter).evidence == "weights"
    loaded = Adapters(engine.forward, engine).load("taught", adapter)
    hot, plain = logits_of(engine, loaded), logits_of(engine)
    model = load_model(checkpoint)
    load_adapter(model, tmp_path / "run/adapter")
    with torch.no_grad():
        trainer = model.logits(Packed.of([IDS]))
    export_run(tmp_path / "run", tmp_path / "merged.gguf", "gguf")
    merged = logits_of(engine_of(open_checkpoint(tmp_path / "merged.gguf"), context_length=64))
    bound = 1e-5 * float(trainer.std())
    assert float((hot - trainer).abs().max()) <= bound
    assert float((merged - trainer).abs().max()) <= bound
    assert float((plain - trainer).abs().max()) > 1000 * bound
