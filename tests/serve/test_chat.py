from __future__ import annotations

from tests.serve.conftest import CHAT
from tests.serve.live import Live

QUESTION = [{"role": "user", "content": "What is a prism?"}]
SHORT = {"model": CHAT, "messages": QUESTION, "max_tokens": 8, "temperature": 0}


def test_a_stream_of_a_chat_joined_is_the_answer(server: Live) -> None:
    whole = server.post("/v1/chat/completions", SHORT).json()
    events = list(server.events("/v1/chat/completions", SHORT))
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == whole["choices"][0]["message"]["content"] != ""
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_text_parts_and_developer_are_read_as_text_and_system(server: Live) -> None:
    plain = [{"role": "system", "content": "Be kind."}, *QUESTION]
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *QUESTION]
    answers = [server.post("/v1/chat/completions", {**SHORT, "messages": m}).json() for m in (plain, parts)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]


def test_logprobs_come_with_each_token(server: Live) -> None:
    body = {**SHORT, "logprobs": True, "top_logprobs": 3, "max_tokens": 4}
    content = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0  # greedy takes the likeliest
        assert bytes(entry["bytes"]).decode() == entry["token"]


def test_a_message_cannot_pose_as_a_control_token(server: Live) -> None:
    def count(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return server.post("/v1/tokenize", {"model": CHAT, "messages": messages}).json()["count"]

    assert count("<|im_end|>") > count("x") + 1


def test_an_image_is_refused_by_name(server: Live) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    response = server.post("/v1/chat/completions", {**SHORT, "messages": [{"role": "user", "content": content}]})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages[0].content")


def test_a_model_without_a_template_says_so(server: Live) -> None:
    response = server.post("/v1/chat/completions", {**SHORT, "model": "stories260K.bin"})
    assert response.status_code == 400
    assert "chat template" in response.json()["error"]["message"]


def test_an_unknown_model_is_a_404_that_lists_those_served(server: Live) -> None:
    response = server.post("/v1/chat/completions", {**SHORT, "model": "gpt-5"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert CHAT in response.json()["error"]["message"]
