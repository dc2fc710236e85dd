"""Perplexity on WikiText-2, ours beside transformers' on the same file dequantised, window by window.

    python -m benchmarks.perplexity [--windows 30] [--model smollm2:135m] [--text FILE]

Windows of 512 tokens stand one after another; every token of a window but its first is scored with all
before it in the window as context. Both programs get the same ids. The whole text takes about an hour
on two cores, nearly all of it transformers'; the figures go to results/perplexity.json.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from vitral.cli.output import progress_bar
from vitral.hub import resolve

WINDOW = 512
ALLOWED = 0.005  # of transformers' perplexity


def our_losses(path: Path, windows: list[list[int]], threads: int) -> list[float]:
    """Summed negative log-likelihood of each window."""
    import vitral

    with vitral.load(path, threads=threads, context_length=WINDOW) as model, progress_bar("vitral") as bar:
        losses = []
        for done, ids in enumerate(windows, 1):
            found = model.perplexity(ids, window=WINDOW, stride=WINDOW)
            losses.append(found.mean_nll * found.tokens)
            bar(done, len(windows))
    return losses


def their_losses(path: Path, windows: list[list[int]], threads: int) -> list[float]:
    """The same from transformers: float32 weights, eager attention, one window at a time."""
    import torch

    torch.set_num_threads(threads)
    model = their_model(path)
    losses = []
    with torch.no_grad(), progress_bar("transformers") as bar:
        for done, ids in enumerate(windows, 1):
            logits = model(torch.tensor([ids])).logits[0].numpy()
            losses.append(nll(logits[:-1], ids[1:]))
            bar(done, len(windows))
    return losses


def their_model(path: Path) -> Any:
    """A GGUF file as transformers reads it, every weight dequantised to float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    return model.eval()


def nll(logits: NDArray[np.float32], targets: list[int]) -> float:
    """Summed negative log-likelihood of the targets (T,) under logits (T, V), in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return float((np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(targets)), targets]).sum())


def cut(ids: list[int], most: int | None) -> list[list[int]]:
    """Windows of 512 one after another; a last one too short to score is left out."""
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    return [window for window in windows if len(window) > 1][:most]


def main() -> None:
    import vitral

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2:135m", help="a GGUF file, or the short name of one")
    data = Path(os.environ.get("VITRAL_DATA") or "../shared/data")
    options.add_argument("--text", type=Path, default=data / "wikitext-2" / "test.txt", help="UTF-8 text")
    options.add_argument("--windows", type=int, help="the first so many; all if not said")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the result")
    given = options.parse_args()
    path = Path(resolve(given.model))
    with vitral.load(path, context_length=WINDOW) as model:
        windows = cut(model.tokenizer.encode(given.text.read_text("utf-8")), given.windows)
    scored = sum(len(window) - 1 for window in windows)
    sides: dict[str, dict[str, Any]] = {}
    for name, measure in (("vitral", our_losses), ("transformers", their_losses)):
        began = time.perf_counter()
        losses = measure(path, windows, given.threads)
        sides[name] = {
            "perplexity": math.exp(math.fsum(losses) / scored),
            "seconds": round(time.perf_counter() - began, 1),
            "window_mean_nll": [
                round(loss / (len(window) - 1), 6) for loss, window in zip(losses, windows, strict=True)
            ],
        }
        print(f"{name:14}{sides[name]['perplexity']:.4f}  in {sides[name]['seconds']} s")
    difference = sides["vitral"]["perplexity"] / sides["transformers"]["perplexity"] - 1
    print(f"difference    {difference:+.4%} of {scored:,} tokens in {len(windows)} windows; allowed {ALLOWED:.1%}")
    written = record.write(
        "perplexity",
        {
            "versions": record.versions("vitral", "numpy", "torch", "transformers"),
            "model": given.model,
            "text": f"{given.text.parent.name}/{given.text.name}",
            "window": WINDOW,
            "stride": WINDOW,
            "windows": len(windows),
            "tokens_scored": scored,
            "difference": difference,
            **sides,
        },
        given.out,
    )
    print(f"written to {written}")
    if abs(difference) > ALLOWED:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
