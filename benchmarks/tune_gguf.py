"""A tuned export in llama.cpp: `python -m benchmarks.tune_gguf LLAMA_SIMPLE [--base smollm2:135m] [--result]`.

An adapter with fixed random values stands for a tuning: every product it touches is another one. The merged
model is written as GGUF in float types, and llama.cpp's `llama-simple`, which is greedy, continues a prompt by
32 tokens; our engine does the same. The texts must be equal, and other than the untuned model's. Beside it: the
most that merging in float32 adds to a logit, and whether the adapter that is read back is the one that was written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

import vitral
from benchmarks.record import versions, write
from vitral.conversion import tokenizer_files
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve
from vitral.loading import tokenizer_of
from vitral.tune.adapter_files import load_adapter, save_peft
from vitral.tune.adapters import adapters_of, attach, merge
from vitral.tune.export import write_merged
from vitral.tune.forward import Packed, load_model
from vitral.tune.lora_plan import LoraPlan

PROMPTS = ("The lighthouse keeper wrote in his diary that", "To repair an umbrella, first")
TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("llama_simple", type=Path)
    parser.add_argument("--base", default="smollm2:135m")
    parser.add_argument("--result", action="store_true", help="keep the figures in benchmarks/results/tune_gguf.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = open_checkpoint(resolve(options.base))
    model = load_model(base)
    plan = LoraPlan(8, 16.0)
    attach(model, plan)
    noise = torch.Generator().manual_seed(5)
    for adapter in adapters_of(model).values():
        adapter.b.data.normal_(0, 0.02, generator=noise)
    with vitral.load(options.base, context_length=128) as plain:
        untuned = [plain.generate(prompt, max_tokens=TOKENS).text for prompt in PROMPTS]
    found: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("F32", "F16", "BF16"):
            path = Path(folder) / f"{kind}.gguf"
            write_merged(model, base, path, "gguf", kind, tokenizer=tokenizer_files(base.path, "gguf"))
            with vitral.load(str(path), context_length=128) as ours:
                for prompt, before in zip(PROMPTS, untuned, strict=True):
                    mine = ours.generate(prompt, max_tokens=TOKENS).text
                    command = [str(options.llama_simple), "-m", str(path), "-n", str(TOKENS), "-ngl", "0", prompt]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    theirs = done.stdout.strip().removeprefix("<|im_start|>").strip().removeprefix(prompt)
                    found.setdefault(kind, []).append({"prompt": prompt, "vitral": mine, "llama.cpp": theirs,
                                                       "equal": mine.strip() == theirs.strip(), "changed by tuning": mine != before})  # fmt: skip
        tokenizer = tokenizer_of(base)
        text = Packed.of([tokenizer.encode(prompt) for prompt in PROMPTS])
        with torch.no_grad():
            save_peft(model, plan, Path(folder) / "adapter", {"base_digest": base.weights.digest()})
            again = load_model(base)
            load_adapter(again, Path(folder) / "adapter", base.weights.digest())
            adapted = model.logits(text)
            reloaded = torch.equal(again.logits(text), adapted)
            added = float((merge(model).logits(text) - adapted).abs().max())
    figures = {"exports": found, "reloaded adapter gives the same logits to the bit": reloaded,
               "the most that merging in float32 adds to a logit": added, "logits compared": adapted.numel()}  # fmt: skip
    print(json.dumps(figures, indent=2, ensure_ascii=False))
    if options.result:
        write("tune_gguf", {"base": options.base, "tokens": TOKENS, **figures, "versions": versions("torch")})


if __name__ == "__main__":
    main()
