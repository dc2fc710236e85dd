"""The parameters of `/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitral.serve.body import Body
from vitral.serve.conversation import Form
from vitral.serve.glass import GlassBody
from vitral.serve.sampling import Metadata, Seed

__all__ = ["ResponseBody", "items_of", "plain_input"]


class InputText(Body):
    """A piece of text, the user's or an earlier answer's."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputText], Field(max_length=1024)]
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None


class InputCall(Body):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(max_length=128)]
    name: Annotated[str, Field(max_length=64)]
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(Body):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(max_length=128)]
    output: str
    id: str | None = None
    status: str | None = None


Item = InputMessage | InputCall | InputResult


class ResponseTool(Body):
    """A function that may be called."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def openai(self) -> dict[str, Any]:
        """In the form of chat completions."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type"})}


class ResponseChoice(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    name: Annotated[str, Field(max_length=64)]


class ResponseAllowed(Body):
    """Those of the tools that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseChoice], Field(min_length=1, max_length=128)]


class TextFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: Annotated[str, Field(max_length=1 << 16)] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _complete(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema goes with the type json_schema, and with no other")
        return self

    def form(self) -> Form:
        """For the engine."""
        return Form(self.schema_, self.type == "json_object", "text.format")


class TextOptions(Body):
    """How the text is to be."""

    format: TextFormat | None = None


class ResponseBody(GlassBody):
    """Parameters of a response. `seed` is ours."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: str | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=64)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Metadata | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    seed: Seed | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseChoice | ResponseAllowed | None = None
    parallel_tool_calls: bool | None = None

    def chosen(self) -> Any:
        """tool_choice in the form of chat completions."""
        if isinstance(self.tool_choice, ResponseChoice):
            return {"type": "function", "function": {"name": self.tool_choice.name}}
        if isinstance(self.tool_choice, ResponseAllowed):
            tools = [{"type": "function", "function": {"name": tool.name}} for tool in self.tool_choice.tools]
            return {"type": "allowed_tools", "mode": self.tool_choice.mode, "tools": tools}
        return self.tool_choice or "auto"


def plain_input(given: str | list[Item]) -> list[dict[str, Any]]:
    """Messages as the templates know them."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    plain: list[dict[str, Any]] = []
    for item in given:
        if isinstance(item, InputCall):
            called = {
                "id": item.call_id,
                "type": "function",
                "function": {"name": item.name, "arguments": item.arguments},
            }
            if plain and plain[-1].get("tool_calls"):
                plain[-1]["tool_calls"].append(called)  # calls made together stand in one message
            else:
                plain.append({"role": "assistant", "content": "", "tool_calls": [called]})
        elif isinstance(item, InputResult):
            plain.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
        else:
            text = item.content if isinstance(item.content, str) else "\n".join(part.text for part in item.content)
            plain.append({"role": "system" if item.role == "developer" else item.role, "content": text})
    return plain


def items_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message of `plain_input` as items again."""
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}]
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    part = {"type": kind, "text": message["content"]} | ({"annotations": []} if kind == "output_text" else {})
    calls = message.get("tool_calls", [])
    said = [{"type": "message", "role": message["role"], "content": [part]}] if message["content"] or not calls else []
    return said + [
        {"type": "function_call", "call_id": call["id"], **{k: call["function"][k] for k in ("name", "arguments")}}
        for call in calls
    ]
