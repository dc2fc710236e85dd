"""Unmodified clients of others: openai and anthropic."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import anthropic
import openai
import pytest

from tests.serve.conftest import CHAT, TINY
from tests.serve.live import Live

ASK: list[Any] = [{"role": "user", "content": "What is a prism?"}]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "name": "paint",
    "description": "Paints.",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def claude(server: Live) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=120)


def test_openai_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=CHAT, messages=ASK, max_tokens=8, temperature=0)
    chunks = list(client.chat.completions.create(model=CHAT, messages=ASK, max_tokens=8, temperature=0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8


def test_openai_completions_models_and_embeddings(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [TINY, CHAT]
    assert client.models.retrieve(CHAT).id == CHAT
    answer = client.completions.create(model=TINY, prompt="Once upon", max_tokens=4, logprobs=1, echo=True)
    assert answer.choices[0].text.startswith("Once upon")
    vectors = client.embeddings.create(model=TINY, input=["a", "b"])  # the client asks for base64 by itself
    assert len(vectors.data[0].embedding) == len(vectors.data[1].embedding) > 1


def test_openai_structured_output_obeys_the_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT,
        messages=ASK,
        max_tokens=60,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA, "strict": True}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["colour"] in ("red", "blue")
    assert 0 <= found["count"] <= 9


def test_a_schema_that_cannot_be_honoured_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="uniqueItems|unevaluatedItems|contains"):
        client.chat.completions.create(
            model=CHAT,
            messages=ASK,
            response_format={
                "type": "json_schema",
                "json_schema": {
                    "name": "x",
                    "schema": {"type": "array", "contains": {"type": "integer"}, "unevaluatedItems": False},
                },
            },
        )


@pytest.mark.parametrize("stream", [False, True])
def test_openai_tools_call_with_arguments_that_parse(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": CHAT,
        "messages": ASK,
        "max_tokens": 80,
        "seed": 3,
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    if stream:
        with client.chat.completions.stream(**asked) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**asked)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "paint"
    assert json.loads(call.function.arguments)["colour"] in ("red", "blue")
    assert answer.choices[0].finish_reason == "tool_calls"
    after = client.chat.completions.create(
        model=CHAT,
        max_tokens=2,
        messages=[
            *ASK,
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": "paint", "arguments": call.function.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "done"},
        ],
    )
    assert after.usage is not None
    assert after.usage.completion_tokens > 0


def test_openai_responses_are_made_found_continued_and_deleted(client: openai.OpenAI) -> None:
    first = client.responses.create(model=CHAT, input="Say a word.", max_output_tokens=4, temperature=0)
    assert first.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model=CHAT, input="Another.", max_output_tokens=4, temperature=0, previous_response_id=first.id
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_openai_responses_stream_the_events_of_one_that_is_whole(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=CHAT, input="Say a word.", max_output_tokens=4, temperature=0)
    events = list(
        client.responses.create(model=CHAT, input="Say a word.", max_output_tokens=4, temperature=0, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.incomplete"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_openai_background_response_can_be_cancelled(client: openai.OpenAI) -> None:
    response = client.responses.create(model=CHAT, input="Count.", max_output_tokens=400, background=True)
    assert response.status == "queued"
    cancelled = client.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(response.id).status == "cancelled"


COMPLETIONS = [
    {"model": TINY, "prompt": "Once", "max_tokens": 5} | extra for extra in ({}, {"n": 2}, {"temperature": 9})
]
RESPONSES = [{"model": CHAT, "input": "Hi", "max_output_tokens": 5} | extra for extra in ({}, {}, {"temperature": 9})]


@pytest.mark.parametrize(("endpoint", "bodies"), [("/v1/completions", COMPLETIONS), ("/v1/responses", RESPONSES)])
def test_openai_batches_answer_each_line_and_the_same_again(
    client: openai.OpenAI, endpoint: Any, bodies: list[dict[str, Any]]
) -> None:
    lines = [
        {"custom_id": f"line {i}", "method": "POST", "url": endpoint, "body": body} for i, body in enumerate(bodies)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()

    def run() -> tuple[list[Any], list[Any]]:
        file = client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
        assert client.files.content(file.id).read() == data
        batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
        end = time.monotonic() + 60
        while batch.status == "in_progress":
            assert time.monotonic() < end
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed", batch
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        good, bad = (
            [json.loads(line) for line in client.files.content(id).text.splitlines()]
            for id in (batch.output_file_id, batch.error_file_id)
        )
        return good, bad

    good, bad = run()
    assert [each["custom_id"] for each in good] == ["line 0", "line 1"]
    assert bad[0]["response"]["body"]["error"]["param"] == "temperature"
    again, _ = run()
    assert [spoken(each) for each in again] == [spoken(each) for each in good]


def spoken(line: dict[str, Any]) -> Any:
    """What an answer in a batch's output says."""
    body = line["response"]["body"]
    return body["choices"] if "choices" in body else [each["content"] for each in body["output"]]


def test_anthropic_messages_whole_streamed_and_counted(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": CHAT,
        "messages": ASK,
        "system": "Be brief.",
        "max_tokens": 8,
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    assert (final.stop_reason, whole.stop_reason) == ("max_tokens", "max_tokens")
    assert final.usage.output_tokens == whole.usage.output_tokens == 8
    counted = claude.messages.count_tokens(model=CHAT, messages=ASK, system="Be brief.")
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_anthropic_tools_and_stop_sequences(claude: anthropic.Anthropic) -> None:
    tool: Any = {"name": "paint", "input_schema": TOOL["parameters"]}
    asked: dict[str, Any] = {
        "model": CHAT,
        "messages": ASK,
        "max_tokens": 80,
        "tools": [tool],
        "tool_choice": {"type": "tool", "name": "paint"},
    }
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (claude.messages.create(**asked), streamed):
        assert message.stop_reason == "tool_use"
        call = message.content[-1]
        assert call.type == "tool_use"
        assert call.input["colour"] in ("red", "blue")  # type: ignore[index]
    stopped = claude.messages.create(
        model=CHAT, messages=ASK, max_tokens=60, extra_body={"temperature": 0}, stop_sequences=[" is", " a"]
    )
    assert stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence in (" is", " a")


@pytest.mark.parametrize("route", ["/v1/messages", "/v1/responses"])
def test_a_seed_makes_messages_and_responses_that_come_again_to_the_bit(server: Live, route: str) -> None:
    most = "max_tokens" if route == "/v1/messages" else "max_output_tokens"
    said = {"messages": ASK} if route == "/v1/messages" else {"input": "What is a prism?"}

    def ask(seed: int | None) -> tuple[Any, dict[str, Any]]:
        answer = server.post(route, {"model": CHAT, most: 12, **said, "seed": seed})
        assert answer.status_code == 200, answer.text
        record = server.http.get(f"/v1/records/{answer.json()['record']}").json()
        content = answer.json().get("content") or answer.json()["output"][0]["content"]
        return content[0]["text"], record

    text, record = ask(7)
    again, twin = ask(7)
    assert text == again
    assert record["sequences"][0]["parameters"]["seed"] == "7"
    assert record["sequences"][0]["logits"] == twin["sequences"][0]["logits"]
    assert server.post(f"/v1/records/{record['id']}/replay", {}).json()["verdict"] == "EXACT"
    others = {ask(seed)[0] for seed in (8, -1, None)}
    assert others - {text}
    assert ask(-1)[1]["sequences"][0]["parameters"]["seed"] == str(2**64 - 1)
    refused = server.post(route, {"model": CHAT, most: 12, **said, "seed": 2**64})
    assert refused.status_code == 400
    assert "seed" in refused.json()["error"]["message"]


def test_a_seed_goes_through_the_clients_of_others(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    seed: Any = {"extra_body": {"seed": 3}}
    texts = [client.responses.create(model=CHAT, input="Hi", max_output_tokens=9, **seed).output_text for _ in range(2)]
    assert texts[0] == texts[1]
    said = [claude.messages.create(model=CHAT, messages=ASK, max_tokens=9, **seed).content[0] for _ in range(2)]
    assert said[0] == said[1]


def test_anthropic_errors_have_its_shape(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        claude.messages.create(
            model=CHAT, messages=ASK, max_tokens=5, thinking={"type": "enabled", "budget_tokens": 1024}
        )
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude", messages=ASK, max_tokens=5)
