"""transformers as a worker: `python torch_llama.py SHAPE.json THREADS DTYPE`; the weights are random."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import torch
import transformers
from lines import serve


def main() -> None:
    shape, dtype = json.loads(Path(sys.argv[1]).read_text("utf-8")), getattr(torch, sys.argv[3])
    torch.set_num_threads(int(sys.argv[2]))
    kind = transformers.MixtralConfig if "num_local_experts" in shape else transformers.LlamaConfig
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind(**shape), dtype=dtype)
    model = model.to_empty(device="cpu").eval()
    tile = torch.randn(1 << 16, dtype=torch.float32).to(dtype) / 50
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        flat.copy_(tile.repeat(-(-flat.numel() // tile.numel()))[: flat.numel()])
    tied = shape["tie_word_embeddings"]
    if tied:
        model.tie_weights()
    rotary = model.model.rotary_emb
    rotary.inv_freq = shape["rope_theta"] ** -(torch.arange(0, shape["head_dim"], 2) / shape["head_dim"])

    def ids(n: int, rows: int = 1) -> torch.Tensor:
        return torch.tensor([[random.randrange(shape["vocab_size"]) for _ in range(n)] for _ in range(rows)])

    @torch.inference_mode()
    def prefill(prompt: int) -> float:
        given = ids(prompt)
        began = time.perf_counter()
        model(given, logits_to_keep=1)
        return prompt / (time.perf_counter() - began)

    @torch.inference_mode()
    def together(answer: int, sequences: int) -> float:
        cache = transformers.DynamicCache()
        token = model(ids(16, sequences), past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        began = time.perf_counter()
        for _ in range(answer - 1):
            token = model(token, past_key_values=cache).logits.argmax(-1)
        return sequences * (answer - 1) / (time.perf_counter() - began)

    about = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "dtype": sys.argv[3]}
    serve(about, {"prefill": prefill, "decode": lambda answer: together(answer, 1), "together": together})


if __name__ == "__main__":
    main()
