"""Tune SmolLM2 towards a tone by preferences (DPO): thanks and a next step, rather than a bare refusal.

    python examples/prefer_a_tone.py OUT            # minutes on two idle cores
    python examples/prefer_a_tone.py OUT --short    # two steps, to see that everything runs

Measured on pairs that were kept apart: how often, and by how much, the friendly answer gained on the curt one.
"""

from __future__ import annotations

import json
from pathlib import Path

from arguments import arguments

import vitral
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe

# what a customer of an umbrella shop asks, and what can be done for them
ASKED = {
    "My umbrella leaks.": "bring it in and we will wax the cloth again",
    "Do you repair handles?": "leave it with us and it will be ready on Friday",
    "Can I return this?": "show us the receipt and we will take it back",
    "The strap is torn.": "we sew a new one while you wait",
    "Are you open on Sunday?": "come by from ten to one",
    "I lost my receipt.": "tell us the day and we will find it in our books",
    "Is blue available?": "we can order it for next week",
    "It does not open.": "a drop of oil often helps, and we have some here",
    "Do you ship abroad?": "write your address here and we will ask for a price",
    "A rib came loose.": "we fix ribs on the spot",
    "Can you engrave a name?": "write it down and we engrave it today",
    "How do I dry it?": "leave it half open, tip down",
    "The tip fell off.": "we have tips of every size in the drawer",
    "Do you have small ones?": "look at the shelf behind you",
    "Can I pay later?": "sign here and pay by the end of the month",
    "Is it windproof?": "try it in front of our fan",
}


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """Pairs to learn from, and four that are only measured."""
    lines = [
        json.dumps({
            "prompt": question,
            "chosen": f"Thank you for asking! Of course: {help_}.",
            "rejected": "No. Not our problem.",
        })
        for question, help_ in ASKED.items()
    ]  # fmt: skip
    paths = folder / "train.jsonl", folder / "test.jsonl"
    paths[0].write_text("\n".join(lines[:-4]) + "\n", "utf-8")
    paths[1].write_text("\n".join(lines[-4:]) + "\n", "utf-8")
    return paths


def main() -> None:
    options = arguments(__doc__).parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train, test = write_pairs(options.out)
    recipe = parse_recipe({
        "model": {"base": options.base},
        "data": {"train": [str(train)], "test": [str(test)], "context": 256, "licence": "CC0-1.0"},
        "method": {"loss": "dpo", "beta": 0.1},
        "run": {"steps": 2 if options.short else 12, "batch": 2 if options.short else 4, "learning_rate": 2e-4,
                "evaluate_every": 2 if options.short else 12, "measure_forgetting": not options.short},
    })  # fmt: skip
    result = run_recipe(recipe, options.out / "run", on_event=print)
    with vitral.load(options.base, context_length=512) as model:
        model.load_adapter("tone", result.output)
        asked = [{"role": "user", "content": "My umbrella is too long."}]
        said = [model.generate(messages=asked, max_tokens=32, adapter=name).text for name in (None, "tone")]
    print(json.dumps({
        "pairs that were kept apart": 4,
        "the friendly answer gained, share of pairs": result.after.metrics["accuracy"],
        "margin, nats times beta": [result.before.metrics["margin"], result.after.metrics["margin"]],
        "test loss": [result.before.test_loss, result.after.test_loss],
        "forgetting, before and after": [result.before.forgetting, result.after.forgetting],
        "said before": said[0],
        "said after": said[1],
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
