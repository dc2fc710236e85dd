"""Control vectors in GGUF steer what leaves each block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_interventions import CASES, PROMPT, law, logits
from tests.engine.test_native import engine
from vitral.engine.control_vectors import control_vector
from vitral.errors import FormatError
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.quants import TYPES
from vitral.model.law import F32


def write(path: Path, directions: dict[str, F32]) -> Path:
    tensors = [
        TensorToWrite(name, d.shape, TYPES["F32"], lambda d=d: d.view(np.uint8).reshape(-1, d.shape[-1] * 4))  # type: ignore[misc]
        for name, d in directions.items()
    ]
    write_gguf(path, {"general.architecture": "controlvector"}, tensors)
    return path


def test_directions_are_added_to_what_leaves_their_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    directions = {f"direction.{i}": rng.standard_normal(64).astype(np.float32) for i in (1, 0)}
    steering = control_vector(write(tmp_path / "v.gguf", directions), 0.5)
    assert [change.tap for change in steering] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    for i, change in enumerate(steering):
        assert change.values is not None
        assert change.values.array().tobytes() == directions[f"direction.{i}"].tobytes()
    found = logits(engine(CASES[0]), [(PROMPT, steering), (PROMPT, ())])
    assert found == [law(CASES[0], PROMPT, steering), law(CASES[0], PROMPT, ())]
    assert found[0] != found[1]
    assert control_vector(tmp_path / "v.gguf", layers=range(1, 2)) == control_vector(tmp_path / "v.gguf")[1:]


def test_a_file_without_directions_is_refused(tmp_path: Path) -> None:
    matrix = write(tmp_path / "m.gguf", {"direction.1": np.ones((2, 4), np.float32)})
    with pytest.raises(FormatError, match="no direction"):
        control_vector(matrix)
    with pytest.raises(FormatError, match="no direction"):
        control_vector(write(tmp_path / "o.gguf", {"output.weight": np.ones(4, np.float32)}))
