"""`vitral tune` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_main import ROOT, vitral
from tests.tune.conftest import write_chats, write_tiny
from tests.tune.test_full_disk import room
from vitral.cli.main import _code
from vitral.formats.checkpoint import open_checkpoint
from vitral.provenance.lineage import read_lineage

COMMANDS = ("init", "preview", "run", "resume", "replay", "export", "compare", "merge", "add", "upcycle")
Said = pytest.CaptureFixture[str]


def said(capsys: Said, *args: object, code: int = 0) -> str:
    """Standard output of a command run here, where torch is imported once."""
    capsys.readouterr()
    assert _code([*map(str, args)]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: Said, *args: object) -> str:
    capsys.readouterr()
    assert _code([*map(str, args)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_tiny(folder / "tiny.gguf")
    write_chats(folder / "train.jsonl")
    (folder / "r.toml").write_text(
        'model.base = "tiny.gguf"\ndata.train = "train.jsonl"\ndata.context = 256\ndata.licence = "CC0-1.0"\n'
        "data.hold_out = 0.2\n[run]\nsteps = 4\nsave_every = 1\nmeasure_forgetting = false\n"
    )
    return folder


def test_every_command_is_listed_and_takes_json(capsys: Said) -> None:
    listing = said(capsys, "tune", "--help")
    for command in COMMANDS:
        assert f"  {command} " in listing
        assert "--json" in said(capsys, "tune", command, "--help")


def test_the_group_alone_shows_its_commands(capsys: Said) -> None:
    assert said(capsys, "tune") == said(capsys, "tune", "--help")


def test_from_recipe_to_a_model_that_is_served(place: Path, capsys: Said) -> None:
    shown = json.loads(said(capsys, "tune", "preview", place / "r.toml", "--html", place / "p.html", "--json"))
    assert shown["preflight"]["n_train"] + shown["preflight"]["n_test"] == 8
    assert any(span["supervised"] for span in shown["items"][0]["rows"][0])
    assert "<mark>" in (place / "p.html").read_text()
    plain = said(capsys, "tune", "preview", place / "r.toml")
    learnt = next(span["text"] for span in shown["items"][0]["rows"][0] if span["supervised"])
    assert "carry loss" in plain and f"⟦{learnt}⟧" in plain
    done = vitral("tune", "run", str(place / "r.toml"), "--out", str(place / "run"))
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stderr and "test loss" in done.stdout
    assert "<svg" in (place / "run/report.html").read_text()
    out = json.loads(
        said(capsys, "tune", "export", place / "run", place / "out.gguf", "--as", "gguf", "--type", "Q8_0", "--json")
    )
    assert out["kept"]["tokens"] > 0
    assert said(capsys, "run", place / "out.gguf", "--prompt", "Where is Quellmark?", "--max-tokens", "5")
    [row] = json.loads(said(capsys, "tune", "compare", place / "run", "--json"))
    assert row["steps"] == 4
    assert "lora" in said(capsys, "tune", "compare", place / "run")


def test_models_merge_and_become_experts_and_adapters_add(place: Path, capsys: Said) -> None:
    other, base = write_tiny(place / "other.gguf", seed=1), place / "tiny.gguf"
    said(capsys, "tune", "merge", place / "half.gguf", base, other, "--method", "slerp")
    texts = [place / "birds.txt", place / "ledger.txt"]
    texts[0].write_text("The heron waits by the weir and does not move for a quarter of an hour. " * 12)
    texts[1].write_text("Carried forward 1,204.50; paid to A. Brandt 88.00; balance due 17 March. " * 12)
    given = [part for text in texts for part in ("--domain", text)]
    found = json.loads(said(capsys, "tune", "upcycle", place / "mix.gguf", base, other, *given, "--json"))
    assert found["experts"] == 2 and len(found["routing"]) == 2
    for made in ("half", "mix"):
        assert said(capsys, "run", place / f"{made}.gguf", "--prompt", "Hi", "--max-tokens", "3")
        [step] = read_lineage(open_checkpoint(place / f"{made}.gguf"))
        assert [parent["weights"] for parent in step.base] == [
            open_checkpoint(m).weights.digest() for m in (base, other)
        ]
    recipe = (place / "r.toml").read_text().replace("steps = 4", "steps = 1")
    (place / "one.toml").write_text(recipe)
    said(capsys, "tune", "run", place / "one.toml", "--out", place / "one")
    adapter = place / "one/adapter"
    args = ["--base", base, "--adapter", adapter, "--adapter", adapter, "--weight", "1", "--weight", "-1"]
    assert json.loads(said(capsys, "tune", "add", place / "sum", *args, "--json"))["rank"] == 32
    assert len(json.loads((place / "sum" / "vitral.json").read_text())["data"]) == 2 * len(
        json.loads((adapter / "vitral.json").read_text())["data"]
    )
    with room(2000):
        for out, command in (
            ("full", ("merge", base, other)),
            ("full.gguf", ("upcycle", base, other)),
            ("sums", ("add",)),
        ):
            given = args if command == ("add",) else []
            assert "make room" in refused(capsys, "tune", command[0], place / out, *command[1:], *given)
            assert not list(place.glob(f"*{out}*"))
    assert "one each" in refused(capsys, "tune", "merge", place / "no.gguf", base, other, "--weight", "1")
    assert "first path is what is written" in refused(capsys, "tune", "merge", base, other)
    assert "first path is what is written" in refused(capsys, "tune", "upcycle", base, other)
    assert "two domains" not in refused(capsys, "tune", "upcycle", place / "no.gguf", base, other, "--domain", texts[0])


def test_init_writes_a_recipe_that_is_understood(place: Path, capsys: Said) -> None:
    for loss in ("sft", "dpo", "distil"):
        path = place / f"{loss}.toml"
        said(capsys, "tune", "init", path, "--base", place / "tiny.gguf", "--data", "train.jsonl", "--loss", loss)
    assert "there already" in refused(capsys, "tune", "init", place / "sft.toml")
    assert said(capsys, "tune", "preview", place / "sft.toml", "--items", "0")
    assert "sft, dpo" in refused(capsys, "tune", "init", place / "no.toml", "--loss", "magic")


def test_a_recipe_in_another_folder_finds_what_was_named_from_here(
    place: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "recipes").mkdir()
    said(capsys, "tune", "init", "recipes/a.toml", "--base", "tiny.gguf", "--data", "train.jsonl")
    assert 'train = ["../train.jsonl"]' in (place / "recipes/a.toml").read_text()
    assert said(capsys, "tune", "preview", "recipes/a.toml", "--items", "0")


def test_ctrl_c_leaves_a_run_that_resumes(place: Path) -> None:
    recipe = (place / "r.toml").read_text().replace("steps = 4", "steps = 100000")
    (place / "long.toml").write_text(recipe.replace("save_every = 1", "save_every = 100000"))
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen([sys.executable, "-m", "vitral", "tune", "run", str(place / "long.toml"), "--out", str(place / "long")],
                               env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)  # fmt: skip
    log, until = place / "long/log.jsonl", time.monotonic() + 100
    while not (log.exists() and log.read_text().count("StepReport") > 2):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after step" in errors and "vitral tune resume" in errors
    assert (place / "long/state.pt").exists() and "not finished" in (place / "long/report.html").read_text()


def test_ctrl_c_before_the_first_step_does_not_promise_a_run_that_resumes(
    place: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitral.tune.run.refuse_too_large", pressed)
    assert _code(["tune", "run", str(place / "r.toml"), "--out", str(place / "early")]) == 130
    said = capsys.readouterr().err
    assert "before a step was saved; run it again" in said and "resume" not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('data.train = "absent.jsonl"', "absent.jsonl does not exist"),
        ('data.train = "bad.jsonl"', "bad.jsonl:1"),
        ('run.stepz = 3\ndata.train = "train.jsonl"', "run.steps"),
        ('data.context = 20\ndata.train = "train.jsonl"', "too_long"),
        ('lora.targets = ["router"]\ndata.train = "train.jsonl"', "router"),
        ('lora.layers = [0, 9]\ndata.train = "train.jsonl"', "there is no layer 9; the model has 0 to 1"),
        ('lora.experts = [1]\ndata.train = "train.jsonl"', "no expert 1"),
        ('data.train = "train.jsonl"\ndata.test = "train.jsonl"', "training data too"),
        ('method.loss = "dpo"\ndata.train = "train.jsonl"', "chosen, rejected"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line_before_anything_is_written(
    line: str, message: str, place: Path, capsys: Said
) -> None:
    (place / "bad.jsonl").write_text('{"messages": 3}\n')
    (place / "bad.toml").write_text(f'model.base = "tiny.gguf"\nrun.measure_forgetting = false\n{line}\n')
    assert message in refused(capsys, "tune", "run", place / "bad.toml", "--out", place / "none")
    assert message in refused(capsys, "tune", "preview", place / "bad.toml", "--items", "0")
    assert not (place / "none").exists()


def test_a_preview_of_wrong_data_is_one_refusal(place: Path, capsys: Said) -> None:
    (place / "wrong.csv").write_text("frage;antwort\nWarum?;Darum.\n")
    (place / "keys.jsonl").write_text('{"pergunta": "Oi?", "resposta": "Olá"}\n' * 2)
    (place / "one.jsonl").write_text('{"prompt": "Oi?", "completion": "Olá"}\n{"prompt": "Oi?"}\n')
    for file, message in (("wrong.csv", "divided by ;"), ("keys.jsonl", "keys.jsonl:1, keys.jsonl:2: keys"),
                          ("one.jsonl", "1 of 2 records cannot be used: one.jsonl:2")):  # fmt: skip
        (place / "wrong.toml").write_text(f'model.base = "tiny.gguf"\ndata = {{train = "{file}", hold_out = 0.1}}\n')
        assert message in refused(capsys, "tune", "preview", place / "wrong.toml")
        assert _code(["tune", "preview", str(place / "wrong.toml"), "--json"]) == 2
        assert message in json.loads(capsys.readouterr().out)["error"]["message"]


def test_without_torch_the_command_says_what_to_install(place: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'vitral'; from vitral.cli.main import main; main()"
    )
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, "-c", program, "tune", "preview", str(place / "r.toml")], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": path}, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'vitral[tune]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_starts_without_torch() -> None:
    program = "import sys; import vitral.cli.main as m; m._code(['tune', '--help']); sys.stderr.write(str('torch' in sys.modules))"
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
    )
    assert done.stderr.endswith("False")
