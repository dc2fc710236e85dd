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
from vitral.provenance.lineage import KEY, lineage_metadata, read_lineage


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
