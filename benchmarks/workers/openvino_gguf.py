"""OpenVINO GenAI as a worker: `python openvino_gguf.py MODEL.gguf THREADS`."""

from __future__ import annotations

import random
import sys
from importlib import metadata
from typing import Any

import numpy as np
import openvino
import openvino_genai
from lines import serve


def main() -> None:
    pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU", INFERENCE_NUM_THREADS=int(sys.argv[2]))

    def generated(prompt: int, answer: int) -> Any:
        ids = openvino.Tensor(np.array([[random.randrange(1000, 30000) for _ in range(prompt)]], np.int64))
        config = openvino_genai.GenerationConfig(max_new_tokens=answer, ignore_eos=True)
        return pipeline.generate(ids, config).perf_metrics

    def prefill(prompt: int) -> float:
        return prompt / (generated(prompt, 1).get_ttft().mean / 1000)

    def decode(answer: int) -> float:
        return 1000 / generated(16, answer).get_tpot().mean

    serve({"versions": {"openvino-genai": metadata.version("openvino-genai")}}, {"prefill": prefill, "decode": decode})


if __name__ == "__main__":
    main()
