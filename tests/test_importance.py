"""The importance of columns is the sum of squares of what each matrix reads, as the reference says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats import tiny
from tests.parity.families import FAMILIES, random_weights
from vitral.errors import FormatError, RequestError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.formats.gguf import GgufFile
from vitral.formats.imatrix import Imatrix, Sums
from vitral.importance import measure
from vitral.model.law import KV_DEFAULT
from vitral.model.reference import Cache, Reference

for module in ("torch", "transformers", "gguf", "safetensors"):  # layouts.py needs them
    pytest.importorskip(module)
from tests.formats import layouts  # noqa: E402

WINDOW = 16


class Letters:
    """A tokenizer of 26 letters, which every tiny model has ids for."""

    add_bos, bos_id = True, 1

    def encode(self, text: str) -> list[int]:
        return [3 + ord(c) - ord("a") for c in text]


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitral.loading.tokenizer_of", lambda checkpoint: Letters())
    monkeypatch.setenv("VITRAL_THREADS", "1")


@pytest.mark.parametrize("family", ["llama-3.1", "mixtral", "mixtral-dense-first"])
def test_sums_equal_the_references_taps(tmp_path: Path, family: str) -> None:
    spec = FAMILIES[family]
    write = layouts.write_gguf if spec.moe else layouts.write_hf  # no scaled rope there, no dense first layers here
    source = write(tmp_path / "m.gguf", spec, random_weights(spec))
    text = "thequickbrownfoxjumpsoverthelazydog"
    found = measure(source, text, window=WINDOW)
    assert (found.n_windows, found.window) == (2, WINDOW), "the rest of the text is no whole window"
    seen: dict[str, list[Any]] = {}

    def keep(name: str, value: Any) -> None:
        seen.setdefault(name, []).append(np.array(value))

    reference = Reference(spec, open_checkpoint(source).weights.law())
    for i in range(2):
        ids = [1, *Letters().encode(text)[i * WINDOW + 1 : (i + 1) * WINDOW]]
        reference.forward(ids, Cache(spec, KV_DEFAULT), keep)

    def expected(tap: str) -> np.ndarray:
        rows = [value.reshape(len(value), -1).astype(np.float64) for value in seen[tap]]
        return sum((x**2).sum(axis=0) for x in rows)

    for i in range(spec.n_layers):
        block = f"blocks.{i}."
        pairs = {f"{block}attn.{x}.weight": f"{block}attn.hook_in" for x in "qkv"}
        pairs[f"{block}attn.o.weight"] = f"{block}attn.hook_z"
        moe = spec.moe_of(i)
        if moe is None:
            pairs |= {f"{block}mlp.{x}.weight": f"{block}mlp.hook_in" for x in ("gate", "up")}
            pairs[f"{block}mlp.down.weight"] = f"{block}mlp.hook_post"
        for name, tap in pairs.items():
            assert found.sums[name].count == 2 * WINDOW
            np.testing.assert_allclose(found.sums[name].squares, expected(tap), rtol=1e-3, atol=1e-9)
        if moe is not None:
            counts = [found.sums[f"{block}mlp.experts.{e}.down.weight"].count for e in range(moe.n_experts)]
            assert sum(counts) == 2 * WINDOW * moe.n_experts_per_token
            for e in range(moe.n_experts):
                name = f"{block}mlp.experts.{e}."
                assert found.sums[f"{name}gate.weight"].count == counts[e]
                rows = [
                    x[(chosen == e).any(axis=1)].astype(np.float64)
                    for x, chosen in zip(
                        seen[f"{block}mlp.hook_in"], seen[f"{block}mlp.hook_expert_indices"], strict=True
                    )
                ]
                total = sum((x**2).sum(axis=0) for x in rows)
                np.testing.assert_allclose(found.sums[f"{name}up.weight"].squares, total, rtol=1e-3, atol=1e-9)
                if counts[e]:
                    down = found.sums[f"{name}down.weight"].squares
                    np.testing.assert_allclose(down, expected(f"{name}hook_post"), rtol=1e-3, atol=1e-9)


def test_a_text_must_fill_a_window(tmp_path: Path) -> None:
    spec = FAMILIES["llama-2"]
    source = layouts.write_hf(tmp_path / "hf", spec, random_weights(spec))
    with pytest.raises(RequestError, match="3 tokens; at least one window of 16"):
        measure(source, "abc", window=WINDOW)
    with pytest.raises(RequestError, match="the window is 100000 tokens"):
        measure(source, "abc", window=100_000)


def test_quantising_with_importance_lowers_the_weighted_error_and_says_what_guided_it(tmp_path: Path) -> None:
    spec = FAMILIES["llama-2"]
    source = layouts.write_hf(tmp_path / "hf", spec, random_weights(spec))
    found = measure(source, "thequickbrownfox" * 2, window=WINDOW, dataset="fox.txt")
    for name in found.sums:  # few random tokens: make columns differ as they do in a trained model
        found.sums[name].squares *= np.exp(np.linspace(-3, 3, len(found.sums[name].squares)))
    plain = {e.name: e for e in convert(source, tmp_path / "plain.gguf", type="Q4_0")}
    name = "blocks.0.mlp.up.weight"
    guided = {e.name: e for e in convert(source, tmp_path / "m.gguf", type="Q4_0", importance=found)}
    assert plain[name].weighted is None
    before = open_checkpoint(source).weights[name].dequantize().astype(np.float64)
    w = found.means()[name]

    def weighted(path: Path) -> float:
        difference = open_checkpoint(path).weights[name].dequantize() - before
        return float(np.sqrt((difference**2 @ w).sum() / (before**2 @ w).sum()))

    assert guided[name].weighted == pytest.approx(weighted(tmp_path / "m.gguf"), rel=1e-4)
    assert weighted(tmp_path / "m.gguf") < 0.97 * weighted(tmp_path / "plain.gguf")
    metadata = GgufFile.open(tmp_path / "m.gguf").metadata
    assert metadata["quantize.imatrix.dataset"] == "fox.txt"
    assert metadata["quantize.imatrix.chunks_count"] == 2


def test_importance_of_another_model_is_refused(tmp_path: Path) -> None:
    source = tiny.LAYOUTS["gguf"]()[0].write(tmp_path / "source")
    other = Imatrix({"blocks.0.attn.q.weight": Sums(np.ones(7), 3)})
    with pytest.raises(FormatError, match=r"7 numbers for blocks\.0\.attn\.q\.weight"):
        convert(source, tmp_path / "m.gguf", type="Q4_0", importance=other)
