"""Looking into the forward pass and changing it over HTTP, against the library."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import vitral
from tests.serve.conftest import CHAT, TINY
from tests.serve.live import Live
from vitral.engine.interventions import Intervention, digest, to_document
from vitral.engine.request import SamplingParams
from vitral.errors import RequestError
from vitral.formats.arrow import arrays_of_arrow
from vitral.language_model import LanguageModel
from vitral.lens.light import LIGHT_AXES, LightSet
from vitral.lens.record import record
from vitral.serve import pictured
from vitral.serve.engines import Ask, Picture
from vitral.serve.proof import judge

ONCE = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
SILENT = (Intervention("knock_out", layer=1, heads=(0, 3)), Intervention("zero", tap="blocks.0.hook_mlp_out", since=3))


@pytest.fixture(scope="module")
def alone(tiny_path: str) -> Iterator[LanguageModel]:
    with vitral.load(tiny_path, threads=1, context_length=512) as model:
        yield model


def array(reading: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A reading in either form."""
    kind = reading["dtype"]
    if kind in reading:
        return np.frombuffer(base64.b64decode(reading[kind]), kind).reshape(reading["shape"])
    values = np.array(reading["values"], object)
    values[values == None] = -np.inf  # noqa: E711 - entry by entry
    return values.astype(kind).reshape(reading["shape"])


def of_library(model: LanguageModel, names: list[str], interventions: tuple[Intervention, ...] = ()) -> Any:
    return record(model, "Once upon a time", names, n_new=8, interventions=interventions)


@pytest.mark.parametrize("written", ["lists", "base64"])
def test_readings_of_a_completion_are_those_of_the_library(server: Live, alone: LanguageModel, written: str) -> None:
    block = {
        "format": written,
        "record": [
            {"taps": ["blocks.*.hook_resid_post", "blocks.*.attn.hook_attn_scores"], "layers": [0, 3]},
            {"taps": ["blocks.1.attn.hook_pattern"], "positions": "answer", "heads": [1, 2], "top": 3},
            {"taps": ["unembed.hook_out"], "positions": [-1], "columns": [5, 9]},
        ],
    }
    choice = server.post("/v1/completions", {**ONCE, "inspect": block}).json()["choices"][0]
    found = {(one["record"], one["tap"]): one for one in choice["inspect"]["readings"]}
    cache = of_library(
        alone,
        [
            "blocks.*.hook_resid_post",
            "blocks.*.attn.hook_attn_scores",
            "blocks.1.attn.hook_pattern",
            "unembed.hook_out",
        ],
    )
    n_prompt = len(cache.ids) - 8
    for layer in (0, 3):
        for tap in (f"blocks.{layer}.hook_resid_post", f"blocks.{layer}.attn.hook_attn_scores"):
            assert (array(found[0, tap]) == cache[tap]).all()
            assert found[0, tap]["positions"] == list(range(len(cache.ids) - 1))
    best = found[1, "blocks.1.attn.hook_pattern"]
    assert best["positions"] == list(range(n_prompt - 1, len(cache.ids) - 1))
    rows = cache["pattern", 1][[1, 2]][:, n_prompt - 1 :]
    assert (array(best) == np.sort(rows, axis=-1)[..., :-4:-1]).all()
    places = array(found[1, "blocks.1.attn.hook_pattern.indices"])
    assert (np.take_along_axis(rows, places, axis=-1) == array(best)).all()
    assert (array(found[2, "unembed.hook_out"])[0] == cache.logits[n_prompt - 1, [5, 9]]).all()
    assert len(found) == 4 + 2 + 1
    assert choice["inspect"]["light"] is None
    assert choice["text"] == server.post("/v1/completions", ONCE).json()["choices"][0]["text"]


def test_head_results_are_reduced_like_any_value(server: Live, alone: LanguageModel) -> None:
    record = [
        {"taps": ["blocks.*.attn.hook_result"], "layers": [2], "positions": [-1], "heads": [1, 4], "top": 3},
        {"taps": ["blocks.2.attn.hook_result", "blocks.2.hook_attn_out"], "columns": [7]},
    ]
    found = server.post("/v1/inspect", {"model": TINY, "prompt": "Once upon a time", "record": record}).json()
    readings = {(one["record"], one["tap"]): one for one in found["readings"]}
    whole = of_library(alone, ["blocks.2.attn.hook_result"])["result", 2][: found["n_prompt"]]
    best = array(readings[0, "blocks.2.attn.hook_result"])
    assert (best == np.sort(whole[-1:, [1, 4]], axis=-1)[..., :-4:-1]).all()
    columns = array(readings[0, "blocks.2.attn.hook_result.indices"])
    assert (np.take_along_axis(whole[-1:, [1, 4]], columns, axis=-1) == best).all()
    assert (array(readings[1, "blocks.2.attn.hook_result"]) == whole[..., [7]]).all()
    assert len(readings) == 4
    wrong = server.post("/v1/inspect", {"model": TINY, "prompt": "x", "record": [{**record[0], "heads": [99]}]})
    assert wrong.status_code == 400
    assert "hook_result has no heads [99]" in wrong.json()["error"]["message"]


def test_a_chat_comes_with_the_light_set(server: Live) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    body = {"model": CHAT, "messages": messages, "max_tokens": 5, "temperature": 0, "inspect": {"light": True}}
    answer = server.post("/v1/chat/completions", body).json()
    light = answer["choices"][0]["inspect"]["light"]
    ids = server.http.get(f"/v1/records/{answer['record']}").json()["sequences"][0]
    prompt, said = ids["prompt"]["ids"], ids["answer"]["ids"]
    with vitral.load(CHAT, threads=1, context_length=512) as model:
        collected = LightSet(model, len(prompt) - 1)
        params = vitral.engine.request.SamplingParams(max_tokens=5)
        with model.engine.answer(prompt, params, watch=collected.watches, on_value=collected.on_value) as events:
            list(events)
        wanted = collected.finish([*prompt, *said])
    assert wanted is not None
    assert array(light["targets"]).tolist() == said
    for part in LIGHT_AXES:
        values = getattr(wanted, part)
        assert (part in light) == (values is not None)
        if values is not None:
            assert (array(light[part]) == values).all(), part


def test_a_stream_ends_with_the_readings_of_the_whole_answer(server: Live) -> None:
    block = {"record": [{"taps": ["hook_embed"]}]}
    whole = server.post("/v1/completions", {**ONCE, "inspect": block}).json()["choices"][0]["inspect"]
    last = list(server.events("/v1/completions", {**ONCE, "inspect": block}))[-1]["choices"][0]
    assert last["inspect"] == whole
    chat = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
    chat["inspect"] = block = {"record": [{"taps": ["ln_final.hook_scale"]}]}
    whole = server.post("/v1/chat/completions", chat).json()["choices"][0]["inspect"]
    assert list(server.events("/v1/chat/completions", chat))[-1]["choices"][0]["inspect"] == whole


BOTH = {
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 3, "temperature": 0},
}


@pytest.mark.parametrize("route", BOTH)
def test_messages_and_responses_show_and_change_what_a_chat_does(server: Live, route: str) -> None:
    """The same prompt, so the same values, light set and interventions."""
    look: dict[str, Any] = {"light": True, "record": [{"taps": ["ln_final.hook_scale"]}]}
    silent = to_document((Intervention("knock_out", layer=2, heads=(1,)),))
    chat = {"model": CHAT, **BOTH["/v1/messages"], "inspect": look}
    body = {"model": CHAT, **BOTH[route], "inspect": look}
    found = {}
    for name, changed in (("plain", {}), ("changed", {"interventions": silent})):
        wanted = server.post("/v1/chat/completions", chat | changed).json()
        answer = server.post(route, body | changed).json()
        found[name] = answer["inspect"]
        assert answer["inspect"] == wanted["choices"][0]["inspect"]
        kept, other = (server.http.get(f"/v1/records/{one['record']}").json() for one in (answer, wanted))
        assert kept.get("interventions") == other.get("interventions")
        assert kept["sequences"][0]["logits"] == other["sequences"][0]["logits"]
    assert found["plain"] != found["changed"]
    assert found["plain"]["light"] is not None
    events = list(server.events(route, body))
    if route == "/v1/messages":
        assert [event["inspect"] for event in events if event["type"] == "message_delta"] == [found["plain"]]
    else:
        assert events[-1]["response"]["inspect"] == found["plain"]
        assert "inspect" not in server.http.get(f"/v1/responses/{events[-1]['response']['id']}").json()
        refused = server.post(route, {**body, "background": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "inspect")
    wrong = server.post(route, {**body, "inspect": {"record": [{"taps": []}]}})
    assert wrong.status_code == 400
    assert "inspect.record[0].taps" in wrong.json()["error"]["message"]


def test_readings_end_where_a_stop_string_ends_the_answer(server: Live) -> None:
    text = server.post("/v1/completions", ONCE).json()["choices"][0]["text"]
    body = {
        **ONCE,
        "max_tokens": 60,
        "stop": text.split()[1],
        "inspect": {"light": True, "record": [{"taps": ["hook_embed"]}]},
    }
    answer = server.post("/v1/completions", body).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    sequence = server.http.get(f"/v1/records/{answer['record']}").json()["sequences"][0]
    n = sequence["prompt"]["count"] + sequence["answer"]["count"]
    assert sequence["answer"]["count"] < 8
    assert choice["inspect"]["readings"][0]["positions"] == list(range(n - 1))
    assert choice["inspect"]["light"]["targets"]["values"] == sequence["answer"]["ids"]


def test_interventions_change_the_answer_as_in_the_library_and_are_in_its_record(
    server: Live, alone: LanguageModel, tiny_path: str
) -> None:
    body = {**ONCE, "interventions": to_document(SILENT), "inspect": {"record": [{"taps": ["unembed.hook_out"]}]}}
    answer = server.post("/v1/completions", body).json()
    cache = of_library(alone, ["unembed.hook_out"], SILENT)
    assert (array(answer["choices"][0]["inspect"]["readings"][0]) == cache.logits).all()
    kept = server.http.get(f"/v1/records/{answer['record']}").json()
    assert kept["sequences"][0]["answer"]["ids"] == cache.ids[-8:]
    assert kept["interventions"] == {"sha256": digest(SILENT), "document": to_document(SILENT)}
    plain = server.http.get(f"/v1/records/{server.post('/v1/completions', ONCE).json()['record']}").json()
    assert "interventions" not in plain
    assert plain["sequences"][0]["logits"] != kept["sequences"][0]["logits"]
    replayed = server.post(f"/v1/records/{answer['record']}/replay", {}).json()
    assert (replayed["verdict"], replayed["steps"]) == ("EXACT", 8)
    made = server.post(f"/v1/records/{answer['record']}/evidence", {"lens": 1, "layers": [0]})
    assert made.status_code == 200, made.text
    assert judge(made.content, "evidence", model=tiny_path, threads=1).verdict == "EXACT"


def test_the_cache_is_keyed_by_interventions(server: Live) -> None:
    """Long enough for full pages: each finds its own, none those of the other."""
    ids = [1, *range(300, 500)]
    body = {"model": TINY, "prompt": ids, "max_tokens": 4, "temperature": 0}
    changed = {**body, "interventions": to_document(SILENT)}

    def asked(request: dict[str, Any]) -> tuple[str, int]:
        answer = server.post("/v1/completions", request).json()
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    first, found = asked(body)
    assert found == 0
    other, found = asked(changed)
    assert found == 0
    for request, text in ((body, first), (changed, other)):
        again, found = asked(request)
        assert again == text
        assert found > 100


def test_inspect_reads_a_text_as_the_library_does(server: Live, alone: LanguageModel) -> None:
    body = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 8, "light": True}
    body["record"] = [{"taps": ["blocks.*.hook_resid_post"], "positions": "prompt"}, {"taps": ["hook_embed"]}]
    found = server.post("/v1/inspect", body).json()
    cache = of_library(alone, ["blocks.*.hook_resid_post"])
    assert [token["id"] for token in found["tokens"]] == cache.ids
    n_prompt = found["n_prompt"]
    assert n_prompt == len(cache.ids) - 8
    for one in found["readings"]:
        if one["record"] == 0:
            assert one["positions"] == list(range(n_prompt))
            assert (array(one) == cache[one["tap"]][:n_prompt]).all()
    assert array(found["light"]["targets"]).tolist() == cache.ids[1:]
    binary = server.post("/v1/inspect", {**body, "format": "safetensors"})
    assert binary.headers["content-type"] == "application/octet-stream"
    arrays = safetensors.numpy.load(binary.content)
    for one in found["readings"]:
        name = f"{one['record']}/{one['tap']}"
        assert (arrays[name] == array(one)).all()
        assert arrays[name + ".positions"].tolist() == one["positions"]
    assert (arrays["light/heads"] == array(found["light"]["heads"])).all()
    arrow = server.post("/v1/inspect", {**body, "format": "arrow"})
    assert arrow.headers["content-type"] == "application/vnd.apache.arrow.file"
    columns, notes = arrays_of_arrow(arrow.content)
    assert columns.keys() == arrays.keys() and all((columns[name] == arrays[name]).all() for name in arrays)
    assert json.loads(notes["ids"]) == cache.ids
    assert server.http.get(f"/v1/records/{binary.headers['x-vitral-record']}").json()["route"] == "/v1/inspect"


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    (
        {"inspect": {"record": [{"taps": ["blocks.0.hook_resid_pots"]}]}},
        "the nearest is blocks.0.hook_resid_post",
        None,
    ),
    ({"inspect": {"record": [{"taps": ["hook_embed"], "layers": [0]}]}}, "hook_embed", "inspect.record[0]"),
    ({"inspect": {"record": [{"taps": ["hook_embed"], "positions": [-99]}]}}, "-99", "inspect.record[0]"),
    ({"inspect": {"record": [{"taps": ["hook_embed"], "heads": [0]}]}}, "has no heads", None),
    ({"inspect": {"record": [{"taps": []}]}}, "inspect.record[0].taps", "inspect.record[0].taps"),
    ({"inspect": {"recrod": []}}, "inspect.recrod", "inspect.recrod"),
    ({"inspect": {"record": [{"taps": ["*"]}]}, "max_tokens": 500}, "MiB", None),
    ({"interventions": {"version": 2, "interventions": []}}, "version 2", "interventions"),
    ({"interventions": {"version": 1, "interventions": [{"kind": "explode"}]}}, "explode", "interventions"),
    (
        {"interventions": {"version": 1, "interventions": [{"kind": "knock_out", "layer": 99, "heads": [0]}]}},
        "99",
        None,
    ),
    (
        {
            "interventions": {
                "version": 1,
                "interventions": [
                    {"kind": "steer", "tap": "hook_embed", "values": {"file": "/etc/x", "tensor": "a", "sha256": "b"}}
                ],
            }
        },
        "files are not read here",
        "interventions",
    ),
]


@pytest.mark.parametrize(("more", "said", "param"), WRONG)
def test_what_is_wrong_is_named(server: Live, more: dict[str, Any], said: str, param: str | None) -> None:
    answer = server.post("/v1/completions", {**ONCE, **more})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["param"] == param
    assert server.post("/v1/completions", ONCE).status_code == 200


def test_an_inspection_of_nothing_is_refused(server: Live) -> None:
    empty = server.post("/v1/inspect", {"model": TINY, "prompt": "x"})
    assert (empty.status_code, empty.json()["error"]["param"]) == (400, "record")
    both = {"model": TINY, "prompt": "x", "messages": [{"role": "user", "content": "x"}], "light": True}
    assert "either prompt or messages" in server.post("/v1/inspect", both).json()["error"]["message"]


def test_the_document_of_an_inspection_is_the_command_s(server: Live, alone: LanguageModel) -> None:
    from vitral.lens.inspect import inspect
    from vitral.lens.page import page

    text = {"model": TINY, "prompt": "Once upon a time there was", "format": "document", "window": 4, "top": 3}
    ids = alone.tokenizer.encode(text["prompt"])
    silent = {"interventions": to_document(SILENT)}
    wanted = inspect(alone, ids, name=TINY, window=4, top=3)
    assert server.post("/v1/inspect", text).json() == wanted
    shown = server.post("/v1/inspect", {**text, "format": "html"})
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.text == page(wanted)
    changed = inspect(alone, ids, name=TINY, window=4, top=3, interventions=SILENT)
    answer = server.post("/v1/inspect", text | silent)
    assert answer.json() == changed
    assert server.http.get(f"/v1/records/{answer.headers['x-vitral-record']}").json()["interventions"]["sha256"]
    made = server.post("/v1/inspect", {**text, "max_tokens": 5}).json()
    longer = [*ids, *alone.generate(ids=ids, max_tokens=5).token_ids]
    assert made == inspect(alone, longer, name=TINY, n_prompt=len(ids), window=4, top=3)


def test_a_document_has_bounds_and_nothing_beside_it(
    server: Live, alone: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictured, "MOST_BYTES", 9 * 4 * alone.spec.vocab_size)
    with pytest.raises(RequestError, match="smaller window"):
        pictured.Pictured(alone, Ask((5,) * 9, SamplingParams(max_tokens=0), picture=Picture(8, 5)))
    text = {"model": CHAT, "prompt": [5] * 3, "format": "document"}
    for more, said in (
        ({"light": True}, "do not go with the format"),
        ({"format": "lists", "light": True, "top": 3}, "window and top"),
    ):
        refused = server.post("/v1/inspect", {**text, **more})
        assert refused.status_code == 400
        assert said in refused.json()["error"]["message"]
