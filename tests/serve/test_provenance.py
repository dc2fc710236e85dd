"""Licence, scan and digest over HTTP say what the command line says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.serve.conftest import CHAT, TINY
from tests.serve.live import Live
from vitral.provenance.licence import Use, check, compare, notice_files


def test_a_verdict_over_http_is_that_of_the_library(server: Live, smollm2: Path) -> None:
    use = {"what": {"commercial": True, "share_weights": True, "share_product": False, "modify": True}}
    answer = server.post("/v1/licence/check", {"model": CHAT, "use": use})
    assert answer.status_code == 200, answer.text
    wanted = check(CHAT, Use(commercial=True, share_weights=True, share_product=False, modify=True), smollm2)
    assert answer.json()["outcome"] == wanted.outcome.words
    page = server.post("/v1/licence/check", {"model": CHAT, "use": use, "format": "html", "language": "pt"})
    assert page.headers["content-type"].startswith("text/html")
    assert 'lang="pt-BR"' in page.text


def test_a_use_that_cannot_be_read_is_a_400_that_names_the_key(server: Live) -> None:
    for use, named in [
        ({"what": {"comercial": True}}, "did you mean 'commercial'"),
        ({"who": {"domicile": 5}}, "domicile is 5"),
        ({"made_from": [1]}, "made_from"),
        ({"what": {"fields": "medical"}}, "what.fields"),
    ]:
        answer = server.post("/v1/licence/check", {"model": CHAT, "use": use})
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]
    assert server.post("/v1/licence/check", {"model": "no/such", "use": {}}).status_code == 404


def test_the_catalogue_and_its_entries_are_there(server: Live) -> None:
    ids = [entry["id"] for entry in server.http.get("/v1/licence").json()["data"]]
    assert {"llama3.1", "mrl", "apache-2.0"} <= set(ids)
    assert server.http.get("/v1/licence/Apache-2.0").json()["id"] == "apache-2.0"
    assert server.http.get("/v1/licence/no-such-licence").status_code == 404


def test_notices_and_comparisons_are_those_of_the_library(server: Live, smollm2: Path) -> None:
    use = {"what": {"commercial": True, "share_weights": True, "modify": True}}
    found = server.post("/v1/licence/notices", {"model": CHAT, "use": use}).json()
    wanted = check(CHAT, Use(commercial=True, share_weights=True, modify=True), smollm2)
    files = {name: content.decode() for name, content in notice_files(wanted, smollm2).items()}
    assert found == {"outcome": wanted.outcome.words, "files": files}
    assert any("Version 2.0, January 2004" in text for text in files.values()), "the copy of the licence that is owed"
    rows = server.post("/v1/licence/compare", {"first": "llama3", "second": "llama3.1"}).json()["data"]
    assert [row["about"] for row in rows] == [row.about for row in compare("llama3", "llama3.1")]
    assert server.post("/v1/licence/compare", {"first": "llama3", "second": "llama33"}).status_code == 404


def test_scan_and_digest_look_at_the_files_that_are_served(server: Live, tiny_path: str) -> None:
    assert server.post("/v1/scan", {"model": TINY}).json()["passed"] is True
    found = server.post("/v1/digest", {"model": TINY}).json()
    assert found["files"][TINY]["sha256"] == hashlib.sha256(Path(tiny_path).read_bytes()).hexdigest()
    assert len(found["weights"]) == 64
    again = server.post("/v1/digest", {"model": TINY}).json()
    assert (again["files"], again["read_bytes"]) == (found["files"], 0)
