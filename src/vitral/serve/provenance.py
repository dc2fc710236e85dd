"""`/v1/licence`, `/v1/scan` and `/v1/digest`: where the served models come from and what may be done with them."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from vitral.errors import LicenceError
from vitral.hub import at_hand, resolve
from vitral.provenance.digest import model_files
from vitral.provenance.licence import Judgement, catalogue, check, licence, notice_files, report, to_html, to_json
from vitral.provenance.licence import compare as compared
from vitral.provenance.recognise import recognised_by
from vitral.provenance.scan import scan as look
from vitral.provenance.use import use_of
from vitral.serve.body import Body
from vitral.serve.call import Call, json_response
from vitral.serve.faults import ApiError

__all__ = ["CheckBody", "CompareBody", "FilesBody", "NoticesBody", "check_licence", "compare", "digest", "explain"]
__all__ += ["list_licences", "notices", "scan"]

Name = Annotated[str, Field(min_length=1, max_length=256)]


class CheckBody(Body):
    """use: the tables of a use file (`who`, `what`, `model`, `made_from`). format: the judgement, or a page."""

    model: Name
    use: dict[str, Any] = {}
    format: Literal["json", "html"] = "json"
    language: Literal["en", "pt"] = "en"


class NoticesBody(Body):
    """use: as for a check."""

    model: Name
    use: dict[str, Any] = {}


class CompareBody(Body):
    """Two licences by id, tag or SPDX identifier."""

    first: Name
    second: Name


class FilesBody(Body):
    """Which of the served models."""

    model: Name


async def check_licence(call: Call) -> Response:
    """Whether a served model may be used for this: outcome, clauses, duties, questions."""
    body: CheckBody = call.body
    judgement = await _judged(call, body.model, body.use)
    if body.format == "html":
        return Response(to_html(report(judgement, body.language)), media_type="text/html; charset=utf-8")
    return json_response(to_json(judgement))


async def notices(call: Call) -> Response:
    """The files that must travel with a served model for this use, licence copies among them, as text by name.

    A file that is not UTF-8 stands under `binary`, in base64.
    """
    path = _path(call, call.body.model)
    judgement = await _judged(call, call.body.model, call.body.use)
    texts: dict[str, str] = {}
    binary: dict[str, str] = {}
    for name, content in (await asyncio.to_thread(notice_files, judgement, path)).items():
        try:
            texts[name] = content.decode()
        except UnicodeDecodeError:
            binary[name] = base64.b64encode(content).decode()
    return json_response({"outcome": judgement.outcome.words, "files": texts} | ({"binary": binary} if binary else {}))


async def compare(call: Call) -> Response:
    """Two licences side by side, by what they are about."""
    try:
        rows = compared(call.body.first, call.body.second)
    except LicenceError as error:
        raise ApiError(404, "not_found", str(error)) from None
    return json_response({"object": "list", "data": [asdict(row) for row in rows]})


async def _judged(call: Call, model: str, use: dict[str, Any]) -> Judgement:
    path = _path(call, model)
    try:
        return await asyncio.to_thread(check, model, use_of("use", use), path, None, at_hand)
    except LicenceError as error:
        raise ApiError(400, "invalid_value", str(error), param="use") from None


async def list_licences(call: Call) -> Response:
    """The catalogue: every licence and use policy, with version, how sure its reading is, and by what files show it."""
    entries = [
        {name: getattr(entry, name) for name in ("id", "name", "dated", "sure", "models")}
        | {"recognised_by": recognised_by(entry.id)}
        for entry in catalogue().values()
    ]
    return json_response({"object": "list", "data": entries})


async def explain(call: Call) -> Response:
    """A licence clause by clause, with source and date."""
    try:
        return json_response(_plain(asdict(licence(call.path["id"]))))
    except LicenceError as error:
        raise ApiError(404, "not_found", str(error)) from None


async def scan(call: Call) -> Response:
    """What a scan of a served model's files finds now."""
    found = await asyncio.to_thread(look, _path(call, call.body.model))
    verdict = found.verdict()
    return json_response({"passed": verdict.passed, "reasons": list(verdict.reasons), **verdict.evidence})


async def digest(call: Call) -> Response:
    """SHA-256 of each file of a served model, and the digest of its weights that the engine computed at load.

    A file that has not changed since it was last asked for is not read again; `read_bytes` says how much was.
    """
    model = call.service.models.get(call.body.model)
    path = _path(call, call.body.model)
    files, read = await asyncio.to_thread(lambda: call.service.digests.digests(model_files(path)))
    weights = model.facts.digests.get("weights")
    listed = {name: asdict(one) for name, one in files.items()}
    return json_response({"files": listed, "read_bytes": read, "weights": weights})


def _path(call: Call, name: str) -> Path:
    source = call.service.models.get(name).source
    if source is None:
        raise ApiError(400, "unsupported_by_engine", f"the files of model {name!r} are not on this machine")
    return resolve(source)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, frozenset, set)):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)
