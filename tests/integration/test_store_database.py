"""The store with its threads: group commit, savepoints, snapshots, signals, versions."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from nodeagent.model.task import TaskCreate
from nodeagent.service.store import tasks
from nodeagent.service.store.database import Connection, Database, DatabaseClosedError, Transaction
from nodeagent.service.store.migrations import MIGRATIONS, NewerDatabaseError


def _make_table(tx: Transaction) -> None:
    tx.execute("CREATE TABLE things (name TEXT PRIMARY KEY)")


def _insert(tx: Transaction, name: str) -> None:
    tx.execute("INSERT INTO things VALUES (?)", (name,))
    tx.signal(f"thing:{name}")


def _names(tx: Transaction) -> list[str]:
    return [row[0] for row in tx.execute("SELECT name FROM things ORDER BY name")]


async def test_an_exception_rolls_back_only_its_own_function(tmp_path: Path) -> None:
    """Functions of one group share a commit, not a fate; signals of the failed one are not heard."""
    heard: set[str] = set()
    async with Database(tmp_path / "x.db", on_signals=heard.update) as database:
        await database.write(_make_table)
        await database.write(lambda tx: _insert(tx, "a"))

        def fail(tx: Transaction) -> None:
            _insert(tx, "lost")
            _insert(tx, "a")

        results = await asyncio.gather(
            database.write(lambda tx: _insert(tx, "b")),
            database.write(fail),
            database.write(lambda tx: _insert(tx, "c")),
            return_exceptions=True,
        )
        assert results[0] is None
        assert isinstance(results[1], sqlite3.IntegrityError)
        assert results[2] is None
        assert await database.read(_names) == ["a", "b", "c"]
    assert heard == {"thing:a", "thing:b", "thing:c"}


async def test_what_arrives_during_a_commit_goes_together_into_the_next(tmp_path: Path) -> None:
    """No timer: while the writer is busy, the waiting functions gather into one group."""
    begun, go_on = threading.Event(), threading.Event()
    groups: list[int] = []

    def hook(tx: Transaction) -> None:
        groups.append(len(_names(tx)))

    async with Database(tmp_path / "x.db", hooks={"count": hook}) as database:
        await database.write(_make_table)

        def block(_: Transaction) -> None:
            begun.set()
            assert go_on.wait(10)

        def insert(tx: Transaction, name: str) -> None:
            _insert(tx, name)
            tx.signal("count")

        blocked = asyncio.create_task(database.write(block))
        await asyncio.to_thread(begun.wait, 10)
        writes = [asyncio.create_task(database.write(lambda tx, n=n: insert(tx, f"{n}"))) for n in range(20)]  # type: ignore[misc]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(blocked, *writes)
    assert groups == [20], "one group, and its hook once after all of its functions"


async def test_a_hook_that_fails_undoes_only_itself(tmp_path: Path) -> None:
    """What the hook has done is rolled back; the function that raised its signal is committed."""

    def hook(tx: Transaction) -> None:
        _insert(tx, "by the hook")
        raise RuntimeError("a fault in the hook")

    async with Database(tmp_path / "x.db", hooks={"thing:a": hook}) as database:
        await database.write(_make_table)
        await database.write(lambda tx: _insert(tx, "a"))
        assert await database.read(_names) == ["a"]


async def test_readers_see_every_commit_made_before_they_asked(tmp_path: Path) -> None:
    """A read after a write has it, also with many readers at once."""
    async with Database(tmp_path / "x.db") as database:
        await database.write(_make_table)
        for number in range(50):
            await database.write(lambda tx, number=number: _insert(tx, f"{number:02}"))  # type: ignore[misc]
            counts = await asyncio.gather(*(database.read(lambda tx: len(_names(tx))) for _ in range(4)))
            assert counts == [number + 1] * 4


async def test_closing_finishes_what_is_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    """Nothing that was accepted is dropped; afterwards a call says what is wrong."""
    database = Database(tmp_path / "x.db")
    async with database:
        await database.write(_make_table)
        queued = asyncio.create_task(database.write(lambda tx: _insert(tx, "a")))
        await asyncio.sleep(0)
    await queued
    with pytest.raises(DatabaseClosedError):
        await database.read(_names)
    connection = Connection(tmp_path / "x.db")
    assert connection.snapshot([_names])[0].value == ["a"]
    connection.close()


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """The one clear line names both versions; the file is left as it was."""
    path = tmp_path / "x.db"
    async with Database(path):
        pass
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    raw.close()
    with pytest.raises(NewerDatabaseError, match="use the newer nodeagent"):
        async with Database(path):
            pass


async def test_a_database_of_an_older_version_is_brought_up_with_what_is_in_it(tmp_path: Path) -> None:
    """Tasks that waited for a node before dependencies were known wait for nothing else, and are ready."""
    path = tmp_path / "x.db"
    raw = sqlite3.connect(path)
    raw.executescript(MIGRATIONS[0])
    raw.execute(
        "INSERT INTO jobs (key, id, spec, pool_key, pool_id, priority, max_parallel_tasks, state, state_time, created,"
        " modified) VALUES ('j', 'j', '{}', 'p', 'p', 0, -1, 'active', 0, 0, 0)"
    )
    raw.execute(
        "INSERT INTO tasks (job_num, key, id, kind, required_slots, state, state_time, created, modified)"
        " VALUES (1, 't', 't', 'user', 1, 'active', 0, 0, 0)"
    )
    spec = TaskCreate(id="t", command_line="x")
    raw.execute("INSERT INTO task_specs (task_num, spec) VALUES (1, ?)", (spec.to_json(),))
    raw.execute("PRAGMA user_version=1")
    raw.commit()
    raw.close()
    async with Database(path) as database:
        ready = await database.read(lambda tx: tasks.ready(tx, 1, max_slots=1, limit=5))
    assert [row.spec for row in ready] == [spec]


async def test_commits_are_synchronous_unless_asked_otherwise(tmp_path: Path) -> None:
    """synchronous=FULL is the default: a commit survives a power cut."""
    for setting, level in (("full", 2), ("normal", 1)):
        async with Database(tmp_path / f"{setting}.db", synchronous=setting) as database:  # type: ignore[arg-type]
            assert await database.write(lambda tx: tx.one("PRAGMA synchronous")) == (level,)
            assert await database.write(lambda tx: tx.one("PRAGMA journal_mode")) == ("wal",)
