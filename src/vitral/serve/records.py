"""A record: what a request was, did and used, in bytes that mean one thing.

Canonical JSON (RFC 8785), written once and never changed. Its SHA-256 stays even when retention removes the body, so
that a transparency log can be put over the table later. Usage is reserved before the engine starts and settled in
the same transaction as the record.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import rfc8785
import sqlalchemy as sa

from vitral.engine.interventions import Intervention, digest, to_document
from vitral.engine.request import SamplingParams
from vitral.serve.store import Store, tables

__all__ = ["Content", "Generated", "Records", "canonical", "ids_digest", "new_id", "params_from", "params_to"]

Content = Literal["ids", "hashed", "none"]

# Built once: to build one takes longer than to execute it.
_RESERVE, _RECORD, _BODY, _USAGE = map(sa.insert, (tables.reservations, tables.records, tables.bodies, tables.usage))
_WHOLE = 2**53  # whole numbers of JSON are smaller
_RELEASE = sa.delete(tables.reservations).where(tables.reservations.c.record == sa.bindparam("which"))


@dataclass(frozen=True, slots=True)
class Generated:
    """One sequence of a request. digests: of the logits each token was chosen from, or empty.

    said: of an engine that answers in text, the text and its number of tokens; `answer` is empty then.
    """

    prompt: Sequence[int]
    params: SamplingParams
    answer: Sequence[int]
    digests: Sequence[str]
    finish: str
    cached: int
    constraint: str | None = None
    said: tuple[str, int] | None = None

    @property
    def made(self) -> int:
        """Tokens of the answer."""
        return len(self.answer) if self.said is None else self.said[1]


def new_id(kind: str) -> str:
    """A name that sorts by time to the second: kind, seconds and randomness in hexadecimal."""
    return f"{kind}_{int(time.time()):08x}{secrets.token_hex(10)}"


def ids_digest(ids: Sequence[int]) -> str:
    """SHA-256 (hex) of token ids as little-endian 64-bit numbers."""
    return hashlib.sha256(array("q", ids).tobytes()).hexdigest()


def canonical(value: Any) -> bytes:
    """The bytes of RFC 8785. Lists of ids and digests, most of a record, are written by the C encoder: ten times as fast.

    Raises what `rfc8785.dumps` raises.

    >>> canonical({"logits": ["00ff"], "ids": [2, 1], "at": 1.0})
    b'{"at":1,"ids":[2,1],"logits":["00ff"]}'
    """
    match value:
        case dict() if all(isinstance(key, str) and key.isascii() for key in value):  # others have another order
            return b"{%b}" % b",".join(canonical(key) + b":" + canonical(one) for key, one in sorted(value.items()))
        case str() if value.isascii():
            return json.dumps(value).encode()
        case [str(), *_] if all(isinstance(one, str) and one.isascii() for one in value):
            return json.dumps(value, separators=(",", ":")).encode()
        case [int(), *_] if all(type(one) is int and -_WHOLE < one < _WHOLE for one in value):
            return json.dumps(value, separators=(",", ":")).encode()
        case list() | tuple():
            return b"[%b]" % b",".join(map(canonical, value))
        case _:
            return rfc8785.dumps(value)


class Records:
    """Reserves, settles and finds records.

    content: keep token ids ("ids"), only their digests ("hashed"), or neither ("none").
    keep_days: how long bodies stay, None for ever.
    """

    def __init__(self, store: Store, content: Content = "ids", keep_days: int | None = None) -> None:
        self.store = store
        self.content = content
        self.keep_days = keep_days

    async def reserve(self, record: str, tenant: str, tokens: int) -> None:
        """Note what a request may use, durably, before the engine sees it."""
        row = {"record": record, "tenant": tenant, "created": int(time.time()), "tokens": tokens}
        await self.store.write(lambda connection: connection.execute(_RESERVE, row))

    def changes(self, interventions: Sequence[Intervention]) -> dict[str, Any]:
        """What changed a run, for its record: the digest, and the document where ids are kept too."""
        kept: dict[str, Any] = {"sha256": digest(interventions)}
        if self.content == "ids":
            kept["document"] = to_document(interventions)
        return kept

    async def settle(
        self, record: str, tenant: str, model: str, facts: Mapping[str, Any], sequences: Sequence[Generated]
    ) -> None:
        """Write record and usage, and let the reservation go, in one transaction."""
        now = int(time.time())
        body = canonical(
            {
                "version": 1,
                "id": record,
                "created": now,
                "tenant": tenant,
                **facts,
                "sequences": [self._sequence(sequence) for sequence in sequences],
            }
        )
        distinct = {id(sequence.prompt): sequence for sequence in sequences}.values()
        usage = {
            "record": record,
            "tenant": tenant,
            "model": model,
            "created": now,
            "prompt": sum(len(sequence.prompt) for sequence in distinct),
            "cached": sum(sequence.cached for sequence in distinct),
            "completion": sum(sequence.made for sequence in sequences),
        }
        row = {"id": record, "tenant": tenant, "created": now, "digest": hashlib.sha256(body).hexdigest()}

        def write(connection: sa.Connection) -> None:
            connection.execute(_RECORD, row)
            connection.execute(_BODY, {"id": record, "body": body})
            connection.execute(_USAGE, usage)
            connection.execute(_RELEASE, {"which": record})

        await self.store.write(write)

    async def find(self, record: str, tenant: str | None) -> dict[str, Any] | None:
        """A record of a tenant (None: of anyone), or None. A body that retention removed leaves `erased`."""
        table = tables.records
        query = (
            sa.select(table.c.id, table.c.digest, table.c.created, tables.bodies.c.body)
            .select_from(table.outerjoin(tables.bodies, tables.bodies.c.id == table.c.id))
            .where(table.c.id == record)
        )
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        row = await self.store.read(lambda connection: connection.execute(query).first())
        if row is None:
            return None
        if row.body is None:
            return {"id": row.id, "created": row.created, "digest": row.digest, "erased": True}
        return {**json.loads(row.body), "digest": row.digest}

    async def forget(self) -> int:
        """Remove bodies older than `keep_days`; the digests stay. How many went."""
        if self.keep_days is None:
            return 0
        table = tables.records
        old = sa.select(table.c.id).where(table.c.created < int(time.time()) - self.keep_days * 86400)
        query = sa.delete(tables.bodies).where(tables.bodies.c.id.in_(old))
        return int(await self.store.write(lambda connection: connection.execute(query).rowcount))

    async def release_abandoned(self, older_than_s: float) -> int:
        """Let go what was reserved longer ago than any answer may take: its server is gone. How many there were.

        Several servers may share a database, so that no server may take younger ones for abandoned.
        """
        table = tables.reservations
        query = sa.delete(table).where(table.c.created < time.time() - older_than_s)
        return int(await self.store.write(lambda connection: connection.execute(query).rowcount))

    def _sequence(self, sequence: Generated) -> dict[str, Any]:
        return {
            "parameters": params_to(sequence.params),
            "constraint": sequence.constraint,
            "prompt": self._ids(sequence.prompt),
            "answer": self._ids(sequence.answer) if sequence.said is None else self._text(*sequence.said),
            "logits": list(sequence.digests) if self.content != "none" else [],
            "cached": sequence.cached,
            "finish": sequence.finish,
        }

    def _text(self, text: str, count: int) -> dict[str, Any]:
        kept: dict[str, Any] = {"count": count}
        if self.content != "none":
            kept["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        if self.content == "ids":
            kept["text"] = text
        return kept

    def _ids(self, ids: Sequence[int]) -> dict[str, Any]:
        kept: dict[str, Any] = {"count": len(ids)}
        if self.content != "none":
            kept["sha256"] = ids_digest(ids)
        if self.content == "ids":
            kept["ids"] = list(ids)
        return kept


def params_to(params: SamplingParams) -> dict[str, Any]:
    """Parameters as plain data. The seed is text: JSON's numbers end at 2^53."""
    data = {field.name: getattr(params, field.name) for field in fields(SamplingParams)}
    data["logit_bias"] = [[token, _finite(bias)] for token, bias in sorted(params.logit_bias.items())]
    data["stop_ids"] = sorted(params.stop_ids)
    data["seed"] = None if params.seed is None else str(params.seed)
    return data


def params_from(data: Mapping[str, Any]) -> SamplingParams:
    """The parameters again.

    >>> params_from(params_to(SamplingParams(seed=2**64 - 1, logit_bias={3: float("-inf")}))).seed == 2**64 - 1
    True
    """
    values = dict(data)
    values["logit_bias"] = {token: float(bias) for token, bias in values["logit_bias"]}
    values["stop_ids"] = frozenset(values["stop_ids"])
    values["seed"] = None if values["seed"] is None else int(values["seed"])
    return SamplingParams(**values)


def _finite(bias: float) -> float | str:
    return bias if bias > float("-inf") else "-inf"
