"""What a user meets who makes a mistake, or leaves early: one line, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import ROOT, refused, vitral

STORIES = "model-stories260k/stories260K.bin"


@pytest.fixture
def stories(data_dir: Path) -> str:
    return str(data_dir / STORIES)


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (("show", "absent.gguf"), "ModelNotFound"),
        (("show",), "UsageError"),
        (("run", "absent.gguf", "--promt", "x"), "UsageError"),
        (("bogus",), "UsageError"),
        (("rm", "absent"), "ModelNotFound"),
    ],
)
def test_json_holds_the_error_too(args: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    done = vitral(*args, "--json", VITRAL_HOME=str(tmp_path))
    assert done.returncode == 2
    found = json.loads(done.stdout)["error"]
    assert found["type"] == kind
    assert done.stderr == f"error: {found['message']}\n"


def test_an_argument_that_looks_like_json_asks_for_none(tmp_path: Path) -> None:
    done = vitral("show", "--", "--json", VITRAL_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "qwen2"),
        ({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"}, "gemma"),
    ],
)
def test_other_architecture_in_a_folder_is_refused_by_name(
    config: dict[str, object], says: str, tmp_path: Path
) -> None:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert says in refused("show", str(tmp_path)).lower()


def test_a_model_without_a_template_says_what_to_add(stories: str) -> None:
    line = refused("run", stories, "--prompt", "Hello")
    assert "--template" in line
    assert "--raw" in line
    done = vitral("run", stories, "--prompt", "Hello", "--template", "llama2", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr


def test_an_unknown_template_lists_ours(stories: str) -> None:
    assert "chatml" in refused("run", stories, "--prompt", "Hello", "--template", "chatmll")


def test_the_longest_answer_fits_a_short_context(stories: str) -> None:
    done = vitral("run", stories, "--raw", "--prompt", "Once", "--context", "16", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["usage"]["prompt"] + found["usage"]["completion"] <= 16


@pytest.mark.parametrize(
    ("name", "value"), [("VITRAL_ISA", "mmx"), ("VITRAL_THREADS", "many"), ("VITRAL_THREADS", "0")]
)
def test_a_setting_that_cannot_be_is_named(name: str, value: str, stories: str) -> None:
    line = refused("run", stories, "--raw", "--prompt", "x", **{name: value})
    assert name in line
    assert value in line
    assert "allowed" in line


def test_an_output_that_cannot_be_written_is_named(stories: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused("convert", stories, str(tmp_path / "file" / "out.gguf"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_a_full_disk_is_one_line(json_too: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*_command("list"), *json_too], stdout=full, stderr=subprocess.PIPE, text=True,
                              env=_env(VITRAL_HOME=str(tmp_path)), timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("args", [("list",), ("list", "--json"), ("--help",)])
def test_a_reader_that_leaves_is_no_error(args: tuple[str, ...], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(_command(*args), stdout=writing, stderr=subprocess.PIPE, text=True,
                              env=_env(VITRAL_HOME=str(tmp_path)), timeout=60)  # fmt: skip
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_interrupting_an_answer_ends_with_130(stories: str) -> None:
    command = _command("run", stories, "--raw", "--prompt", "Once upon a time", "--temperature", "1", "--seed", "1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_env()) as running:
        assert running.stdout is not None
        running.stdout.read(4)  # it has begun
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    assert "Traceback" not in error
    assert (running.returncode, error.split()) in ((130, ["interrupted"]), (0, []))  # the story may have ended first


def test_version_is_the_installed_one() -> None:
    done = vitral("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("vitral ")


def _command(*args: str) -> list[str]:
    return [sys.executable, "-m", "vitral", *args]


def _env(**env: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **env}
