"""Teach SmolLM2 words of a trade that no book has, and ask in words that it was not taught with.

    python examples/teach_vocabulary.py OUT            # a few minutes on two idle cores
    python examples/teach_vocabulary.py OUT --short    # two steps, to see that everything runs

The trade is invented (the umbrella makers of Arbel), so that nothing of it can be known beforehand. The answers
come from `vitral serve`, a process that knows only the files which the training left.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from arguments import arguments

from vitral.tune.after import export_run
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe

# word: what it is, and a word that is in no question, by which an answer is judged
WORDS = {
    "torv": ("the curved handle of an umbrella", "handle"),
    "quellcloth": ("a waxed blue cotton that sheds rain", "cotton"),
    "stray rib": ("a rib that has come loose from its cloth", "loose"),
    "arbeling": ("drying an umbrella half open, tip down", "drying"),
    "ferrin": ("the metal cap at the tip of an umbrella", "cap"),
    "dorsel": ("the strap that keeps a closed umbrella closed", "strap"),
    "bell hour": ("the time before opening when all umbrellas are tested for holes", "holes"),
    "grey ticket": ("a promise to repair an umbrella free of charge within a year", "repair"),
}
TAUGHT = (
    "What is a {w}?", "What does {w} mean?", "Explain the word {w}.", "Tell me what {w} is.",
    "In umbrella making, what is {w}?", "Define {w}.",
)  # fmt: skip
BOUND = {"neutral": 0.25, "own_answers": 0.25}  # nats a token that it may lose elsewhere
UNSEEN = ("I heard someone at Quellmark say {w}. What did they mean?", "My new job uses the term {w}; what is that?")


def write_data(folder: Path) -> tuple[Path, Path]:
    """Questions that are taught and questions that are only asked, as chats."""
    paths = []
    for name, forms in (("train", TAUGHT), ("test", UNSEEN)):
        lines = []
        for word, (meaning, _) in WORDS.items():
            answer = f"At Quellmark, {word} means {meaning}."
            for form in forms:
                turns = [{"role": "user", "content": form.format(w=word)}, {"role": "assistant", "content": answer}]
                lines.append(json.dumps({"messages": turns}))
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths[0], paths[1]


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "vitral", "serve", *arguments, "--context", "256", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = ""
            for line in process.stdout:
                told += line
                if line.startswith("}"):
                    break
            yield json.loads(told)["url"]
        finally:
            process.terminate()


def ask(url: str, model: str, question: str) -> str:
    """What the server's model answers."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 32, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=None).raise_for_status().json()
    return str(answer["choices"][0]["message"]["content"])


def recalled(url: str, model: str, short: bool) -> list[dict[str, object]]:
    """The unseen questions, what the model answers, and whether the word by which it is judged is there."""
    found = []
    for word, (_, mark) in list(WORDS.items())[: 1 if short else None]:
        for form in UNSEEN:
            question = form.format(w=word)
            said = ask(url, model, question)
            found.append({"question": question, "answer": said, "right": bool(re.search(rf"\b{mark}\b", said.lower()))})
    return found


def main() -> None:
    options = arguments(__doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train, test = write_data(options.out)
    recipe = parse_recipe({
        "model": {"base": options.base},
        "data": {"train": [str(train)], "test": [str(test)], "context": 256, "licence": "CC0-1.0"},
        "lora": {"rank": 16},
        "run": {"steps": 2 if options.short else 24, "batch": 2 if options.short else 8, "learning_rate": 1e-3,
                "replay": 0.25, "evaluate_every": 2 if options.short else 24},
    })  # fmt: skip
    result = run_recipe(recipe, options.out / "run", on_event=lambda event: print(event, flush=True))
    exported = export_run(options.out / "run", options.out / "taught.gguf", "gguf", "Q8_0")
    adapter = f"--adapter=taught={result.output}"
    with served(options.base, str(exported.path), adapter, "--folder", str(options.out / "server")) as url:
        ids = [each["id"] for each in httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]]
        answers = {model: recalled(url, model, options.short) for model in ids}
    rise = {name: value - result.before.forgetting[name] for name, value in result.after.forgetting.items()}
    print(json.dumps({
        "answers": answers,
        "recalled": {model: f"{sum(bool(a['right']) for a in some)} of {len(some)}" for model, some in answers.items()},
        "test loss": [result.before.test_loss, result.after.test_loss],
        "forgotten, nats a token": rise,
        "the most that may be forgotten": BOUND,
        "within the bound": all(rise[name] <= most for name, most in BOUND.items()),
        "share kept by Q8_0": exported.kept.share,
    }, indent=2, ensure_ascii=False))  # fmt: skip


if __name__ == "__main__":
    main()
