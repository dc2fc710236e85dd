"""A data set of the Hub by name, from a mirror on this machine and then without it, with its licence carried along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.mirror import COMMIT, Mirror, serve
from tests.tune.conftest import FACTS, write_chats
from vitral.errors import ModelNotFound, TuneError
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub.data_sets import HubDataSet, _choose, fetch_data_set
from vitral.provenance.gather import gather
from vitral.provenance.lineage import read_lineage
from vitral.tokenizer.tokenizer import Tokenizer
from vitral.tune import prepare as preparing
from vitral.tune.after import export_run
from vitral.tune.data.load import load_data
from vitral.tune.data.preflight import preflight
from vitral.tune.recipe import parse_recipe, read_recipe
from vitral.tune.record import read_record
from vitral.tune.run import run_recipe

ROOT = Path(__file__).parent.parent.parent.parent
CARD = b"---\nlicense: cc-by-4.0\n---\n# Umbrellas\n"
PROGRAM = """
import json, sys
from dataclasses import asdict
from vitral.errors import VitralError
from vitral.hub.data_sets import fetch_data_set
try:
    print(json.dumps(asdict(fetch_data_set(sys.argv[1])), default=str))
except VitralError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def fetched(home: Path, url: str, name: str, **env: str) -> Any:
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    more = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    more |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **more, **env},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_comes_from_the_mirror_and_then_from_the_cache(tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "train.jsonl").read_bytes()
    with serve(Mirror({"train.jsonl": chats, "README.md": CARD, "test.jsonl": b"{}"})) as mirror:
        found = fetched(tmp_path / "hf", mirror.url, "hf:tiny/umbrellas:train")
        kind, _ = fetched(tmp_path / "hf", mirror.url, "hf:tiny/umbrellas")
    assert (found["repo"], found["revision"], found["licence"]) == ("tiny/umbrellas", COMMIT, "cc-by-4.0")
    assert Path(found["files"]["train.jsonl"]).read_bytes() == chats
    assert kind == "ModelNotFound"  # train or test?
    again = fetched(tmp_path / "hf", mirror.url, "hf:tiny/umbrellas:train", HF_HUB_OFFLINE="1")
    assert again == found
    kind, text = fetched(tmp_path / "empty", mirror.url, "hf:tiny/umbrellas", HF_HUB_OFFLINE="1")
    assert kind == "HubError" and "could not be fetched" in text


def test_bytes_that_were_not_promised_are_not_kept(tmp_path: Path) -> None:
    with serve(Mirror({"train.jsonl": b'{"text": "x"}\n'}, lie=True)) as mirror:
        kind, text = fetched(tmp_path, mirror.url, "hf:tiny/umbrellas")
    assert kind == "DigestMismatch" and "promised" in text
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.read_bytes() == b'{"text": "x"}\n']


def test_which_file_is_meant_is_asked_unless_there_is_one() -> None:
    parts = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert _choose("hf:x/y", [*parts, "README.md", "dataset_infos.json"], "") == parts
    assert _choose("hf:x/y", ["a.jsonl", "b.jsonl"], "b.jsonl") == ["b.jsonl"]
    with pytest.raises(ModelNotFound, match=r"after a colon: a\.jsonl, b\.jsonl"):
        _choose("hf:x/y", ["a.jsonl", "b.jsonl"], "")
    with pytest.raises(ModelNotFound, match="no data files"):
        _choose("hf:x/y", ["script.py"], "")


@pytest.mark.parametrize("name", ["hf:umbrellas", "hf:../x", "hf:a/b/c", "hf:a/b:"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ModelNotFound, match="is not hf:owner/name"):
        fetch_data_set(name)


def test_its_licence_goes_into_record_lineage_and_verdict(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_chats(tmp_path / "train.jsonl")
    there = HubDataSet("tiny/umbrellas", COMMIT, {"train.jsonl": file}, "cc-by-4.0")
    monkeypatch.setattr(preparing, "fetch_data_set", lambda name: there)
    recipe = parse_recipe({
        "model": {"base": str(tiny_chat)}, "data": {"train": "hf:tiny/umbrellas", "context": 256},
        "run": {"steps": 1, "measure_forgetting": False},
    }, tmp_path)  # fmt: skip
    assert recipe.data.train == ("hf:tiny/umbrellas",)
    run_recipe(recipe, tmp_path / "run")
    record = read_record(tmp_path / "run")
    [entry] = record["data"]
    assert entry["path"] == f"hf:tiny/umbrellas@{COMMIT}:train.jsonl"
    assert (entry["name"], entry["licence"], record["data_licence"]) == ("tiny/umbrellas", "cc-by-4.0", "cc-by-4.0")
    with pytest.raises(TuneError, match="has finished"):  # nothing that decides it has changed
        run_recipe(read_recipe(tmp_path / "run/recipe.toml"), tmp_path / "run", resume=True)
    export_run(tmp_path / "run", tmp_path / "m.gguf", "gguf")
    step = read_lineage(open_checkpoint(tmp_path / "m.gguf"))[-1]
    assert step.data == (
        {"name": "tiny/umbrellas", "sha256": entry["sha256"], "licence": "cc-by-4.0", "source": entry["path"]},
    )
    for made in (tmp_path / "m.gguf", tmp_path / "run/adapter"):
        [part] = [part for part in gather(made, str(made)).components if part.role == "dataset"]
        assert part.name == "tiny/umbrellas"
        assert {id for evidence in part.evidence for id in evidence.licences} == {"cc-by-4.0"}


def test_what_should_be_known_of_licences_is_said(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    file = write_chats(tmp_path / "train.jsonl", FACTS)

    def warnings(source: HubDataSet | Path, said: str = "") -> str:
        return " ".join(preflight(load_data([source], byte_tokenizer, 512), licence=said).warnings)

    ultrachat = HubDataSet("HuggingFaceH4/ultrachat_200k", COMMIT, {"train.jsonl": file}, "mit")
    assert "written by OpenAI ChatGPT" in warnings(ultrachat)
    assert "itself says mit" in warnings(ultrachat, "CC0-1.0")
    assert "not known" in warnings(file) and "not known" not in warnings(file, "CC0-1.0")
    (tmp_path / "README.md").write_bytes(CARD)
    assert "not known" not in warnings(tmp_path)
