"""lm-eval's own client against our server: `python -m benchmarks.lm_eval_client LM_EVAL DATA [ITEMS]`.

LM_EVAL is the program of an environment of its own (`pip install 'lm-eval[api]'`), DATA the folder of public sets (the
items are PIQA's, as choices). The unmodified `local-completions` scores them over HTTP on the embedded model; each
log-likelihood is compared with the one of `LanguageModel.logits` in this process. Prints JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import vitral

MODEL = "smollm2:135m"
CONTEXT = 1024
TASK = """task: piqa_sample
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
test_split: validation
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


def save_tokenizer(folder: Path) -> None:
    """The model's tokenizer as lm-eval reads one, written by transformers from the same file."""
    from transformers import AutoTokenizer

    from vitral.hub import pull

    path = pull(MODEL)
    AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(str(folder))


def samples(program: str, data: Path, items: int, folder: Path) -> list[dict[str, Any]]:
    """Serve, have lm-eval score, and return what it logged for each item."""
    save_tokenizer(folder / "tokenizer")
    (folder / "task").mkdir()
    (folder / "task" / "piqa.yaml").write_text(TASK.format(data=data / "piqa" / "piqa.jsonl"))
    serve = [sys.executable, "-m", "vitral", "serve", MODEL, "--port", "0", "--folder", str(folder / "server")]
    with subprocess.Popen(
        [*serve, "--context", str(CONTEXT), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        told = ""
        while not told.endswith("}\n"):
            told += server.stdout.readline()
        try:
            arguments = f"model={MODEL},base_url={json.loads(told)['url']}/v1/completions,"
            arguments += f"tokenizer={folder / 'tokenizer'},num_concurrent=4,max_retries=1"
            run = [program, "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "piqa_sample"]
            run += ["--include_path", str(folder / "task"), "--limit", str(items), "--log_samples"]
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            subprocess.run([*run, "--output_path", str(folder / "out")], check=True, env={**os.environ, **offline})
        finally:
            server.terminate()
    (log,) = (folder / "out").rglob("samples_*.jsonl")
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def in_process(model: vitral.LanguageModel, context: str, continuation: str) -> tuple[float, bool]:
    """The log-likelihood of a continuation in float64, and whether each of its tokens was the likeliest."""
    ids = model.tokenizer.encode(context + continuation, add_special=False)
    first = len(model.tokenizer.encode(context, add_special=False))
    logits = model.logits(ids).astype(np.float64)[first - 1 : -1]  # (T, V)
    largest = logits.max(-1, keepdims=True)
    scores = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    chosen = scores[np.arange(len(scores)), ids[first:]]
    return float(chosen.sum()), bool((logits.argmax(-1) == ids[first:]).all())


def main(program: str, data: str, items: str = "40") -> None:
    with tempfile.TemporaryDirectory() as folder:
        logged = samples(program, Path(data).resolve(), int(items), Path(folder))
    differences, greedy = [], 0
    with vitral.load(MODEL, context_length=CONTEXT) as model:
        for sample in logged:
            for asked, answers in zip(sample["arguments"].values(), sample["resps"], strict=True):
                score, is_greedy = in_process(model, asked["arg_0"], asked["arg_1"])
                found, was_greedy = answers[0]
                differences.append(abs(float(found) - score) / abs(score))
                greedy += (str(was_greedy) == "True") == is_greedy
    result = {
        "items": len(logged),
        "log_likelihoods": len(differences),
        "largest_relative_difference": max(differences),
        "equal_greedy_flags": greedy,
        "accuracy": sum(sample["acc"] for sample in logged) / len(logged),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
