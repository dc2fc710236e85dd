"""A run is done again from its record: EXACT, the first step that differs, or a refusal that names what changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tune.conftest import FACTS, write_chats, write_tiny
from vitral.cli.main import _code
from vitral.errors import TuneError
from vitral.tune.recipe import parse_recipe
from vitral.tune.record import LOG, RECORD, read_record
from vitral.tune.replay import Difference, replay_run
from vitral.tune.run import run_recipe


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with dropout, its base and its data, in one folder."""
    folder = tmp_path_factory.mktemp("made")
    base, data = write_tiny(folder / "tiny.gguf"), write_chats(folder / "a.jsonl")
    recipe = parse_recipe({
        "model": {"base": str(base)}, "data": {"train": [str(data)], "context": 256}, "lora": {"rank": 4, "dropout": 0.1},
        "run": {"steps": 3, "batch": 4, "evaluate_every": 3, "measure_forgetting": False},
    })  # fmt: skip
    run_recipe(recipe, folder / "run")
    return folder


def with_record(made: Path, folder: Path, **changed: Any) -> Path:
    """The run with other facts in its record."""
    shutil.copytree(made / "run", folder)
    (folder / RECORD).write_text(json.dumps(read_record(folder) | changed))
    return folder


def test_a_replay_is_exact_and_leaves_the_run_as_it_was(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()}
    torch.manual_seed(99)
    assert _code(["tune", "replay", str(made / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "verdict": "EXACT", "steps": 3, "difference": None, "threads": 1, "environment": {},
    }  # fmt: skip
    assert {path: path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("what", ["loss", "gradient_norm"])
def test_the_first_step_that_differs_is_named(
    what: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_record(made, tmp_path / "run", cpu="ABACUS")
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    step = next(line for line in lines if line["event"] == "StepReport" and line["step"] == 2)
    found = step[what]
    step[what] = float(
        torch.nextafter(torch.tensor(found, dtype=torch.float64), torch.tensor(9e9, dtype=torch.float64))
    )
    (run / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    replay = replay_run(run)
    assert (replay.verdict, replay.steps) == ("DIFFERENT", 2)
    assert replay.difference == Difference(2, what, step[what], found)
    assert replay.environment == {"cpu": ("ABACUS", torch.backends.cpu.get_cpu_capability())}
    if what == "loss":
        assert _code(["tune", "replay", str(run)]) == 1
        said = capsys.readouterr().out
        assert "DIFFERENT" in said and "ABACUS then" in said and repr(found) in said


def test_what_decides_the_run_must_be_as_it_was(made: Path, tmp_path: Path) -> None:
    data, base = made / "a.jsonl", made / "tiny.gguf"
    kept = data.read_bytes(), base.read_bytes()
    try:
        write_chats(data, FACTS[::-1])
        with pytest.raises(TuneError, match=rf"data \({data}\) changed .* another run"):
            replay_run(made / "run")
        data.write_bytes(kept[0])
        write_tiny(base, seed=1)
        with pytest.raises(TuneError, match="base_digest changed"):
            replay_run(made / "run")
        base.write_bytes(kept[1])
        data.unlink()
        with pytest.raises(TuneError, match=f"{data} does not exist"):
            replay_run(made / "run")
    finally:
        data.write_bytes(kept[0])
        base.write_bytes(kept[1])
    with pytest.raises(TuneError, match="had 2 processes"):
        replay_run(with_record(made, tmp_path / "two", processes=2))
    with pytest.raises(TuneError, match="is no run"):
        replay_run(made)
    empty = with_record(made, tmp_path / "empty")
    (empty / LOG).write_text("")
    with pytest.raises(TuneError, match="no step"):
        replay_run(empty)
