"""Damage for the fuzzer: a valid model and random numbers in, a damaged one out.

Two fifths of the damage are blind (`mutate_bytes`); the rest knows the layout (`mutate_checkpoints`) or the grammar
of a vocabulary's files (`mutate_text`).
"""

from __future__ import annotations

from random import Random

from tests.formats.mutate_bytes import blind
from tests.formats.mutate_checkpoints import gguf_file, header_numbers, safetensors_file, zip_file
from tests.formats.mutate_text import json_text, template_text
from tests.formats.tiny import GgufParts, Sample

Parts = dict[str, GgufParts]


def mutate(sample: Sample, parts: Parts, rng: Random) -> dict[str, bytes | None]:
    """The files that differ from the sample's; None for one that is gone.

    `parts` are the GGUF files of the sample taken apart, by name.
    """
    names = list(sample.files)
    name = rng.choice(names)
    if rng.random() < 0.01 and len(names) > 1:
        return {name: rng.choice([None, b"", sample.files[rng.choice(names)]])}
    data = sample.files[name]
    if rng.random() < 0.4:
        return {name: blind(data, rng, structure_bytes(name, data))}
    match name.rsplit(".")[-1]:
        case "json":
            return {name: json_text(data, rng)}
        case "gguf":
            return {name: gguf_file(parts[name], rng) if name in parts else blind(data, rng, 1024)}
        case "safetensors":
            return {name: safetensors_file(data, rng)}
        case "pth":
            return {name: zip_file(data, rng)}
        case "jinja":
            return {name: template_text(data, rng)}
        case _ if name.startswith("tokenizer."):
            return {name: blind(data, rng, len(data))}
    return {name: header_numbers(data, rng)}


def structure_bytes(name: str, data: bytes) -> int:
    """How far the part of a file reaches that says how to read the rest."""
    if name.endswith(".safetensors"):
        return int.from_bytes(data[:8], "little") + 8
    return {"gguf": 1600, "bin": 28}.get(name.rsplit(".")[-1], len(data))
