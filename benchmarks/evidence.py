"""Evidence of many mixed records of a loaded server: all exact; tampered ones: all found, the place named.

    python -m benchmarks.evidence MODEL --records 1000 --tampered 100 --out benchmarks/results/evidence.json

Requests differ in length, temperature, penalties, bias, seed and number of answers, eight at a time. Each document is
signed, written, read and judged by another instruction set than the server's where the machine has two. Tampering
takes the kinds in turn: what was changed must be named in the reasons of the judgement. A single flipped byte can fall
anywhere in the file: it must be found, but `place_named` says nothing about those documents.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vitral.errors import FormatError
from vitral.lens.analysis import Analysis
from vitral.lens.envelope import canonical, seal
from vitral.lens.evidence import digests_of, make, read, statement_of
from vitral.serve.proof import Opened, judge_on

Predicate = dict[str, Any]


def requests(n: int, model: str) -> list[tuple[str, dict[str, Any]]]:
    """n requests for a server, of every kind in turn."""
    rng = random.Random(5)
    words = [
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
    found = []
    for i in range(n):
        body: dict[str, Any] = {"model": model, "max_tokens": rng.randint(1, 6), "seed": i}
        body["prompt"] = " ".join(rng.choices(words, k=rng.randint(1, 4)))
        body |= [
            {},
            {"temperature": 1.0},
            {"temperature": 0.7, "top_p": 0.9},
            {"temperature": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.3},
            {"logit_bias": {"300": 5}},
            {"temperature": 0.9, "n": 2},
            {"stop": ["."]},
        ][i % 7]
        found.append(("/v1/completions", body))
    return found


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
    _flip_value, _flip_attention, _flip_control, _flip_token, _flip_prompt, _flip_logits, _flip_parameter,
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


def prove(records: list[dict[str, Any]], n_tampered: int, makes: Opened, judges: Opened) -> dict[str, Any]:
    """Make and judge evidence of each record, then of tampered ones; counts, and what went wrong."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    began, steps, size = time.perf_counter(), 0, 0
    verdicts: dict[str, int] = {}
    wrong: list[str] = []
    rich: list[bytes] = []
    for i, record in enumerate(records):
        data = make(makes.glass, record, analyses(i), key)
        size += len(data)
        steps += sum(sequence["answer"]["count"] for sequence in record["sequences"])
        found = judge_on(judges, read(data, record["id"]), public)
        verdicts[found.verdict] = verdicts.get(found.verdict, 0) + 1
        if found.verdict != "EXACT":
            wrong.append(f"{record['id']}: {found.verdict} {found.reasons}")
    spent = time.perf_counter() - began
    for record in records[: min(len(records), 10)]:
        rich.append(make(makes.glass, record, Analysis(lens=2, attention=2), key))
    kinds: dict[str, int] = {}
    found_all = named_all = 0
    for i in range(n_tampered):
        kind, data, place = tampered(rich[i % len(rich)], i)
        try:
            judged = judge_on(judges, read(data, "evidence"), public)
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
        "made_on": dict(makes.identity["kernels"]), "judged_on": dict(judges.identity["kernels"]),
    }  # fmt: skip


def main() -> None:
    """Start a server, load it, prove everything."""
    from tests.serve.live import live
    from vitral import native
    from vitral.serve.models import public_name
    from vitral.serve.proof import opened

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--tampered", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, live(Path(folder), given.model, "--context", "512") as server:
        with ThreadPoolExecutor(8) as pool:
            asked = requests(given.records, public_name(given.model))
            ids = list(pool.map(lambda each: server.post(*each).json()["record"], asked))
        records = [server.http.get(f"/v1/records/{id}").json() for id in ids]
    usable = [one.name for one in native.instruction_sets() if one.available]
    with (
        opened(given.model, "f16", threads=1) as makes,
        opened(given.model, "f16", threads=1, isa="scalar" if "scalar" in usable else None) as judges,
    ):
        result = prove(records, given.tampered, makes, judges)
    text = json.dumps({"model": public_name(given.model), **result}, indent=2) + "\n"
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
