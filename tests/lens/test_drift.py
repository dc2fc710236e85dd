"""Drift is nothing between a model and itself, and is found where it was planted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vitral.conversion
from tests.lens.models import as_weights, glass_of
from tests.parity.families import FAMILIES, random_weights
from vitral.cli.main import _code
from vitral.errors import RequestError
from vitral.lens import Glass, drift, edits_without, without

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


@pytest.mark.parametrize("family", ["llama-2", "mixtral"])
def test_a_model_does_not_drift_from_itself(family: str) -> None:
    found = drift(glass_of(family), glass_of(family), IDS)
    assert found.same and found.flips == 0 and found.changed == 0 and found.largest_logit == 0
    assert found.kl.mean == 0 and (found.residual == 0).all() and found.heads[0].distance == 0


def test_the_numbers_are_those_of_numpy_by_hand() -> None:
    a = glass_of("mixtral")
    b = Glass(a.spec, without(a.weights.tensors, [(0, 1)]))
    found = drift(a, b, IDS, worst=len(IDS))
    la, lb = a.logits(IDS).astype(float), b.logits(IDS).astype(float)
    pa, pb = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (la, lb))
    kl = (pa * np.log(pa / pb)).sum(-1)
    assert found.kl.mean == pytest.approx(kl.mean(), rel=1e-6)
    assert [t.position for t in found.tokens] == np.argsort(-kl).tolist()
    assert found.changed == (la.argmax(-1) != lb.argmax(-1)).sum()
    edits = edits_without(a.spec, [(0, 1)])
    flips = 0
    for i in range(a.spec.n_layers):
        name = f"blocks.{i}.mlp.hook_expert_indices"
        ours, theirs = a.run(IDS, [name])[name], b.run(IDS, [name])[name]
        flips += sum(len(set(x) - set(y)) for x, y in zip(ours.tolist(), theirs.tolist()))
        assert np.array_equal(theirs, a.run(IDS, [name], edits)[name])
    assert found.flips == flips == sum(t.flips for t in found.tokens) > 0
    assert found.routes == 2 * 2 * len(IDS)


def test_a_router_that_was_changed_shows_as_flips_in_its_layer() -> None:
    spec = FAMILIES["mixtral"]
    values = random_weights(spec)
    a = Glass(spec, as_weights(spec, values))
    name = "blocks.1.mlp.router.weight"
    b = Glass(spec, as_weights(spec, values | {name: values[name][::-1].copy()}))
    found = drift(a, b, IDS)
    assert found.flips_by_layer[0] == 0 < found.flips_by_layer[1]
    assert found.residual[0] == 0 < found.residual[1]
    assert all(head.distance == 0 for head in found.heads)


def test_two_architectures_are_refused() -> None:
    spec = replace(FAMILIES["llama-2"], max_context=32)
    with pytest.raises(RequestError, match="vitral diff"):
        drift(glass_of("llama-2"), Glass(spec, as_weights(spec, random_weights(spec))), IDS)


def test_the_command_says_what_a_quantised_file_lost(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = data_dir / "model-stories260k" / "stories260K.bin"
    small = tmp_path / "small.gguf"
    for file in original.parent.glob("*.bin"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    original = tmp_path / "stories260K.bin"
    vitral.conversion.convert(original, small, type="Q8_0")
    text = ["--text", "Once upon a time there was"]
    assert _code(["drift", str(original), str(small), *text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["kl"]["mean"] < 0.01 and not found["same"] and found["routes"] == 0
    assert _code(["drift", str(original), str(small), *text, "--max-kl", "0"]) == 1
    assert "worst tokens" in capsys.readouterr().out
    assert _code(["drift", str(small), str(small), *text, "--max-kl", "0"]) == 0
    assert "the same, to the bit" in capsys.readouterr().out
