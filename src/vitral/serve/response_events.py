"""The events of a streamed response, in OpenAI's order: items open, grow, close."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vitral.engine.tool_parser import Delta, TextDelta, ToolCallDelta
from vitral.serve.records import new_id
from vitral.serve.sse import event

__all__ = ["Narrator"]


class Narrator:
    """Numbers the events and keeps the items that they tell of."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._number = 0
        self._open: str | int | None = None  # "text", or the index of a call

    def response(self, kind: str, response: dict[str, Any]) -> bytes:
        """`response.created`, `.in_progress`, `.completed` or `.incomplete`."""
        return self._say(f"response.{kind}", response=response)

    def delta(self, delta: Delta, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        """What a delta makes happen; `logprobs` are those of its text's tokens."""
        if isinstance(delta, TextDelta):
            if self._open != "text":
                yield from self.close()
                yield from self._open_text()
            part = self.items[-1]["content"][0]
            part["text"] += delta.text
            part["logprobs"] += logprobs
            yield self._say("response.output_text.delta", **self._part(), delta=delta.text, logprobs=logprobs)
        else:
            if self._open != delta.index:
                yield from self.close()
                yield from self._open_call(delta)
            self.items[-1]["arguments"] += delta.arguments
            if delta.arguments:
                yield self._say("response.function_call_arguments.delta", **self._place(), delta=delta.arguments)

    def finish(self) -> Iterator[bytes]:
        """The answer ends; one that says nothing says an empty text."""
        if not self.items:
            yield from self._open_text()
        yield from self.close()

    def close(self) -> Iterator[bytes]:
        """The open item ends."""
        if self._open is None:
            return
        item = self.items[-1]
        if self._open == "text":
            part = item["content"][0]
            yield self._say("response.output_text.done", **self._part(), text=part["text"], logprobs=part["logprobs"])
            yield self._say("response.content_part.done", **self._part(), part=part)
        else:
            yield self._say(
                "response.function_call_arguments.done", **self._place(), name=item["name"], arguments=item["arguments"]
            )
        item["status"] = "completed"
        yield self._say("response.output_item.done", output_index=len(self.items) - 1, item=item)
        self._open = None

    def _open_text(self) -> Iterator[bytes]:
        item = _text_item("")
        part = item["content"][0]
        self.items.append(item)
        self._open = "text"
        opening = {**item, "status": "in_progress", "content": []}
        yield self._say("response.output_item.added", output_index=len(self.items) - 1, item=opening)
        yield self._say("response.content_part.added", **self._part(), part=part)

    def _open_call(self, delta: ToolCallDelta) -> Iterator[bytes]:
        item = _call_item(delta.id or "", delta.name or "", "")
        self.items.append(item)
        self._open = delta.index
        opening = {**item, "status": "in_progress"}
        yield self._say("response.output_item.added", output_index=len(self.items) - 1, item=opening)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _part(self) -> dict[str, Any]:
        return {**self._place(), "content_index": 0}

    def _say(self, kind: str, **data: Any) -> bytes:
        text = json.dumps({"type": kind, "sequence_number": self._number, **data}, ensure_ascii=False)
        self._number += 1
        return event(text, kind)


def _text_item(text: str) -> dict[str, Any]:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def _call_item(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": id,
        "name": name,
        "arguments": arguments,
    }
