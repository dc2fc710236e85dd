"""What is typed: `vitral serve`, `vitral replay`, and the lines of the how-to."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serve.conftest import TINY
from tests.serve.live import Live
from vitral.cli.main import _code

PAGE = (ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8")
HERE = "http://127.0.0.1:8000"


def test_the_pages_curl_line_works(server: Live) -> None:
    (line,) = [each for each in re.findall(r"^curl .*?[^\\]$", PAGE, re.MULTILINE | re.DOTALL) if "/chat/" in each]
    words = shlex.split(line.replace("\\\n", " ").replace(HERE, server.url))
    done = subprocess.run([*words, "-s"], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_the_pages_client_code_works(server: Live, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
    exec(code.replace(HERE, server.url), {})  # noqa: S102
    assert capsys.readouterr().out.strip()


def test_replay_on_the_command_line_says_exact_and_then_what_differs(
    server: Live, tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"model": TINY, "prompt": "Once upon", "max_tokens": 5, "temperature": 1.0}
    id = server.post("/v1/completions", body).json()["record"]
    database = f"sqlite:///{server.folder / 'records.sqlite'}"
    assert _code(["replay", id, "--model", tiny_path, "--records", database, "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "EXACT"
    record = server.http.get(f"/v1/records/{id}").json()
    record["sequences"][0]["logits"][3] = "0" * 16
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record))
    assert _code(["replay", str(file), "--model", tiny_path, "--threads", "1", "--json"]) == 1
    difference = json.loads(capsys.readouterr().out)["first_difference"]
    assert (difference["step"], difference["what"]) == (3, "logits")


def test_a_record_that_is_not_there_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _code(["replay", "rec_none", "--records", f"sqlite:///{tmp_path / 'r.sqlite'}"]) == 2
    assert "rec_none" in capsys.readouterr().err


def test_a_new_key_is_told_once_and_kept_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _code(["serve", "--new-key", "anna", "--folder", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["key"].startswith("vk-")
    assert told["key"] not in (tmp_path / "keys.json").read_text("utf-8")
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0
