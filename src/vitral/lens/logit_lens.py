"""What the model would say if it stopped after a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitral.errors import FormatError, RequestError, TensorMismatch
from vitral.lens.finding import Finding
from vitral.lens.glass import Values
from vitral.lens.statistics import log_softmax
from vitral.lens.weights import WeightView
from vitral.model.law import F32
from vitral.native import top_rows

__all__ = ["LogitLens", "Translator", "commitment_layer", "lens_logits", "logit_lens", "read_translator", "target_lens"]

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Translator:
    """What is done to a residual row before it is read: h @ matrix' + bias, by layer.

    Identity plus a learned map for a tuned lens (arXiv 2303.08112); the mean Jacobian for a Jacobian
    lens (transformer-circuits.pub/2026/workspace). A layer that is not named is read as it is.
    """

    kind: str
    matrices: Mapping[int, F32]
    biases: Mapping[int, F32]

    def __call__(self, layer: int, h: F32) -> F32:
        """Rows (T, C) of the residual stream after a layer, translated."""
        if layer not in self.matrices:
            return h
        return h @ self.matrices[layer].T + self.biases.get(layer, np.float32(0))


@dataclass(frozen=True, slots=True)
class LogitLens(Finding):
    """The full lens: L + 1 rows, row 0 the embedding, row l what stands after l blocks.

    ids, probabilities: (L + 1, T, top), likeliest first. entropy: (L + 1, T), nats. kl: (L + 1, T),
    KL(final || layer), nats. ranks: (L + 1, T) of the tokens that the last layer finds likeliest, 1 is first.
    """

    ids: NDArray[np.int64]
    probabilities: F64
    entropy: F64
    kl: F64
    ranks: NDArray[np.int64]


def residuals(values: Values, n_layers: int) -> list[F32]:
    """The residual stream before the first block and after each, (T, C) each."""
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(n_layers))]
    missing = [name for name in names if name not in values]
    if missing:
        raise RequestError(f"{missing[0]} was not recorded; record blocks.0.hook_resid_pre and *.hook_resid_post")
    return [np.asarray(values[name], np.float32) for name in names]


def lens_logits(weights: WeightView, h: F32) -> F32:
    """Logits (T, V) of residual rows (T, C): W_U' N_f(h), by the law. Of the last layer: the model's, to the bit."""
    return weights.unembedding.logits(h)


def logit_lens(values: Values, weights: WeightView, *, top: int = 5, translator: Translator | None = None) -> LogitLens:
    """Read every layer with the final norm and the unembedding: p_l = softmax(W_U' N_f(h_l)).

    Cost: the unembedding once more for every layer. A translator changes all layers but the last.
    """
    spec = weights.spec
    stream = residuals(values, spec.n_layers)

    def read(layer: int) -> F32:
        h = stream[layer]
        if translator is not None and layer < spec.n_layers:
            h = translator(layer, h)
        return weights.unembedding.logits(h)

    final = log_softmax(read(spec.n_layers))  # (T, V)
    likely = np.exp(final)
    best = final.argmax(axis=-1)  # (T,)
    ids, probabilities, entropy, kl, ranks = [], [], [], [], []
    for layer in range(spec.n_layers + 1):
        logits = read(layer)
        p = log_softmax(logits)
        probability = np.exp(p)
        order = top_rows(logits, top).astype(np.int64)
        ids.append(order)
        probabilities.append(np.take_along_axis(probability, order, axis=-1))
        entropy.append(-np.einsum("tv,tv->t", probability, p))
        kl.append(np.einsum("tv,tv->t", likely, final - p))
        ranks.append(1 + (p > np.take_along_axis(p, best[:, None], axis=-1)).sum(axis=-1))
    return LogitLens(np.stack(ids), np.stack(probabilities), np.stack(entropy), np.stack(kl), np.stack(ranks))


def target_lens(
    values: Values, weights: WeightView, targets: Sequence[int], translator: Translator | None = None
) -> F64:
    """Logits of a few tokens at every layer, (L + 1, T, n): the rows of the unembedding that they need, and no more."""
    columns = weights.W_U(targets).astype(np.float64)  # (C, n)
    found = []
    for layer, h in enumerate(residuals(values, weights.spec.n_layers)):
        if translator is not None and layer < weights.spec.n_layers:
            h = translator(layer, h)
        found.append(weights.unembedding.multiplied(weights.unembedding.read(h)).astype(np.float64) @ columns)
    return np.stack(found)


def commitment_layer(ranks: NDArray[np.integer]) -> NDArray[np.int64]:
    """For each token, the first row of `ranks` (L + 1, T) from which it stays 1 to the end; L + 1 if never.

    >>> commitment_layer(np.array([[1, 9], [5, 1], [1, 1]])).tolist()
    [2, 1]
    """
    stays = np.logical_and.accumulate((ranks == 1)[::-1], axis=0)[::-1]
    return np.where(stays.any(axis=0), stays.argmax(axis=0), len(ranks)).astype(np.int64)


def read_translator(path: Path, weights: WeightView, kind: str) -> Translator:
    """A published lens from a safetensors file, or a `.pt` of torch such as tuned-lens' `params.pt`, of tensors alone.

    kind: "tuned" or "jacobian". Tensors `<layer>.weight` (C, C) and, tuned alone, `<layer>.bias` (C,). A tuned lens stores what is
    added to the identity; layer l reads what stands after l blocks. Raises FormatError for other names, UnsafeFile
    for a pickle that holds more than tensors.
    """
    from vitral.formats.pickle import read_torch
    from vitral.formats.safetensors import read_safetensors

    if kind not in ("tuned", "jacobian"):
        raise RequestError(f"a lens of kind {kind!r}; allowed: tuned, jacobian")
    dim, n_layers = weights.spec.dim, weights.spec.n_layers
    matrices: dict[int, F32] = {}
    biases: dict[int, F32] = {}
    tensors = read_torch(path).tensors if path.suffix in (".pt", ".pth") else read_safetensors(path)
    for name, tensor in tensors.items():
        layer, _, what = name.partition(".")
        if not layer.isdecimal() or int(layer) >= n_layers or what not in ("weight", "bias")[: 1 + (kind == "tuned")]:
            raise FormatError(f"{path}: tensor {name!r}; a {kind} lens has <layer>.weight for layers below {n_layers}")
        shape = (dim, dim) if what == "weight" else (dim,)
        if tensor.shape != shape:
            raise TensorMismatch(f"{path}: tensor {name!r} has shape {tensor.shape}; this model wants {shape}")
        number = int(layer)
        if what == "bias":
            biases[number] = tensor.dequantize()
        else:
            matrices[number] = tensor.dequantize() + (np.eye(dim, dtype=np.float32) if kind == "tuned" else 0)
    if not matrices or not set(biases) <= set(matrices):
        raise FormatError(
            f"{path} has {len(matrices)} matrices, and biases of {len(biases)} layers; each needs its matrix"
        )
    return Translator(kind, matrices, biases)
