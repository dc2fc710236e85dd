"""Lineage: what we write says what it came from, in the field's keys and in ours, and is read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.formats import tiny
from tests.provenance.models import folder_model
from vitral.conversion import convert
from vitral.errors import FormatError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.gguf_write import write_gguf
from vitral.provenance.lineage import KEY, licence_of, lineage_metadata, read_lineage, steps_in


def test_steps_are_kept_from_layout_to_layout(tmp_path: Path) -> None:
    source = folder_model(tmp_path / "a")
    convert(source, tmp_path / "b.gguf", type="F16")
    convert(tmp_path / "b.gguf", tmp_path / "c", layout="safetensors")
    first = open_checkpoint(source)
    steps = read_lineage(open_checkpoint(tmp_path / "c"))
    assert [step.parameters["layout"] for step in steps] == ["gguf", "safetensors"]
    assert steps[0].base[0]["weights"] == first.weights.digest()
    assert steps[1].base[0]["weights"] == open_checkpoint(tmp_path / "b.gguf").weights.digest()
    assert all(step.tool.startswith("vitral ") for step in steps)
    assert licence_of(open_checkpoint(tmp_path / "c")) == licence_of(first) == "mrl", "the card's licence comes along"
    assert read_lineage(first) == ()


def test_the_fields_own_keys_are_written(tmp_path: Path) -> None:
    source = tiny.gguf()[0].write(tmp_path)
    convert(source, tmp_path / "b.gguf")
    metadata = open_checkpoint(tmp_path / "b.gguf").metadata
    assert metadata["general.base_model.count"] == 1
    assert metadata["general.base_model.0.name"] == "tiny"
    found = lineage_metadata(open_checkpoint(source), "merge", {"weights": [0.5, 0.5]}, source="hf:a/b@c0ffee")
    assert found["general.source.repo_url"] == "https://huggingface.co/a/b"
    [step] = json.loads(found[KEY])
    assert step["parameters"] == {"weights": [0.5, 0.5]}


def test_every_parent_and_all_data_are_named(tmp_path: Path) -> None:
    """The licence of a parent is that of its card, where no key of the model says one."""
    first, second = (open_checkpoint(folder_model(tmp_path / name)) for name in "ab")
    data = [{"name": "chats.jsonl", "sha256": "0" * 64, "licence": "cc-by-4.0"}]
    found = lineage_metadata(first, "merge", {}, others=[second], data=data)
    [step] = steps_in(found[KEY], tmp_path)
    assert [(parent["name"], parent["licence"]) for parent in step.base] == [("a", "mrl"), ("b", "mrl")]
    assert step.data == (data[0],)
    assert found["general.license"] == "mrl"
    (tmp_path / "b" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert lineage_metadata(first, "merge", {}, others=[second])["general.license"] == "mrl AND mit"
    (tmp_path / "b" / "README.md").unlink()
    assert "general.license" not in lineage_metadata(first, "merge", {}, others=[second]), "its text is no known one"


@pytest.mark.parametrize("text", ["[", "{}", "[1]", '[{"operation": 1}]', "[" * 5000])
def test_a_strangers_record_is_read_with_care(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    source = tiny.gguf()[0].write(tmp_path / "s")
    from vitral.formats.gguf import GgufFile
    from vitral.formats.gguf_write import TensorToWrite

    file = GgufFile.open(source)
    tensors = [TensorToWrite(t.name, t.shape, t.type, t.raw) for t in file.tensors.values()]
    write_gguf(path, file.exact_metadata() | {KEY: text}, tensors)
    if text == "{}":
        assert read_lineage(open_checkpoint(path)) == ()
    else:
        with pytest.raises(FormatError, match="no list of steps"):
            read_lineage(open_checkpoint(path))
