"""agent.db: group commit, isolation of failures, migrations, and what is told of a database that is not ours."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nodeagent.agent import journal
from nodeagent.agent.attempt_change import change_of
from nodeagent.agent.database import MIGRATIONS, Database
from nodeagent.agent.errors import DamagedStateError, NewerStateError, UnwritableError
from nodeagent.agent.testing import task
from nodeagent.model.protocol import AttemptKind, RemoveFiles, StopReason, Sweep
from nodeagent.model.times import UNLIMITED
from nodeagent.rules import attempt as rules
from nodeagent.rules import attempt_events

NOW = datetime(2026, 11, 21, 7, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """An open, empty database."""
    opened = Database(tmp_path / "agent.db")
    await opened.open()
    yield opened
    await opened.close()


def put(key: str) -> Callable[[sqlite3.Connection], int]:
    """A write that takes a key that only one can have."""

    def write(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO meta VALUES (?, 'x')", (key,))
        return int(connection.execute("SELECT count(*) FROM meta").fetchone()[0])

    return write


async def test_writes_are_committed_in_the_order_of_their_asking(database: Database) -> None:
    """Also when many share one transaction."""
    results = await asyncio.gather(*(database.submit(put(str(number))) for number in range(50)))

    assert results == list(range(1, 51))


async def test_a_write_that_fails_is_refused_alone(database: Database) -> None:
    """Its neighbours in the transaction are committed, and whoever asked for it gets the error."""
    before, twice, after = (database.submit(put(key)) for key in ("a", "a", "b"))

    assert await before == 1
    with pytest.raises(sqlite3.IntegrityError):
        await twice
    assert await after == 2


async def test_a_write_without_hurry_goes_with_the_next_one(database: Database) -> None:
    """It is there when the next write looks."""
    soon = database.submit_soon(put("soon"))

    assert await database.write(put("next")) == 2
    assert await soon == 1


async def test_a_write_without_hurry_does_not_wait_for_ever(database: Database) -> None:
    """Without another write it is committed by itself."""
    assert await database.submit_soon(put("soon")) == 1


async def test_what_was_asked_for_is_committed_before_the_end(tmp_path: Path) -> None:
    """Closing waits for everything, also for what had no hurry."""
    database = Database(tmp_path / "agent.db")
    await database.open()
    database.submit(put("a"))
    database.submit_soon(put("b"))
    await database.close()

    with sqlite3.connect(tmp_path / "agent.db") as connection:
        keys = connection.execute("SELECT key FROM meta ORDER BY key").fetchall()
    connection.close()
    assert keys == [("a",), ("b",)]


async def test_a_commit_is_on_the_disk(database: Database) -> None:
    """WAL with synchronous=FULL: a commit survives a power cut."""

    def pragmas(connection: sqlite3.Connection) -> tuple[str, int]:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        return mode, connection.execute("PRAGMA synchronous").fetchone()[0]

    assert await database.write(pragmas) == ("wal", 2)


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """In one line that names the file."""
    connection = sqlite3.connect(tmp_path / "agent.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()

    known = len(MIGRATIONS)
    with pytest.raises(
        NewerStateError, match=rf"agent\.db has layout {known + 1}, this version of nodeagent knows {known}"
    ):
        await Database(tmp_path / "agent.db").open()


async def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Its attempts are read as they were, and new ones go beside them."""
    accepted, _ = rules.step(rules.new_attempt(task("a", "x")), attempt_events.Accepted(), NOW)
    with contextlib.closing(sqlite3.connect(tmp_path / "agent.db")) as connection:
        connection.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ("a", "job", "task-a", 1, task("a", "x").to_json(), *journal._dynamic(accepted)),
        )
        connection.commit()

    database = Database(tmp_path / "agent.db")
    await database.open()
    try:
        await database.write(lambda db: journal.insert_attempt(db, replace(accepted, attempt_id="b"), task("b", "x")))
        rows = await database.write(journal.owed_attempts)
        assert await database.write(lambda db: journal.take_expired(db, NOW, 10)) == []
    finally:
        await database.close()
    assert [row.assignment.attempt_id for row in rows] == ["a", "b"]
    assert rows[0].attempt == accepted


async def test_the_earliest_expired_comes_first_and_only_once(database: Database) -> None:
    """Only what is acknowledged; an attempt that has become a removal is not found again."""

    def store(name: str, state: str, seconds: int) -> Callable[[sqlite3.Connection], None]:
        def write(connection: sqlite3.Connection) -> None:
            assignment = task(name, "x", job_id=f"job-of-{name}")
            journal.insert_attempt(connection, rules.new_attempt(assignment), assignment)
            journal.set_end(connection, name, NOW, NOW + timedelta(seconds=seconds))
            connection.execute("UPDATE attempts SET state = ? WHERE attempt_id = ?", (state, name))

        return write

    for name, state, seconds in (
        ("late", "retained", -1),
        ("early", "retained", -9),
        ("owed", "reported", -9),
        ("young", "retained", 9),
    ):
        await database.write(store(name, state, seconds))

    first = await database.write(lambda db: journal.take_expired(db, NOW, 1))
    then = await database.write(lambda db: journal.take_expired(db, NOW, 10))
    assert [removal.attempt_ids for removal in (*first, *then)] == [("early",), ("late",)]
    assert await database.write(journal.removals) == [*first, *then]
    assert await database.write(lambda db: journal.take_expired(db, NOW, 10)) == []


def _ended(
    name: str, seconds: int, *, kind: AttemptKind = AttemptKind.USER, state: str = "retained", job_id: str = "job"
) -> Callable[[sqlite3.Connection], None]:
    """An attempt that ended so many seconds after NOW, and whose files stay for a week."""

    def write(connection: sqlite3.Connection) -> None:
        assignment = task(name, "x", kind=kind, job_id=job_id)
        journal.insert_attempt(connection, rules.new_attempt(assignment), assignment)
        end = NOW + timedelta(seconds=seconds)
        journal.set_end(connection, name, end, end + timedelta(days=7))
        connection.execute("UPDATE attempts SET state = ?, terminal = 'completed' WHERE attempt_id = ?", (state, name))

    return write


async def test_for_room_the_oldest_end_goes_first_and_nothing_that_is_owed(database: Database) -> None:
    """Whatever the retention time; the preparation of a job that lives here and the start task's directory stay."""
    await database.write(_ended("second", -5))
    await database.write(_ended("oldest", -9, job_id="other"))
    await database.write(_ended("owed", -99, state="reported"))
    await database.write(_ended("prep", -99, kind=AttemptKind.JOB_PREPARATION))
    await database.write(_ended("start", -99, kind=AttemptKind.START, job_id=""))
    await database.write(lambda db: journal.put_session(db, journal.SessionRow("prep", "job")))

    first = await database.write(lambda db: journal.take_oldest(db, 1))
    then = await database.write(lambda db: journal.take_oldest(db, 10))

    assert [removal.attempt_ids for removal in (*first, *then)] == [("oldest",), ("second",)]
    assert await database.write(lambda db: journal.take_oldest(db, 10)) == []
    assert await database.write(journal.removals) == [*first, *then]
    far = NOW + timedelta(days=8)
    await database.write(lambda db: journal.delete_session(db, "prep"))
    expired = await database.write(lambda db: journal.take_expired(db, far, 10))
    assert sorted(name for removal in expired for name in removal.attempt_ids) == ["prep", "start"]


async def test_another_retention_time_counts_from_the_end(database: Database) -> None:
    """Shorter, longer, for ever and finite again; nothing of that brings back what is on its way out."""

    async def expires(retention: timedelta) -> float | None:
        await database.write(lambda db: journal.change_retention(db, "a", retention))
        found: float | None = await database.write(
            lambda db: db.execute("SELECT expires FROM attempts WHERE attempt_id = 'a'").fetchone()[0]
        )
        return found

    await database.write(_ended("a", -60))
    end = (NOW - timedelta(seconds=60)).timestamp()

    assert await expires(timedelta(seconds=30)) == pytest.approx(end + 30)
    assert await expires(timedelta(days=30)) == pytest.approx(end + 30 * 86400)
    assert await expires(UNLIMITED) is None
    assert await expires(timedelta(0)) == pytest.approx(end)
    assert len(await database.write(lambda db: journal.take_expired(db, NOW, 10))) == 1
    assert await expires(timedelta(days=7)) is None
    await database.write(lambda db: journal.change_retention(db, "unknown", timedelta(0)))


async def test_another_retention_time_of_a_running_attempt_is_known_to_the_next_life(database: Database) -> None:
    """It is part of the plan that its end goes by."""
    assignment = task("a", "x")
    await database.write(lambda db: journal.insert_attempt(db, rules.new_attempt(assignment), assignment))

    await database.write(lambda db: journal.change_retention(db, "a", timedelta(hours=1)))

    row = await database.write(lambda db: journal.attempt(db, "a"))
    assert row is not None
    assert row.attempt.plan.retention_time == timedelta(hours=1)
    assert row.assignment.work.constraints.retention_time == timedelta(hours=1)
    assert await database.write(lambda db: db.execute("SELECT expires FROM attempts").fetchone()) == (None,)


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Guessing could run a task twice."""
    (tmp_path / "agent.db").write_text("this is no database, and quite long enough to be looked at as one\n" * 20)

    with pytest.raises(DamagedStateError):
        await Database(tmp_path / "agent.db").open()


async def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With the path."""
    with pytest.raises(UnwritableError, match=r"missing/agent\.db"):
        await Database(tmp_path / "missing" / "agent.db").open()


async def test_an_attempt_comes_back_as_it_was_stored(database: Database) -> None:
    """Every field of the state machine, through each step of a preparation that fails, is retried and stopped."""
    assignment = task("p", "/bin/true", kind=AttemptKind.JOB_PREPARATION, max_task_retry_count=3)
    attempt = rules.new_attempt(assignment)
    accepted, _ = rules.step(attempt, attempt_events.Accepted(), NOW)
    number = await database.write(lambda db: journal.insert_attempt(db, accepted, assignment))
    assert number == 1

    attempt = accepted
    for event in (
        attempt_events.Ended(at=NOW, exit_code=3, stderr_tail="no"),
        attempt_events.Swept(Sweep(killed=2)),
        attempt_events.StopRequested(StopReason.JOB_TERMINATE),
        attempt_events.Disowned(),
        attempt_events.Ended(at=NOW, exit_code=-15, stop_reason=StopReason.JOB_TERMINATE),
    ):
        change = change_of(attempt, event, rules.step(attempt, event, NOW), NOW)
        await database.write(change.save)
        attempt = change.after
        row = await database.write(lambda db: journal.attempt(db, "p"))
        assert row is not None
        assert row.attempt == attempt
        assert row.assignment == assignment
    assert attempt.muted


async def test_executions_are_numbered_per_task_across_attempts(database: Database) -> None:
    """A second attempt comes after all executions of the first, so that no directory has two owners."""
    first, _ = rules.step(rules.new_attempt(task("a", "x", task_id="t")), attempt_events.Accepted(), NOW)
    first = replace(first, execution=2)
    second, _ = rules.step(rules.new_attempt(task("b", "x", task_id="t")), attempt_events.Accepted(), NOW)

    assert await database.write(lambda db: journal.insert_attempt(db, first, task("a", "x", task_id="t"))) == 1
    assert await database.write(lambda db: journal.insert_attempt(db, second, task("b", "x", task_id="t"))) == 4

    rows = await database.write(lambda db: journal.executions_of_task(db, "job", "t"))
    assert [(row.attempt_id, row.execution, row.number) for row in rows] == [
        ("b", 0, 4),
        ("a", 2, 3),
        ("a", 1, 2),
        ("a", 0, 1),
    ]


async def test_a_removal_of_a_job_means_what_the_job_has_here_by_then(database: Database) -> None:
    """A job that comes again under the same name is not meant."""
    old, new = task("a", "x"), task("b", "x")
    await database.write(lambda db: journal.insert_attempt(db, rules.new_attempt(old), old))
    removal = await database.write(lambda db: journal.add_removal(db, RemoveFiles(job_id="job")))
    await database.write(lambda db: journal.insert_attempt(db, rules.new_attempt(new), new))

    assert await database.write(journal.removals) == [removal]
    mine, others = await database.write(lambda db: journal.executions_to_remove(db, removal))
    assert [row.attempt_id for row in mine] == ["a"]
    assert [row.attempt_id for row in others] == ["b"]

    await database.write(lambda db: journal.removal_done(db, removal))
    assert not await database.write(lambda db: journal.knows(db, "a"))
    assert await database.write(lambda db: journal.knows(db, "b"))
    assert await database.write(journal.removals) == []
