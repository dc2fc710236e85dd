"""Make a small mixture of experts from domains, and set it against a dense model trained on as many tokens.

    python examples/experts_from_domains.py OUT --domain law.txt --domain tales.txt --domain code.txt

Branch-Train-MiX: a branch of the base is trained on each domain; the branches' feed-forward networks become
experts beside the base's own; routers start from data and are then trained. The report gives each domain's
loss, the difference between mixture and control row by row, with 95 % intervals, and what the routing tells of
the domain beside the shuffled control. If the mixture did not win, the report says so.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from arguments import arguments

from vitral.conversion import tokenizer_files
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.hub import resolve
from vitral.loading import tokenizer_of
from vitral.tune.adapter_files import load_adapter
from vitral.tune.adapters import merge
from vitral.tune.batch import Batch, Row
from vitral.tune.data.encode import encode
from vitral.tune.data.examples import Plain
from vitral.tune.forward import Transformer, load_model
from vitral.tune.policy import Policy
from vitral.tune.recipe import parse_recipe
from vitral.tune.run import run_recipe
from vitral.tune.upcycle import averaged, routers_from_data, routing_information, upcycle

WINDOW = 128  # tokens of a row


def split(path: Path, out: Path, share: float = 0.8) -> tuple[Path, Path]:
    """The beginning of a text to learn from, its end to measure with."""
    text = path.read_text("utf-8")
    cut = int(len(text) * share)
    parts = out / f"{path.stem}.train.txt", out / f"{path.stem}.test.txt"
    parts[0].write_text(text[:cut])
    parts[1].write_text(text[cut:])
    return parts


def trained(base: Path | str, texts: list[Path], out: Path, steps: int, **method: object) -> Path:
    """Train on texts and return the model's folder."""
    method = {"tune": "full", **method}
    recipe = parse_recipe({
        "model": {"base": str(base)}, "data": {"train": [str(t) for t in texts], "context": WINDOW}, "method": method,
        "lora": {"targets": ["router"]} if method["tune"] == "lora" else {},
        "run": {"steps": steps, "batch": 4, "learning_rate": 2e-4, "evaluate_every": steps, "save_every": steps,
                "measure_forgetting": False},
    })  # fmt: skip
    return run_recipe(recipe, out, on_event=lambda event: print(event, flush=True)).output


def losses_of(model: Transformer, rows: list[Row]) -> list[float]:
    """Mean loss of a token, nats, in each row."""
    policy = Policy(model.eval())
    with torch.no_grad():
        return [-float(policy.logprobs(Batch.of([row])).mean()) for row in rows]


def with_interval(each: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    mean = sum(each) / len(each)
    spread = math.sqrt(sum((x - mean) ** 2 for x in each) / max(len(each) - 1, 1))
    return mean, 1.96 * spread / math.sqrt(len(each))


def verdict(gains: dict[str, tuple[float, float]]) -> str:
    """What the gains over the control, with half of their intervals, say of the mixture."""
    better = [name for name, (gain, half) in gains.items() if gain > half]
    worse = [name for name, (gain, half) in gains.items() if -gain > half]
    if not better:
        return f"the mixture did not win; the control is clearly better on {', '.join(worse) or 'no domain'}"
    return f"the mixture is clearly better on {', '.join(better)}, clearly worse on {', '.join(worse) or 'no domain'}"


def main() -> None:
    parser = arguments(__doc__, short=False)
    parser.add_argument("--domain", type=Path, action="append", required=True)
    parser.add_argument("--steps", type=int, default=60, help="of each branch; the control gets as many in all")
    parser.add_argument("--router-steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=24, help="rows that each domain is measured on")
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    base = open_checkpoint(resolve(options.base))
    tokenizer = tokenizer_of(base)
    parts = {path.stem: split(path, out) for path in options.domain}

    def rows(path: Path) -> list[Row]:
        return encode(Plain(path.name, path.read_text("utf-8")), tokenizer, context=WINDOW)[: options.rows]

    branches = [base] + [
        open_checkpoint(trained(options.base, [train], out / f"branch-{name}", options.steps))
        for name, (train, _) in parts.items()
    ]
    everything = [train for train, _ in parts.values()]
    control = trained(options.base, everything, out / "control", options.steps * len(parts) + options.router_steps)

    # the base is an expert too: its domain is the mean of all, so it gets the row that is left when they are centred
    made = {name: rows(train) for name, (train, _) in parts.items()}
    dense = averaged(branches)
    routers = routers_from_data(dense, {"base": [row for some in made.values() for row in some[:4]], **made})
    files = tokenizer_files(base.path, "safetensors")
    convert(upcycle(branches, 2, routers=routers), out / "mixed", "safetensors", "F32", tokenizer=files)
    adapter = trained(out / "mixed", everything, out / "routed", options.router_steps,
                      tune="lora", router=True, balance=0.01, router_z=0.001)  # fmt: skip

    mixture = load_model(out / "mixed")
    load_adapter(mixture, adapter)
    merge(mixture)
    held = {name: rows(test) for name, (_, test) in parts.items()}
    models = {"base": load_model(base), "dense control": load_model(control), "mixture": mixture}
    losses = {which: {name: losses_of(model, some) for name, some in held.items()} for which, model in models.items()}
    gains = {
        name: with_interval(
            [c - m for c, m in zip(losses["dense control"][name], losses["mixture"][name], strict=True)]
        )
        for name in held
    }
    routing = routing_information(mixture, held)
    print(json.dumps({
        "rows": {name: len(some) for name, some in held.items()},
        "loss, and half of its 95 % interval": {
            which: {name: with_interval(each) for name, each in of.items()} for which, of in losses.items()
        },
        "gain of the mixture over the dense control, row by row": gains,
        "verdict": verdict(gains),
        "routing": routing,
        "layers that tell of the domain more than chance": sum(x["information"] > x["shuffled"] for x in routing),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
