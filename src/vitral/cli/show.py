"""`vitral show`: what a model is and what it needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from vitral.cli.output import AsJson, facts, print_json, size_text

__all__ = ["show"]


def show(
    model: Annotated[str, typer.Argument(help="A path, a short name, or hf:owner/name.")],
    context: Annotated[int | None, typer.Option(min=1, help="Tokens to reckon the cache for.")] = None,
    digest: Annotated[bool, typer.Option("--digest", help="Read all tensors and print their digest.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a model is and what it needs.

    Architecture, parameters in all and active for a token, weight types, memory, licence tag.
    """
    from vitral import hub
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.formats.metadata_text import first_text
    from vitral.model.arithmetic import kv_bytes, parameters
    from vitral.provenance.lineage import licence_of, read_lineage

    path = hub.admitted(model)
    checkpoint = open_checkpoint(path)
    spec, count = checkpoint.spec, parameters(checkpoint.spec)
    steps = read_lineage(checkpoint)
    tokens = context or min(spec.max_context, 8192)
    types = Counter(tensor.type.name for tensor in checkpoint.weights.values())
    found: dict[str, Any] = {
        "path": str(path),
        "layout": checkpoint.layout,
        "licence_tag": licence_of(checkpoint) or None,
        "spec": asdict(spec),
        "parameters": {"total": count.total, "active": count.active, **asdict(count)},
        "weight_types": dict(types),
        "memory": {
            "weights_bytes": checkpoint.weights.n_bytes(),
            "kv_bytes": kv_bytes(spec, tokens),
            "context": tokens,
        },
        "digest": checkpoint.weights.digest() if digest else None,
        "lineage": [asdict(step) for step in steps],
    }
    if as_json:
        print_json(found)
        return
    rows: dict[str, object] = {
        "file": path,
        "layout": checkpoint.layout,
        "licence tag": found["licence_tag"] or "none in the file",
        "parameters": f"{count.total:,} in all, {count.active:,} active for a token",
        "weights": f"{size_text(found['memory']['weights_bytes'])} ({', '.join(f'{n} x {t}' for t, n in types.items())})",
        "cache": f"{size_text(found['memory']['kv_bytes'])} for {tokens:,} tokens in bf16",
    }
    if digest:
        rows["digest"] = found["digest"]
    for number, step in enumerate(steps, 1):
        bases = ", ".join(f"{base.get('name')} (weights {base.get('weights', 'unknown')[:16]})" for base in step.base)
        how = ", ".join(f"{key} {value}" for key, value in step.parameters.items())
        data = ", ".join(f"{each.get('name')} ({each.get('licence', 'licence not known')})" for each in step.data)
        name = f"{number}. {step.operation}" if len(steps) > 1 else step.operation
        rows[name] = f"from {bases} by {step.tool}: {how}" + (f"; on {data}" if data else "")
    moe = f"{spec.moe.n_experts_per_token} of {spec.moe.n_experts} experts" if spec.moe else "dense"
    if spec.moe and spec.moe.n_leading_dense:
        moe += f", the first {spec.moe.n_leading_dense} dense"
    rows |= {
        "layers": f"{spec.n_layers} of dim {spec.dim}, hidden {spec.hidden_dim}, {moe}",
        "heads": f"{spec.n_heads}, sharing {spec.n_kv_heads} of keys and values; head dim {spec.head_dim}",
        "vocabulary": f"{spec.vocab_size:,}",
        "context": f"{spec.max_context:,} tokens, window {spec.sliding_window or 'all'}, rope scaling {spec.rope.scaling}",
    }
    facts(first_text(checkpoint.metadata, "general.name") or model, rows)
