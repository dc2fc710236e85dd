"""OpenAI's `/v1/files`: what batches read and write. Contents are on disk under names of ours, facts in the database."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import FileResponse, Response

from vitral.errors import RecordStoreError
from vitral.serve.call import Call, json_response
from vitral.serve.faults import ApiError, not_found
from vitral.serve.paging import page
from vitral.serve.records import new_id
from vitral.serve.service import Service
from vitral.serve.store import tables

__all__ = ["content", "delete", "list_files", "one_file", "path_of", "save", "upload"]

_PURPOSES = ("batch", "user_data")


async def upload(call: Call) -> Response:
    """Keep a file."""
    most = call.service.limits.file_bytes
    declared = call.request.headers.get("content-length", "")
    if not declared.isdigit():
        raise ApiError(411, "length_required", "an upload must say its Content-Length")
    if int(declared) > most + (1 << 16):  # the form around the file
        raise ApiError(413, "body_too_large", f"the upload is larger than the {most} bytes allowed")
    try:
        async with asyncio.timeout(call.service.limits.body.body_s * 4):
            form = await call.request.form(max_files=1, max_fields=2)
    except MultiPartException as error:
        raise ApiError(400, "invalid_form", f"the upload is no form: {error}") from None
    except TimeoutError:
        raise ApiError(408, "body_timeout", "the upload did not arrive in time") from None
    try:
        unknown = set(form) - {"file", "purpose"}
        if unknown:
            name = sorted(unknown)[0]
            raise ApiError(400, "unknown_parameter", f"{name[:80]!r} is not a field of this form", param=name[:80])
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "missing_parameter", "the form has no file", param="file")
        if purpose not in _PURPOSES:
            raise ApiError(
                400, "invalid_value", f"purpose is {purpose!r:.80}; allowed: {', '.join(_PURPOSES)}", param="purpose"
            )
        data = await file.read()
    finally:
        await form.close()
    saved = await save(call.service, call.caller.tenant, (file.filename or "file")[:255], str(purpose), data)
    return json_response(saved)


async def save(service: Service, tenant: str, name: str, purpose: str, data: bytes) -> dict[str, Any]:
    """Write a file of a tenant; what clients know of it."""
    id = new_id("file")
    await asyncio.to_thread(_write, path_of(service, id), data)
    body = {
        "id": id,
        "object": "file",
        "bytes": len(data),
        "created_at": int(time.time()),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    await service.store.put(tables.files, id, tenant, body)
    return body


async def list_files(call: Call) -> Response:
    """One's files, newest first."""
    data = await call.service.store.newest(tables.files, call.caller.tenant, 10_000)
    purpose = call.query.purpose
    return json_response(page([file for file in data if purpose in (None, file["purpose"])], call.query))


async def one_file(call: Call) -> Response:
    """Facts of a file."""
    return json_response(await _find(call))


async def content(call: Call) -> Response:
    """A file's bytes."""
    file = await _find(call)
    return FileResponse(path_of(call.service, file["id"]), media_type="application/octet-stream")


async def delete(call: Call) -> Response:
    """Forget a file."""
    file = await _find(call)
    await call.service.store.delete(tables.files, file["id"], call.caller.tenant)
    await asyncio.to_thread(path_of(call.service, file["id"]).unlink, missing_ok=True)
    return json_response({"id": file["id"], "object": "file", "deleted": True})


def path_of(service: Service, id: str) -> Path:
    """Where a file lies; `id` is one that the database knows."""
    return service.folder / "files" / id


async def _find(call: Call) -> dict[str, Any]:
    found = await call.service.store.get(tables.files, call.path["id"], call.caller.tenant)
    if found is None:
        raise not_found("file", call.path["id"])
    return found


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
    except OSError as error:
        raise RecordStoreError(f"the file cannot be kept: {error.strerror}") from error
