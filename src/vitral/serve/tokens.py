"""`POST /v1/tokenize` and `/v1/detokenize`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field, model_validator
from starlette.responses import Response

from vitral.errors import TokenizerError
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.chat import Message, plain_messages
from vitral.serve.completions import Ids
from vitral.serve.conversation import prepare

__all__ = ["DetokenizeBody", "TokenizeBody", "detokenize", "tokenize"]


class TokenizeBody(Body):
    """A text, or messages. add_special: put BOS and EOS where the model wants them. parse_special: read control
    tokens in the text as such. offsets: say which characters each token stands for."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    text: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special: bool = True
    parse_special: bool = False
    offsets: bool = False

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give exactly one of text and messages")
        if self.messages is not None and (self.offsets or self.parse_special or not self.add_special):
            raise ValueError("offsets, add_special and parse_special belong to a text, not to messages")
        return self


class DetokenizeBody(Body):
    """Token ids. skip_special: leave control tokens out."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    ids: Ids
    skip_special: bool = False


async def tokenize(call: Call) -> Response:
    """Token ids of a text or of messages."""
    body: TokenizeBody = call.body
    tokenizer = call.service.models.get(body.model).tokenizer
    answer: dict[str, Any] = {"model": body.model}
    if body.messages is not None:
        prepared = await prepare(call.service.models.get(body.model), plain_messages(body.messages))
        ids = list(prepared.prompt)
    elif body.offsets:
        ids, spans = await asyncio.to_thread(
            tokenizer.encode_with_offsets,
            body.text or "",
            add_special=body.add_special,
            parse_special=body.parse_special,
        )
        answer["offsets"] = spans
    else:
        ids = await asyncio.to_thread(
            tokenizer.encode, body.text or "", add_special=body.add_special, parse_special=body.parse_special
        )
    answer |= {"ids": ids, "count": len(ids), "pieces": [tokenizer.piece(id) for id in ids]}
    return json_response(answer)


async def detokenize(call: Call) -> Response:
    """Text of token ids, with the span of each."""
    body: DetokenizeBody = call.body
    tokenizer = call.service.models.get(body.model).tokenizer
    for id in body.ids:
        if id >= tokenizer.vocab_size:
            raise TokenizerError(f"token id {id} does not exist; allowed: 0 to {tokenizer.vocab_size - 1}")
    stream = tokenizer.stream(skip_special=body.skip_special)
    text, spans = "", []
    for id in body.ids:
        start = len(text)
        text += stream.push(id)
        spans.append((start, len(text)))
    text += stream.finish()
    return json_response({"model": body.model, "text": text, "offsets": spans})
