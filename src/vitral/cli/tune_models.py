"""`vitral tune merge`, `add` and `upcycle`: new models and adapters out of others, without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar, table
from vitral.cli.tune_needs import need_torch
from vitral.errors import DataError, TuneError

if TYPE_CHECKING:
    from vitral.conversion import Layout
    from vitral.formats.canonical import Checkpoint
    from vitral.tokenizer.tokenizer import Tokenizer
    from vitral.tune.batch import Row

__all__ = ["add", "merge", "upcycle"]

Models = Annotated[list[str], typer.Argument(help="Paths or short names, two or more.")]
Out = Annotated[Path, typer.Argument(help="The GGUF file (or, without .gguf, the safetensors folder) to write.")]
WeightType = Annotated[str, typer.Option("--type", help="The weight type to write: F32, F16, Q8_0 ...")]
_DOMAIN_ROWS, _DOMAIN_TOKENS = 16, 128  # of a domain's text, enough for a mean of its inputs


def merge(
    out: Out,
    models: Models,
    method: Annotated[str, typer.Option(help="linear, slerp, ties or dare.")] = "linear",
    weight: Annotated[list[float] | None, typer.Option(help="A number for each model, in order.")] = None,
    base: Annotated[str | None, typer.Option(help="What the models were tuned from (ties and dare).")] = None,
    density: Annotated[float, typer.Option(help="The share of changes that ties and dare keep.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the changes that dare drops.")] = 0,
    type: WeightType = "F32",
    as_json: AsJson = False,
) -> None:
    """Merge models of one architecture into one."""
    need_torch()
    from vitral.tune.merging import MergePlan, merge_models

    _refuse_taken(out)
    plan = MergePlan(method, tuple(weight or ()), density, seed)  # type: ignore[arg-type]
    opened = [_open(name) for name in models]
    _same_tokenizer(opened)
    merged = merge_models(opened, plan, _open(base) if base is not None else None)
    _write(merged, opened, out, type, "merge", {"method": method, "weights": list(plan.weights)})
    _say(out, as_json, {"method": method, "models": models})


def add(
    out: Annotated[Path, typer.Argument(help="The folder to write the adapter to.")],
    base: Annotated[str, typer.Option(help="What the adapters were trained on.")],
    adapter: Annotated[list[Path], typer.Option(help="A PEFT folder; give it several times.")],
    weight: Annotated[list[float] | None, typer.Option(help="A number for each adapter; negative takes away.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add adapters, times numbers, into one."""
    need_torch()
    from vitral.tune.adapter_files import data_of, save_peft
    from vitral.tune.files import staged
    from vitral.tune.merging import add_adapters
    from vitral.tune.record import base_facts

    weights = weight or [1.0] * len(adapter)
    if len(weights) != len(adapter):
        raise TuneError(f"{len(weights)} weights for {len(adapter)} adapters; give one for each")
    if out.exists():
        raise TuneError(f"{out} is there already; give another folder")
    found = _open(base)
    facts = base_facts(found)
    total, plan = add_adapters(found.spec, list(zip(adapter, weights, strict=True)), facts["base_digest"])
    record = {
        **facts,
        "data": [each for folder in adapter for each in data_of(folder)],
        "sum_of": [[str(a), w] for a, w in zip(adapter, weights, strict=True)],
    }
    with staged(out, "make room and add again") as place:
        save_peft(total, plan, place, record)
    _say(out, as_json, {"rank": plan.rank})


def upcycle(
    out: Out,
    models: Annotated[list[str], typer.Argument(help="Dense models: each becomes an expert in every layer.")],
    per_token: Annotated[int, typer.Option(min=1, help="Experts that a token uses.")] = 2,
    copies: Annotated[int, typer.Option(min=1, help="How many experts are made of each model.")] = 1,
    dense: Annotated[int, typer.Option(min=0, help="How many first layers stay dense, without experts.")] = 0,
    noise: Annotated[float, typer.Option(min=0.0, help="Noise on each expert, as a share of its spread.")] = 0.0,
    domain: Annotated[
        list[Path] | None, typer.Option(help="A text for each expert, in order: routers start from it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of noise and random routers.")] = 0,
    type: WeightType = "F32",
    as_json: AsJson = False,
) -> None:
    """Make a mixture of experts out of dense models.

    In Mixtral's layout; with --dense in one of ours, which no other program reads.
    """
    need_torch()
    from vitral.loading import tokenizer_of
    from vitral.tune.forward import load_model
    from vitral.tune.upcycle import averaged, routers_from_data, routing_information
    from vitral.tune.upcycle import upcycle as mix

    _refuse_taken(out)
    opened = [_open(name) for name in models]
    _same_tokenizer(opened)
    routers, domains = None, {}
    if domain:
        if len(domain) != len(models) * copies or copies > 1:
            raise TuneError(f"{len(domain)} domains for {len(models)} models; give one for each, without copies")
        tokenizer = tokenizer_of(opened[0])
        domains = {path.name: _rows(path, tokenizer) for path in domain}
        if len(domains) < len(domain):
            raise TuneError("two domains have files of one name; rename one, the report tells them apart by it")
        held = {name: rows[1::2] for name, rows in domains.items()}
        routers = routers_from_data(averaged(opened), {name: rows[::2] for name, rows in domains.items()})
    mixture = mix(opened, per_token, copies=copies, dense=dense, noise=noise, routers=routers, seed=seed)
    _write(mixture, opened, out, type, "upcycle", {"copies": copies, "dense": dense, "noise": noise, "seed": seed})
    layers = routing_information(load_model(mixture), held, seed) if domain else []
    layout = "ours, with dense first layers: no other program reads it" if dense else "mixtral"
    if as_json:
        print_json(
            {
                "path": out,
                "experts": len(models) * copies,
                "per_token": per_token,
                "layout": layout,
                "routing": layers,
            }
        )
        return
    _say(out, False, {"experts": len(models) * copies, "layout": layout})
    if layers:
        rows = [
            (
                f"{x['layer']:.0f}",
                f"{x['information']:.4f}",
                f"{x['shuffled']:.4f}",
                f"{x['entropy']:.3f}",
                f"{x['dead']:.0f}",
            )
            for x in layers
        ]
        columns = ["layer", "information (nats)", "by chance", "load entropy", "dead experts"]
        table(
            "What the choice of expert tells of the domain, on text that the routers were not made from",
            columns,
            rows,
            numbers=columns,
        )


def _open(name: str) -> Checkpoint:
    from vitral import hub
    from vitral.formats.checkpoint import open_checkpoint

    return open_checkpoint(hub.admitted(name))


def _same_tokenizer(models: list[Checkpoint]) -> None:
    from vitral.loading import tokenizer_of

    digests = [tokenizer_of(model).digest for model in models]
    for model, digest in zip(models, digests, strict=True):
        if digest != digests[0]:
            raise TuneError(
                f"{model.path} has another tokenizer than {models[0].path}; their weights mean other tokens"
            )


def _refuse_taken(out: Path) -> None:
    if out.exists():  # before the work, not after it
        raise TuneError(f"{out} is there already; the first path is what is written, the models follow it")


def _write(
    made: Checkpoint, parents: list[Checkpoint], out: Path, type: str, operation: str, how: dict[str, Any]
) -> None:
    from vitral.conversion import tokenizer_files
    from vitral.formats.convert import convert
    from vitral.provenance.lineage import lineage_metadata
    from vitral.tune.files import staged

    layout: Layout = "gguf" if out.suffix == ".gguf" else "safetensors"
    first, *others = parents
    notes = lineage_metadata(first, operation, how, others=others)
    files = tokenizer_files(first.path, layout)
    with staged(out, "make room and do it again") as place, progress_bar("tensors") as bar:
        convert(replace(made), place, layout, type, progress=bar, tokenizer=files, notes=notes)


def _rows(path: Path, tokenizer: Tokenizer) -> list[Row]:
    from vitral.tune.data.encode import encode
    from vitral.tune.data.examples import Plain

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
    rows = encode(Plain(path.name, text), tokenizer, context=_DOMAIN_TOKENS)[: 2 * _DOMAIN_ROWS]
    if len(rows) < 2:
        raise DataError(
            f"{path} has too little text: more than {_DOMAIN_TOKENS} tokens are needed, half to measure with"
        )
    return rows


def _say(out: Path, as_json: bool, more: dict[str, object]) -> None:
    if as_json:
        print_json({"path": out, **more})
    else:
        console.print(
            f"{out} is written: {', '.join(f'{k} {v}' for k, v in more.items())}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
