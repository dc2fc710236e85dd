"""Twenty fixed questions to SmolLM2-135M-Instruct and what it answers, greedily, on every machine.

    python -m tests.golden.questions --record          write the answers down anew (look at them!)
    python -m tests.golden.questions --isa scalar      compare all of them on one instruction set

The test beside this file compares all answers on the fastest instruction set and a part on the others.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitral.engine.request import Finished, NewToken, SamplingParams
from vitral.language_model import LanguageModel
from vitral.loading import load

FILE = Path(__file__).with_name("smollm2-135m.json")
MODEL = "smollm2:135m"
MAX_TOKENS = 40
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Brazil?",
    "What is a prism?",
    "Who wrote Romeo and Juliet?",
    "How many days are in a week?",
    "Name three primary colours.",
    "What is photosynthesis?",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Translate 'good morning' into Portuguese.",
    "Why is the sky blue?",
    "Give me a short recipe for tomato soup.",
    "Write a Python function that adds two numbers.",
    "What does a doctor do?",
    "Tell me the opposite of 'hot'.",
    "What is the largest planet in the solar system?",
    "Qual é a capital do Brasil?",
    "O que é um vitral?",
    "Quantos dias tem uma semana?",
    "Escreva uma frase sobre o mar.",
)


def answers(model: LanguageModel, which: Sequence[int], max_tokens: int = MAX_TOKENS) -> dict[int, list[int]]:
    """Greedy answers, as ids, of the questions of these numbers, all in one batch."""
    params = SamplingParams(max_tokens=max_tokens, stop_ids=model.tokenizer.eos_ids)
    found: dict[int, list[int]] = {i: [] for i in which}
    number = {}
    for i in which:
        prompt = model.tokenizer.encode_chat([{"role": "user", "content": QUESTIONS[i]}])
        number[model.engine.add(prompt, params)] = i
    while not model.engine.idle:
        for event in model.engine.step():
            if isinstance(event, NewToken):
                found[number[event.request_id]].append(event.token)
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    return found


def recorded() -> list[dict[str, Any]]:
    """Question, token ids and text of each."""
    return json.loads(FILE.read_text("utf-8"))


def record() -> None:
    """Write all answers down."""
    with load(MODEL, context_length=256) as model:
        found = answers(model, range(len(QUESTIONS)))
        entries = [
            {"question": question, "text": model.tokenizer.decode(found[i], skip_special=True), "token_ids": found[i]}
            for i, question in enumerate(QUESTIONS)
        ]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    FILE.write_text(f"[\n{lines}\n]\n", "utf-8")


def compare(isa: str | None, threads: int | None) -> None:
    """Compare all answers; ends with exit code 1 and the first difference."""
    with load(MODEL, context_length=256, isa=isa, threads=threads) as model:
        for i, entry in enumerate(recorded()):
            found = answers(model, [i])[i]
            print("same " if found == entry["token_ids"] else "OTHER", entry["question"], flush=True)
            if found != entry["token_ids"]:
                raise SystemExit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--record", action="store_true", help="write the answers down anew")
    options.add_argument("--isa", help="the instruction set; the fastest if not said")
    options.add_argument("--threads", type=int, help="how many compute")
    given = options.parse_args()
    if given.record:
        record()
    else:
        compare(given.isa, given.threads)


if __name__ == "__main__":
    main()
