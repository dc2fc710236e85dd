"""The taps of a Llama, Mistral or Mixtral of Hugging Face transformers, by forward hooks, under our names."""

from __future__ import annotations

import sys
from typing import Any

import torch
from numpy.typing import NDArray

from vitral.model.spec import ModelSpec

Array = NDArray[Any]


class _Capture:
    """Hooks that keep what passes; `values` are tensors by our names."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.values: dict[str, torch.Tensor] = {}

    def output(self, module: Any, name: str, shape: tuple[int, ...] = (), which: int | None = None) -> None:
        def keep(_module: Any, _inputs: Any, found: Any) -> None:
            value = found if which is None else found[which]
            value = value[0] if isinstance(value, tuple) else value
            self.values[name] = value.reshape(-1, *(shape or value.shape[-1:])).clone()

        module.register_forward_hook(keep)

    def input(self, module: Any, name: str, shape: tuple[int, ...] = ()) -> None:
        def keep(_module: Any, inputs: Any, named: Any) -> None:
            value = inputs[0] if inputs else named["hidden_states"]
            self.values[name] = value.reshape(-1, *(shape or value.shape[-1:])).clone()

        module.register_forward_pre_hook(keep, with_kwargs=True)

    def norm(self, module: Any, name: str, out: str) -> None:
        """A norm's scale and normalised value, from its input by its own formula."""

        def keep(_module: Any, inputs: Any, found: torch.Tensor) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.spec.norm_eps)
            self.values[f"{name}.hook_scale"] = 1 / inverse
            self.values[f"{name}.hook_normalized"] = x * inverse
            self.values[out] = found.reshape(x.shape).clone()

        module.register_forward_hook(keep)


def their_taps(model: Any, spec: ModelSpec, ids: list[int]) -> dict[str, Array]:
    """Every tap that `vitral.model.taps` names, from one pass of a model of transformers."""
    capture = _Capture(spec)
    values = capture.values
    inner = model.model
    capture.output(inner.embed_tokens, "hook_embed")
    queries, keys = (spec.n_heads, spec.head_dim), (spec.n_kv_heads, spec.head_dim)
    layers: dict[Any, str] = {}
    for i, layer in enumerate(inner.layers):
        block = f"blocks.{i}."
        layers[layer.self_attn] = block
        capture.input(layer, block + "hook_resid_pre")
        capture.norm(layer.input_layernorm, block + "ln1", block + "attn.hook_in")
        for which, shape in (("q", queries), ("k", keys), ("v", keys)):
            capture.output(getattr(layer.self_attn, f"{which}_proj"), f"{block}attn.hook_{which}", shape)
        capture.input(layer.self_attn.o_proj, block + "attn.hook_z", queries)
        capture.output(layer.self_attn.o_proj, block + "hook_attn_out")
        capture.input(layer.post_attention_layernorm, block + "hook_resid_mid")
        capture.norm(layer.post_attention_layernorm, block + "ln2", block + "mlp.hook_in")
        if spec.moe is None:
            capture.output(layer.mlp.gate_proj, block + "mlp.hook_pre")
            capture.output(layer.mlp.up_proj, block + "mlp.hook_pre_linear")
            capture.input(layer.mlp.down_proj, block + "mlp.hook_post")
        else:
            capture.output(layer.mlp.gate, block + "mlp.hook_router_logits", which=0)
            capture.output(layer.mlp.gate, block + "mlp.hook_expert_weights_topk", which=1)
            capture.output(layer.mlp.gate, block + "mlp.hook_expert_indices", which=2)
            _experts(layer.mlp.experts, block + "mlp.", values)
        capture.output(layer.mlp, block + "hook_mlp_out")
        capture.output(layer, block + "hook_resid_post")
    capture.norm(inner.norm, "ln_final", "unembed.hook_in")
    capture.output(model.lm_head, "unembed.hook_out")
    if spec.moe is not None:
        model.set_experts_implementation("eager")  # the loop over experts, whose products can be kept
    file = sys.modules[type(inner.layers[0].self_attn).__module__]
    eager = file.eager_attention_forward

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **more: Any) -> Any:
        z, pattern = eager(module, query, key, value, mask, scaling=scaling, **more)
        name = layers[module] + "attn.hook_"
        values[name + "rot_q"], values[name + "rot_k"] = query[0].transpose(0, 1), key[0].transpose(0, 1)
        wide = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = torch.matmul(query, wide.transpose(2, 3))[0] * scaling
        values[name + "attn_scores"] = scores.masked_fill(pattern[0] == 0, -torch.inf)
        values[name + "pattern"] = pattern[0]
        return z, pattern

    file.eager_attention_forward = attention
    try:
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
    finally:
        file.eager_attention_forward = eager
    if spec.moe is not None:
        for i in range(spec.n_layers):
            logits = values[f"blocks.{i}.mlp.hook_router_logits"]
            values[f"blocks.{i}.mlp.hook_router_probs"] = torch.softmax(logits, dim=-1)
    return {name: value.detach().numpy() for name, value in values.items()}


def _experts(module: Any, name: str, values: dict[str, torch.Tensor]) -> None:
    """Keep the products inside the experts' loop; its rows go by rank, ours by token."""
    linear = torch.nn.functional.linear
    products: list[torch.Tensor] = []

    def watch(*_: Any) -> None:
        products.clear()

        def recording(x: Any, weight: Any, bias: Any = None) -> Any:
            products.append(linear(x, weight, bias))
            return products[-1]

        torch.nn.functional.linear = recording

    def keep(_module: Any, inputs: Any, _found: Any) -> None:
        torch.nn.functional.linear = linear
        chosen = inputs[1]
        for n, expert in enumerate(sorted({int(e) for e in chosen.flatten()})):
            tokens = torch.where((chosen == expert).T)[1]
            order = torch.argsort(tokens, stable=True)
            both, out = products[2 * n][order], products[2 * n + 1][order]
            gate, up = both.chunk(2, dim=-1)
            here = f"{name}experts.{expert}.hook_"
            values[here + "pre"], values[here + "pre_linear"], values[here + "out"] = gate, up, out
            values[here + "post"] = module.act_fn(gate) * up

    module.register_forward_pre_hook(watch)
    module.register_forward_hook(keep)
