"""Fetching against a mirror on this machine: resumed, verified, never half-visible, and without a network afterwards."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.cli.test_main import vitral
from tests.hub.mirror import Mirror, serve
from vitral.errors import ModelNotFound
from vitral.hub import resolve, short_names
from vitral.hub.remote import _choose
from vitral.hub.store import Store

CONTENT = random.Random(7).randbytes(24_000_000)  # half of it is above the piece of 10 MB in which downloads arrive


def pull(home: Path, url: str, name: str = "hf:tiny/model", **env: str):
    return vitral("pull", name, "--json", VITRAL_HOME=str(home), HF_ENDPOINT=url, HF_HOME=str(home / "hf"),
                  NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", HF_HUB_DISABLE_XET="1", **env)  # fmt: skip


def test_a_pull_gives_the_mirrors_bytes_and_needs_no_network_again(tmp_path: Path) -> None:
    with serve(Mirror({"model.gguf": CONTENT})) as mirror:
        done = pull(tmp_path, mirror.url)
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["path"])
    assert path.read_bytes() == CONTENT
    again = pull(tmp_path, mirror.url, HF_HUB_OFFLINE="1")  # the mirror is gone
    assert json.loads(again.stdout)["path"] == str(path)


def test_a_cut_download_resumes(tmp_path: Path) -> None:
    with serve(Mirror({"model.gguf": CONTENT}, cut=1)) as mirror:
        done = pull(tmp_path, mirror.url)
        if done.returncode:  # broke off: what came is kept, and the second attempt goes on from there
            assert Store(tmp_path).entries() == {}
            done = pull(tmp_path, mirror.url)
    assert done.returncode == 0, done.stderr
    assert mirror.ranges, "the second request should begin where the first broke off"
    assert Path(json.loads(done.stdout)["path"]).read_bytes() == CONTENT


def test_bytes_that_were_not_promised_are_not_kept(tmp_path: Path) -> None:
    with serve(Mirror({"model.gguf": CONTENT}, lie=True)) as mirror:
        done = pull(tmp_path, mirror.url)
    assert done.returncode == 2
    assert "was promised" in done.stderr
    assert "Traceback" not in done.stderr
    assert Store(tmp_path).entries() == {}
    assert not list(tmp_path.rglob("model.gguf"))


def test_a_file_outside_its_folder_is_refused(tmp_path: Path) -> None:
    with serve(Mirror({"../model.gguf": b"x"})) as mirror:
        done = pull(tmp_path, mirror.url)
    assert done.returncode == 2
    assert "outside its folder" in done.stderr


def test_an_absent_mirror_is_one_line(tmp_path: Path) -> None:
    done = pull(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mirror_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    done = pull(tmp_path, "http://127.0.0.1:9")  # nobody listens at the port `discard`
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "HF_ENDPOINT" in line


def test_a_repository_of_many_files_asks_which() -> None:
    files = ["a.Q4_0.gguf", "a.Q8_0.gguf", "README.md"]
    with pytest.raises(ModelNotFound, match="after a colon"):
        _choose("hf:x/y", files, "")
    assert _choose("hf:x/y", files, "q8_0") == ["a.Q8_0.gguf"]


def test_safetensors_come_with_their_texts() -> None:
    files = ["config.json", "model.safetensors", "tokenizer.json", "train.py", "consolidated.safetensors"]
    assert _choose("hf:x/y", files, "") == ["model.safetensors", "config.json", "tokenizer.json"]


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAL_HOME", str(tmp_path))
    with pytest.raises(ModelNotFound, match="smollm2:135m"):
        resolve("smolm2:135m")
    assert "smollm2:135m" in short_names()


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
