"""The values of a run by name, and what TransformerLens' notebooks compute from them.

Arrays have no batch axis: (T, ...) and patterns (H, T, S). The basis is raw, as the checkpoint has it:
gains are not folded into the weights, and nothing is centred. Where a method applies a norm, it uses the
scale that the run recorded and the gain, so that what it returns can meet `W_U` as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.formats.arrow import arrays_as_arrow
from vitral.formats.bounds import nearest
from vitral.formats.safetensors import arrays_as_safetensors
from vitral.formats.weights import Weights
from vitral.lens.results import RESULT
from vitral.lens.rounding import rounded, rows_of
from vitral.lens.weights import WeightView
from vitral.model.law import F32, Quantised, rms_scale
from vitral.model.spec import ModelSpec

__all__ = ["ActivationCache"]

Array = NDArray[Any]
_LONG = {  # TransformerLens' short names, and where in a block they are
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "pattern": "attn.hook_pattern",
    "attn": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
    **{name: f"attn.hook_{name}" for name in ("q", "k", "v", "z", "rot_q", "rot_k", "result")},
    "pre": "mlp.hook_pre",
    "pre_linear": "mlp.hook_pre_linear",
    "post": "mlp.hook_post",
    "mlp_post": "mlp.hook_post",
    **{name: f"mlp.hook_{name}" for name in ("router_logits", "router_probs", "expert_indices")},
    "expert_weights_topk": "mlp.hook_expert_weights_topk",
    "embed": "hook_embed",
    "scale": "hook_scale",
    "normalized": "hook_normalized",
}


class ActivationCache(Mapping[str, Array]):
    """Values by name: `cache["blocks.5.hook_resid_post"]`, `cache["resid_post", 5]`, `cache["pattern", 5, "attn"]`.

    ids: the prompt's tokens and those that were added; tokens: their pieces. positions: of each value's
    rows, by name. `logits` (T, V) where they were kept. A value that was not kept raises RequestError.
    """

    def __init__(
        self,
        values: Mapping[str, Array],
        *,
        ids: Sequence[int],
        tokens: Sequence[str],
        spec: ModelSpec,
        positions: Mapping[str, NDArray[np.int64]],
        weights: Weights | None = None,
    ) -> None:
        self._values = dict(values)
        self.ids = list(ids)
        self.tokens = list(tokens)
        self.spec = spec
        self.positions = dict(positions)
        self.weights = weights

    def __getitem__(self, key: str | tuple[Any, ...]) -> Array:
        name = key if isinstance(key, str) else _full_name(*key)
        name = name if name in self._values else _full_name(name)
        z = name.replace(RESULT, "attn.hook_z")
        if name not in self._values and name.endswith(RESULT) and z in self._values:
            return WeightView(self.spec, self._weights()).head_results(int(name.split(".")[1]), self._values[z])
        if name not in self._values:
            near = nearest(name, list(self._values))
            raise RequestError(f"{name!r:.60} was not recorded" + (f"; the nearest is {near}" if near else ""))
        return self._values[name]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def logits(self) -> F32:
        """The logits (T, V)."""
        return self["unembed.hook_out"]

    def save(self, path: Path) -> None:
        """Write every value `NAME` and its `NAME.positions` to a `.safetensors` or an `.arrow` file, with ids and tokens.

        RequestError for another suffix, SettingsError for Arrow without the extra `arrow`.
        """
        if path.suffix not in (".safetensors", ".arrow"):
            raise RequestError(f"{path.name} has the suffix {path.suffix!r}; allowed: .safetensors, .arrow")
        arrays: dict[str, Array] = {}
        for name, value in self._values.items():
            arrays[name] = value
            arrays[name + ".positions"] = self.positions[name]
        notes = {"ids": json.dumps(self.ids), "tokens": json.dumps(self.tokens)}
        written = arrays_as_arrow(arrays, notes) if path.suffix == ".arrow" else arrays_as_safetensors(arrays, notes)
        path.write_bytes(written)

    def accumulated_resid(
        self, layer: int | None = None, incl_mid: bool = False, apply_ln: bool = False, return_labels: bool = False
    ) -> F32 | tuple[F32, list[str]]:
        """The residual stream before each block up to `layer`, and at the end: (n, T, C).

        layer: None or -1 for all blocks and the final stream. incl_mid: also between attention and MLP. apply_ln: to the
        end, each stream goes through the last norm with its own scale, which is the logit lens; to a block, all over
        the scale that the run had there.
        """
        last = self._layer(layer)
        labels, parts = [], []
        for i in range(last + (last < self.spec.n_layers)):
            labels.append(f"{i}_pre")
            parts.append(self["resid_pre", i])
            if incl_mid and i < last:
                labels.append(f"{i}_mid")
                parts.append(self["resid_mid", i])
        if last == self.spec.n_layers:
            labels.append("final_post")
            parts.append(self["resid_post", last - 1])
        stack = np.stack(parts)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, recompute_ln=last == self.spec.n_layers)
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mode: Literal["all", "attn", "mlp"] = "all",
        apply_ln: bool = False,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> F32 | tuple[F32, list[str]]:
        """What embedding, attention and MLP of the blocks before `layer` add to the stream: (n, T, C).

        With mode "all" and embeddings they sum to the residual stream that enters `layer`.
        """
        labels, parts = (["embed"], [self["hook_embed"]]) if incl_embeds else ([], [])
        for i in range(self._layer(layer)):
            for what in ("attn", "mlp"):
                if mode in ("all", what):
                    labels.append(f"{i}_{what}_out")
                    parts.append(self[f"{what}_out", i])
        return self._stacked(parts, labels, layer, apply_ln, return_labels)

    def stack_activation(self, activation_name: str, layer: int = -1) -> Array:
        """One value of all blocks before `layer`, stacked."""
        return np.stack([self[activation_name, i] for i in range(self._layer(layer))])

    def stack_head_results(
        self, layer: int = -1, apply_ln: bool = False, incl_remainder: bool = False, return_labels: bool = False
    ) -> F32 | tuple[F32, list[str]]:
        """What each head of the blocks before `layer` adds to the stream: (L * H, T, C).

        Computed from `attn.hook_z` and W_O, from the 8-bit form of z where the engine uses it, so that the
        heads of a block sum to its `hook_attn_out` but for rounding. incl_remainder: what the heads leave
        of the stream, last.
        """
        labels, parts = [], []
        for i in range(self._layer(layer)):
            labels += [f"L{i}H{h}" for h in range(self.spec.n_heads)]
            parts += list(self["result", i].swapaxes(0, 1))  # (H, T, C)
        if incl_remainder:
            parts, labels = self._with_remainder(parts, labels, layer)
        return self._stacked(parts, labels, layer, apply_ln, return_labels)

    def stack_neuron_results(
        self,
        layer: int = -1,
        neuron_slice: slice = slice(None),
        apply_ln: bool = False,
        incl_remainder: bool = False,
        return_labels: bool = False,
    ) -> F32 | tuple[F32, list[str]]:
        """What each neuron of the blocks before `layer` adds: (n, T, C), labels L0N5. Large: give a slice.

        In a mixture of experts the neurons of each expert, times its mixing weight, labels L0E3N5: the slice is taken of
        every expert, and what an expert adds to a token that did not go to it is 0.
        """
        labels, parts = [], []
        for i in range(self._layer(layer)):
            for of, name, rows, share in self._networks(i):
                neurons = range(self.spec.hidden_dim)[neuron_slice]
                part = np.zeros((len(neurons), len(self["mlp_out", i]), self.spec.dim), np.float32)
                if len(rows):
                    post, w = self._met(f"{name}.down.weight", self[f"{name}.hook_post"])
                    part[:, rows] = (share * post.T[neuron_slice])[:, :, None] * w.T[neuron_slice][:, None]
                parts += list(part)
                labels += [f"{of}N{n}" for n in neurons]
        if incl_remainder:
            parts, labels = self._with_remainder(parts, labels, layer)
        return self._stacked(parts, labels, layer, apply_ln, return_labels)

    def _networks(self, layer: int) -> Iterator[tuple[str, str, NDArray[np.int64], F32]]:
        """Label and name of a block's network or of each expert, the rows of its tokens, its weight for each."""
        moe = self.spec.moe_of(layer)
        if moe is None:
            rows = np.arange(len(self["post", layer]))
            yield f"L{layer}", f"blocks.{layer}.mlp", rows, np.ones(len(rows), np.float32)
            return
        indices, weights = self["expert_indices", layer], self["expert_weights_topk", layer]
        for expert in range(moe.n_experts):
            rows, place = np.nonzero(indices == expert)
            yield f"L{layer}E{expert}", f"blocks.{layer}.mlp.experts.{expert}", rows, weights[rows, place]

    def apply_ln_to_stack(
        self, residual_stack: F32, layer: int | None = None, mlp_input: bool = False, recompute_ln: bool = False
    ) -> F32:
        """Components (n, T, C) over the scale that the whole stream has, times the gain: they still add up.

        layer: the block whose norm it is (its second with mlp_input); None or -1 for the last norm. recompute_ln:
        over the scale of each component itself, as if it were the whole stream; they do not add up then.
        """
        at = self._layer(layer)
        name = "ln_final" if at == self.spec.n_layers else f"blocks.{at}.ln{2 if mlp_input else 1}"
        gain = self._weights()[f"{name}.weight"].dequantize()
        own = rms_scale(residual_stack, self.spec.norm_eps) if recompute_ln else self[f"{name}.hook_scale"]
        return np.asarray(residual_stack / own * gain)

    def logit_attrs(
        self,
        residual_stack: F32,
        tokens: int | Sequence[int],
        incorrect_tokens: int | Sequence[int] | None = None,
        *,
        has_ln: bool = False,
    ) -> F32:
        """What each component (n, T, C) adds to the logit of a token (one, or one for each position): (n, T).

        With `incorrect_tokens`, to the difference of two logits. has_ln: the stack went through `apply_ln` already.
        """
        scaled = residual_stack if has_ln else self.apply_ln_to_stack(residual_stack)
        direction = self._unembedding(tokens)
        if incorrect_tokens is not None:
            direction = direction - self._unembedding(incorrect_tokens)
        return np.asarray((scaled * direction).sum(axis=-1))

    def _unembedding(self, tokens: int | Sequence[int]) -> F32:
        """Rows of the unembedding (C,) or (T, C)."""
        tensor = self._weights()["embed.weight" if self.spec.tied_embeddings else "unembed.weight"]
        which = np.atleast_1d(np.asarray(tokens, np.int64))
        if which.min() < 0 or which.max() >= self.spec.vocab_size:
            raise RequestError(f"tokens are {which.tolist()[:5]}; allowed: 0 to {self.spec.vocab_size - 1}")
        values = rows_of(tensor, which)
        return values if np.ndim(tokens) else values[0]

    def _met(self, name: str, x: F32) -> tuple[F32, F32]:
        """Activations as the law multiplies them with a matrix, and the matrix."""
        law = self._weights()[name].law()
        if not isinstance(law, Quantised):
            return x, law
        return rounded(x), law.dequantize()

    def _with_remainder(self, parts: list[F32], labels: list[str], layer: int) -> tuple[list[F32], list[str]]:
        at = self._layer(layer)
        whole = self["resid_post", at - 1] if at == self.spec.n_layers else self["resid_pre", at]
        return [*parts, whole - np.sum(parts, axis=0)], [*labels, "remainder"]

    def _stacked(
        self, parts: list[F32], labels: list[str], layer: int | None, apply_ln: bool, return_labels: bool
    ) -> F32 | tuple[F32, list[str]]:
        stack = np.stack(parts)
        stack = self.apply_ln_to_stack(stack, layer) if apply_ln else stack
        return (stack, labels) if return_labels else stack

    def _layer(self, layer: int | None) -> int:
        """How many blocks come before; None and -1 are all."""
        if layer is None or layer == -1:
            return self.spec.n_layers
        if not 0 <= layer <= self.spec.n_layers:
            raise RequestError(f"layer is {layer}; allowed: 0 to {self.spec.n_layers}, or -1 for the end")
        return layer

    def _weights(self) -> Weights:
        if self.weights is None:
            raise RequestError("this model was made without its weights at hand; open it with vitral.load")
        return self.weights


def _full_name(name: str, layer: int | None = None, part: str | None = None) -> str:
    """TransformerLens' short forms: ("pattern", 5), ("pattern", 5, "attn"), ("scale", 5, "ln1"), ("scale", "ln_final")."""
    if isinstance(layer, str):
        layer, part = None, layer
    if part in ("a", "m"):
        part = {"a": "attn", "m": "mlp"}[part]
    long = _LONG.get(name, name)
    if part is not None and not long.startswith(f"{part}."):
        long = f"{part}.{long.rpartition('.')[2]}"
    return long if layer is None else f"blocks.{layer}.{long}"
