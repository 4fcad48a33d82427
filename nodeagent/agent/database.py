"""agent.db: SQLite in one writer thread, with natural group commit (design.md §7, docs/on-disk-layout.md).

Everything that was asked for while the last transaction was being committed goes into the next one. There is no
timer: a lone write is committed at once, many at a time share one fsync. On a full disk a transaction is tried again
until there is room: what was asked for waits, and is not lost.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from nodeagent.agent import failpoints
from nodeagent.agent.errors import DamagedStateError, NewerStateError, UnwritableError

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], T]

SOON_SECONDS = 0.1
FULL_SECONDS = 0.5
"""How soon to try again on a full disk."""
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (
        attempt_id TEXT NOT NULL UNIQUE,
        job_id TEXT NOT NULL,
        task_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        assignment TEXT NOT NULL,
        state TEXT NOT NULL,
        stop_reason TEXT,
        execution INTEGER NOT NULL,
        retry_count INTEGER NOT NULL,
        recoveries INTEGER NOT NULL,
        start_time TEXT,
        last_retry_time TEXT,
        last_seq INTEGER NOT NULL,
        outcome TEXT,
        terminal TEXT,
        muted INTEGER NOT NULL
    );
    CREATE INDEX attempts_owed ON attempts (state) WHERE state <> 'retained';
    CREATE INDEX attempts_of_task ON attempts (job_id, task_id);
    CREATE TABLE journal (
        id INTEGER PRIMARY KEY,
        attempt_id TEXT NOT NULL,
        at TEXT NOT NULL,
        event TEXT NOT NULL,
        state TEXT NOT NULL,
        detail TEXT
    );
    CREATE INDEX journal_of_attempt ON journal (attempt_id);
    CREATE TABLE outbox (
        attempt_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        report TEXT NOT NULL,
        PRIMARY KEY (attempt_id, seq)
    ) WITHOUT ROWID;
    CREATE TABLE job_sessions (
        preparation TEXT PRIMARY KEY,
        job_id TEXT NOT NULL,
        boundary TEXT,
        ending INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TABLE removals (
        id INTEGER PRIMARY KEY,
        job_id TEXT NOT NULL,
        attempt_ids TEXT NOT NULL,
        whole_job INTEGER NOT NULL
    );
    """,
    """
    CREATE TABLE accounts (
        uid INTEGER PRIMARY KEY,
        holder TEXT UNIQUE,
        released INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE attempts ADD COLUMN expires REAL;
    CREATE INDEX attempts_expiring ON attempts (expires) WHERE expires IS NOT NULL;
    """,
    """
    ALTER TABLE attempts ADD COLUMN ended REAL;
    UPDATE attempts SET ended = CAST(strftime('%s', 'now') AS REAL) WHERE terminal IS NOT NULL;
    CREATE TABLE uploads (
        execution_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        rule INTEGER NOT NULL,
        path TEXT NOT NULL,
        blob TEXT NOT NULL,
        identity TEXT,
        state TEXT NOT NULL,
        detail TEXT,
        PRIMARY KEY (execution_id, number)
    ) WITHOUT ROWID;
    CREATE TABLE packages (
        application_key TEXT NOT NULL,
        version_key TEXT NOT NULL,
        application_id TEXT NOT NULL,
        version TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        directory TEXT NOT NULL,
        PRIMARY KEY (application_key, version_key, sha256)
    ) WITHOUT ROWID;
    """,
)
"""Numbered from 1: `PRAGMA user_version` says how many have been applied. Never edit one that was released."""


class Database:
    """One connection in one thread; the loop awaits commits. Errors of SQLite reach whoever asked for the write."""

    def __init__(self, path: Path, *, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        self._path = path
        self.when_full: Callable[[], object] | None = None
        """Called by the writer thread when the disk is full, before it tries again."""
        self._closing = threading.Event()
        self._synchronous = synchronous
        self._queue: SimpleQueue[tuple[Write[Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._soon: list[tuple[Write[Any], asyncio.Future[Any]]] = []
        self._soon_at_last: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Open and migrate. Raises NewerStateError, DamagedStateError, UnwritableError."""
        self._closing.clear()
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._serve, args=(loop, opened), name="agent-db", daemon=True)
        self._thread.start()
        await opened

    async def close(self) -> None:
        """Commit what was asked for and close the file."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._submit_waiting()
            self._closing.set()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    def submit(self, write: Write[T]) -> "asyncio.Future[T]":
        """Ask for a write; writes are committed in the order of the asking. The future is done after the commit.

        `write` runs in the writer thread, may read as well, and may run twice (once more alone, if another write of
        its transaction fails): it must touch nothing but the connection.
        """
        if self._thread is None:
            raise RuntimeError("the database is not open")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._soon:
            self._submit_waiting()
        self._queue.put((write, future))
        return future

    def submit_soon(self, write: Write[T]) -> "asyncio.Future[T]":
        """As `submit`, for what is not waited for: it goes with the next transaction, at the latest in 0.1 s.

        Its place in the order of writes is that of the transaction that takes it along.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._soon.append((write, future))
        if self._soon_at_last is None:
            self._soon_at_last = asyncio.get_running_loop().call_later(SOON_SECONDS, self._submit_waiting)
        return future

    def _submit_waiting(self) -> None:
        if self._soon_at_last is not None:
            self._soon_at_last.cancel()
            self._soon_at_last = None
        for item in self._soon:
            self._queue.put(item)
        self._soon.clear()

    async def write(self, write: Write[T]) -> T:
        """`submit` and await the commit. Returns what `write` returned; raises what it raised."""
        return await self.submit(write)

    def _serve(self, loop: asyncio.AbstractEventLoop, opened: "asyncio.Future[None]") -> None:
        try:
            connection = self._connect()
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits open()
            loop.call_soon_threadsafe(_settle, [(opened, None, error)])
            return
        loop.call_soon_threadsafe(_settle, [(opened, None, None)])
        try:
            while (batch := self._next_batch()) is not None:
                settled = self._committed(connection, batch)
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_settle, settled)
        finally:
            connection.close()

    def _committed(self, connection: sqlite3.Connection, batch: "Batch") -> "Settled":
        """Run the writes in one transaction; if one of them fails, each alone, so that only that one is refused.

        On a full disk it is tried until there is room, but for no longer than the database is open.
        """
        while True:
            try:
                return _commit(connection, batch)
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits the write
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if not _is_full(error):
                    if len(batch) == 1:
                        return [(batch[0][1], None, error)]
                    return [settled for item in batch for settled in self._committed(connection, [item])]
                if self.when_full is not None:
                    self.when_full()
                if self._closing.wait(FULL_SECONDS):
                    return [(future, None, error) for _, future in batch]

    def _next_batch(self) -> list[tuple[Write[Any], asyncio.Future[Any]]] | None:
        first = self._queue.get()
        if first is None:
            return None
        batch = [first]
        try:
            while (another := self._queue.get_nowait()) is not None:
                batch.append(another)
            self._queue.put(None)
        except Empty:
            pass
        return batch

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=256)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            _migrate(connection, self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise UnwritableError(f"{self._path}: {error}") from error
            raise DamagedStateError(f"{self._path}: {error}") from error
        return connection


Batch = Sequence[tuple[Write[Any], "asyncio.Future[Any]"]]
Settled = Sequence[tuple["asyncio.Future[Any]", Any, BaseException | None]]


def _settle(settled: Settled) -> None:
    for future, result, error in settled:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _commit(connection: sqlite3.Connection, batch: Batch) -> Settled:
    connection.execute("BEGIN IMMEDIATE")
    results = [write(connection) for write, _ in batch]
    connection.execute("COMMIT")
    return [(future, result, None) for (_, future), result in zip(batch, results, strict=True)]


def _is_full(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode in _NO_ROOM


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise NewerStateError(
            f"{path} has layout {version}, this version of nodeagent knows {len(MIGRATIONS)}: use the newer nodeagent"
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN EXCLUSIVE")
        for statement in script.split(";"):
            connection.execute(statement)
        failpoints.hit("mid_migration")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
