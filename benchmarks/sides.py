"""Ours and theirs, behind one door: `run("decode", answer=64)` gives tokens per second.

Workers are processes that load a model once and wait; llama.cpp's tools load it each time and
measure without the loading. Only one computes at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vitral.model.spec import ModelSpec

WORKERS = Path(__file__).parent / "workers"


class Failed(Exception):
    """A side could not do what was asked; the message is its own."""


class Side(Protocol):
    """One engine with one model."""

    about: Mapping[str, Any]

    def run(self, what: str, **how: int) -> float:
        """Tokens per second of `prefill`, `decode` or `together`. Raises Failed."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


class Worker:
    """A process that speaks lines of JSON (`workers/lines.py`)."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        self.about = self._answer()

    def run(self, what: str, **how: int) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"run": what, **how}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None
        return float(self._answer()["value"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or ["nothing"]
        return f"ended with code {self._process.returncode}, saying: {lines[-1]}"


def ours(model: str, threads: int, context: int) -> Worker:
    """Vitral, of this environment."""
    source = str(Path(__file__).parent.parent / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    return Worker(sys.executable, str(WORKERS / "ours.py"), model, str(threads), str(context), PYTHONPATH=path)


def openvino(python: Path, model: Path, threads: int) -> Worker:
    """OpenVINO GenAI on a GGUF file of Q4_0, Q4_1 or Q8_0."""
    return Worker(str(python), str(WORKERS / "openvino_gguf.py"), str(model), str(threads), PYTHONPATH="")


def transformers(python: Path, spec: ModelSpec, threads: int, folder: Path) -> Worker:
    """transformers with random weights of a shape: bf16 where the CPU multiplies it, else float32."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    dtype = "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
    shape: dict[str, Any] = {
        "hidden_size": spec.dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.hidden_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_context,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied_embeddings,
    }
    if spec.moe is not None:
        shape |= {"num_local_experts": spec.moe.n_experts, "num_experts_per_tok": spec.moe.n_experts_per_token}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{spec.dim}x{spec.n_layers}.json"
    file.write_text(json.dumps(shape), "utf-8")
    return Worker(
        str(python), str(WORKERS / "torch_llama.py"), str(file), str(threads), dtype,
        PYTHONPATH="", OMP_NUM_THREADS=str(threads),
    )  # fmt: skip


class LlamaCpp:
    """llama.cpp's own benchmarks."""

    def __init__(self, tools: Path, model: Path, threads: int) -> None:
        self._tools, self._model, self._threads = tools, model, threads
        self.about: Mapping[str, Any] = {"built": "for this CPU, AMX off"}

    def run(self, what: str, **how: int) -> float:
        common = ["-m", str(self._model), "-t", str(self._threads)]
        if what == "together":
            n, answer = how["sequences"], how["answer"]
            sizes = ["-npp", "16", "-ntg", str(answer), "-npl", str(n), "-c", str(n * (answer + 32))]
            found = self._json("llama-batched-bench", *common, *sizes, "--output-format", "jsonl")
            return float(found["speed_tg"])
        prompt, answer = (how["prompt"], 0) if what == "prefill" else (0, how["answer"])
        found = self._json("llama-bench", *common, "-p", str(prompt), "-n", str(answer), "-r", "1", "-o", "jsonl")
        return float(found["avg_ts"])

    def close(self) -> None:
        """Nothing runs between calls."""

    def _json(self, tool: str, *args: str) -> dict[str, Any]:
        done = subprocess.run([str(self._tools / tool), *args], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                value: dict[str, Any] = json.loads(line)
                return value
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Failed(f"{tool} ended with code {done.returncode}, saying: {last}")
