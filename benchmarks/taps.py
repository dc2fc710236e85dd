"""Every tap beside transformers' own values: model, tap, worst token, error.

    python -m benchmarks.taps              a minute on two cores

Tiny random Llama, Mistral and Mixtral in float32, and SmolLM2 with every weight dequantised; keys and values
in float32. An error is the largest difference over the largest magnitude of the tap; experts must be the
same whole numbers. The matrix goes to results/taps.json.
"""

from __future__ import annotations

import os

import numpy as np

from benchmarks import record
from tests.parity.families import FAMILIES, random_weights
from tests.parity.tap_errors import TapError, our_taps, tap_errors
from tests.parity.test_taps import IDS, TOLERANCE, float_weights
from tests.parity.test_transformers import their_model
from tests.parity.their_taps import their_taps
from vitral.cli.output import table
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve
from vitral.loading import tokenizer_of
from vitral.model.law import F32
from vitral.model.spec import ModelSpec
from vitral.native import choose

TEXT = "The capital of France is Paris, and the capital of Japan is"


def compare(spec: ModelSpec, values: dict[str, F32], ids: list[int]) -> list[TapError]:
    """The errors of every tap of a model with these weights."""
    threads = len(os.sched_getaffinity(0))
    ours = our_taps(spec, float_weights(spec, values), ids, choose(None), threads)
    return tap_errors(ours, their_taps(their_model(spec, values), spec, ids))


def main() -> None:
    found: dict[str, list[TapError]] = {}
    for family in ("llama-2", "llama-3.1", "llama-3.2-tied", "mistral-window", "mixtral", "mixtral-window"):
        found[f"{family}, random"] = compare(FAMILIES[family], random_weights(FAMILIES[family]), IDS)
    checkpoint = open_checkpoint(resolve("smollm2:135m"))
    values = {name: np.ascontiguousarray(tensor.dequantize()) for name, tensor in checkpoint.weights.items()}
    found["smollm2:135m, dequantised"] = compare(checkpoint.spec, values, tokenizer_of(checkpoint).encode(TEXT))
    worst = {model: max(errors, key=lambda e: e.error) for model, errors in found.items()}
    rows = {
        model: {e.tap: {"error": float(f"{e.error:.3g}"), "worst_token": e.worst_token} for e in errors}
        for model, errors in found.items()
    }
    path = record.write(
        "taps",
        {
            "versions": record.versions("transformers", "torch", "numpy"),
            "tolerance": TOLERANCE,
            "passed": all(e.error < TOLERANCE for e in worst.values()),
            "taps": rows,
        },
    )
    columns = ["model", "taps", "worst tap", "token", "error"]
    lines = [[model, len(found[model]), e.tap, e.worst_token, f"{e.error:.1e}"] for model, e in worst.items()]
    table("Taps beside transformers", columns, lines, numbers=columns[1:2] + columns[3:])
    print(f"written to {path}")


if __name__ == "__main__":
    main()
