"""Weights as a lens reads them: TransformerLens' names, rows dequantised on demand, the file's exact values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from vitral.errors import RequestError
from vitral.formats.weights import Weights
from vitral.lens.rounding import is_quantised, rounded, rows_of
from vitral.lens.unembedding import Unembedding
from vitral.model.law import F32
from vitral.model.spec import ModelSpec

__all__ = ["WeightView"]

_KEPT = 8  # matrices of one layer that stay dequantised


class WeightView:
    """The matrices of a checkpoint, quantised or not, in float32.

    Matrices multiply from the right (`x @ W`), as in TransformerLens. Heads share keys and values in
    groups: `W_K` and `W_V` take a query head and give those of its group. Raises RequestError for a
    layer, head, expert or id that the model has not.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, threads: int = 1) -> None:
        self.spec = spec
        self.threads = threads
        self.tensors = weights
        self.matrix = lru_cache(_KEPT)(self._matrix)

    def rows(self, name: str, which: Sequence[int]) -> F32:
        """Some rows of a tensor (n, columns), without dequantising the others."""
        tensor = self.tensors[name]
        chosen = self._within(np.asarray(which, np.int64).reshape(-1), tensor.shape[0], f"row of {name}")
        return rows_of(tensor, chosen)

    def _matrix(self, name: str) -> F32:
        """A whole tensor, (outputs, inputs); the last few stay in memory."""
        values = self.tensors[name].dequantize()
        values.setflags(write=False)
        return values

    def is_quantised(self, name: str) -> bool:
        """Whether the law rounds what is multiplied with this matrix to eight bits."""
        return is_quantised(self.tensors[name])

    def as_multiplied(self, name: str, x: F32) -> F32:
        """Activations (T, K) as the law multiplies them with this matrix: rounded if it is quantised."""
        return rounded(x) if self.is_quantised(name) else x

    @cached_property
    def unembedding(self) -> Unembedding:
        """From residual rows to logits."""
        return Unembedding.by_kernels(self.spec, self.tensors, self.threads)

    @property
    def unembed_name(self) -> str:
        """The tensor that gives the logits."""
        return "embed.weight" if self.spec.tied_embeddings else "unembed.weight"

    def W_E(self, ids: Sequence[int]) -> F32:  # noqa: N802
        """Embeddings of ids, (n, C)."""
        return self.rows("embed.weight", ids)

    def W_U(self, ids: Sequence[int] | None = None) -> F32:  # noqa: N802
        """Unembedding vectors of ids, or all of them, (C, n)."""
        return (self.matrix(self.unembed_name) if ids is None else self.rows(self.unembed_name, ids)).T

    def W_Q(self, layer: int, head: int) -> F32:  # noqa: N802
        """What a head's query reads, (C, D), before rotation."""
        return self._head_rows(layer, head, "q", 1)

    def W_K(self, layer: int, head: int) -> F32:  # noqa: N802
        """What the keys of a query head read, (C, D), before rotation."""
        return self._head_rows(layer, head, "k", self.spec.heads_per_kv_head)

    def W_V(self, layer: int, head: int) -> F32:  # noqa: N802
        """What the values of a query head read, (C, D)."""
        return self._head_rows(layer, head, "v", self.spec.heads_per_kv_head)

    def W_O(self, layer: int, head: int) -> F32:  # noqa: N802
        """What a head writes, (D, C)."""
        self._check(layer, head)
        D = self.spec.head_dim
        return self.matrix(f"blocks.{layer}.attn.o.weight")[:, head * D : (head + 1) * D].T

    def head_results(self, layer: int, z: F32) -> F32:
        """What each head adds to the residual stream, (n, H, C), from z (n, H, D); over heads they sum to attn_out."""
        name = f"blocks.{layer}.attn.o.weight"
        n, H, D = z.shape
        met = self.as_multiplied(name, z.reshape(n, H * D)).reshape(n, H, D)
        return np.asarray(np.einsum("nhd,chd->nhc", met, self.matrix(name).reshape(-1, H, D)), np.float32)

    def gain(self, name: str) -> F32:
        """The gain (C,) of a norm: `blocks.0.ln1`, `blocks.0.ln2`, `ln_final`."""
        return self.tensors[f"{name}.weight"].dequantize()

    def _head_rows(self, layer: int, head: int, which: str, shared_by: int) -> F32:
        self._check(layer, head)
        D, group = self.spec.head_dim, head // shared_by
        return self.rows(f"blocks.{layer}.attn.{which}.weight", range(group * D, (group + 1) * D)).T

    def _check(self, layer: int, head: int) -> None:
        self._within(np.asarray([layer]), self.spec.n_layers, "layer")
        self._within(np.asarray([head]), self.spec.n_heads, "head")

    @staticmethod
    def _within(chosen: NDArray[np.int64], n: int, what: str) -> NDArray[np.int64]:
        wrong = chosen[(chosen < 0) | (chosen >= n)]
        if len(wrong):
            raise RequestError(f"{what} {wrong[0]} does not exist; allowed: 0 to {n - 1}")
        return chosen
