"""Evidence of many mixed records of a loaded server: all exact; tampered ones: all found, the place named.

    python -m benchmarks.evidence MODEL --records 105 --tampered 100 --out benchmarks/results/evidence_mixed.json

Chats and completions, eight at a time, streamed or not; greedy or sampled, with penalties, bias, stops,
several answers, a random LoRA adapter of rank 4, and interventions of seven kinds. A model without a chat template gets one. Each
document is signed, written, read and judged by another instruction set than the server's where the machine has two.
Tampering takes the kinds in turn, on records of every sort: what was changed must be named in the reasons of the
judgement. A single flipped byte can fall anywhere in the file: it must be found, but `place_named` says nothing about
those documents.

A sample of the records is proved and judged again as a user does it: `vitral evidence RECORD` reads the server's
database, `vitral verify EVIDENCE` judges, each a process of its own; and documents tampered in each way are given to
`vitral verify`, whose exit code and reasons count.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vitral.engine.intervention_values import Values
from vitral.engine.interventions import Intervention, to_document
from vitral.errors import FormatError
from vitral.lens.analysis import Analysis
from vitral.lens.envelope import canonical, seal
from vitral.lens.evidence import digests_of, make, read, statement_of
from vitral.model.spec import ModelSpec
from vitral.serve.proof import Opened, judge_on, opened

if TYPE_CHECKING:
    from tests.serve.live import Live

Predicate = dict[str, Any]


WORDS = [
    "once",
    "there",
    "was",
    "a",
    "little",
    "girl",
    "who",
    "had",
    "red",
    "ball",
    "and",
    "big",
    "dog",
    "in",
    "the",
    "park",
]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.3},
    {"temperature": 0, "logit_bias": {"300": 5}},
    {"temperature": 0.9, "n": 2},
    {"stop": ["."]},
)


def changes(i: int, spec: ModelSpec) -> dict[str, Any]:
    """A document of interventions; another kind for each i."""
    layer = i % spec.n_layers
    row = np.random.default_rng(i).normal(0, 0.1, spec.dim).astype(np.float32)
    one = (
        Intervention("zero", tap=f"blocks.{layer}.hook_mlp_out", since=2),
        Intervention("steer", tap=f"blocks.{layer}.hook_resid_post", values=Values.of(row.tolist()), coefficient=2.0),
        Intervention("knock_out", layer=layer, heads=(i % spec.n_heads,)),
        Intervention("replace", tap=f"blocks.{layer}.attn.hook_z", heads=(0,), values=Values.of(0.25)),
        Intervention("mean", tap=f"blocks.{layer}.hook_attn_out", values=Values.of(row.tolist()), positions=(1, 3)),
        Intervention("knock_out", layer=layer, neurons=(0, 5, 7)),
        Intervention("zero", tap=f"blocks.{layer}.attn.hook_pattern", columns=(0,), since=3),
    )[i % 7]
    return to_document([one])


def requests(n: int, model: str, adapter: str, spec: ModelSpec) -> list[tuple[str, dict[str, Any]]]:
    """n requests for a server, of every sort in turn: half are chats, a third has an adapter, two fifths interventions."""
    rng = random.Random(5)
    found = []
    for i in range(n):
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        body: dict[str, Any] = {"model": adapter if i % 3 == 2 else model, "max_tokens": rng.randint(4, 24), "seed": i}
        body |= SAMPLING[i % len(SAMPLING)]
        if i % 5 in (1, 3):
            body["interventions"] = changes(i, spec)
        if i % 2:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] * (i % 4 == 3)
            body["messages"] = [*turns, {"role": "user", "content": text}]
        else:
            body["prompt"] = text
        found.append(("/v1/chat/completions" if i % 2 else "/v1/completions", body))
    return found


def ask(server: Live, path: str, body: dict[str, Any], i: int) -> str:
    """Send a request, every eleventh streamed; the record's id."""
    if i % 11 == 0:
        with server.http.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert b"[DONE]" in response.read()
            return response.headers["x-vitral-record"]
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["record"])


def sorts(records: list[dict[str, Any]]) -> dict[str, int]:
    """How many records are of each sort; one may be of several."""
    return {
        "chats": sum("chat" in r["route"] for r in records),
        "completions": sum(r["route"].endswith("/v1/completions") for r in records),
        "adapters": sum(r["model"]["adapter"] is not None for r in records),
        "interventions": sum(r.get("interventions") is not None for r in records),
        "several_answers": sum(len(r["sequences"]) > 1 for r in records),
        "sampled": sum(float(r["sequences"][0]["parameters"].get("temperature") or 0) > 0 for r in records),
    }


def analyses(i: int) -> Analysis:
    """Another one for each record."""
    return (
        Analysis(lens=2),
        Analysis(attention=3, layers=(0, 2)),
        Analysis(),
        Analysis(lens=1, attention=2, layers=(1,)),
    )[i % 4]


def _flip_value(p: Predicate) -> str:
    step = p["values"][0]["lens"][1]["steps"][0]
    step["target"] = step["target"] + 0.001
    return "/values/0/lens/1"


def _flip_attention(p: Predicate) -> str:
    p["values"][0]["attention"][0]["steps"][0]["heads"][0][0][0] += 1
    return "/values/0/attention/0"


def _flip_control(p: Predicate) -> str:
    p["controls"]["lens"] += "."
    return "/controls"


def _flip_token(p: Predicate) -> str:
    p["record"]["sequences"][0]["answer"]["ids"][0] ^= 1
    return "/record/sequences/0/answer"


def _flip_prompt(p: Predicate) -> str:
    p["record"]["sequences"][0]["prompt"]["ids"][-1] ^= 1
    return "/record/sequences/0/prompt"


def _flip_logits(p: Predicate) -> str:
    p["record"]["sequences"][0]["logits"][0] = "0" * 16
    return "/record/sequences/0/logits"


def _flip_parameter(p: Predicate) -> str:
    p["record"]["sequences"][0]["parameters"]["seed"] = "999999"
    return "/record/sequences/0/parameters"


def _flip_intervention(p: Predicate) -> str:
    kept = p["record"].get("interventions")
    if kept is None:
        p["record"]["interventions"] = {"document": {"version": 1, "interventions": []}, "sha256": "0" * 64}
    else:
        kept["document"]["interventions"][0]["since"] = 99
    return "/record/interventions"


def _flip_weights(p: Predicate) -> str:
    p["record"]["model"]["weights"] = "0" * 64
    return "/record/model"


def _flip_analysis(p: Predicate) -> str:
    p["analysis"]["lens"] += 1
    return "/analysis"


def _flip_digest(p: Predicate) -> str:
    p["digests"]["/analysis"] = "0" * 64
    return "/analysis"


def _drop_value(p: Predicate) -> str:
    del p["values"][0]["lens"][-1]
    return "/values/0/lens"


IN_PREDICATE: tuple[Callable[[Predicate], str], ...] = (
    _flip_value, _flip_attention, _flip_control, _flip_token, _flip_prompt, _flip_logits, _flip_parameter, _flip_intervention,
    _flip_weights, _flip_analysis, _flip_digest, _drop_value,
)  # fmt: skip


def tampered(data: bytes, i: int) -> tuple[str, bytes, str]:
    """A document changed in way i: the kind, the bytes, and the text that a judgement must name."""
    envelope = json.loads(data)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    kinds = [f.__name__.strip("_") for f in IN_PREDICATE]
    kinds += ["made anew", "made anew, signed by another", "signature", "key id", "spaces", "subject", "one byte"]
    n = i % len(kinds)
    if n < len(IN_PREDICATE):
        place = IN_PREDICATE[n](statement["predicate"])
    elif kinds[n].startswith("made anew"):  # value and digests fit again: only running it again shows it
        predicate = copy.deepcopy(statement["predicate"])
        place = _flip_value(predicate)
        predicate["digests"] = digests_of(predicate)
        key = Ed25519PrivateKey.generate() if kinds[n].endswith("another") else None
        return kinds[n], seal(statement_of(predicate), key), place
    elif kinds[n] == "signature":
        signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
        signature[i % 64] ^= 1
        envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
        return kinds[n], canonical(envelope) + b"\n", "signature"
    elif kinds[n] == "key id":
        envelope["signatures"][0]["keyid"] = "0" * 64
        return kinds[n], canonical(envelope) + b"\n", "signature"
    elif kinds[n] == "spaces":
        return kinds[n], json.dumps(envelope).encode(), "byte"
    elif kinds[n] == "subject":
        statement["subject"][0]["name"] = "rec_other"
        place = "/subject"
    else:  # any byte of the file
        at = random.Random(i).randrange(len(data))
        return kinds[n], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], ""
    envelope["payload"] = base64.b64encode(canonical(statement)).decode()
    return kinds[n], canonical(envelope) + b"\n", place


Pair = tuple[Opened, Opened]
"""What makes the evidence of a record, and what judges it."""


def prove(records: list[dict[str, Any]], n_tampered: int, plain: Pair, adapted: Pair | None = None) -> dict[str, Any]:
    """Make and judge evidence of each record, then of tampered ones; counts, and what went wrong.

    adapted: the same for records of an adapter.
    """

    def pair(record: dict[str, Any]) -> Pair:
        if record["model"]["adapter"] is None:
            return plain
        assert adapted is not None, "a record of an adapter wants the models that have it"
        return adapted

    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    began, steps, size = time.perf_counter(), 0, 0
    verdicts: dict[str, int] = {}
    wrong: list[str] = []
    rich: list[bytes] = []
    for i, record in enumerate(records):
        makes, judges = pair(record)
        data = make(makes.glass, record, analyses(i), key)
        size += len(data)
        steps += sum(sequence["answer"]["count"] for sequence in record["sequences"])
        found = judge_on(judges, read(data, record["id"]), public)
        verdicts[found.verdict] = verdicts.get(found.verdict, 0) + 1
        if (i + 1) % 50 == 0:
            print(f"{i + 1} records, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if found.verdict != "EXACT":
            wrong.append(f"{record['id']}: {found.verdict} {found.reasons}")
    spent = time.perf_counter() - began
    some = records[: min(len(records), 35)]
    for record in some:
        rich.append(make(pair(record)[0].glass, record, Analysis(lens=2, attention=2), key))
    kinds: dict[str, int] = {}
    found_all = named_all = 0
    for i in range(n_tampered):
        kind, data, place = tampered(rich[i % len(rich)], i)
        try:
            judged = judge_on(pair(some[i % len(rich)])[1], read(data, "evidence"), public)
            verdict, reasons = judged.verdict, judged.reasons
        except FormatError as error:
            verdict, reasons = "REFUSED", (str(error),)
        is_found = verdict != "EXACT" and bool(reasons)
        is_named = any(place in reason for reason in reasons)
        found_all += is_found
        named_all += is_found and is_named
        kinds[kind] = kinds.get(kind, 0) + 1
        if not (is_found and is_named):
            wrong.append(f"tampered {i} ({kind}): {verdict} {reasons}, {place!r} was to be named")
    return {
        "records": len(records), "verdicts": verdicts, "steps": steps, "document_bytes_mean": size // len(records),
        "seconds": round(spent, 1), "tampered": n_tampered, "found": found_all, "place_named": named_all,
        "kinds": kinds, "wrong": wrong,
        "made_on": dict(plain[0].identity["kernels"]), "judged_on": dict(plain[1].identity["kernels"]),
    }  # fmt: skip


Command = Callable[[list[str]], tuple[int, str]]
"""Runs `vitral` with arguments: its exit code, and all it printed."""


def as_process(arguments: list[str]) -> tuple[int, str]:
    """`vitral` in a process of its own."""
    command = [sys.executable, "-m", "vitral", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def options_of(analysis: Analysis) -> list[str]:
    """What `vitral evidence` is asked with for an analysis."""
    layers = [] if analysis.layers is None else ["--layers", ",".join(str(i) for i in analysis.layers)]
    routes = ["--routes"] if analysis.routes else []
    return ["--lens", str(analysis.lens), "--attention", str(analysis.attention), *routes, *layers]


def by_commands(
    sample: list[dict[str, Any]],
    n_tampered: int,
    folder: Path,
    model: str,
    adapter: Path | None,
    records: str | None,
    run: Command = as_process,
) -> dict[str, Any]:
    """Prove and verify records by the commands, then tampered documents; counts, and what went wrong.

    folder: for documents and keys. records: the database that holds the sample; without it, files are read.
    """
    key, wrong, verdicts = folder / "key", [], {"EXACT": 0}
    code, told = run(["evidence", "--new-key", str(key)])
    if code != 0:
        raise RuntimeError(f"vitral evidence --new-key ended with {code}: {told}")

    def place_of(record: dict[str, Any]) -> list[str]:
        where = ["--model", model, "--threads", "1"]
        return [*where, "--adapter", str(adapter)] if record["model"]["adapter"] is not None else where

    def prove_it(record: dict[str, Any], analysis: Analysis, name: str) -> Path | None:
        document, source = folder / f"{name}.json", [record["id"], "--records", str(records)]
        if records is None:
            source = [str(folder / f"{name}.record.json")]
            Path(source[0]).write_text(json.dumps(record), "utf-8")
        asked = [*source, *options_of(analysis), "--key", str(key), "--out", str(document), *place_of(record)]
        code, told = run(["evidence", *asked])
        if code != 0:
            wrong.append(f"{record['id']}: vitral evidence ended with {code}: {told}")
        return document if code == 0 else None

    def verify_it(document: Path, record: dict[str, Any]) -> tuple[int, str, str]:
        code, told = run(["verify", str(document), "--key", f"{key}.pub", *place_of(record)])
        verdict = told.partition(" ")[0] if code in (0, 1, 3) else "REFUSED"
        return code, verdict, told

    for i, record in enumerate(sample):
        document = prove_it(record, analyses(i), f"sample{i}")
        if document is not None:
            code, verdict, told = verify_it(document, record)
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
            if (code, verdict) != (0, "EXACT"):
                wrong.append(f"{record['id']}: vitral verify ended with {code}: {told}")
    found = named = 0
    for i in range(n_tampered):
        record = sample[i % len(sample)]
        document = prove_it(record, Analysis(lens=2, attention=2), f"tampered{i}")
        if document is None:
            continue
        kind, data, place = tampered(document.read_bytes(), i)
        document.write_bytes(data)
        code, verdict, told = verify_it(document, record)
        found += code != 0 and verdict != "EXACT"
        named += code != 0 and place in told
        if code == 0 or place not in told:
            wrong.append(f"tampered {i} ({kind}): {code}, {told}, {place!r} was to be named")
    return {
        "sorts": sorts(sample), "records": len(sample), "verdicts": verdicts,
        "tampered": n_tampered, "found": found, "place_named": named, "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    """Start a server, load it, prove everything."""
    from tests.formats.test_adapters import random_parts, write_peft
    from tests.serve.live import live, with_template
    from vitral import native
    from vitral.formats.checkpoint import open_checkpoint
    from vitral.serve.models import public_name

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--tampered", type=int, default=100)
    parser.add_argument("--by-commands", type=int, default=20, help="records that the commands prove and judge too")
    parser.add_argument("--tampered-by-commands", type=int, default=19, help="every way once")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    usable = [one.name for one in native.instruction_sets() if one.available]
    other = "scalar" if "scalar" in usable else None
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = str(with_template(given.model, folder / "chat.gguf", TEMPLATE))
        spec = open_checkpoint(Path(model)).spec
        adapter = write_peft(folder / "lora", random_parts(spec, rank=4, scale=2.0), {"r": 4, "lora_alpha": 8})
        with live(folder, model, "--context", "512", "--adapter", f"paint={adapter}") as server:
            server.http.timeout = httpx.Timeout(3600)  # a busy machine may hold everything up for minutes
            asked = requests(given.records, public_name(model), f"{public_name(model)}:paint", spec)
            with ThreadPoolExecutor(8) as pool:
                ids = list(pool.map(lambda i: ask(server, *asked[i], i), range(len(asked))))
            records = [server.http.get(f"/v1/records/{id}").json() for id in ids]
        kv_type = records[0]["model"]["kernels"]["kv_type"]

        def pair(path: Path | None) -> Pair:
            makes = stack.enter_context(opened(model, kv_type, threads=1, adapter=path))
            return makes, stack.enter_context(opened(model, kv_type, threads=1, adapter=path, isa=other))

        result = prove(records, given.tampered, pair(None), pair(adapter))
        sample = random.Random(7).sample(records, min(given.by_commands, len(records)))
        commanded = by_commands(sample, given.tampered_by_commands, folder, model, adapter, server.records_url)
    found = {"model": given.model.name, "sorts": sorts(records), **result, "by_commands": commanded}
    text = json.dumps(found, indent=2) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
