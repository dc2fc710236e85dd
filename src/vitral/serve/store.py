"""The database of the server: SQLite in a file by default, PostgreSQL by URL.

One thread writes. What arrives while it commits goes into the next transaction together, so that durability (WAL,
synchronous=FULL) costs one flush for many answers. A transaction that fails is tried again piece by piece: one bad
piece harms nobody else.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from vitral.errors import RecordStoreError, SettingsError

__all__ = ["Store", "StoredObject", "tables"]

Work = Callable[[sa.Connection], Any]
StoredObject = dict[str, Any]

_MOST_TOGETHER = 256


class tables:  # noqa: N801  (a namespace, not a class of things)
    """The tables as the migrations make them."""

    records = sa.table("records", *map(sa.column, ("seq", "id", "tenant", "created", "digest")))
    bodies = sa.table("record_bodies", *map(sa.column, ("id", "body")))
    usage = sa.table(
        "usage", *map(sa.column, ("seq", "record", "tenant", "model", "created", "prompt", "cached", "completion"))
    )
    reservations = sa.table("reservations", *map(sa.column, ("record", "tenant", "created", "tokens")))
    responses, files, batches = (
        sa.table(name, *map(sa.column, ("id", "tenant", "created", "body")))
        for name in ("responses", "files", "batches")
    )


class Store:
    """Reads on any thread, writes in order on its own.

    url: a SQLAlchemy URL. most_bytes: the largest the SQLite file may grow, None for no limit.

    >>> store = Store("sqlite://")
    >>> store.put_now(tables.files, "file_1", "local", {"bytes": 3})
    >>> store.get_now(tables.files, "file_1", "local")
    {'bytes': 3}
    >>> store.get_now(tables.files, "file_1", "somebody else") is None
    True
    >>> store.close()
    """

    def __init__(self, url: str, most_bytes: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._engine = _open(url, most_bytes)
        self._migrate()
        self._queue: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="records", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Finish what is queued, then close."""
        self._queue.put(None)
        self._thread.join()
        self._engine.dispose()

    def submit(self, work: Work) -> Future[Any]:
        """Run `work` in the next transaction; the future is done when it is durable, or has a RecordStoreError."""
        future: Future[Any] = Future()
        self._queue.put((work, future))
        return future

    async def write(self, work: Work) -> Any:
        """Like `submit`, awaited. What is queued is written, also when whoever waits is cancelled."""
        return await asyncio.shield(asyncio.wrap_future(self.submit(work)))

    def read_now(self, work: Work) -> Any:
        """Run a query here."""
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise RecordStoreError(f"the record store cannot be read: {_short(error)}") from error

    async def read(self, work: Work) -> Any:
        """Run a query on a thread."""
        return await asyncio.to_thread(self.read_now, work)

    def put_now(self, table: sa.TableClause, id: str, tenant: str, body: StoredObject) -> None:
        """Insert an object, or replace the one of this id."""
        self.submit(lambda connection: _put(connection, table, id, tenant, body)).result()

    async def put(self, table: sa.TableClause, id: str, tenant: str, body: StoredObject) -> None:
        """Like `put_now`, awaited."""
        await self.write(lambda connection: _put(connection, table, id, tenant, body))

    def get_now(self, table: sa.TableClause, id: str, tenant: str) -> StoredObject | None:
        """A tenant's object; None if there is none, or if it is somebody else's."""
        query = sa.select(table.c.body).where(table.c.id == id, table.c.tenant == tenant)
        body = self.read_now(lambda connection: connection.execute(query).scalar())
        return None if body is None else json.loads(body)

    async def get(self, table: sa.TableClause, id: str, tenant: str) -> StoredObject | None:
        """Like `get_now`, awaited."""
        return await asyncio.to_thread(self.get_now, table, id, tenant)

    async def delete(self, table: sa.TableClause, id: str, tenant: str) -> bool:
        """Delete a tenant's object; whether there was one."""
        query = sa.delete(table).where(table.c.id == id, table.c.tenant == tenant)
        return bool(await self.write(lambda connection: connection.execute(query).rowcount))

    async def newest(self, table: sa.TableClause, tenant: str | None, limit: int) -> list[StoredObject]:
        """Objects of a tenant (None: of all), newest first."""
        query = sa.select(table.c.body).order_by(table.c.created.desc(), table.c.id.desc()).limit(limit)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        rows = await self.read(lambda connection: connection.execute(query).all())
        return [json.loads(row.body) for row in rows]

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except SQLAlchemyError as error:
            raise RecordStoreError(f"the record store cannot be set up: {_short(error)}") from error

    def _write_all(self) -> None:
        ended = False
        while not ended:
            batch = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                if self._queue.empty() or len(batch) == _MOST_TOGETHER:
                    break
                item = self._queue.get()
            ended = item is None
            if batch and not self._commit(batch) and len(batch) > 1:
                for single in batch:
                    self._commit([single])

    def _commit(self, batch: list[tuple[Work, Future[Any]]]) -> bool:
        """One transaction. On failure a single piece hears of it; several stay open, to be tried alone."""
        try:
            with self._engine.begin() as connection:
                results = [work(connection) for work, _ in batch]
        except Exception as error:  # noqa: BLE001 - whatever a piece raises belongs to whoever sent it
            if len(batch) == 1:
                typed = error
                if isinstance(error, SQLAlchemyError):
                    typed = RecordStoreError(f"the record store cannot be written: {_short(error)}")
                    typed.__cause__ = error
                batch[0][1].set_exception(typed)
            return False
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
        return True


def _put(connection: sa.Connection, table: sa.TableClause, id: str, tenant: str, body: StoredObject) -> None:
    text = json.dumps(body)
    changed = connection.execute(sa.update(table).where(table.c.id == id, table.c.tenant == tenant).values(body=text))
    if not changed.rowcount:
        created = int(body.get("created_at") or time.time())
        connection.execute(sa.insert(table).values(id=id, tenant=tenant, created=created, body=text))


def _open(url: str, most_bytes: int | None) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True)
        memory = not parsed.database or parsed.database == ":memory:"
        if parsed.database and not memory:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            parsed,
            connect_args={"check_same_thread": False},
            poolclass=sa.StaticPool if memory else None,
        )
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise SettingsError(
            f"the record store {url!r} cannot be opened: {error}; give sqlite:///FILE or postgresql+psycopg://..."
        ) from None

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3's own guesses at transactions are off; SQLAlchemy says BEGIN
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        if most_bytes is not None:
            size = cursor.execute("PRAGMA page_size").fetchone()[0]
            cursor.execute(f"PRAGMA max_page_count={max(1, most_bytes // size)}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _short(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]
