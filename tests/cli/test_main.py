"""The command line as a user meets it: exit codes, one-line errors, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.quants import TYPES

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("run", "show", "pull", "list", "rm", "convert", "quantize", "perplexity", "tokenize", "bench", "doctor")


def vitral(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "vitral", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, **env},
    )


def refused(*args: str, **env: str) -> str:
    """The one line with which a command refuses."""
    done = vitral(*args, **env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: ")
    assert done.stdout == ""
    return line


def test_every_command_is_listed() -> None:
    listing = vitral("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in listing


def test_no_command_shows_the_help() -> None:
    done = vitral()
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_unknown_option_names_the_nearest() -> None:
    assert "--prompt" in refused("run", "smollm2:135m", "--promt", "x")


def test_unknown_command_names_the_nearest() -> None:
    assert "'run'" in refused("rn")


@pytest.mark.parametrize("command", ["run", "show"])
def test_missing_file_says_what_is_allowed(command: str, tmp_path: Path) -> None:
    more = ["--prompt", "x"] if command == "run" else []
    assert "hf:owner/name" in refused(command, str(tmp_path / "none.gguf"), *more)


def test_text_file_is_told_from_a_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("dear diary\n" * 50)
    assert "text file" in refused("show", str(path))


@pytest.mark.parametrize("architecture", ["qwen2", "gemma"])
def test_other_architecture_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    rows = np.zeros((32, 128), np.uint8)
    tensor = TensorToWrite("token_embd.weight", (32, 32), TYPES["F32"], lambda: rows)
    write_gguf(path, {"general.architecture": architecture}, [tensor])
    assert architecture in refused("show", str(path)).lower()


def test_truncated_file_is_refused(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    with smollm2.open("rb") as file:
        path.write_bytes(file.read(3_000_000))
    assert "download it again" in refused("show", str(path))


def test_prompt_over_the_context_is_refused(smollm2: Path) -> None:
    line = refused("run", str(smollm2), "--prompt", "one two three four five six seven", "--context", "16")
    assert "the context holds 16" in line


def test_impossible_setting_is_refused() -> None:
    assert "VITRAL_ISA" in refused("doctor", VITRAL_ISA="mmx")


def test_unreadable_text_is_refused(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "UTF-8" in refused("perplexity", str(smollm2), str(path))


def test_unknown_weight_type_is_refused(smollm2: Path, tmp_path: Path) -> None:
    assert "Q9" in refused("quantize", str(smollm2), str(tmp_path / "out.gguf"), "--type", "Q9")


def test_removing_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "nothing" in refused("rm", "absent", VITRAL_HOME=str(tmp_path))


def test_list_of_an_empty_store_offers_short_names(tmp_path: Path) -> None:
    found = json.loads(vitral("list", "--json", VITRAL_HOME=str(tmp_path)).stdout)
    assert found["models"] == []
    assert "smollm2:135m" in found["short_names"]


def test_run_answers_standard_input_with_the_same_text_each_time(smollm2: Path) -> None:
    args = ("run", str(smollm2), "--max-tokens", "12", "--temperature", "0.8", "--seed", "7")
    first = vitral(*args, stdin="Name a colour.")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert vitral(*args, "--threads", "1", stdin="Name a colour.").stdout == first.stdout


def test_run_without_a_question_answers_one(smollm2: Path) -> None:
    done = vitral("run", str(smollm2), "--max-tokens", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["completion"] == 4


def test_run_holds_its_answer_to_a_json_schema(smollm2: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"sky": {"enum": ["blue", "red"]}}, "required": ["sky"]}
    (tmp_path / "sky.json").write_text(json.dumps(schema | {"additionalProperties": False}))
    args = ("run", str(smollm2), "--prompt", "What colour is the sky?")
    found = json.loads(vitral(*args, "--json", "--json-schema", str(tmp_path / "sky.json")).stdout)
    assert found["conforms"] is True
    assert json.loads(found["text"])["sky"] in ("blue", "red")
    (tmp_path / "bad.json").write_text('{"not": {}}')
    assert "#/not" in refused(*args, "--json-schema", str(tmp_path / "bad.json"))
    assert "none.json" in refused(*args, "--json-schema", str(tmp_path / "none.json"))


def test_show_counts_the_parameters(smollm2: Path) -> None:
    found = json.loads(vitral("show", str(smollm2), "--json").stdout)
    assert found["parameters"]["total"] == found["parameters"]["active"] == 134_515_008
    assert found["licence_tag"] == "apache-2.0"


def test_tokenize_gives_offsets_of_the_text(smollm2: Path) -> None:
    text = "Olá, vitral"
    found = json.loads(vitral("tokenize", str(smollm2), text, "--json").stdout)
    assert "".join(token["text"] for token in found["tokens"]) == text
    assert found["count"] == len(found["tokens"])


def test_perplexity_counts_windows(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 10)
    done = vitral("perplexity", str(smollm2), str(path), "--window", "32", "--windows", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["window"] == 32


def test_doctor_finds_every_kernel_right() -> None:
    found = json.loads(vitral("doctor", "--json").stdout)
    assert found["passed"]
    assert "scalar" in [isa["name"] for isa in found["instruction_sets"] if isa["available"]]


def test_bench_measures_and_plots(data_dir: Path) -> None:
    model = str(data_dir / "model-stories260k" / "stories260K.bin")
    options = ["--prompt", "32", "--answer", "4", "--together", "2", "--turns", "1", "--threads", "1"]
    done = vitral("bench", model, *options)
    assert done.returncode == 0, done.stderr
    assert "decode, 2 sequences together" in done.stdout and "█" in done.stdout
    found = json.loads(vitral("bench", model, *options, "--json").stdout)
    assert found["plan"] == {"prompt": 32, "answer": 4, "together": 2, "turns": 1}
    assert {figure["unit"] for figure in found["figures"]} == {"tokens/s", "ms", "GB/s", "%", "MB", "s"}
    assert "context" in refused("bench", model, "--prompt", "100000")
