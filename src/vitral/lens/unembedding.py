"""The way from the residual stream to logits: final norm, gain, unembedding. The one home of the logit lens' arithmetic.

Every operation is the law's, so what is read after the last block is the model's own answer, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from vitral.formats.weights import Weights
from vitral.lens.rounding import is_quantised, rounded, rows_of
from vitral.model import law
from vitral.model.law import F32, Quantised
from vitral.model.spec import ModelSpec

if TYPE_CHECKING:
    from vitral.native import Packed

__all__ = ["Unembedding"]


class Unembedding:
    """Reads residual rows (T, C): `by_law` in NumPy, `by_kernels` to the same bits and fast.

    gain: (C,). rows: the unembedding vectors (n, C) of ids. linear: multiplies (T, C) with all of them, to (T, V).
    """

    def __init__(
        self,
        spec: ModelSpec,
        gain: F32,
        rows: Callable[[NDArray[np.int64]], F32],
        linear: Callable[[F32], F32],
        *,
        is_quantised: bool,
    ) -> None:
        self.spec = spec
        self.gain = gain.reshape(-1)
        self.is_quantised = is_quantised
        self._rows, self._linear = rows, linear

    @classmethod
    def by_law(cls, spec: ModelSpec, weights: Mapping[str, Quantised | F32]) -> Self:
        """From what the reference computes with."""
        gain, matrix = weights["ln_final.weight"], weights[_name(spec)]
        gain = gain.dequantize() if isinstance(gain, Quantised) else gain

        def rows(ids: NDArray[np.int64]) -> F32:
            return matrix.rows(ids).dequantize() if isinstance(matrix, Quantised) else matrix[ids]

        return cls(spec, gain, rows, lambda x: law.linear(matrix, x), is_quantised=isinstance(matrix, Quantised))

    @classmethod
    def by_kernels(cls, spec: ModelSpec, weights: Weights, threads: int = 1) -> Self:
        """From a checkpoint; the unembedding is packed for this CPU when all logits are asked for first."""
        from vitral.native import matmul, pack

        tensor = weights[_name(spec)]

        @cache
        def packed() -> Packed:
            return pack(tensor.type.name, np.ascontiguousarray(tensor.raw()), threads=threads)

        def linear(x: F32) -> F32:
            return matmul(packed(), np.ascontiguousarray(x), threads=threads)

        gain = weights["ln_final.weight"].dequantize()
        return cls(spec, gain, lambda ids: rows_of(tensor, ids), linear, is_quantised=is_quantised(tensor))

    def read(self, h: F32) -> F32:
        """Residual rows after the final norm and gain, (T, C): what the unembedding is given."""
        return np.asarray(self.normalized(h) * self.gain, np.float32)

    def normalized(self, h: F32) -> F32:
        """Residual rows over their scale, before the gain."""
        return np.asarray(h * (np.float32(1) / law.rms_scale(h, self.spec.norm_eps)), np.float32)

    def multiplied(self, x: F32) -> F32:
        """What `read` gives as it is multiplied: rounded to eight bits if the matrix is quantised."""
        return rounded(x) if self.is_quantised else x

    def logits(self, h: F32) -> F32:
        """What residual rows (T, C) would say if the model ended there, (T, V): W_U' N_f(h).

        nostalgebraist 2020, "interpreting GPT: the logit lens".
        """
        return self._linear(self.read(h))

    def rows(self, ids: Sequence[int] | NDArray[np.integer]) -> F32:
        """Unembedding vectors of ids, (n, C)."""
        return self._rows(np.asarray(ids, np.int64))

    def directions(self, ids: Sequence[int] | NDArray[np.integer], scale: F32) -> F32:
        """What each of n residual rows, of norm scale (n, 1), is multiplied with to give the logit of its id: (n, C)."""
        return np.asarray(self.rows(ids) * self.gain / scale, np.float32)

    def logit_of(self, h: F32, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
        """Of each residual row (n, C) the logit of its own id, (n,), from the rows of the matrix that it takes."""
        return self.along(self.normalized(h), self.rows(ids))

    def along(self, h: F32, rows: F32) -> NDArray[np.float64]:
        """The same of rows (n, C) over their scale, as `hook_normalized` shows them, for unembedding vectors (n, C)."""
        x = self.multiplied(np.asarray(h * self.gain, np.float32))
        return np.asarray(np.einsum("nc,nc->n", x, rows, dtype=np.float64))

    def rounding(self, h: F32, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
        """What rounding adds to the same logits, (n,): zero where the matrix is not quantised."""
        x = self.read(h)
        return np.asarray(np.einsum("nc,nc->n", self.multiplied(x) - x, self.rows(ids), dtype=np.float64))


def _name(spec: ModelSpec) -> str:
    return "embed.weight" if spec.tied_embeddings else "unembed.weight"
