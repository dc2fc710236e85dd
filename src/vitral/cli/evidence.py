"""`vitral evidence`: prove an answer, with values from inside the model."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitral.cli.output import AsJson, console, print_json, progress_bar
from vitral.errors import SettingsError
from vitral.model.law import KV_DEFAULT

__all__ = ["evidence"]


def evidence(
    record: Annotated[str | None, typer.Argument(help="A record's id, or a file with its JSON.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this here, instead of a record; wants --model.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer to --prompt.")] = 16,
    lens: Annotated[int, typer.Option(min=0, max=64, help="Likeliest tokens to name at each layer.")] = 0,
    attention: Annotated[int, typer.Option(min=0, max=64, help="Most seen positions to name for each head.")] = 0,
    routes: Annotated[bool, typer.Option("--routes", help="Which experts were chosen, and by how much.")] = False,
    layers: Annotated[str | None, typer.Option(help="Blocks to look at, such as 0,5; all if not said.")] = None,
    key: Annotated[Path | None, typer.Option(help="The private Ed25519 key that signs.")] = None,
    new_key: Annotated[Path | None, typer.Option(help="Make a key (and FILE.pub) and do nothing else.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The document's file; standard output if not said.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model; the record's name if not said.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter that made the answer.")] = None,
    records: Annotated[str | None, typer.Option(help="Database of records, as for 'vitral serve'.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove an answer with values from inside the model.

    Runs the record again by the law, slowly, and writes record, values and digests as one signed document.
    """
    from vitral.cli.replay import check_adapter, find_record
    from vitral.lens.analysis import Analysis
    from vitral.lens.envelope import make_key, read_private_key
    from vitral.lens.evidence import make
    from vitral.serve.proof import opened, record_here

    if new_key is not None:
        public = make_key(new_key)
        if as_json:
            print_json({"private": new_key, "public": public})
        else:
            console.print(f"{new_key} signs, {public} verifies; keep the first to yourself", highlight=False)
        return
    if (record is None) == (prompt is None) or (prompt is not None and model is None):
        raise SettingsError("vitral evidence wants a record, or --prompt with --model, or --new-key FILE")
    analysis = Analysis(lens, attention, routes, _numbers(layers))
    private = None if key is None else read_private_key(key)
    if record is not None:
        found = find_record(record, records)
        name, kv_type = model or str(found["model"]["name"]), str(found["model"]["kernels"]["kv_type"])
        check_adapter(found, adapter)
    else:
        assert model is not None
        name, kv_type = model, KV_DEFAULT
    with opened(name, kv_type, adapter=adapter, threads=threads) as on, progress_bar("sequences") as bar:
        if prompt is not None:
            from vitral.engine.request import SamplingParams

            tokenizer = on.loaded.tokenizer
            params = SamplingParams(max_tokens=max_tokens, seed=0, stop_ids=tokenizer.eos_ids)
            found = record_here(on, tokenizer.encode(prompt), params)
        check_adapter(found, adapter, on.identity["adapter"])
        data = make(on.glass, found, analysis, private, bar)
    if out is None:
        sys.stdout.write(data.decode())
        return
    out.write_bytes(data)
    if as_json:
        told = {"record": found["id"], "file": out, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        print_json({**told, "signed": private is not None})
    else:
        console.print(f"{out}: evidence of {found['id']}, {len(data)} bytes", highlight=False, soft_wrap=True)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(each) for each in text.split(","))
    except ValueError:
        raise SettingsError(f"--layers is {text!r}; expected block numbers such as 0,5") from None
