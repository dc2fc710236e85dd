"""An adapter of equal shapes is for the model it was trained on, or refused; a name is a hint and said to be one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats.test_adapters import random_parts, write_adapter_gguf, write_peft
from tests.parity.families import FAMILIES, random_weights
from vitral.errors import FormatError, TensorMismatch
from vitral.formats.adapters import Adapter, read_adapter
from vitral.formats.canonical import Checkpoint
from vitral.formats.quantize import encode
from vitral.formats.quants import TYPES, WeightType
from vitral.formats.weights import Tensor, Weights
from vitral.model.law import F32
from vitral.provenance.bases import Base, BaseEvidence
from vitral.provenance.lineage import lineage_metadata

SPEC = FAMILIES["llama-2"]
CONFIG = {"r": 4, "lora_alpha": 8}
CALLED = {"general.name": "Smollm2 135M 8k Lc100K Mix1 Ep2"}


def checkpoint(seed: int = 0, type_: WeightType = "F32", metadata: Mapping[str, Any] | None = None) -> Checkpoint:
    """A model in memory; its vectors stay float32 whatever the type."""

    def tensor(name: str, values: F32) -> Tensor:
        kind: WeightType = "F32" if values.ndim == 1 else type_
        return Tensor(name, TYPES[kind], values.shape, lambda: encode(kind, np.atleast_2d(values)))

    weights = Weights(SPEC, {name: tensor(name, values) for name, values in random_weights(SPEC, seed).items()})
    return Checkpoint(Path("somewhere/m.gguf"), "gguf", SPEC, weights, metadata or {})


def record(base: Checkpoint) -> dict[str, Any]:
    return {
        "base": "runs/first",
        "base_digest": base.weights.digest(),
        "base_vectors": base.weights.vectors_digest(),
        "base_types": list(base.weights.matrix_types()),
    }


def adapter(folder: Path, said: dict[str, Any], name: str | None = None) -> Adapter:
    path = write_peft(folder / "lora", random_parts(SPEC, 4), {**CONFIG, "base_model_name_or_path": name})
    (path / "vitral.json").write_text(json.dumps(said))
    return read_adapter(path, SPEC)


def accepted(base: Checkpoint, of: Adapter) -> BaseEvidence:
    return Base(base).accept(of)


def test_the_very_weights_a_copy_of_them_and_another_quantisation_are_told_apart(tmp_path: Path) -> None:
    first = checkpoint()
    found = adapter(tmp_path, record(first))
    assert accepted(first, found).evidence == "weights"
    converted = checkpoint(type_="Q8_0", metadata=lineage_metadata(first, "quantise", {}))
    assert accepted(converted, found).evidence == "lineage"
    other_tool = accepted(checkpoint(type_="Q8_0"), found)
    assert other_tool.evidence == "vectors" and "Q8_0" in other_tool.detail
    assert not other_tool.is_weak


def test_equal_shapes_of_other_weights_are_refused_with_both_names(tmp_path: Path) -> None:
    first, second = checkpoint(), checkpoint(seed=1, metadata=CALLED)
    found = adapter(tmp_path, record(first))
    for other in (second, checkpoint(1, "Q8_0", CALLED)):
        with pytest.raises(TensorMismatch, match=r"another base: runs/first, weights \w{12}; this model is 'Smollm2"):
            accepted(other, found)
    tuned = lineage_metadata(first, "tune", {})  # what was tuned from the base is another model
    with pytest.raises(TensorMismatch, match="another base"):
        accepted(checkpoint(1, metadata=tuned), found)


def test_the_same_vectors_and_types_of_other_matrices_are_another_base(tmp_path: Path) -> None:
    first = checkpoint()
    changed = dict(first.weights.tensors)
    changed["blocks.0.attn.q.weight"] = checkpoint(seed=1).weights["blocks.0.attn.q.weight"]
    merged = Checkpoint(first.path, "gguf", SPEC, Weights(SPEC, changed), {})
    with pytest.raises(TensorMismatch, match="another base"):
        accepted(merged, adapter(tmp_path, record(first)))


@pytest.mark.parametrize(
    ("name", "called", "evidence"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", CALLED, "name"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {}, "none"),
        ("/models/base", CALLED, "none"),
        ("out/final-model", CALLED, "none"),
        (None, CALLED, "none"),
    ],
)
def test_a_name_is_a_weak_hint_and_said_to_be_one(
    tmp_path: Path, name: str | None, called: dict[str, str], evidence: str
) -> None:
    found = accepted(checkpoint(metadata=called), adapter(tmp_path, {}, name))
    assert found.evidence == evidence
    assert found.is_weak and found.as_dict()["weak"]


def test_a_name_that_shares_no_word_is_refused_and_the_hint_called_weak(tmp_path: Path) -> None:
    with pytest.raises(TensorMismatch, match=r"'meta-llama/Llama-2-7b-hf'; this model is called 'Smollm2.*weak hint"):
        accepted(checkpoint(metadata=CALLED), adapter(tmp_path, {}, "meta-llama/Llama-2-7b-hf"))


def test_a_gguf_adapter_says_its_base_by_record_or_by_name(tmp_path: Path) -> None:
    first, parts = checkpoint(metadata=CALLED), random_parts(SPEC, 4)
    ours = write_adapter_gguf(tmp_path / "a.gguf", parts, SPEC, 8.0, **{"vitral.record": json.dumps(record(first))})
    assert accepted(first, read_adapter(ours, SPEC)).evidence == "weights"
    url = {"general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-2-7b-hf"}
    theirs = read_adapter(write_adapter_gguf(tmp_path / "b.gguf", parts, SPEC, 8.0, **url), SPEC)
    with pytest.raises(TensorMismatch, match="meta-llama/Llama-2-7b-hf"):
        accepted(first, theirs)


@pytest.mark.parametrize("said", [{"base_digest": 1}, {"base_types": "F32"}, {"base_types": [1]}])
def test_a_record_of_another_form_is_refused(tmp_path: Path, said: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=r"vitral\.json"):
        adapter(tmp_path, said)
