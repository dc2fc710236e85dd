"""Every route of the server, in one table. What is not declared here cannot be mounted."""

from __future__ import annotations

from vitral.serve import (
    adapters,
    batches,
    chat,
    completions,
    embeddings,
    evidence_route,
    files,
    inspection,
    messages,
    provenance,
    record_routes,
    responses,
    score,
    status,
    tokens,
)
from vitral.serve.call import Route
from vitral.serve.paging import Beta, FilesQuery, ListQuery

__all__ = ["ROUTES"]

_CHAT = ("messages[].content",)
_ASKED = ("system", "messages[].content")
_TEXT = ("prompt", "messages[].content")
_SAID = ("instructions", "input")

ROUTES: tuple[Route, ...] = (
    #     method  path                     handler              permission scanned   recorded   body
    Route("POST", "/v1/chat/completions", chat.chat, "infer", _CHAT, "answer", chat.ChatBody),
    Route(
        "POST", "/v1/completions", completions.completions, "infer", ("prompt",), "answer", completions.CompletionBody
    ),
    Route("POST", "/v1/responses", responses.create, "infer", _SAID, "answer", responses.ResponseBody),
    Route("GET", "/v1/responses/{id}", responses.retrieve, "infer", (), "nothing", None),
    Route(
        "GET", "/v1/responses/{id}/input_items", responses.input_items, "infer", (), "nothing", None, query=ListQuery
    ),
    Route("POST", "/v1/responses/{id}/cancel", responses.cancel, "infer", (), "nothing", None),
    Route("DELETE", "/v1/responses/{id}", responses.delete, "infer", (), "nothing", None),
    Route(
        "POST", "/v1/messages", messages.messages, "infer", _ASKED, "answer", messages.MessagesBody, "anthropic", Beta
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        messages.count_tokens,
        "infer",
        (),
        "nothing",
        messages.CountBody,
        "anthropic",
        Beta,
    ),
    Route("POST", "/v1/inspect", inspection.inspect, "infer", _TEXT, "answer", inspection.InspectionBody),
    Route("POST", "/v1/embeddings", embeddings.embeddings, "infer", ("input",), "answer", embeddings.EmbeddingsBody),
    Route("POST", "/v1/score", score.score, "infer", ("text_1", "text_2"), "answer", score.ScoreBody),
    Route("POST", "/v1/rerank", score.rerank, "infer", ("query", "documents"), "answer", score.RerankBody),
    Route("POST", "/v1/tokenize", tokens.tokenize, "infer", (), "nothing", tokens.TokenizeBody),
    Route("POST", "/v1/detokenize", tokens.detokenize, "infer", (), "nothing", tokens.DetokenizeBody),
    Route("POST", "/v1/files", files.upload, "infer", (), "nothing", "upload"),
    Route("GET", "/v1/files", files.list_files, "infer", (), "nothing", None, query=FilesQuery),
    Route("GET", "/v1/files/{id}", files.one_file, "infer", (), "nothing", None),
    Route("GET", "/v1/files/{id}/content", files.content, "infer", (), "nothing", None),
    Route("DELETE", "/v1/files/{id}", files.delete, "infer", (), "nothing", None),
    Route("POST", "/v1/batches", batches.create, "infer", (), "nothing", batches.BatchBody),
    Route("GET", "/v1/batches", batches.list_batches, "infer", (), "nothing", None, query=ListQuery),
    Route("GET", "/v1/batches/{id}", batches.one_batch, "infer", (), "nothing", None),
    Route("POST", "/v1/batches/{id}/cancel", batches.cancel, "infer", (), "nothing", None),
    Route("GET", "/v1/records/{id}", record_routes.read_record, "infer", (), "nothing", None),
    Route("POST", "/v1/records/{id}/replay", record_routes.replay, "infer", (), "nothing", record_routes.ReplayBody),
    Route(
        "POST",
        "/v1/records/{id}/evidence",
        evidence_route.create,
        "infer",
        (),
        "nothing",
        evidence_route.EvidenceBody,
    ),
    Route("POST", "/v1/licence/check", provenance.check_licence, "infer", (), "nothing", provenance.CheckBody),
    Route("POST", "/v1/licence/notices", provenance.notices, "infer", (), "nothing", provenance.NoticesBody),
    Route("POST", "/v1/licence/compare", provenance.compare, "infer", (), "nothing", provenance.CompareBody),
    Route("GET", "/v1/licence", provenance.list_licences, "infer", (), "nothing", None),
    Route("GET", "/v1/licence/{id}", provenance.explain, "infer", (), "nothing", None),
    Route("POST", "/v1/scan", provenance.scan, "observe", (), "nothing", provenance.FilesBody),
    Route("POST", "/v1/digest", provenance.digest, "observe", (), "nothing", provenance.FilesBody),
    Route("GET", "/v1/models", status.list_models, "infer", (), "nothing", None),
    Route("GET", "/v1/models/{model:path}", status.one_model, "infer", (), "nothing", None),
    Route("POST", "/v1/models/{model:path}/adapters", adapters.load, "admin", (), "nothing", adapters.AdapterBody),
    Route("DELETE", "/v1/models/{model:path}/adapters/{name}", adapters.unload, "admin", (), "nothing", None),
    Route("GET", "/v1/engine", status.engine, "observe", (), "nothing", None),
    Route("GET", "/metrics", status.metrics, "observe", (), "nothing", None),
    Route("GET", "/health", status.health, "public", (), "nothing", None),
    Route("GET", "/ready", status.ready, "public", (), "nothing", None),
)
