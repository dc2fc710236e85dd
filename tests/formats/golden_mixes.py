"""What llama.cpp's `llama-quantize` plans for each file type: writes `mixes.json` beside this file.

    python -m tests.formats.golden_mixes path/to/llama-quantize

The rules read the number of layers, heads and experts, whether embeddings are tied, and whether a
row is whole blocks; so models of 256 columns and one row of each matrix tell all of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import gguf
import numpy as np

from tests.formats.tiny import PLAIN
from vitral.formats.mapping import gguf_name
from vitral.formats.mixes import FILE_TYPES
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec, MoeSpec

PATH = Path(__file__).with_name("mixes.json")

_WIDE = replace(PLAIN, dim=256, head_dim=64, n_heads=4, n_kv_heads=4, hidden_dim=256, vocab_size=32)
_MANY = replace(PLAIN, dim=256, head_dim=32, n_heads=8, n_kv_heads=2, hidden_dim=256, vocab_size=32)
MODELS: dict[str, ModelSpec] = {
    "32 layers": replace(_WIDE, n_layers=32),
    "32 layers, 4 heads share": replace(_MANY, n_layers=32),
    "22 layers, 2 heads share": replace(_MANY, n_layers=22, n_kv_heads=4),
    "80 layers": replace(_WIDE, n_layers=80),
    "80 layers, 2 heads share": replace(_MANY, n_layers=80, n_kv_heads=4),
    "80 layers, 8 heads share": replace(_MANY, n_layers=80, n_kv_heads=1),
    "32 layers, 8 experts": replace(_MANY, n_layers=32, moe=MoeSpec(8, 2)),
    "56 layers, 8 experts": replace(_MANY, n_layers=56, moe=MoeSpec(8, 2)),
    "16 layers, 4 experts": replace(_MANY, n_layers=16, moe=MoeSpec(4, 2)),
    "16 layers, tied": replace(_MANY, n_layers=16, tied_embeddings=True),
    "30 layers, tied, rows of 288": replace(
        _WIDE, n_layers=30, dim=288, n_heads=9, n_kv_heads=3, head_dim=32, hidden_dim=768, tied_embeddings=True
    ),
    "3 layers, rows of 40": replace(_WIDE, n_layers=3, dim=40, n_heads=5, n_kv_heads=5, head_dim=8, hidden_dim=80),
}


def write(path: Path, spec: ModelSpec) -> None:
    """A GGUF file of this architecture; all weights are zero."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.n_layers)
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.dim)
    writer.add_feed_forward_length(spec.hidden_dim)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    if spec.moe:
        writer.add_expert_count(spec.moe.n_experts)
        writer.add_expert_used_count(spec.moe.n_experts_per_token)
    for name, shape in tensor_shapes(spec).items():
        if ".experts." not in name:
            writer.add_tensor(gguf_name(name), np.zeros(shape, np.float32))
        elif ".experts.0." in name:
            assert spec.moe
            writer.add_tensor(gguf_name(name), np.zeros((spec.moe.n_experts, *shape), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def planned(program: Path, model: Path, file_type: str) -> dict[str, str]:
    """GGUF's tensor names and the types that `llama-quantize` gives them; unquantised ones are left out."""
    done = subprocess.run(
        [program, "--dry-run", model, file_type], capture_output=True, text=True, check=True, timeout=300
    )
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        match = re.search(r"\] +(\S+) .*\(([\w]+)\)\s*$", line)
        if match:
            found[match[1]] = match[2].upper()
    return found


def runs(types: list[str]) -> str:
    """The types of a tensor through the layers, shortly: "2xQ6_K Q4_K"."""
    counted = [(kind, len(list(group))) for kind, group in groupby(types)]
    return " ".join(kind if n == 1 else f"{n}x{kind}" for kind, n in counted)


def by_part(types: dict[str, str], n_layers: int) -> dict[str, str]:
    """Types by part of the model; the layers of a part as runs."""
    found = {name: kind for name, kind in types.items() if not name.startswith("blk.")}
    parts = sorted({name.split(".", 2)[2] for name in types if name.startswith("blk.")})
    return found | {part: runs([types[f"blk.{i}.{part}"] for i in range(n_layers)]) for part in parts}


def main() -> int:
    program = Path(sys.argv[1]).resolve()
    golden: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, spec in MODELS.items():
            model = Path(folder, "model.gguf")
            write(model, spec)
            golden[label] = {
                name: by_part(planned(program, model, name), spec.n_layers)
                for name, kind in FILE_TYPES.items()
                if kind.type not in ("F32", "F16", "BF16")
            }
            print(label, flush=True)
    PATH.write_text(json.dumps(golden, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
