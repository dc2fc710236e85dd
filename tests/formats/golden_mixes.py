"""What llama.cpp's own rules plan for each file type: writes `mixes.json` beside this file.

    python -m tests.formats.golden_mixes LLAMA_CPP_SOURCE

The functions that choose types are cut out of `src/llama-quant.cpp` as they stand and compiled with a
main of ours (a C++ compiler is needed; the library itself takes half an hour to build). The rules read the
number of layers, heads and experts, whether embeddings are tied, and whether a row is whole blocks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from tests.formats.tiny import PLAIN
from vitral.formats.mapping import gguf_name
from vitral.formats.mixes import FILE_TYPES
from vitral.formats.quants import BY_GGML_ID
from vitral.model.names import tensor_shapes
from vitral.model.spec import ModelSpec, MoeSpec

PATH = Path(__file__).with_name("mixes.json")

# Stands for what the functions see of the rest of llama.cpp; names are theirs.
_BEFORE = r"""
#include "ggml.h"
#include "llama.h"
#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <iostream>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>
#define LLAMA_LOG_WARN(...) ((void) 0)
enum llm_arch { LLM_ARCH_LLAMA, LLM_ARCH_FALCON, LLM_ARCH_GLM5_NEXT, LLM_ARCH_BAILINGMOE3 };
enum llm_type { LLM_TYPE_UNKNOWN, LLM_TYPE_70B };
struct hparams_t { uint32_t n_expert, n_layer_all, gqa; uint32_t n_gqa() const { return gqa; } };
struct llama_model { llm_arch arch; llm_type type; hparams_t hparams; };
template <class... A> static std::string format(const char *, A...) { return "refused"; }
"""
_AFTER = r"""
int main() {
  int ftype, gqa, layers, experts, is_70b, has_imatrix, n;
  std::cin >> ftype >> gqa >> layers >> experts >> is_70b >> has_imatrix >> n;
  llama_model model{LLM_ARCH_LLAMA, is_70b ? LLM_TYPE_70B : LLM_TYPE_UNKNOWN,
                    {uint32_t(experts), uint32_t(layers), uint32_t(gqa)}};
  llama_model_quantize_params params{};
  params.output_tensor_type = params.token_embedding_type = GGML_TYPE_COUNT;
  quantize_state_impl qs(model, &params);
  qs.has_imatrix = has_imatrix;
  std::vector<tensor_metadata> metadata(n);
  std::vector<ggml_tensor> tensors(n);
  for (int i = 0; i < n; i++) {
    std::cin >> metadata[i].name >> tensors[i].ne[0];
    tensors[i].ne[1] = tensors[i].ne[2] = tensors[i].ne[3] = 1;
    std::strncpy(tensors[i].name, metadata[i].name.c_str(), GGML_MAX_NAME - 1);
  }
  init_quantize_state_counters(qs, metadata);
  const ggml_type usual = llama_ftype_get_default_type(llama_ftype(ftype));
  for (int i = 0; i < n; i++) {
    auto type = llama_tensor_get_type_impl(qs, usual, &tensors[i], llama_ftype(ftype), metadata[i].category);
    std::cout << metadata[i].name << ' ' << int(tensor_type_fallback(qs, &tensors[i], type)) << '\n';
  }
}
// What the header-only use of ggml needs of the library.
extern "C" {
int64_t ggml_blck_size(enum ggml_type t) {
  if (t >= GGML_TYPE_Q2_K && t <= GGML_TYPE_Q8_K) return 256;
  if (t == GGML_TYPE_IQ4_XS) return 256;
  if (t == GGML_TYPE_F32 || t == GGML_TYPE_F16 || t == GGML_TYPE_BF16) return 1;
  return 32;
}
const char * ggml_type_name(enum ggml_type) { return ""; }
const char * ggml_get_name(const struct ggml_tensor * t) { return t->name; }
}
"""
_CUTS = (
    ("enum class tensor_category {", "// max amount of tensor data"),
    ("static bool tensor_name_match_token_embd", "//\n// dequantization"),
    ("// incompatible tensor shapes are handled here", "// outer wrapper: determine"),
    ("ggml_type llama_ftype_get_default_type(", "static void init_quantize_state_counters"),
    ("static void init_quantize_state_counters", "//\n// main quantization driver"),
)


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


def build(source: Path, folder: Path) -> Path:
    """The program that plans, compiled from llama.cpp's functions."""
    text = (source / "src" / "llama-quant.cpp").read_text()
    parts = []
    for start, end in _CUTS:
        begin = text.index(start)
        parts.append(text[begin : text.index(end, begin + 1)])
    program = folder / "plan"
    program.with_suffix(".cpp").write_text(_BEFORE + "\n".join(parts) + _AFTER)
    includes = [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
    subprocess.run(["c++", "-std=c++17", "-w", *includes, program.with_suffix(".cpp"), "-o", program], check=True)
    return program


def planned(program: Path, spec: ModelSpec, number: int, importance: bool) -> dict[str, str]:
    """GGUF's tensor names and the types that llama.cpp gives them; those it never quantises are left out."""
    names: dict[str, int] = {}
    for name, shape in tensor_shapes(spec).items():
        if len(shape) == 2 and not name.endswith(".router.weight"):
            names.setdefault(gguf_name(name), shape[1])
    is_70b = spec.n_layers == 80 and spec.n_heads != spec.n_kv_heads and not (spec.moe and spec.moe.n_experts == 8)
    experts = spec.moe.n_experts if spec.moe else 0
    facts = [number, spec.heads_per_kv_head, spec.n_layers, experts, int(is_70b), int(importance), len(names)]
    given = " ".join(map(str, facts)) + "\n" + "\n".join(f"{name} {columns}" for name, columns in names.items())
    done = subprocess.run([program], input=given, capture_output=True, text=True, check=True, timeout=60)
    return {name: BY_GGML_ID[int(kind)].name for name, kind in (line.split() for line in done.stdout.splitlines())}


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
    source = Path(sys.argv[1]).resolve()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(source, Path(folder))
        for label, spec in MODELS.items():
            plans: dict[str, dict[str, str]] = {}
            for name, kind in FILE_TYPES.items():
                if kind.type in ("F32", "F16", "BF16"):
                    continue
                plain, guided = (planned(program, spec, kind.number, importance) for importance in (False, True))
                plans[name] = by_part(plain, spec.n_layers)
                if guided != plain:
                    plans[f"{name}, importance"] = by_part(guided, spec.n_layers)
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(plan)}" for name, plan in plans.items())
            lines.append(f" {json.dumps(label)}: {{\n{rows}\n }}")
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
