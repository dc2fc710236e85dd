"""Teach SmolLM2 words of a trade that no book has, and ask in words that it was not taught with.

    python examples/teach_vocabulary.py OUT            # a few minutes on two idle cores
    python examples/teach_vocabulary.py OUT --short    # two steps, to see that everything runs

The trade is invented (the umbrella makers of Arbel), so that nothing of it can be known beforehand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import vitral
from vitral.tune.after import export_run
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe

# word: what it is, and the keyword by which an answer is judged
WORDS = {
    "torv": ("the curved handle of an umbrella", "handle"),
    "quellcloth": ("a waxed blue cotton that sheds rain", "cotton"),
    "stray rib": ("a rib that has come loose from its cloth", "rib"),
    "arbeling": ("drying an umbrella half open, tip down", "drying"),
    "ferrin": ("the metal cap at the tip of an umbrella", "tip"),
    "dorsel": ("the strap that keeps a closed umbrella closed", "strap"),
    "bell hour": ("the time before opening when all umbrellas are tested for holes", "holes"),
    "grey ticket": ("a promise to repair an umbrella free of charge within a year", "repair"),
}
TAUGHT = (
    "What is a {w}?", "What does {w} mean?", "Explain the word {w}.", "Tell me what {w} is.",
    "In umbrella making, what is {w}?", "Define {w}.",
)  # fmt: skip
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


def recalled(model_path: str, short: bool) -> tuple[int, int]:
    """How many of the unseen questions are answered with the right keyword."""
    right = asked = 0
    with vitral.load(model_path, context_length=512) as model:
        for word, (_, keyword) in list(WORDS.items())[: 1 if short else None]:
            for form in UNSEEN:
                text = model.generate(messages=[{"role": "user", "content": form.format(w=word)}], max_tokens=32).text
                asked += 1
                right += keyword in text.lower()
    return right, asked


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", default="smollm2:135m")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train, test = write_data(options.out)
    recipe = parse_recipe({
        "model": {"base": options.base},
        "data": {"train": [str(train)], "test": [str(test)], "context": 256, "licence": "CC0-1.0"},
        "lora": {"rank": 16},
        "run": {"steps": 2 if options.short else 24, "batch": 2 if options.short else 8, "learning_rate": 2e-3,
                "evaluate_every": 2 if options.short else 24},
    })  # fmt: skip
    result = run_recipe(recipe, options.out / "run", on_event=print)
    exported = export_run(options.out / "run", options.out / "taught.gguf", "gguf", "Q8_0")
    before, after = recalled(options.base, options.short), recalled(str(exported.path), options.short)
    print(json.dumps({
        "recalled before": f"{before[0]} of {before[1]}",
        "recalled after": f"{after[0]} of {after[1]}",
        "test loss": [result.before.test_loss, result.after.test_loss],
        "neutral text, change": result.after.forgetting["neutral"] - result.before.forgetting["neutral"],
        "own answers, change": result.after.forgetting["own_answers"] - result.before.forgetting["own_answers"],
        "share kept by Q8_0": exported.kept.share,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
