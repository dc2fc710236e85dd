"""Parameters of other servers that we know and refuse, and why: a client learns it, nothing is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["UNSUPPORTED", "without_needless"]

_CLOUD = "it belongs to OpenAI's own service"
_SOUND = "the models served here read and write text alone"

UNSUPPORTED: dict[str, str] = {
    "audio": _SOUND,
    "modalities": _SOUND,
    "container": _CLOUD,
    "context_management": "a prompt is never cut here; shorten it before",
    "conversation": "use previous_response_id",
    "function_call": "use tools and tool_choice",
    "functions": "use tools and tool_choice",
    "include": "what else there is to include is in every answer",
    "inference_geo": _CLOUD,
    "max_tool_calls": "there are no tools that run here",
    "mcp_servers": "there are no tools that run here",
    "moderation": _CLOUD,
    "prediction": "speculation needs no hint here",
    "prompt_cache_key": "the prefix cache finds prompts by content",
    "prompt_cache_options": "the prefix cache finds prompts by content",
    "prompt_cache_retention": "the prefix cache finds prompts by content",
    "reasoning": "the models served here have no separate reasoning",
    "reasoning_effort": "the models served here have no separate reasoning",
    "safety_identifier": "send user",
    "service_tier": _CLOUD,
    "suffix": "the models served here do not fill in the middle",
    "thinking": "the models served here have no separate reasoning",
    "truncation": "a prompt is never cut here; one that does not fit is an error with the counts",
    "verbosity": "say in the prompt how long the answer shall be",
    "web_search_options": "the server reaches nothing outside",
}

_NEEDLESS: dict[str, tuple[Any, ...]] = {
    "function_call": ("none",),
    "include": ([],),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default", "standard_only"),
    "suffix": ("",),
    "thinking": ({"type": "disabled"},),
    "truncation": ("disabled",),
}


def without_needless(data: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without those of `UNSUPPORTED` whose value asks for what is done anyway, or is null.

    >>> without_needless({"model": "m", "truncation": "disabled", "include": ["x"]})
    {'model': 'm', 'include': ['x']}
    """
    return {
        name: value
        for name, value in data.items()
        if name not in UNSUPPORTED or (value is not None and value not in _NEEDLESS.get(name, ()))
    }
