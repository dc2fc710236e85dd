"""Adapters written here load in PEFT and compute the same; PEFT's load here; merging adds next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.formats.layouts import write_gguf
from tests.parity.families import FAMILIES, random_weights
from tests.parity.test_transformers import their_model
from tests.tune.models import tiny
from vitral.errors import AdapterMismatch, NumericalError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.gguf import GgufFile
from vitral.tune.adapter_files import load_adapter, save_gguf_adapter, save_peft
from vitral.tune.adapters import adapters_of, attach, merge
from vitral.tune.export import merged_checkpoint, write_merged
from vitral.tune.forward import Packed, Transformer, load_model
from vitral.tune.lora_plan import LoraPlan

IDS = np.random.default_rng(11).integers(0, 160, 29).tolist()
KINDS = ("lora", "rslora", "dora")
ALL = ("q", "k", "v", "o", "gate", "up", "down")


def adapted(family: str, kind: str = "lora", targets: tuple[str, ...] = ALL) -> tuple[Transformer, LoraPlan]:
    model, plan = tiny(family), LoraPlan(4, 8.0, kind=kind, targets=targets)  # type: ignore[arg-type]
    attach(model, plan)
    noise = torch.Generator().manual_seed(1)
    for adapter in adapters_of(model).values():
        adapter.b.data.normal_(0, 0.05, generator=noise)
        if kind == "dora":
            adapter.magnitude.data *= 1 + 0.1 * torch.rand(len(adapter.b), generator=noise)  # type: ignore[operator]
    return model, plan


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(Packed.of([IDS]))


def theirs_with(folder: Path, family: str) -> torch.Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(their_model(FAMILIES[family], random_weights(FAMILIES[family])), folder)
    with torch.no_grad():
        return model(torch.tensor([IDS]), use_cache=False).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_what_is_written_and_computes_the_same(kind: str, tmp_path: Path) -> None:
    model, plan = adapted("llama-3.1", kind)
    save_peft(model, plan, tmp_path, {})
    assert torch.allclose(theirs_with(tmp_path, "llama-3.1"), logits(model), atol=2e-4)


def test_peft_reads_our_experts(tmp_path: Path) -> None:
    model, plan = adapted("mixtral")
    save_peft(model, plan, tmp_path, {})
    assert torch.allclose(theirs_with(tmp_path, "mixtral"), logits(model), atol=2e-4)


def test_pefts_fused_experts_are_read(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=names)
    spec = FAMILIES["mixtral"]
    theirs = get_peft_model(their_model(spec, random_weights(spec)), config)
    noise = torch.Generator().manual_seed(2)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=noise)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor([IDS]), use_cache=False).logits[0]
    model = tiny("mixtral")
    plain = logits(model)
    load_adapter(model, tmp_path)
    assert torch.allclose(logits(model), expected, atol=2e-4)
    assert not torch.allclose(logits(model), plain, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-3.2-tied", "mixtral-window"])
def test_a_reloaded_adapter_is_the_trained_one(family: str, kind: str, tmp_path: Path) -> None:
    model, plan = adapted(family, kind)
    save_peft(model, plan, tmp_path, {"base_digest": "abc"})
    again = tiny(family)
    assert load_adapter(again, tmp_path, "abc").scale == plan.scale
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-3.1", "llama-3.2-tied", "mixtral"])
def test_merging_adds_at_most_2e_4_to_any_logit(family: str, kind: str) -> None:
    model, _ = adapted(family, kind)
    before = logits(model)
    assert float((logits(merge(model)) - before).abs().max()) <= 2e-4
    assert not adapters_of(model)


@pytest.mark.parametrize("layout", ["gguf", "safetensors"])
@pytest.mark.parametrize("family", ["llama-2-grouped", "mixtral"])
def test_a_merged_export_computes_what_the_trainer_does(family: str, layout: str, tmp_path: Path) -> None:
    spec = FAMILIES[family]
    base = open_checkpoint(write_gguf(tmp_path / "base.gguf", spec, random_weights(spec)))
    model, _ = adapted(family)
    out = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    write_merged(model, base, out, layout)  # type: ignore[arg-type]
    assert float((logits(load_model(out)) - logits(model)).abs().max()) <= 2e-4


def test_an_export_keeps_the_bytes_of_what_did_not_change(tmp_path: Path) -> None:
    from vitral.formats.convert import convert

    spec = FAMILIES["llama-3.1"]
    convert(write_gguf(tmp_path / "f.gguf", spec, random_weights(spec)), tmp_path / "base.gguf", type="Q4_0")
    base = open_checkpoint(tmp_path / "base.gguf")
    model = load_model(base)
    attach(model, LoraPlan(4, targets=("q",)))
    found = merged_checkpoint(model, base).weights
    for name in base.weights:
        assert (found[name].type.name == "F32") == (name.endswith("attn.q.weight") or found[name].shape == (64,))


@pytest.mark.parametrize("family", ["llama-3.1", "mixtral"])
def test_a_gguf_adapter_holds_the_same_products_in_gguf_order(family: str, tmp_path: Path) -> None:
    """Every product B @ A of the file, its rows put back in our order, is the adapter's."""
    from vitral.formats.rows import pairs_to_halves

    model, plan = adapted(family, "rslora")
    save_gguf_adapter(model, plan, tmp_path / "a.gguf", {"seed": 1})
    file = GgufFile.open(tmp_path / "a.gguf")
    assert file.metadata["general.type"] == "adapter"
    scale = file.metadata["adapter.lora.alpha"] / plan.rank
    assert scale == pytest.approx(plan.scale)

    def values(name: str) -> np.ndarray:
        tensor = file.tensors[name]
        return np.ascontiguousarray(tensor.raw()).view(np.float32).reshape(tensor.shape)

    for name, adapter in adapters_of(model).items():
        expected = (adapter.b @ adapter.a).detach().numpy()
        _, i, rest = name.split(".", 2)
        words = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
        if rest.startswith("attn."):
            theirs, pick = f"blk.{i}.{words[rest[-1]]}.weight", ()
        elif "experts" in rest:
            _, _, e, part = rest.split(".")
            theirs, pick = f"blk.{i}.ffn_{part}_exps.weight", (int(e),)
        else:
            theirs, pick = f"blk.{i}.ffn_{rest.split('.')[1]}.weight", ()
        found = values(theirs + ".lora_b")[pick] @ values(theirs + ".lora_a")[pick]
        if rest in ("attn.q", "attn.k"):
            found = pairs_to_halves(np.ascontiguousarray(found).view(np.uint8), model.spec.head_dim).view(np.float32)
        assert np.allclose(found, expected, atol=1e-6), name


def test_a_dora_adapter_is_not_written_as_gguf(tmp_path: Path) -> None:
    model, plan = adapted("llama-2", "dora")
    with pytest.raises(AdapterMismatch, match="DoRA"):
        save_gguf_adapter(model, plan, tmp_path / "a.gguf", {})


def test_a_base_that_is_not_the_adapters_is_refused(tmp_path: Path) -> None:
    model, plan = adapted("llama-2")
    save_peft(model, plan, tmp_path, {"base_digest": "a" * 64, "base": "other.gguf"})
    with pytest.raises(AdapterMismatch, match="other.gguf"):
        load_adapter(tiny("llama-2"), tmp_path, "b" * 64)
    with pytest.raises(AdapterMismatch, match="another model"):
        load_adapter(tiny("mistral-nemo"), tmp_path)
    with pytest.raises(AdapterMismatch, match="has not"):
        load_adapter(tiny("mixtral"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"rank_pattern": {"q": 2}}, "rank_pattern"),
        ({"r": 0}, "r is 0"),
        ({"bias": "all"}, "biases"),
        ({"use_dora": True}, "magnitude"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    model, plan = adapted("llama-2")
    save_peft(model, plan, tmp_path, {})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(AdapterMismatch, match=message):
        load_adapter(tiny("llama-2"), tmp_path)


def test_an_adapter_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model, plan = adapted("llama-2")
    next(iter(adapters_of(model).values())).a.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        save_peft(model, plan, tmp_path / "a", {})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"targets": ("router",)}, "router"),
        ({"targets": ("q",), "layers": (7,)}, "there is no layer 7"),
        ({"targets": ("up",), "experts": (3,)}, "no expert 3"),
    ],
)
def test_an_adapter_that_matches_nothing_is_refused(plan: dict[str, object], message: str) -> None:
    with pytest.raises(AdapterMismatch, match=message):
        attach(tiny("llama-2"), LoraPlan(4, **plan))  # type: ignore[arg-type]


def test_only_named_experts_and_layers_are_adapted() -> None:
    names = attach(tiny("mixtral"), LoraPlan(4, targets=("up",), experts=(1, 5), layers=(1,)))
    assert names == ["blocks.1.mlp.experts.1.up", "blocks.1.mlp.experts.5.up"]
