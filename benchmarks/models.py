"""GGUF files of published shapes with random weights: speed does not depend on the values.

    python -m benchmarks.models FOLDER

Rows are encoded for real, a few for each kind of tensor, and repeated; routers are random throughout,
so that every expert is chosen about as often. The vocabulary is bytes and padding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitral.cli.output import progress_bar
from vitral.formats.dialect_gguf import gguf_metadata
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.mapping import gguf_name
from vitral.formats.mixes import plan_types
from vitral.formats.quantize import encode
from vitral.formats.quants import TYPES, WeightType
from vitral.model.law import F32
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec, MoeSpec, RopeSpec

LLAMA = ModelSpec(
    dim=2048,
    n_layers=22,
    n_heads=32,
    n_kv_heads=4,
    head_dim=64,
    hidden_dim=5632,
    vocab_size=32000,
    norm_eps=1e-5,
    max_context=4096,
    rope=RopeSpec(10_000.0, "none"),
    sliding_window=None,
    tied_embeddings=False,
    moe=None,
)
MIXTRAL = ModelSpec(
    dim=1024,
    n_layers=12,
    n_heads=16,
    n_kv_heads=4,
    head_dim=64,
    hidden_dim=3584,
    vocab_size=32000,
    norm_eps=1e-5,
    max_context=4096,
    rope=RopeSpec(1_000_000.0, "none"),
    sliding_window=None,
    tied_embeddings=False,
    moe=MoeSpec(8, 2),
)
SHAPES = {"llama-1.1b": LLAMA, "mixtral": MIXTRAL}
FILES = {
    "llama-1.1b": ("Q4_0", "Q4_K_M", "Q8_0"),
    "mixtral": ("Q4_0", "Q4_K_M"),
}
_ROWS = 16  # encoded for real, then repeated


def make(folder: Path, shape: str, type_: str) -> Path:
    """The file of a shape and a weight type or mix; made if it is not there."""
    path = folder / f"{shape}.{type_}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(path, SHAPES[shape], type_)
    return path


def write_model(path: Path, spec: ModelSpec, type_: str, skew: float | None = None) -> Path:
    """A GGUF file of a shape, random but for its size; with `skew`, some experts are chosen more often (`Skewed`)."""
    tensors = _tensors(spec, type_, None if skew is None else Skewed(spec, skew))
    with progress_bar(path.name) as bar:
        write_gguf(path, _metadata(spec, path.stem), [_watched(tensors, i, bar) for i in range(len(tensors))])
    return path


class Skewed:
    """Changes to random weights that make routers prefer some experts, others in each layer.

    A router has no bias, so the residual stream gets a constant: feature 0 is 1 in every embedding, and what
    attention and experts write is small, to feature 0 nothing. There the router has the logarithms of Zipf's shares,
    1 / rank ** skew; its other columns tell tokens apart by noise as wide as Gumbel's, with which choosing the
    largest is drawing by share. More rows of the vocabulary differ than elsewhere.
    """

    def __init__(self, spec: ModelSpec, skew: float) -> None:
        self.spec, self.skew = spec, skew

    def rows(self, name: str) -> int:
        """How many rows of a tensor are encoded for real."""
        return 64 * _ROWS if name in ("embed.weight", "unembed.weight") else _ROWS

    def __call__(self, name: str, values: F32, seed: int) -> None:
        """Change the rows (all, or those that are repeated) of a tensor by its canonical name."""
        if name == "embed.weight":
            values[:] = np.where(values < 0, -1, 1)  # of equal size, so that a norm leaves them
            values[:, 0] = 1
        elif name.endswith(".router.weight"):
            assert self.spec.moe is not None
            ranks = np.random.default_rng(seed + 1).permutation(self.spec.moe.n_experts)
            values *= 1.28  # the standard deviation of Gumbel's
            values[:, 0] = -self.skew * np.log1p(ranks)
        elif name.endswith(("attn.o.weight", ".down.weight")):
            values *= 0.1
            values[0] = 0


def _watched(tensors: list[TensorToWrite], i: int, bar: Callable[[int, int], None]) -> TensorToWrite:
    tensor = tensors[i]

    def read() -> NDArray[np.uint8]:
        bar(i + 1, len(tensors))
        return tensor.read()

    return TensorToWrite(tensor.name, tensor.shape, tensor.type, read)


def _tensors(spec: ModelSpec, type_: str, skewed: Skewed | None = None) -> list[TensorToWrite]:
    plan = plan_types(spec, type_)
    found: dict[str, TensorToWrite] = {}
    for seed, (name, shape) in enumerate(tensor_shapes(spec).items()):
        n_real = _ROWS if skewed is None else skewed.rows(name)
        change = None if skewed is None else partial(skewed, name)
        foreign = gguf_name(name)
        if foreign in found:
            continue  # one of the experts that share a tensor
        if "_exps." in foreign:
            assert spec.moe is not None
            shape = (spec.moe.n_experts, *shape)
        kind = TYPES[plan[name].type]
        found[foreign] = TensorToWrite(foreign, shape, kind, partial(_rows, shape, kind.name, seed, n_real, change))
    return list(found.values())


def _rows(
    shape: tuple[int, ...], type_: WeightType, seed: int, n_real: int, change: Callable[[F32, int], None] | None
) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        return np.ones(shape, np.float32).view(np.uint8)[None]
    n = int(np.prod(shape[:-1]))
    some = n if type_ == "F32" else min(n, n_real)
    values = rng.standard_normal((some, shape[-1]), np.float32) / np.float32(np.sqrt(shape[-1]))
    if change is not None:
        change(values, seed)
    raw = encode(type_, values)
    return np.tile(raw, (-(-n // some), 1))[:n]


def _metadata(spec: ModelSpec, name: str) -> dict[str, Any]:
    """The model's keys, and a SentencePiece vocabulary of bytes that is padded to its size."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    letters = ["\u2581", *map(chr, range(ord("a"), ord("z") + 1))]
    tokens += letters + [f"\u2581pad{i}" for i in range(spec.vocab_size - len(tokens) - len(letters))]
    kinds += [1] * (spec.vocab_size - len(kinds))
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.quantization_version": 2,
        **gguf_metadata(spec),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(spec.vocab_size, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="where the files go (3.5 GB)")
    given = options.parse_args()
    for shape, types in FILES.items():
        for type_ in types:
            print(make(given.folder, shape, type_))


if __name__ == "__main__":
    main()
