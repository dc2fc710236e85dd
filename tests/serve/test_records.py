from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import rfc8785
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.conftest import TINY
from tests.serve.live import Live, live, wait_until
from tests.serve.postgres import postgres
from vitral.cli.main import _code
from vitral.engine.interventions import Intervention, digest
from vitral.errors import RecordStoreError, RequestError
from vitral.lens.evidence import interventions_of
from vitral.serve.proof import judge
from vitral.serve.records import Records, canonical
from vitral.serve.replay import Step, report
from vitral.serve.store import Store, tables

SAMPLED = {"model": TINY, "prompt": "Once upon a time", "max_tokens": 10, "temperature": 1.0}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """An empty PostgreSQL."""
    with postgres() as url:
        yield url


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_path: str) -> Iterator[Live]:
    """A server that keeps its records in this kind of database."""
    folder = tmp_path_factory.mktemp(request.param)
    url = f"sqlite:///{folder / 'records.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("database")
    with live(folder, tiny_path, "--records", url) as running:
        running.records_url = url
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.sqlite'}"
    url = str(request.getfixturevalue("database"))
    name = f"empty_{time.monotonic_ns()}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")


def rows(server: Live, query: str) -> list[tuple[object, ...]]:
    engine = sa.create_engine(server.records_url)
    try:
        with engine.begin() as connection:
            found = connection.exec_driver_sql(query)
            return [tuple(row) for row in found] if found.returns_rows else []
    finally:
        engine.dispose()


def test_a_record_holds_what_made_the_answer_and_replays_exactly(server: Live) -> None:
    answer = server.post("/v1/completions", SAMPLED)
    id = answer.json()["record"]
    assert answer.headers["x-vitral-record"] == id
    record = server.http.get(f"/v1/records/{id}").json()
    sequence = record["sequences"][0]
    assert sequence["answer"]["count"] == len(sequence["logits"]) == 10
    assert sequence["parameters"]["temperature"] == 1.0
    assert record["model"]["weights"] == server.http.get("/v1/engine").json()["engines"][0]["digests"]["weights"]
    replayed = server.post(f"/v1/records/{id}/replay", {}).json()
    assert (replayed["verdict"], replayed["steps"], replayed["environment"]) == ("EXACT", 10, {})


def test_the_server_gives_evidence_that_is_exact(server: Live, tiny_path: str) -> None:
    id = server.post("/v1/completions", {**SAMPLED, "max_tokens": 3, "n": 2}).json()["record"]
    made = server.post(f"/v1/records/{id}/evidence", {"lens": 1, "layers": [0]})
    assert made.status_code == 200, made.text
    found = judge(made.content, "evidence", model=tiny_path, threads=1)
    assert (found.verdict, found.record) == ("EXACT", id)
    assert server.post(f"/v1/records/{id}/evidence", {"routes": True}).status_code == 400
    assert server.post("/v1/records/rec_none/evidence", {}).status_code == 404


def test_a_record_without_ids_keeps_the_digest_of_its_interventions_alone() -> None:
    changes = [Intervention("knock_out", layer=0, heads=(1,))]
    record = {"id": "rec_x", "interventions": Records(None, "hashed").changes(changes)}  # type: ignore[arg-type]
    assert record["interventions"] == {"sha256": digest(changes)}
    with pytest.raises(RequestError, match="only the digest"):
        interventions_of(record)
    kept = Records(None, "ids").changes(changes)  # type: ignore[arg-type]
    assert interventions_of({"id": "rec_x", "interventions": kept}) == tuple(changes)
    kept["document"]["interventions"][0]["heads"] = [2]
    with pytest.raises(RequestError, match="do not fit"):
        interventions_of({"id": "rec_x", "interventions": kept})


def test_a_records_digest_is_of_its_canonical_bytes(server: Live) -> None:
    id = server.post("/v1/completions", SAMPLED).json()["record"]
    record = server.http.get(f"/v1/records/{id}").json()
    digest = record.pop("digest")
    assert hashlib.sha256(rfc8785.dumps(record)).hexdigest() == digest


def test_an_answer_that_guessed_ahead_has_a_digest_for_every_token_and_replays(
    server: Live, tiny_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "Once upon a time there was a girl. " * 8  # repeats: several tokens of a step are right
    body = {"model": TINY, "prompt": prompt, "max_tokens": 200, "temperature": 0}
    id = server.post("/v1/completions", body).json()["record"]
    (sequence,) = server.http.get(f"/v1/records/{id}").json()["sequences"]
    assert len(sequence["logits"]) == len(sequence["answer"]["ids"])
    replayed = server.post(f"/v1/records/{id}/replay", {})
    assert replayed.json().get("verdict") == "EXACT", replayed.text
    assert _code(["replay", id, "--model", tiny_path, "--records", server.records_url, "--threads", "1"]) == 0
    assert "EXACT" in capsys.readouterr().out


def test_an_answer_cut_short_is_recorded_with_what_was_made(server: Live) -> None:
    body = {**SAMPLED, "max_tokens": 400, "stream": True, "seed": 3}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        id = response.headers["x-vitral-record"]
        next(response.iter_lines())
    wait_until(lambda: server.http.get(f"/v1/records/{id}").status_code == 200)
    sequence = server.http.get(f"/v1/records/{id}").json()["sequences"][0]
    assert sequence["finish"] == "cancelled"
    assert 1 <= sequence["answer"]["count"] < 400
    assert server.post(f"/v1/records/{id}/replay", {}).json()["verdict"] == "EXACT"


def test_usage_is_settled_with_the_record_and_nothing_stays_reserved(server: Live) -> None:
    id = server.post("/v1/completions", SAMPLED).json()["record"]
    assert rows(server, f"SELECT completion FROM usage WHERE record = '{id}'") == [(10,)]
    wait_until(lambda: rows(server, "SELECT * FROM reservations") == [])


def test_a_client_that_hangs_up_at_once_leaves_nothing_reserved(server: Live) -> None:
    body = json.dumps({**SAMPLED, "max_tokens": 400}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    address = httpx.URL(server.url)
    for delay_ms in range(40):
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
            time.sleep(delay_ms / 4000)
    wait_until(lambda: rows(server, "SELECT * FROM reservations") == [])


def test_a_write_is_done_also_when_whoever_waits_is_cancelled(store_url: str) -> None:
    store = Store(store_url)
    held = threading.Event()
    insert = sa.insert(tables.reservations)
    row = {"record": "r", "tenant": "t", "created": 1, "tokens": 1}

    async def hang_up() -> None:
        store.submit(lambda _: held.wait(10))
        task = asyncio.create_task(store.write(lambda connection: connection.execute(insert.values(row))))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.set()
        await store.write(lambda connection: connection.execute(insert.values({**row, "record": "s"})))

    asyncio.run(hang_up())
    found = store.read_now(
        lambda connection: connection.execute(sa.select(tables.reservations.c.record)).scalars().all()
    )
    assert found == ["r", "s"]
    store.close()


def test_only_what_is_older_than_any_answer_is_abandoned(store_url: str) -> None:
    store = Store(store_url)
    records = Records(store)
    now = int(time.time())

    async def release() -> int:
        for name, created in (("gone", now - 7300), ("another server's", now - 7000), ("new", now)):
            row = {"record": name, "tenant": "t", "created": created, "tokens": 1}
            await store.write(lambda c, row=row: c.execute(sa.insert(tables.reservations).values(row)))
        return await records.release_abandoned(7200)

    assert asyncio.run(release()) == 1
    left = store.read_now(lambda c: c.execute(sa.select(tables.reservations.c.record)).scalars().all())
    assert sorted(left) == ["another server's", "new"]
    store.close()


def test_records_cannot_be_changed_or_deleted(server: Live) -> None:
    server.post("/v1/completions", SAMPLED)
    for query in ("UPDATE records SET tenant = 'x'", "DELETE FROM records"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            rows(server, query)


def test_a_replay_names_the_first_step_that_differs() -> None:
    then = [Step(1, "aa"), Step(2, "bb"), Step(3, "cc")]
    record = {"id": "rec_1"}
    same = report(record, [(then, list(then))], {})
    assert (same.verdict, same.difference) == ("EXACT", None)
    other = report(record, [(then, [Step(1, "aa"), Step(2, "bX"), Step(3, "cc")])], {})
    assert other.difference is not None
    assert (other.verdict, other.difference.step, other.difference.what) == ("DIFFERENT", 1, "logits")
    short = report(record, [(then, then[:2])], {})
    assert short.difference is not None
    assert (short.difference.step, short.difference.what) == (2, "length")


def test_one_bad_write_harms_no_other(store_url: str) -> None:
    store = Store(store_url)
    row = {"record": "r", "tenant": "t", "created": 1, "tokens": 1}
    insert = sa.insert(tables.reservations)
    good = [store.submit(lambda c, i=i: c.execute(insert.values({**row, "record": f"r{i}"}))) for i in range(5)]
    bad = store.submit(lambda c: c.execute(insert.values({**row, "record": "r0"})))
    later = store.submit(lambda c: c.execute(insert.values({**row, "record": "r9"})))
    for future in [*good, later]:
        future.result(10)
    with pytest.raises(RecordStoreError):
        bad.result(10)
    store.close()


def test_a_full_disk_is_a_typed_error_and_ends_when_there_is_room(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'full.sqlite'}"
    Store(url).close()
    store = Store(url, most_bytes=(tmp_path / "full.sqlite").stat().st_size)
    with pytest.raises(RecordStoreError, match="full"):
        store.put_now(tables.files, "f", "t", {"text": "x" * 100_000})
    store.close()
    roomy = Store(url)
    roomy.put_now(tables.files, "f", "t", {"text": "x" * 100_000})
    roomy.close()


def test_a_database_that_lost_its_connections_is_reached_by_new_ones(database: str) -> None:
    store, row = Store(database), {"tenant": "t", "created": 1, "tokens": 1}
    insert = sa.insert(tables.reservations)
    store.submit(lambda c: c.execute(insert.values({**row, "record": "before"}))).result(30)
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'vitral'"
        assert connection.exec_driver_sql(lost).all()
    engine.dispose()
    store.submit(lambda c: c.execute(insert.values({**row, "record": "after"}))).result(30)
    found = store.read_now(lambda c: c.execute(sa.select(tables.reservations.c.record)).scalars().all())
    assert {"before", "after"} <= set(found)
    store.close()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**53, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(st.integers(-3, 2**52)) | st.lists(st.text())
    ),
)


@given(values)
def test_canonical_bytes_are_those_of_the_library(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("value", [[1, 2**53], {"a": float("nan")}, ["\ud800"], {1: 2}])
def test_what_has_no_canonical_bytes_is_refused_as_by_the_library(value: object) -> None:
    for dumps in (canonical, rfc8785.dumps):
        with pytest.raises((rfc8785.CanonicalizationError, UnicodeError)):
            dumps(value)
