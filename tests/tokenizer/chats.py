"""Chats that exercise a template: turns, a system message, tools and their results."""

from __future__ import annotations

from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city: sun & rain, <now>",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "São Paulo, 東京 …"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {
    "type": "function",
    "function": {"name": "time", "description": "The time", "parameters": {"type": "object", "properties": {}}},
}

SYSTEM = {"role": "system", "content": "Be brief; answer in 'plain' words & \"whole\" sentences."}
ONE = [{"role": "user", "content": "Olá, tudo bem?"}]
TURNS = [
    {"role": "user", "content": 'Name a colour <b>"now"</b>'},
    {"role": "assistant", "content": "Blue & green."},
    {"role": "user", "content": "And\nanother?  Well…"},
]
ENDED = [*TURNS, {"role": "assistant", "content": "Red."}]
CALLED = [
    {"role": "user", "content": "How is the weather in Recife?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "9Ae3bDc2F", "type": "function", "function": {"name": "weather", "arguments": {"city": "Recife"}}}
        ],
    },
    {"role": "tool", "name": "weather", "tool_call_id": "9Ae3bDc2F", "content": "28 degrees"},
]
ANSWERED = [*CALLED, {"role": "assistant", "content": "It is warm."}, {"role": "user", "content": "And tomorrow?"}]

PLAIN = {
    "one": ONE,
    "system": [SYSTEM, *ONE],
    "turns": TURNS,
    "system-turns": [SYSTEM, *TURNS],
    "ended": ENDED,
}
WITH_TOOLS = {
    "offered": ONE,
    "offered-system": [SYSTEM, *TURNS],
    "called": CALLED,
    "answered": [SYSTEM, *ANSWERED],
}
