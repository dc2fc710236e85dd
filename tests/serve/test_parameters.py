"""What may be asked, as users of the other servers know it; and how what may not is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.conftest import CHAT, TINY
from tests.serve.live import Live

HI: dict[str, Any] = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
SAY: dict[str, Any] = {"model": CHAT, "input": "Hi", "max_output_tokens": 2}
ONCE: dict[str, Any] = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
CITY = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
BAD = {"type": "array", "contains": {}}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


def tool(name: str, parameters: Any = CITY) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD}}
WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/chat/completions", HI | {"response_format": FORMAT}, "response_format", "#/contains"),
    ("/v1/chat/completions", HI | {"tools": [tool("f", BAD)], "tool_choice": "required"}, "tools", "f"),
    ("/v1/chat/completions", HI | {"tool_choice": "required"}, "tool_choice", "no tools"),
    (
        "/v1/chat/completions",
        HI | {"messages": [{"role": "user", "content": [IMAGE]}]},
        "messages[0].content[0].type",
        "image_url",
    ),
    ("/v1/chat/completions", HI | {"modalities": ["text", "audio"]}, "modalities", "text alone"),
    ("/v1/chat/completions", HI | {"service_tier": "flex"}, "service_tier", "not supported"),
    ("/v1/responses", SAY | {"truncation": "auto"}, "truncation", "never cut"),
    (
        "/v1/responses",
        SAY | {"text": {"format": {"type": "json_schema", "name": "x", "schema": BAD}}},
        "text.format",
        "#/contains",
    ),
    ("/v1/completions", ONCE | {"best_of": 3}, "best_of", "n"),
    ("/v1/score", {"model": CHAT, "text_1": "a", "text_2": "b"}, "text_2", "space"),
]


@pytest.mark.parametrize(("route", "body", "param", "said"), WRONG)
def test_a_refusal_names_the_parameter(server: Live, route: str, body: Any, param: str, said: str) -> None:
    answer = server.post(route, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, answer.text
    assert said in answer.json()["error"]["message"]


def test_a_value_that_asks_for_what_is_done_anyway_is_taken(server: Live) -> None:
    for route, body in (
        ("/v1/chat/completions", HI | {"service_tier": "auto", "modalities": ["text"], "reasoning_effort": "none"}),
        ("/v1/responses", SAY | {"truncation": "disabled", "include": []}),
        ("/v1/messages", HI | {"thinking": {"type": "disabled"}, "service_tier": "standard_only"}),
    ):
        answer = server.post(route, body)
        assert answer.status_code == 200, answer.text


def test_an_echo_is_streamed_as_it_is_given_whole(server: Live) -> None:
    body = {**ONCE, "echo": True, "logprobs": 1, "n": 2}
    whole = server.post("/v1/completions", body).json()["choices"]
    for choice in whole:
        pieces = [e["choices"][0] for e in server.events("/v1/completions", body)]
        mine = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [v for piece in mine for v in piece["logprobs"][name]] == choice["logprobs"][name], name
    scored = list(server.events("/v1/completions", {**body, "n": 1, "max_tokens": 0}))
    assert scored[0]["choices"][0]["text"] == ONCE["prompt"]
    assert scored[-1]["choices"][0]["finish_reason"] == "length"


def test_of_several_tools_only_the_allowed_are_called(server: Live) -> None:
    tools = [tool("weather"), tool("time")]
    some = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    asked = HI | {"tools": tools, "max_tokens": 80, "seed": 1, "parallel_tool_calls": False}
    chosen = asked | {"tool_choice": {"type": "allowed_tools", "allowed_tools": some}}
    answer = server.post("/v1/chat/completions", chosen).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "time"
    all_of_them = server.post("/v1/chat/completions", {**asked, "tool_choice": "required"}).json()
    assert answer["usage"]["prompt_tokens"] == all_of_them["usage"]["prompt_tokens"]  # the model sees both
    some["tools"][0]["function"]["name"] = "none"  # type: ignore[index]
    refused = server.post("/v1/chat/completions", chosen)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


def test_documents_are_texts_or_objects(server: Live) -> None:
    body = {"model": TINY, "query": "a girl", "documents": ["once upon a time", {"text": "the sun was big"}]}
    mixed = server.post("/v1/rerank", body).json()["results"]
    plain = server.post("/v1/rerank", {**body, "documents": ["once upon a time", "the sun was big"]}).json()["results"]
    assert mixed == plain


def test_lists_come_a_page_at_a_time(server: Live) -> None:
    def upload(purpose: str) -> str:
        file = {"file": ("x", b"x")}
        return str(server.http.post("/v1/files", files=file, data={"purpose": purpose}).json()["id"])

    ids = {purpose: [upload(purpose) for _ in range(3)] for purpose in ("user_data", "batch")}
    found: list[str] = []
    more, after = True, ""
    while more:
        got = server.http.get(f"/v1/files?purpose=user_data&limit=2&order=asc{after}").json()
        found += [file["id"] for file in got["data"]]
        more, after = got["has_more"], f"&after={got['last_id']}"
    assert [id for id in found if id in ids["user_data"]] == sorted(ids["user_data"])
    assert not set(found) & set(ids["batch"])
    for address, param in (
        ("/v1/files?nonsense=1", "nonsense"),
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=1&limit=2", "limit"),
        ("/v1/files?after=file_none", "after"),
        ("/v1/models?x=1", "x"),
        ("/v1/responses/resp_1?stream=true", "stream"),
    ):
        refused = server.http.get(address)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), address


def test_what_a_response_answered_comes_back_as_items(server: Live) -> None:
    call = {"type": "function_call", "call_id": "abc", "name": "f", "arguments": '{"a": "x"}'}
    result = {"type": "function_call_output", "call_id": "abc", "output": "1"}
    said = [{"role": "user", "content": "Hi"}, call, result, {"role": "assistant", "content": "Yes"}]
    answer = server.post("/v1/responses", {**SAY, "input": [*said, {"role": "user", "content": "Go"}]})
    assert answer.status_code == 200, answer.text
    items = server.http.get(f"/v1/responses/{answer.json()['id']}/input_items?order=asc").json()["data"]
    assert [item["type"] for item in items] == [
        "message",
        "function_call",
        "function_call_output",
        "message",
        "message",
    ]
    assert items[0]["content"] == [{"type": "input_text", "text": "Hi"}]
    assert json.loads(items[1]["arguments"]) == {"a": "x"}
    assert items[3]["content"][0]["type"] == "output_text"


def test_an_anthropic_answer_goes_on_from_the_last_message_if_that_is_the_assistant_s(server: Live) -> None:
    asked = {**HI, "messages": [{"role": "user", "content": "What is a prism?"}], "max_tokens": 12, "temperature": 0}
    whole = server.post("/v1/messages", asked).json()["content"][0]["text"]
    beginning = " ".join(whole.split()[:3])
    begun = {**asked, "messages": [*asked["messages"], {"role": "assistant", "content": beginning}]}
    answer = server.post("/v1/messages", begun).json()
    assert (beginning + answer["content"][0]["text"]).startswith(whole)
    streamed = "".join(
        e["delta"].get("text", "") for e in server.events("/v1/messages", begun) if e["type"] == "content_block_delta"
    )
    assert streamed == answer["content"][0]["text"]
    begun["messages"][-1]["content"] += " "
    assert "blanks" in server.post("/v1/messages", begun).json()["error"]["message"]


def test_a_response_s_log_probabilities_are_those_of_a_chat(server: Live) -> None:
    chat = {**HI, "max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    wanted = server.post("/v1/chat/completions", chat).json()["choices"][0]["logprobs"]["content"]
    asked = {**SAY, "max_output_tokens": 5, "temperature": 0, "top_logprobs": 2}
    refused = server.post("/v1/responses", asked)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "top_logprobs")
    asked["include"] = ["message.output_text.logprobs"]
    assert server.post("/v1/responses", asked).json()["output"][0]["content"][0]["logprobs"] == wanted
    events = list(server.events("/v1/responses", asked))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for event in deltas for entry in event["logprobs"]] == wanted
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == wanted
