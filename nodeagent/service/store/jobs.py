"""Rows of jobs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from nodeagent.model.enums import JobState
from nodeagent.model.job import JobCreate
from nodeagent.model.times import etag
from nodeagent.service.store.columns import (
    Column,
    ColumnType,
    Where,
    condition,
    from_micros,
    optional_micros,
    optional_time,
    to_micros,
)
from nodeagent.service.store.database import Row, Transaction

COLUMNS: Mapping[str, Column] = {
    "id": Column("j.key", ColumnType.ID),
    "state": Column("j.state", ColumnType.ENUM),
    "stateTransitionTime": Column("j.state_time", ColumnType.TIME),
    "creationTime": Column("j.created", ColumnType.TIME),
    "lastModified": Column("j.modified", ColumnType.TIME),
    "executionInfo/startTime": Column("j.created", ColumnType.TIME),
    "executionInfo/endTime": Column("j.ended", ColumnType.TIME),
    "executionInfo/poolId": Column("j.pool_key", ColumnType.ID),
}

_SELECT = """
SELECT j.num, j.id, j.spec, j.pool_id, j.state, j.state_time, j.previous_state, j.previous_state_time, j.created,
       j.modified, j.ended, j.terminate_reason, j.release_begun
FROM jobs j
"""


@lru_cache(maxsize=512)
def parse_spec(text: str) -> JobCreate:
    """Return the definition of a job from its stored text."""
    return JobCreate.from_json(text)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as it stands; `created` is also its start time, `release_begun` tells that release is decided."""

    num: int
    id: str
    spec: JobCreate
    pool_id: str
    state: JobState
    state_time: datetime
    previous_state: JobState | None
    previous_state_time: datetime | None
    created: datetime
    modified: datetime
    ended: datetime | None
    terminate_reason: str | None
    release_begun: bool

    @property
    def etag(self) -> str:
        """The ETag of the definition."""
        return etag(self.modified)


def _row(row: Row) -> JobRow:
    return JobRow(
        num=row[0],
        id=row[1],
        spec=parse_spec(row[2]),
        pool_id=row[3],
        state=JobState(row[4]),
        state_time=from_micros(row[5]),
        previous_state=None if row[6] is None else JobState(row[6]),
        previous_state_time=optional_time(row[7]),
        created=from_micros(row[8]),
        modified=from_micros(row[9]),
        ended=optional_time(row[10]),
        terminate_reason=row[11],
        release_begun=bool(row[12]),
    )


def get(tx: Transaction, job_id: str) -> JobRow | None:
    """Return a job by its id, in any case."""
    row = tx.one(f"{_SELECT} WHERE j.key = ?", (job_id.lower(),))
    return None if row is None else _row(row)


def by_num(tx: Transaction, num: int) -> JobRow | None:
    """Return a job by its number; read once in a transaction unless it is changed."""
    known = tx.memo.get(num)
    if isinstance(known, JobRow):
        return known
    row = tx.one(f"{_SELECT} WHERE j.num = ?", (num,))
    if row is None:
        return None
    found = _row(row)
    tx.memo[num] = found
    return found


def page(tx: Transaction, *, after: str | None = None, limit: int = 1000, where: Where | None = None) -> list[JobRow]:
    """Return up to `limit` jobs with ids after `after`, ordered by id."""
    sql, parameters = condition(where)
    rows = tx.execute(
        f"{_SELECT} WHERE j.key > ?{sql} ORDER BY j.key LIMIT ?", ((after or "").lower(), *parameters, limit)
    )
    return [_row(row) for row in rows]


def insert(tx: Transaction, spec: JobCreate, pool_id: str, deadline: datetime | None, now: datetime) -> int:
    """Add an active job; return its number."""
    micros = to_micros(now)
    rows = tx.execute(
        "INSERT INTO jobs (key, id, spec, pool_key, pool_id, priority, max_parallel_tasks, state, state_time, created,"
        " modified, deadline) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) RETURNING num",
        (
            spec.id.lower(),
            spec.id,
            spec.to_json(),
            pool_id.lower(),
            pool_id,
            spec.priority,
            spec.max_parallel_tasks,
            JobState.ACTIVE,
            micros,
            micros,
            micros,
            optional_micros(deadline),
        ),
    )
    num = int(rows[0][0])
    tx.execute("INSERT INTO job_counts (job_num) VALUES (?)", (num,))
    return num


def replace_spec(
    tx: Transaction, num: int, spec: JobCreate, *, pool_id: str, deadline: datetime | None, modified: datetime
) -> None:
    """Give a job a new definition."""
    tx.memo.pop(num, None)
    tx.execute(
        "UPDATE jobs SET spec = ?, pool_key = ?, pool_id = ?, priority = ?, max_parallel_tasks = ?, deadline = ?,"
        " modified = ? WHERE num = ?",
        (
            spec.to_json(),
            pool_id.lower(),
            pool_id,
            spec.priority,
            spec.max_parallel_tasks,
            optional_micros(deadline),
            to_micros(modified),
            num,
        ),
    )


def set_state(tx: Transaction, num: int, state: JobState, now: datetime) -> None:
    """Move a job to a state; the one before becomes `previous_state`."""
    tx.memo.pop(num, None)
    tx.execute(
        "UPDATE jobs SET previous_state = state, previous_state_time = state_time, state = ?, state_time = ?"
        " WHERE num = ?",
        (state, to_micros(now), num),
    )


def set_completed(tx: Transaction, num: int, now: datetime) -> None:
    """End a job. `previous_state` goes on showing what it was before it was terminating (spec/rest.md §3.1)."""
    tx.memo.pop(num, None)
    tx.execute(
        "UPDATE jobs SET state = 'completed', state_time = :now, ended = :now, deadline = NULL WHERE num = :num",
        {"now": to_micros(now), "num": num},
    )


def touch(tx: Transaction, num: int, modified: datetime) -> None:
    """Give a job a new ETag."""
    tx.memo.pop(num, None)
    tx.execute("UPDATE jobs SET modified = ? WHERE num = ?", (to_micros(modified), num))


def set_terminating(tx: Transaction, num: int, reason: str) -> None:
    """Record why a job ends; its wall clock is no longer watched."""
    tx.memo.pop(num, None)
    tx.execute("UPDATE jobs SET terminate_reason = ?, deadline = NULL WHERE num = ?", (reason, num))


def set_release_begun(tx: Transaction, num: int) -> None:
    """Record that the job's release has been decided: it is decided once per job."""
    tx.memo.pop(num, None)
    tx.execute("UPDATE jobs SET release_begun = 1 WHERE num = ?", (num,))


def forget_deadline(tx: Transaction, num: int) -> None:
    """Watch a job's wall clock no longer."""
    tx.memo.pop(num, None)
    tx.execute("UPDATE jobs SET deadline = NULL WHERE num = ?", (num,))


def delete(tx: Transaction, num: int) -> None:
    """Remove a job whose tasks and attempts are gone."""
    tx.memo.pop(num, None)
    tx.execute("DELETE FROM jobs WHERE num = ?", (num,))


def with_waiting_tasks(tx: Transaction, pool_key: str, *, in_turn: bool = False) -> list[int]:
    """Return the numbers of the active jobs of a pool that have active tasks.

    Highest priority first, then oldest first; or, `in_turn`, first the one that has gone longest without an attempt.
    """
    last_served = "(SELECT max(a.num) FROM attempts a WHERE a.job_num = j.num), " if in_turn else ""
    rows = tx.execute(
        "SELECT j.num FROM jobs j JOIN job_counts c ON c.job_num = j.num"  # noqa: S608
        " WHERE j.pool_key = ? AND j.state = 'active' AND c.active > 0"
        f" ORDER BY j.priority DESC, {last_served}j.num",
        (pool_key,),
    )
    return [row[0] for row in rows]


def pools_with_preemption(tx: Transaction) -> list[str]:
    """Return the keys of the pools where a task of one job may have to make way for a task of another."""
    rows = tx.execute(
        "SELECT DISTINCT j.pool_key FROM jobs j"
        " WHERE j.state = 'active' AND json_extract(j.spec, '$.allowTaskPreemption') = 1"
        " AND EXISTS (SELECT 1 FROM jobs o JOIN job_counts c ON c.job_num = o.num WHERE o.pool_key = j.pool_key"
        " AND o.state = 'active' AND o.priority > j.priority AND c.active > 0) ORDER BY j.pool_key"
    )
    return [row[0] for row in rows]


def deadlines_due(tx: Transaction, now: datetime) -> list[JobRow]:
    """Return the jobs whose wall clock has run out."""
    return [_row(row) for row in tx.execute(f"{_SELECT} WHERE j.deadline <= ?", (to_micros(now),))]


def next_deadline(tx: Transaction) -> datetime | None:
    """Return when the next job's wall clock runs out."""
    row = tx.one("SELECT min(deadline) FROM jobs WHERE deadline IS NOT NULL")
    return None if row is None or row[0] is None else from_micros(row[0])


def being_deleted(tx: Transaction) -> list[JobRow]:
    """Return the jobs that are being deleted."""
    return [_row(row) for row in tx.execute(f"{_SELECT} WHERE j.state = 'deleting' ORDER BY j.num")]


def in_pool(tx: Transaction, pool_id: str) -> list[JobRow]:
    """Return the jobs that run, or would run, on a pool."""
    return [_row(row) for row in tx.execute(f"{_SELECT} WHERE j.pool_key = ? ORDER BY j.num", (pool_id.lower(),))]
