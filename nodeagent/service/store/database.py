"""One SQLite database: a writer thread with natural group commit, and reader threads with WAL snapshots.

Whatever arrives while a commit is being written goes into the next transaction; there is no timer
(performance-anchors.md §C). Each function runs in a savepoint of its own, so that its exception rolls back only it.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, cast

import structlog

from nodeagent.service.store.migrations import migrate

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Synchronous: TypeAlias = Literal["full", "normal"]

_LARGEST_GROUP = 256
_READERS = 2
_log = structlog.get_logger()


class DatabaseClosedError(RuntimeError):
    """The database has been closed, or is being closed."""


class Transaction:
    """What the functions of the store work on: SQL, and signals that are raised when the transaction commits."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.signals: set[str] = set()
        self.memo: dict[int, object] = {}
        """Rows that were read and not changed since, for the module that owns them; lost with a rollback."""

    def execute(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> list[Row]:
        """Run one statement and return all of its rows (of `RETURNING` too)."""
        return self._connection.execute(sql, cast("Any", parameters)).fetchall()

    def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        self._connection.executemany(sql, cast("Any", rows))

    def one(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> Row | None:
        """Run one statement and return its first row, or None."""
        return cast("Row | None", self._connection.execute(sql, cast("Any", parameters)).fetchone())

    def signal(self, name: str) -> None:
        """Raise a signal: hooks for it run once before the commit, listeners hear it once after (signals.py)."""
        self.signals.add(name)


Hooks: TypeAlias = Mapping[str, Callable[[Transaction], None]]
"""Signal → what must run in the same transaction, once, after every function of the group."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one function of a group: its value, or its exception."""

    value: object = None
    error: Exception | None = None


class Connection:
    """A connection to the database, used by one thread at a time. The synchronous heart of `Database`."""

    def __init__(self, path: Path, *, synchronous: Synchronous = "full", hooks: Hooks | None = None) -> None:
        self._sqlite = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
        self._hooks = hooks or {}
        self._sqlite.execute("PRAGMA journal_mode=WAL")
        self._sqlite.execute(f"PRAGMA synchronous={synchronous}")
        self._sqlite.execute("PRAGMA foreign_keys=ON")
        self._sqlite.execute("PRAGMA busy_timeout=10000")
        self._sqlite.execute("PRAGMA cache_size=-32768")
        self._sqlite.execute("PRAGMA temp_store=MEMORY")

    def migrate(self) -> None:
        """Bring the schema to this version. Raises NewerDatabaseError."""
        migrate(self._sqlite)

    def close(self) -> None:
        """Close the connection."""
        self._sqlite.close()

    def commit(self, functions: Sequence[Callable[[Transaction], object]]) -> tuple[list[Outcome], set[str]]:
        """Run functions and the hooks of their signals in one transaction.

        Returns one outcome for each function, and the signals. Raises sqlite3.Error if the commit itself fails: then
        nothing of the group has happened.
        """
        tx = Transaction(self._sqlite)
        self._sqlite.execute("BEGIN IMMEDIATE")
        try:
            outcomes = [self._run(tx, function) for function in functions]
            for name in sorted(tx.signals & self._hooks.keys()):
                hook = self._run(tx, self._hooks[name])
                if hook.error is not None:
                    _log.error("commit_hook_failed", signal=name, exc_info=hook.error)
            self._sqlite.execute("COMMIT")
        except BaseException:
            if self._sqlite.in_transaction:
                self._sqlite.execute("ROLLBACK")
            raise
        return outcomes, tx.signals

    def snapshot(self, functions: Sequence[Callable[[Transaction], object]]) -> list[Outcome]:
        """Run reading functions on one snapshot."""
        tx = Transaction(self._sqlite)
        self._sqlite.execute("BEGIN")
        try:
            return [self._run(tx, function, savepoint=False) for function in functions]
        finally:
            self._sqlite.execute("ROLLBACK")

    def _run(self, tx: Transaction, function: Callable[[Transaction], object], *, savepoint: bool = True) -> Outcome:
        before = set(tx.signals)
        if savepoint:
            self._sqlite.execute("SAVEPOINT one")
        try:
            value = function(tx)
        except Exception as error:  # noqa: BLE001 - it is handed to the caller that brought the function
            if savepoint:
                self._sqlite.execute("ROLLBACK TO one")
                self._sqlite.execute("RELEASE one")
            tx.signals = before
            tx.memo.clear()
            return Outcome(error=error)
        if savepoint:
            self._sqlite.execute("RELEASE one")
        return Outcome(value=value)


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[[Transaction], Any]
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Worker:
    """A thread that serves a queue of functions in groups."""

    jobs: "queue.SimpleQueue[_Job | None]" = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None

    def group(self) -> list[_Job] | None:
        """Wait for work and take all that has come. None when the worker shall end."""
        first = self.jobs.get()
        if first is None:
            return None
        group = [first]
        while len(group) < _LARGEST_GROUP:
            try:
                job = self.jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self.jobs.put(None)
                break
            group.append(job)
        return group


class Database:
    """The service's database, used from one event loop.

    `hooks` run inside the writing transaction, `on_signals` on the loop after the commit and before the writers
    that raised the signals go on.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Synchronous = "full",
        hooks: Hooks | None = None,
        on_signals: Callable[[set[str]], None] | None = None,
    ) -> None:
        self._path = path
        self._synchronous: Synchronous = synchronous
        self._hooks = hooks or {}
        self._on_signals = on_signals or (lambda _signals: None)
        self._writer = _Worker()
        self._readers = _Worker()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        """Open and migrate the database. Raises NewerDatabaseError, sqlite3.Error."""
        self._loop = asyncio.get_running_loop()
        writer = await asyncio.to_thread(self._open)
        self._start("store-writer", self._serve_writes, writer)
        for number in range(_READERS):
            reader = await asyncio.to_thread(Connection, self._path, synchronous=self._synchronous)
            self._start(f"store-reader-{number}", self._serve_reads, reader)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish what has been queued, then close."""
        self._closed = True
        self._writer.jobs.put(None)
        for _ in range(_READERS):
            self._readers.jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    async def write(self, function: Callable[[Transaction], T]) -> T:
        """Run a function in the next transaction; return its value after the commit, or raise its exception."""
        return await self._submit(self._writer, function)

    async def read(self, function: Callable[[Transaction], T]) -> T:
        """Run a reading function on a snapshot that has every commit made before the call."""
        return await self._submit(self._readers, function)

    async def _submit(self, worker: _Worker, function: Callable[[Transaction], T]) -> T:
        if self._closed or self._loop is None:
            raise DatabaseClosedError("the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        worker.jobs.put(_Job(function, future))
        return await future

    def _open(self) -> Connection:
        connection = Connection(self._path, synchronous=self._synchronous, hooks=self._hooks)
        try:
            connection.migrate()
        except BaseException:
            connection.close()
            raise
        return connection

    def _start(self, name: str, target: Callable[[Connection], None], connection: Connection) -> None:
        thread = threading.Thread(target=target, args=(connection,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve_writes(self, connection: Connection) -> None:
        while (group := self._writer.group()) is not None:
            signals: set[str] = set()
            try:
                outcomes, signals = connection.commit([job.function for job in group])
            except sqlite3.Error as error:
                _log.exception("commit_failed")
                outcomes = [Outcome(error=error) for _ in group]
            self._deliver(group, outcomes, signals)
        connection.close()

    def _serve_reads(self, connection: Connection) -> None:
        while (group := self._readers.group()) is not None:
            try:
                outcomes = connection.snapshot([job.function for job in group])
            except sqlite3.Error as error:
                _log.exception("read_failed")
                outcomes = [Outcome(error=error) for _ in group]
            self._deliver(group, outcomes, set())
        connection.close()

    def _deliver(self, group: list[_Job], outcomes: list[Outcome], signals: set[str]) -> None:
        def deliver() -> None:
            if signals:
                self._on_signals(signals)
            for job, outcome in zip(group, outcomes, strict=True):
                if job.future.cancelled():
                    continue
                if outcome.error is not None:
                    job.future.set_exception(outcome.error)
                else:
                    job.future.set_result(outcome.value)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
