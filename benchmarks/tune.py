"""LoRA fine-tuning beside TRL with PEFT: `python -m benchmarks.tune [--base smollm2:135m] [--steps 5]`.

The same weights, rows, adapter, precision and threads. Turns are interleaved (ours, TRL at its defaults, TRL
without recomputed activations, ours, ...), because a shared machine is another one a minute later; each figure
is the median over the turns, with the range. With one thread the CPU's own time is what counts, because others
who use the machine do not lengthen it; with more it is the clock's, and both are kept. The first turn is not counted. A turn is one optimiser
step over the same batch; losses of the first step are printed too, and must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import versions, write
from vitral.conversion import convert
from vitral.formats.checkpoint import open_checkpoint
from vitral.hub import resolve
from vitral.loading import tokenizer_of
from vitral.tune.adapters import attach
from vitral.tune.batch import Batch, Row
from vitral.tune.forward import load_model
from vitral.tune.lora_plan import LoraPlan
from vitral.tune.losses.sft import Sft
from vitral.tune.policy import Policy
from vitral.tune.trainer import Plan, Trainer

RANK, TARGETS = 8, ("q", "k", "v", "o", "gate", "up", "down")
THEIRS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows_of(vocab: int, count: int, length: int, answer: int) -> list[Row]:
    """Rows of unequal lengths around `length`, of which the last `answer` share in 100 carries loss."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        n = int(length * rng.uniform(0.5, 1.5))
        prompt = n - max(1, n * answer // 100)
        rows.append(Row(tuple(rng.integers(10, vocab, n).tolist()), (False,) * prompt + (True,) * (n - prompt)))
    return rows


class _Fixed:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def batches(self, step: int) -> list[Batch]:
        return [self.batch]

    def places(self, step: int) -> str:
        return "the benchmark's rows"


def ours(base: str, rows: list[Row], precision: str) -> Callable[[], float]:
    model = load_model(open_checkpoint(resolve(base)), torch.bfloat16 if precision == "bfloat16" else torch.float32)
    attach(model, LoraPlan(RANK, 16.0, targets=TARGETS))
    trainer = Trainer(Policy(model, precision), None, Sft(), Plan(1000, 2e-4, "constant", 0.0))  # type: ignore[arg-type]
    source = _Fixed(Batch.of(rows))
    return lambda: trainer.run_step(source).loss


def theirs(folder: Path, rows: list[Row], precision: str, recompute: bool) -> Callable[[], float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [
            {"input_ids": list(r.ids), "labels": [i if m else -100 for i, m in zip(r.ids, r.supervised, strict=True)]}
            for r in rows
        ]
    )
    args = SFTConfig(output_dir=str(folder / "trl"), per_device_train_batch_size=len(rows), learning_rate=2e-4, bf16=precision == "bfloat16",
                     lr_scheduler_type="constant", gradient_checkpointing=recompute, report_to=[], use_cpu=True, max_length=None,
                     max_grad_norm=1.0, dataset_kwargs={"skip_prepare_dataset": True})  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = SFTTrainer(
        model, args=args, train_dataset=data, peft_config=LoraConfig(r=RANK, lora_alpha=16, target_modules=THEIRS)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.create_optimizer_and_scheduler(1000)
    trainer.current_gradient_accumulation_steps = 1  # what its own loop sets before each step

    def step() -> float:
        trainer.model.train()
        trainer.optimizer.zero_grad()
        loss = trainer.training_step(trainer.model, dict(batch))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        return float(loss)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--base", default="smollm2:135m")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--answer", type=int, default=50, help="share of each row that carries loss, in 100")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", action="store_true", help="keep the figures in benchmarks/results/tune_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vocab = tokenizer_of(open_checkpoint(resolve(options.base))).vocab_size
    rows = rows_of(vocab, options.rows, options.length, options.answer)
    tokens = sum(len(row.ids) for row in rows)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        convert(resolve(options.base), folder, layout="safetensors", type="F32")
        kinds: dict[str, Callable[[], float]] = {
            "vitral": ours(options.base, rows, options.precision),
            "trl, defaults": theirs(folder, rows, options.precision, True),
            "trl, fastest": theirs(folder, rows, options.precision, False),
        }
        first = {name: step() for name, step in kinds.items()}
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        busy: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(options.steps):
            for name, step in kinds.items():
                began, busy_before = time.perf_counter(), time.process_time()
                step()
                seconds[name].append(time.perf_counter() - began)
                busy[name].append(time.process_time() - busy_before)
    counted = busy if options.threads == 1 else seconds
    rates: dict[str, Any] = {
        name: {"tokens_per_s": tokens / statistics.median(s), "range": [tokens / max(s), tokens / min(s)]}
        for name, s in counted.items()
    }
    figures = {
        "base": options.base, "tokens_a_step": tokens, "precision": options.precision, "threads": options.threads,
        "first_loss": first, "speed": rates,
        "times_trl_fastest": rates["vitral"]["tokens_per_s"] / rates["trl, fastest"]["tokens_per_s"],
        "times_trl_defaults": rates["vitral"]["tokens_per_s"] / rates["trl, defaults"]["tokens_per_s"],
        "turns": options.steps, "counted": "CPU seconds" if options.threads == 1 else "seconds by the clock",
        "cpu_seconds": busy, "clock_seconds": seconds,
        "peak_rss_bytes_all_three": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    if options.result:
        write("tune_speed", figures | {"versions": versions("torch", "trl", "peft", "transformers")})


if __name__ == "__main__":
    main()
