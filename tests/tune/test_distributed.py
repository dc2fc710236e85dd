"""Two processes started by torchrun, over gloo: whole models with summed gradients, and models in shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tune.conftest import FACTS, write_chats
from tests.tune.test_run import losses, recipe
from vitral.errors import RecipeError, TuneError
from vitral.formats.safetensors import read_safetensors
from vitral.tune import distributed
from vitral.tune.recipe import Recipe, parse_recipe, recipe_toml
from vitral.tune.run import run_recipe

ROOT = Path(__file__).parent.parent.parent
# Each recipe in its turn; "cut" presses Ctrl-C in the second process after step 2 and goes on with the run.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from vitral.tune import distributed
from vitral.tune.recipe import read_recipe
from vitral.tune.run import run_recipe
from vitral.tune.trainer import Trainer

end, distributed.end = distributed.end, lambda: None  # they stay together for all recipes
plain = Trainer.run_step

def pressing(self, source):
    report = plain(self, source)
    if self.step == 2 and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return report

for path in map(Path, sys.argv[1:]):
    recipe, folder = read_recipe(path), path.with_suffix("")
    if path.stem.endswith("cut"):
        Trainer.run_step = pressing
        try:
            run_recipe(recipe, folder)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        Trainer.run_step = plain
        run_recipe(recipe, folder, resume=True)
    else:
        run_recipe(recipe, folder)
end()
"""


def result_of(folder: Path) -> dict[str, np.ndarray]:
    file = next(folder.glob("adapter/adapter_model.safetensors"), folder / "model/model.safetensors")
    return {name: t.dequantize() for name, t in read_safetensors(file).items()}


@pytest.fixture(scope="module")
def recipes(tiny_chat: Path, tiny_mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """Steps of unequal shares (a batch of 3), several pieces, and no dropout, whose masks differ between processes."""
    folder = tmp_path_factory.mktemp("data")
    chats = write_chats(folder / "chats.jsonl")
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": q, "chosen": a, "rejected": "No."}) + "\n" for q, a in FACTS))
    run: dict[str, Any] = {"batch": 3, "steps": 4, "piece_tokens": 120, "learning_rate": 0.002}
    run |= {"evaluate_every": 2, "precision": "float32"}
    lora = {"dropout": 0.0}
    full, shard = {"tune": "full", "router": True}, {**run, "shard": True}
    return {
        "whole": recipe(tiny_chat, chats, lora=lora, run={**run, "learning_rate": 0.02}),
        "full": recipe(tiny_mixture, chats, lora=lora, method=full, run={**shard, "measure_forgetting": True}),
        "full-cut": recipe(tiny_mixture, chats, lora=lora, method=full, run={**shard, "recompute": True}),
        "dpo": recipe(tiny_mixture, pairs, lora=lora, method={"loss": "dpo"}, run={**shard, "learning_rate": 0.02}),
        "reward": recipe(tiny_chat, pairs, lora=lora, method={"loss": "reward"}, run=shard),
    }


@pytest.fixture(scope="module")
def two(recipes: dict[str, Recipe], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All of them in one pair of processes, because starting a pair takes longest."""
    folder = tmp_path_factory.mktemp("two")
    for name, wanted in recipes.items():
        (folder / f"{name}.toml").write_text(recipe_toml(wanted))
    (folder / "program.py").write_text(PROGRAM)
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        folder / "program.py",
    ]
    command += [folder / f"{name}.toml" for name in recipes]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:4000]
    return folder, done.stdout


@pytest.mark.parametrize("name", ["whole", "full", "full-cut", "dpo", "reward"])
def test_two_processes_are_one(
    name: str, recipes: dict[str, Recipe], two: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses within 1e-5 of one process', step by step; what is learnt within what Adam makes of such differences."""
    wanted = recipes[name]
    run_recipe(replace(wanted, run=replace(wanted.run, shard=False)), tmp_path / "one")
    assert losses(two[0] / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    ours, theirs = result_of(two[0] / name), result_of(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert np.abs(value - theirs[key]).max() <= 0.05 * wanted.run.learning_rate * wanted.run.steps, key


def test_ctrl_c_in_one_process_stops_both_at_one_step(two: tuple[Path, str]) -> None:
    assert two[1].count("interrupted") == 2
    assert len(losses(two[0] / "full-cut")) == 4


def test_shares_want_several_processes(tiny_chat: Path, tmp_path: Path) -> None:
    wanted = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), run={"shard": True})
    with pytest.raises(TuneError, match=r"torchrun --nproc-per-node 2"):
        run_recipe(wanted, tmp_path / "run")


def test_what_cannot_be_shared_is_refused(tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "rated.jsonl"
    data.write_text("".join(json.dumps({"prompt": q, "completion": a, "label": True}) + "\n" for q, a in FACTS))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(TuneError, match="kto compares"):
        run_recipe(recipe(tiny_chat, data, method={"loss": "kto"}), tmp_path / "run")
    few = recipe(tiny_chat, write_chats(tmp_path / "a.jsonl"), run={"batch": 1, "shard": True})
    with pytest.raises(TuneError, match="1 items for 2 processes"):
        run_recipe(few, tmp_path / "run")
    with pytest.raises(RecipeError, match="run.shard"):
        parse_recipe(
            {"model": {"base": "m"}, "data": {"train": ["a"]}, "method": {"loss": "grpo"}, "run": {"shard": True}}
        )
