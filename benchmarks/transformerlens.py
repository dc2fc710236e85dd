"""Our names and the helpers of our cache beside TransformerLens' own.

    python -m venv ../transformerlens && . ../transformerlens/bin/activate
    pip install torch==2.13.0 && pip install -e . && pip install "transformer-lens==2.18.0"
    python -m benchmarks.transformerlens              half a minute

TransformerLens 3 and later wrap other programs' models; 2.18 is the last with a Llama and a Mixtral of its own, and so
the independent one. Tiny random models in float32, keys and values in float32. Every hook of TransformerLens that has
a name of ours is compared with the tap of that name, and every helper of `ActivationCache` with ours. An error is the
largest difference over the largest magnitude; labels must be equal. The figures go to results/transformerlens.json.

Ours is the raw basis: where a norm is applied, the gain is too. TransformerLens leaves the gain to folded weights, so
`apply_ln` is compared without it and `logit_attrs` with the gain folded into their unembedding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from tests.parity.families import FAMILIES, random_weights
from tests.parity.tap_errors import our_taps
from tests.parity.test_taps import IDS, TOLERANCE, float_weights
from vitral.cli.output import table
from vitral.errors import RequestError
from vitral.lens.activations import ActivationCache
from vitral.model.law import F32
from vitral.model.spec import ModelSpec
from vitral.native import choose

Array = NDArray[Any]
MODELS = ("llama-2", "llama-2-grouped", "llama-3.1", "mixtral")
TOKEN, OTHER = 11, 7
RENAMED = {  # what a mixture's values are called there
    "mlp.hook_expert_weights": "mlp.hook_router_probs",
    "hook_pre": "hook_pre_linear",
    "hook_gate": "hook_pre",
}


def their_model(spec: ModelSpec, weights: Mapping[str, F32]) -> Any:
    """TransformerLens' own model with these weights."""
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    rope, moe = spec.rope, spec.moe
    config = HookedTransformerConfig(
        n_layers=spec.n_layers,
        d_model=spec.dim,
        n_ctx=spec.max_context,
        d_head=spec.head_dim,
        n_heads=spec.n_heads,
        n_key_value_heads=spec.n_kv_heads if spec.n_kv_heads < spec.n_heads else None,
        d_mlp=spec.hidden_dim,
        d_vocab=spec.vocab_size,
        act_fn="silu",
        eps=spec.norm_eps,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=spec.head_dim,
        rotary_base=int(rope.theta),
        rotary_adjacent_pairs=False,
        use_NTK_by_parts_rope=rope.scaling == "llama3",
        NTK_by_parts_factor=rope.factor or 8.0,
        NTK_by_parts_low_freq_factor=rope.low_freq_factor or 1.0,
        NTK_by_parts_high_freq_factor=rope.high_freq_factor or 4.0,
        NTK_original_ctx_len=rope.original_context or 8192,
        num_experts=moe.n_experts if moe else None,
        experts_per_token=moe.n_experts_per_token if moe else None,
        use_attn_result=True,
        device="cpu",
        seed=0,
    )
    model = HookedTransformer(config)
    state = model.state_dict()
    for name, value in _translated(spec, weights):
        assert state[name].shape == value.shape, (name, state[name].shape, value.shape)
        state[name] = torch.tensor(np.ascontiguousarray(value))
    for name in state:
        if ".b_" in name:
            state[name] = torch.zeros_like(state[name])
    model.load_state_dict(state)
    return model


def _translated(spec: ModelSpec, weights: Mapping[str, F32]) -> Iterator[tuple[str, Array]]:
    """Names and shapes as their state dict has them."""
    H, K, D = spec.n_heads, spec.n_kv_heads, spec.head_dim
    shared = "_" if K < H else ""
    yield "embed.W_E", weights["embed.weight"]
    yield "ln_final.w", weights["ln_final.weight"]
    yield "unembed.W_U", weights["embed.weight" if spec.tied_embeddings else "unembed.weight"].T
    for i in range(spec.n_layers):
        block = f"blocks.{i}."
        yield block + "ln1.w", weights[block + "ln1.weight"]
        yield block + "ln2.w", weights[block + "ln2.weight"]
        for which, heads, mark in (("q", H, ""), ("k", K, shared), ("v", K, shared)):
            rows = weights[f"{block}attn.{which}.weight"].reshape(heads, D, spec.dim)
            yield f"{block}attn.{mark}W_{which.upper()}", rows.swapaxes(1, 2)
        yield block + "attn.W_O", weights[block + "attn.o.weight"].T.reshape(H, D, spec.dim)
        names = {"gate": "W_gate", "up": "W_in", "down": "W_out"}
        if spec.moe is None:
            for ours, theirs in names.items():
                yield f"{block}mlp.{theirs}", weights[f"{block}mlp.{ours}.weight"].T
            continue
        yield block + "mlp.W_gate.weight", weights[block + "mlp.router.weight"]
        for e in range(spec.moe.n_experts):
            for ours, theirs in names.items():
                yield f"{block}mlp.experts.{e}.{theirs}.weight", weights[f"{block}mlp.experts.{e}.{ours}.weight"]


def caches(spec: ModelSpec, weights: dict[str, F32]) -> tuple[ActivationCache, Any, Any]:
    """Our cache of one prompt, theirs, and theirs with the last gain in the unembedding."""
    import torch

    held = float_weights(spec, weights)
    values = our_taps(spec, held, IDS, choose(None), len(os.sched_getaffinity(0)))
    every = np.arange(len(IDS))
    positions = dict.fromkeys(values, every)
    ours = ActivationCache(
        values,
        ids=IDS,
        tokens=[str(i) for i in IDS],
        spec=spec,
        positions=positions,
        weights=float_weights(spec, weights),
    )
    tied = "embed.weight" if spec.tied_embeddings else "unembed.weight"
    folded = {**weights, "ln_final.weight": np.ones(spec.dim, np.float32)}
    if not spec.tied_embeddings:
        folded[tied] = weights[tied] * weights["ln_final.weight"]
    found = []
    for some in (weights, folded):
        with torch.no_grad():
            _, cache = their_model(spec, some).run_with_cache(torch.tensor([IDS]))
        # as remove_batch_dim does, which stumbles over a mixture's values: they have no batch
        cache.cache_dict = {name: value[0] if value.ndim > 2 else value for name, value in cache.items()}
        cache.has_batch_dim = False
        found.append(cache)
    return ours, found[0], found[1]


def error(ours: Array, theirs: Any) -> float:
    """Largest difference over largest magnitude; infinite where shapes, masks or whole numbers differ."""
    other = np.asarray(theirs.detach().numpy() if hasattr(theirs, "detach") else theirs)
    if ours.shape != other.shape:
        return np.inf
    if ours.dtype.kind == "i":
        return 0.0 if (ours == other).all() else np.inf
    finite = np.isfinite(ours)
    if (finite != np.isfinite(other)).any():
        return np.inf
    a, b = np.where(finite, ours, 0).astype(np.float64), np.where(finite, other, 0)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def compare_names(ours: ActivationCache, theirs: Any) -> tuple[dict[str, float], list[str]]:
    """The error of every hook of theirs that we have too, by our name; and the hooks that we have not."""
    errors: dict[str, float] = {}
    missing = []
    for hook, value in theirs.items():
        name = hook
        if ours.spec.moe is not None and ".mlp." in hook:
            tail = hook.rpartition(".")[2]
            name = next((hook.replace(a, b) for a, b in RENAMED.items() if hook.endswith(a)), hook)
            if ".experts." not in hook and tail not in ("hook_expert_weights", "hook_expert_indices"):
                name = hook
        if ".experts." in hook:  # theirs come rank by rank, ours token by token
            block, _, rest = hook.partition(".experts.")
            chosen = theirs[f"{block}.hook_expert_indices"].numpy()
            value = value[np.argsort(np.nonzero((chosen == int(rest.split(".")[0])).T)[1], kind="stable")]
            if not len(value):
                continue  # an expert that no token chose
        try:
            found = ours[name]
        except RequestError:
            missing.append(hook)
            continue
        errors[name] = error(found, value)
    return errors, missing


def compare_helpers(ours: ActivationCache, theirs: Any, folded: Any) -> dict[str, float]:
    """The error of every helper; infinite where labels differ."""
    spec, found = ours.spec, {}

    def both(name: str, a: Any, b: Any, gain: F32 | None = None) -> None:
        (mine, my_labels), (other, their_labels) = a, b
        same = list(my_labels) == list(their_labels)
        found[name] = error(mine if gain is None else mine / gain, other) if same else np.inf

    last = spec.n_layers
    gains = {None: "ln_final.weight", 1: "blocks.1.ln1.weight"}
    assert ours.weights is not None, "the cache was made with them"
    weights = ours.weights
    for layer, name in gains.items():
        gain = weights[name].dequantize()
        at = f"layer {layer}" if layer is not None else "to the end"
        for mid in (False, True):
            both(
                f"accumulated_resid, {at}, incl_mid={mid}",
                ours.accumulated_resid(layer, incl_mid=mid, return_labels=True),
                theirs.accumulated_resid(layer, incl_mid=mid, return_labels=True),
            )
        both(
            f"accumulated_resid, {at}, apply_ln",
            ours.accumulated_resid(layer, apply_ln=True, return_labels=True),
            theirs.accumulated_resid(layer, incl_mid=False, apply_ln=True, return_labels=True),
            None if layer is None else gain,  # to the end they go through the norm itself, gain and all
        )
        for mode in ("all", "attn", "mlp"):
            both(
                f"decompose_resid, {at}, {mode}",
                ours.decompose_resid(layer, mode=mode, return_labels=True),  # type: ignore[arg-type]
                theirs.decompose_resid(layer, mode=mode, return_labels=True),
            )
        both(
            f"decompose_resid, {at}, apply_ln",
            ours.decompose_resid(layer, apply_ln=True, return_labels=True),
            theirs.decompose_resid(layer, apply_ln=True, return_labels=True),
            gain,
        )
        number = last if layer is None else layer
        both(
            f"stack_head_results, {at}, incl_remainder",
            ours.stack_head_results(number, incl_remainder=True, return_labels=True),
            theirs.stack_head_results(number, incl_remainder=True, return_labels=True),
        )
        found[f"stack_activation, {at}"] = error(
            ours.stack_activation("z", number), theirs.stack_activation("z", number)
        )
    if spec.moe is None:
        both(
            "stack_neuron_results, 3 to 20",
            ours.stack_neuron_results(last, slice(3, 20), return_labels=True),
            theirs.stack_neuron_results(last, neuron_slice=slice(3, 20), return_labels=True),
        )
    if not spec.tied_embeddings:
        for name, stack, other in (
            ("layers", ours.decompose_resid(), folded.decompose_resid()),
            ("heads", ours.stack_head_results(), folded.stack_head_results()),
        ):
            for label, against in (("a token", None), ("a difference", OTHER)):
                mine = ours.logit_attrs(stack, TOKEN, against)  # type: ignore[arg-type]
                found[f"logit_attrs of {name}, {label}"] = error(mine, folded.logit_attrs(other, TOKEN, against))
    return found


def main() -> None:
    names: dict[str, dict[str, float]] = {}
    helpers: dict[str, dict[str, float]] = {}
    without: dict[str, list[str]] = {}
    for family in MODELS:
        spec = FAMILIES[family]
        ours, theirs, folded = caches(spec, random_weights(spec))
        names[family], without[family] = compare_names(ours, theirs)
        helpers[family] = compare_helpers(ours, theirs, folded)
    worst = {
        (family, kind): max(errors.items(), key=lambda item: item[1])
        for kind, found in (("names", names), ("helpers", helpers))
        for family, errors in found.items()
    }
    path = record.write(
        "transformerlens",
        {
            "versions": record.versions("transformer-lens", "torch", "numpy"),
            "tolerance": TOLERANCE,
            "passed": all(value < TOLERANCE for _, value in worst.values()),
            "names": {family: _short(errors) for family, errors in names.items()},
            "helpers": {family: _short(errors) for family, errors in helpers.items()},
            "hooks_that_we_have_not": without,
        },
    )
    columns = ["model", "what", "compared", "worst", "error"]
    rows = [
        [family, kind, len((names if kind == "names" else helpers)[family]), name, f"{value:.1e}"]
        for (family, kind), (name, value) in worst.items()
    ]
    table("Beside TransformerLens", columns, rows, numbers=["compared", "error"])
    print("hooks that we have not:", sorted({hook for hooks in without.values() for hook in hooks}))
    print(f"written to {path}")


def _short(errors: dict[str, float]) -> dict[str, float | None]:
    return {name: float(f"{value:.3g}") if np.isfinite(value) else None for name, value in errors.items()}


if __name__ == "__main__":
    main()
