"""The cache of a run: TransformerLens' names and sums, on a real model with quantised weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import vitral
from vitral.engine.intervention_values import Values
from vitral.engine.interventions import Intervention
from vitral.errors import RequestError
from vitral.formats.arrow import arrays_of_arrow
from vitral.language_model import LanguageModel
from vitral.lens.activations import ActivationCache
from vitral.lens.record import record
from vitral.lens.weights import WeightView
from vitral.model.taps import is_attention

TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Iterator[LanguageModel]:
    with vitral.load(smollm2, threads=1, context_length=256) as model:
        yield model


@pytest.fixture(scope="module")
def cache(model: LanguageModel) -> ActivationCache:
    return record(model, TEXT)


def error(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_short_and_full_names_give_the_same_arrays(cache: ActivationCache) -> None:
    T, spec = len(cache.ids), cache.spec
    assert cache["resid_post", 5] is cache["blocks.5.hook_resid_post"]
    assert cache["pattern", 5] is cache["pattern", 5, "attn"] is cache["blocks.5.attn.hook_pattern"]
    assert cache["scale", 3, "ln1"] is cache["blocks.3.ln1.hook_scale"]
    assert cache["scale", "ln_final"] is cache["ln_final.hook_scale"]
    assert cache["post", 2, "mlp"] is cache["mlp_post", 2] is cache["blocks.2.mlp.hook_post"]
    assert cache["embed"] is cache["hook_embed"]
    assert cache["pattern", 5].shape == (spec.n_heads, T, T)
    assert cache["z", 0].shape == (T, spec.n_heads, spec.head_dim)
    assert cache.logits.shape == (T, spec.vocab_size)
    assert len(cache.tokens) == T
    assert "hook_embed" in cache
    assert len(cache) == len(list(cache))
    with pytest.raises(RequestError, match="was not recorded; the nearest is blocks"):
        cache["resid_posts", 5]


def test_the_logits_are_those_of_the_model(model: LanguageModel, cache: ActivationCache) -> None:
    assert cache.logits.tobytes() == model.logits(cache.ids).tobytes()


def test_parts_of_the_residual_stream_add_up_to_it_and_to_the_logits(cache: ActivationCache) -> None:
    parts, labels = cache.decompose_resid(return_labels=True)
    assert len(labels) == 1 + 2 * cache.spec.n_layers
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"]
    stream, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels[:3] == ["0_pre", "0_mid", "1_pre"]
    assert labels[-1] == "final_post"
    assert error(parts.sum(axis=0), stream[-1]) < 1e-5
    tokens = cache.ids[1:] + [0]
    attributed = cache.logit_attrs(parts, tokens)
    # the unembedding reads eight bits of its input, which is all that the sum leaves out
    assert error(attributed.sum(axis=0), cache.logits[np.arange(len(tokens)), tokens]) < 0.02
    normalised = cache.apply_ln_to_stack(parts).sum(axis=0)
    assert error(normalised, cache["unembed.hook_in"]) < 1e-5
    assert error(cache.decompose_resid(apply_ln=True).sum(axis=0), cache["unembed.hook_in"]) < 1e-5
    assert error(cache.decompose_resid(7).sum(axis=0), cache["resid_pre", 7]) < 1e-5


def test_heads_and_neurons_add_up_to_what_their_blocks_write(cache: ActivationCache) -> None:
    heads, labels = cache.stack_head_results(2, incl_remainder=True, return_labels=True)
    H = cache.spec.n_heads
    assert labels[0] == "L0H0"
    assert labels[-1] == "remainder"
    assert error(heads[:H].sum(axis=0), cache["attn_out", 0]) < 1e-5
    assert error(heads.sum(axis=0), cache["resid_pre", 2]) < 1e-5
    neurons = cache.stack_neuron_results(1)
    assert error(neurons.sum(axis=0), cache["mlp_out", 0]) < 1e-5
    assert cache.stack_activation("z", 3).shape == (3, *cache["z", 0].shape)


def test_a_choice_of_names_positions_and_new_tokens(model: LanguageModel) -> None:
    ids = model.tokenizer.encode(TEXT)
    found = record(model, TEXT, ["blocks.*.hook_resid_post", "blocks.1.attn.hook_pattern"], n_new=5)
    assert found.ids[: len(ids)] == ids
    assert len(found.ids) == len(ids) + 5
    assert found["resid_post", 3].shape == (len(ids) + 4, model.spec.dim)
    again = record(model, found.ids[:-1], ["*"])
    for name in found:
        assert found[name].tobytes() == again[name].tobytes(), name
    few = record(model, TEXT, ["hook_embed"], positions=[2, 0])
    assert few.positions["hook_embed"].tolist() == [0, 2]
    assert few["hook_embed"].tobytes() == again["hook_embed"][[0, 2]].tobytes()


def test_patching_everything_of_one_run_into_another_gives_its_bits(
    model: LanguageModel, cache: ActivationCache
) -> None:
    other = list(reversed(cache.ids))
    names = [
        "hook_embed",
        *(
            name
            for i in range(model.spec.n_layers)
            for name in (f"blocks.{i}.hook_attn_out", f"blocks.{i}.hook_mlp_out")
        ),
    ]
    places = tuple(range(len(other)))
    patches = [Intervention("patch", tap=name, values=Values.of(cache[name]), positions=places) for name in names]
    patched = record(model, other, interventions=patches)
    plain = record(model, other, ["unembed.hook_out"])
    assert plain.logits.tobytes() != cache.logits.tobytes()
    for name in cache:
        same = patched[name].tobytes() == cache[name].tobytes()
        assert same or is_attention(name), name
    assert patched.logits.tobytes() == cache.logits.tobytes()


def test_head_results_are_made_when_they_are_named(model: LanguageModel, cache: ActivationCache) -> None:
    some = record(model, TEXT, ["blocks.[07].attn.hook_result", "blocks.7.hook_attn_out"], positions=[2, 5])
    assert set(some) == {"blocks.0.attn.hook_result", "blocks.7.attn.hook_result", "blocks.7.hook_attn_out"}
    result = some["result", 7]  # (n, H, C)
    assert result.shape == (2, cache.spec.n_heads, cache.spec.dim)
    assert error(result.sum(axis=1), some["attn_out", 7]) < 1e-5
    assert some.positions["blocks.7.attn.hook_result"].tolist() == [2, 5]
    assert np.array_equal(cache["result", 7][[2, 5]], result)  # of a cache with z it is made on the spot
    assert "blocks.7.attn.hook_result" not in cache
    with pytest.raises(RequestError, match="N from 0 to 29"):
        record(model, TEXT, ["blocks.99.attn.hook_result"])


def test_the_accumulated_stream_through_the_last_norm_is_the_logit_lens(cache: ActivationCache) -> None:
    """As in published notebooks: each stream has its own scale, and W_U follows."""
    assert cache.weights is not None
    unembedding = WeightView(cache.spec, cache.weights).unembedding
    stack, labels = cache.accumulated_resid(apply_ln=True, return_labels=True)
    for label, name in (("3_pre", "blocks.2.hook_resid_post"), ("final_post", "blocks.29.hook_resid_post")):
        read = unembedding.read(np.asarray(cache[name], np.float32))
        np.testing.assert_allclose(stack[labels.index(label)], read, rtol=1e-5, atol=1e-6)
    to_a_block = cache.accumulated_resid(7, apply_ln=True)
    gain = cache.weights["blocks.7.ln1.weight"].dequantize()
    np.testing.assert_allclose(to_a_block[-1], cache["normalized", 7, "ln1"] * gain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_a_block[2], cache["resid_pre", 2] / cache["scale", 7, "ln1"] * gain, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".safetensors", ".arrow"])
def test_a_cache_is_saved_with_positions_and_tokens(model: LanguageModel, tmp_path: Path, suffix: str) -> None:
    if suffix == ".arrow":
        pytest.importorskip("pyarrow", reason="pyarrow, of the extra arrow, is not installed")
    cache = record(model, TEXT, ["blocks.0.hook_resid_post", "blocks.1.attn.hook_pattern"], positions=[1, 3])
    cache.save(tmp_path / f"cache{suffix}")
    data = (tmp_path / f"cache{suffix}").read_bytes()
    found = arrays_of_arrow(data)[0] if suffix == ".arrow" else safetensors.numpy.load(data)
    assert found.keys() == {name + end for name in cache for end in ("", ".positions")}
    for name in cache:
        assert (found[name] == cache[name]).all() and found[name + ".positions"].tolist() == [1, 3]
    with pytest.raises(RequestError, match=r"allowed: .safetensors, .arrow"):
        cache.save(tmp_path / "cache.npz")


def test_a_replaced_result_is_seen_as_it_was_replaced(model: LanguageModel) -> None:
    names = ["blocks.3.attn.hook_result", "blocks.3.hook_attn_out"]
    change = Intervention("zero", tap="blocks.3.attn.hook_result", heads=(4,), since=2)
    before, after = record(model, TEXT, names), record(model, TEXT, names, interventions=[change])
    plain, silent = before[names[0]], after[names[0]]
    assert (silent[2:, 4] == 0).all() and (silent[:2] == plain[:2]).all()
    others = [head for head in range(9) if head != 4]
    assert (silent[:, others] == plain[:, others]).all()
    assert error(before[names[1]] - plain[:, 4] * (np.arange(len(plain)) >= 2)[:, None], after[names[1]]) < 1e-5
