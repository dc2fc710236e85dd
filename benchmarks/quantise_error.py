"""Rounding error and speed of every quantised type against ggml's own encoders.

    python benchmarks/quantise_error.py --ggml libggml-base.so --out benchmarks/results/quantise_error.json

`llama-quantize` hands each tensor to `ggml_quantize_chunk` of the library `ggml-base`; so does this, row
by row of the same float32 values, without and with an importance. Both results are decoded by
`vitral.formats.quants` and compared with the values in float64. K-quants want rows of whole
blocks of 256; a tensor of another width is cut into rows of 256 first, for both sides alike.

Ends with exit code 1 where our root-mean-square error is above 1.02 times ggml's.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vitral import hub
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.quantize import encode
from vitral.formats.quants import TYPES, decode
from vitral.model.law import F32, Quantised

LIMIT = 1.02
QUANTISED = [name for name, info in TYPES.items() if info.block > 1]


class Ggml:
    """The encoders of `libggml-base`."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.chunk = library.ggml_quantize_chunk
        self.chunk.restype = ctypes.c_size_t
        floats = ctypes.POINTER(ctypes.c_float)
        self.chunk.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats]
        library.ggml_version.restype = ctypes.c_char_p
        self.version = library.ggml_version().decode()

    def encode(self, name: str, values: F32, importance: F32 | None) -> np.ndarray:
        info = TYPES[name]
        rows, columns = values.shape
        out = np.empty((rows, columns // info.block * info.bytes_per_block), np.uint8)
        pointer = ctypes.POINTER(ctypes.c_float)
        weights = None if importance is None else importance.ctypes.data_as(pointer)
        self.chunk(info.ggml_id, values.ctypes.data_as(pointer), out.ctypes.data, 0, rows, columns, weights)
        return out


def synthetic(rng: np.random.Generator) -> Iterator[tuple[str, F32]]:
    """Distributions that weights have, and some that they should not have."""
    shape = (64, 1024)
    normal = rng.standard_normal(shape)
    yield "normal", (normal * 0.02).astype(np.float32)
    yield "laplace", (rng.laplace(size=shape) * 0.02).astype(np.float32)
    yield "student t, 3 degrees", (rng.standard_t(3, shape) * 0.02).astype(np.float32)
    yield "uniform", rng.uniform(-1, 1, shape).astype(np.float32)
    yield "all positive", (1 + 0.1 * normal).astype(np.float32)
    yield "zeros", np.zeros(shape, np.float32)
    yield "constant", np.full(shape, 0.3, np.float32)
    yield "tiny", (normal * 1e-6).astype(np.float32)
    yield "large", (normal * 300).astype(np.float32)
    outlier = (normal * 0.02).astype(np.float32)
    outlier[:, 100] = 3.0
    yield "one outlier in a row", outlier
    sparse = np.where(rng.random(shape) < 0.05, normal, 0).astype(np.float32)
    yield "19 of 20 zero", sparse


def of_model(name: str) -> Iterator[tuple[str, F32]]:
    """128 rows of one tensor of each kind from the first, a middle and the last layer."""
    weights = open_checkpoint(hub.resolve(name)).weights
    layers = weights.spec.n_layers
    for i in (0, layers // 2, layers - 1):
        for part in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"):
            full = f"blocks.{i}.{part}.weight"
            yield full, weights[full].dequantize()[:128]
    yield "embed.weight", weights["embed.weight"].dequantize()[:128]


def error_of(name: str, raw: np.ndarray, values: F32, importance: F32 | None) -> float:
    read = decode(name, raw)
    assert isinstance(read, Quantised)
    difference = (read.dequantize().astype(np.float64) - values) ** 2
    if importance is not None:
        difference *= importance
    return float(np.sqrt(difference.mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", type=Path, required=True, help="libggml-base of a llama.cpp build")
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--types", nargs="*", default=QUANTISED, choices=QUANTISED)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ggml = Ggml(options.ggml)
    rng = np.random.default_rng(0)
    tensors = [*synthetic(rng), *of_model(options.model)]
    rows: list[dict[str, Any]] = []
    speed: dict[str, dict[str, float]] = {}
    for kind in options.types:
        seconds = [0.0, 0.0]
        n_weights = 0
        for label, whole in tensors:
            values = whole if whole.shape[1] % TYPES[kind].block == 0 else whole.reshape(-1, TYPES[kind].block)
            values = np.ascontiguousarray(values)
            columns = values.shape[1]
            for importance in (None, np.exp(rng.standard_normal(columns)).astype(np.float32)):
                begun = time.process_time()
                ours = encode(kind, values, importance, threads=1)
                middle = time.process_time()
                theirs = ggml.encode(kind, values, importance)
                ended = time.process_time()
                if importance is None:
                    seconds = [seconds[0] + middle - begun, seconds[1] + ended - middle]
                    n_weights += values.size
                a, b = (error_of(kind, raw, values, importance) for raw in (ours, theirs))
                # Below a millionth of the values both are exact but for float32's own rounding.
                exact = 1e-6 * float(np.sqrt((values.astype(np.float64) ** 2).mean()))
                ratio = 1.0 if max(a, b) <= exact else a / b if b else float("inf")
                rows.append(
                    {"type": kind, "tensor": label, "importance": importance is not None, "rmse": a, "ggml_rmse": b,
                     "ratio": round(ratio, 4)}
                )  # fmt: skip
        speed[kind] = {
            "million_weights_per_s": round(n_weights / seconds[0] / 1e6, 2),
            "ggml_million_weights_per_s": round(n_weights / seconds[1] / 1e6, 2),
        }
        mine = [row for row in rows if row["type"] == kind]
        for guided in (False, True):
            some = [row for row in mine if row["importance"] is guided]
            worst = max(some, key=lambda row: row["ratio"])
            mean, above = float(np.mean([row["ratio"] for row in some])), sum(row["ratio"] > LIMIT for row in some)
            print(f"{kind:7}{' importance' if guided else '':11} mean {mean:.3f}  worst {worst['ratio']:.3f} "
                  f"({worst['tensor']}), {above} of {len(some)} above {LIMIT}", flush=True)  # fmt: skip
        print(f"{kind:7} {speed[kind]}", flush=True)
    above = [row for row in rows if row["ratio"] > LIMIT]
    report = {
        "what": "root-mean-square error of Vitral's encoders over ggml's on the same values",
        "limit": LIMIT,
        "above_limit": above,
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": _cpu(), "system": platform.system(), "threads": 1},
        "versions": {
            "vitral": version("vitral"),
            "numpy": np.__version__,
            "ggml": ggml.version,
            "model": options.model,
        },
        "speed": speed,
        "errors": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if above else 0


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
