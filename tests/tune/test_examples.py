"""The examples run, in their short form, on a model that learns nothing much."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
Example = Callable[..., dict[str, Any]]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs an example here, where torch is imported once, and gives what it prints at its end."""

    def run(name: str, *arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return last_object(capsys.readouterr().out)

    return run


def last_object(said: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said[said.index("{\n") :])
    return found


def test_portuguese_is_taught_in_short(run_example: Example, tiny_chat: Path, tmp_path: Path) -> None:
    found = run_example("answer_in_portuguese.py", tmp_path, "--short", "--base", tiny_chat)
    assert found["test loss"][1] < found["test loss"][0]
    assert (found["questions"], found["answered in Portuguese after"]) == (1, 0)


def test_a_tone_is_preferred_in_short(tiny_chat: Path, tmp_path: Path) -> None:
    """In a Python of its own, as a user starts it."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, EXAMPLES / "prefer_a_tone.py", tmp_path, "--short", "--base", tiny_chat]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-2000:]
    found = last_object(done.stdout)
    assert found["margin, nats times beta"][0] == 0 < found["margin, nats times beta"][1]
    assert found["test loss"][1] < found["test loss"][0]


def test_the_vocabulary_is_taught_in_short(run_example: Example, tiny_chat: Path, tmp_path: Path) -> None:
    found = run_example("teach_vocabulary.py", tmp_path, "--short", "--base", tiny_chat)
    assert set(found["recalled"].values()) == {"0 of 2"} and len(found["recalled"]) == 3
    assert set(found["forgotten, nats a token"]) == {"neutral", "own_answers"}
    assert found["share kept by Q8_0"] > 0.5


def test_a_mixture_is_made_from_two_domains_in_short(run_example: Example, tiny_chat: Path, tmp_path: Path) -> None:
    (tmp_path / "birds.txt").write_text("The heron waits by the weir and does not move for a quarter of an hour. " * 30)
    (tmp_path / "ledger.txt").write_text("Carried forward 1,204.50; paid to A. Brandt 88.00; due 17 March.\n" * 30)
    found = run_example(
        "experts_from_domains.py", tmp_path / "out", "--base", tiny_chat, "--steps", 3, "--router-steps", 2, "--rows", 4,
        "--domain", tmp_path / "birds.txt", "--domain", tmp_path / "ledger.txt",
    )  # fmt: skip
    losses = found["loss, and half of its 95 % interval"]
    assert set(losses) == {"base", "dense control", "mixture"}
    assert all(x["information"] >= 0 for x in found["routing"])
    gain, _ = found["gain of the mixture over the dense control, row by row"]["birds"]
    assert gain == pytest.approx(losses["dense control"]["birds"][0] - losses["mixture"]["birds"][0])
    assert found["verdict"].startswith("the mixture ")
