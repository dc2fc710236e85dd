"""Perplexity of each weight type, ours beside llama.cpp's on the same GGUF file, by llama.cpp's windows.

    python -m benchmarks.perplexity_types PEERS [--windows 8] [--types Q4_0,Q4_K_M] [--model smollm2:135m]

PEERS is the folder of `python -m benchmarks.peers`. The model's dequantised weights are quantised by us to each
type (that llama.cpp then loads the file is half of the point), those of four bits and fewer a second time with an
importance matrix of ours, measured on the text's second half, which is not scored. Both programs read the same text: windows of 512 tokens, of
which the second half is scored. The bar: ours at most 0.3 % above llama.cpp's.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import peers, record
from benchmarks.perplexity import nll
from vitral.conversion import convert
from vitral.hub import resolve
from vitral.importance import measure

# every weight type; K-quants by their usual mixes
TYPES = [
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_1",
    "Q5_0",
    "Q4_K_M",
    "Q4_1",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K_M",
    "Q2_K",
]
WEIGHED = ("Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
IMPORTANCE_WINDOWS = 32
WINDOW = 512
ALLOWED = 0.003


def ours(path: Path, text: str, windows: int, threads: int) -> float:
    """Perplexity of the second half of each window."""
    import vitral

    with vitral.load(path, threads=threads, context_length=WINDOW) as model:
        ids = model.tokenizer.encode(text)
        losses = []
        for start in range(0, windows * WINDOW, WINDOW):
            window = ids[start : start + WINDOW]
            losses.append(nll(model.logits(window)[WINDOW // 2 : -1], window[WINDOW // 2 + 1 :]))
    return math.exp(math.fsum(losses) / (windows * (WINDOW // 2 - 1)))


def theirs(tools: Path, path: Path, text: Path, windows: int, threads: int) -> float:
    """What llama-perplexity says of the same windows."""
    command = [str(tools / "llama-perplexity"), "-m", str(path), "-f", str(text), "--chunks", str(windows)]
    done = subprocess.run(
        [*command, "-c", str(WINDOW), "-b", str(WINDOW), "-t", str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    if found is None:
        raise SystemExit(f"llama-perplexity gave no figure for {path.name}:\n{done.stderr[-2000:]}")
    return float(found[1])


def main() -> None:
    """Print a line for each type and keep the table; exit code 1 where the bar is missed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("peers", type=Path, help="the folder of the peers")
    options.add_argument("--model", default="smollm2:135m", help="what is dequantised and quantised again")
    data = Path(os.environ.get("VITRAL_DATA") or "../shared/data")
    options.add_argument("--text", type=Path, default=data / "wikitext-2" / "test.txt", help="UTF-8 text to score")
    options.add_argument("--windows", type=int, default=8)
    options.add_argument("--types", default=",".join(TYPES), help="comma-separated")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the result")
    given = options.parse_args()
    tools = peers.llama_cpp(given.peers.resolve())
    text = given.text.read_text("utf-8")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "F32.gguf"
        convert(resolve(given.model), wide, type="F32")
        half = text[len(text) // 2 :]
        matrix = measure(wide, half, most_windows=IMPORTANCE_WINDOWS, dataset=given.text.name, threads=given.threads)
        kinds = given.types.split(",")
        for kind, weighed in [(kind, False) for kind in kinds] + [(kind, True) for kind in kinds if kind in WEIGHED]:
            file = wide if kind == "F32" else Path(folder) / f"{kind}.gguf"
            if kind != "F32":
                convert(wide, file, type=kind, importance=matrix if weighed else None)
            row = {
                "type": kind,
                "importance": weighed,
                "bytes": file.stat().st_size,
                "vitral": ours(file, text, given.windows, given.threads),
                "llama.cpp": theirs(tools, file, given.text, given.windows, given.threads),
            }
            row["difference"] = row["vitral"] / row["llama.cpp"] - 1
            rows.append(row)
            name = kind + (" + importance" if weighed else "")
            print(
                f"{name:20}{row['bytes'] / 1e6:8.1f} MB  {row['vitral']:9.4f}  llama.cpp {row['llama.cpp']:9.4f}  "
                f"{row['difference']:+.3%}",
                flush=True,
            )
    written = record.write(
        "perplexity_types",
        {
            "versions": {**record.versions("vitral", "numpy"), "llama.cpp": peers.VERSIONS["llama.cpp"]},
            "model": given.model,
            "text": f"{given.text.parent.name}/{given.text.name}",
            "importance_windows": IMPORTANCE_WINDOWS,
            "window": WINDOW,
            "windows": given.windows,
            "tokens_scored": given.windows * (WINDOW // 2 - 1),
            "rows": rows,
        },
        given.out,
    )
    print(f"written to {written}")
    if any(row["difference"] > ALLOWED for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
