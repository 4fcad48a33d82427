"""Rows of job schedules. Their jobs are rows of `jobs`, found by the names that only a schedule gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from nodeagent.model.enums import JobState
from nodeagent.model.job_schedule import JobScheduleCreate, JobScheduleState
from nodeagent.model.times import etag
from nodeagent.service.store import jobs, statistics
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
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.statistics import UsedBySchedule

COLUMNS: Mapping[str, Column] = {
    "id": Column("s.key", ColumnType.ID),
    "state": Column("s.state", ColumnType.ENUM),
    "stateTransitionTime": Column("s.state_time", ColumnType.TIME),
    "creationTime": Column("s.created", ColumnType.TIME),
    "lastModified": Column("s.modified", ColumnType.TIME),
    "executionInfo/endTime": Column("s.ended", ColumnType.TIME),
    "schedule/doNotRunUntil": Column("s.do_not_run_until", ColumnType.TIME),
    "schedule/doNotRunAfter": Column("s.do_not_run_after", ColumnType.TIME),
}

_SELECT = """
SELECT s.num, s.id, s.spec, s.state, s.state_time, s.previous_state, s.previous_state_time, s.created, s.modified,
       s.ended, s.last_number, s.last_run, s.wake, s.force
FROM job_schedules s
"""
_BATCH = 100


@lru_cache(maxsize=128)
def _parse_spec(text: str) -> JobScheduleCreate:
    return JobScheduleCreate.from_json(text)


@dataclass(frozen=True, slots=True)
class JobScheduleRow:
    """A job schedule as it stands. `last_number` and `last_run` are those of the last job: 0 and None before it."""

    num: int
    id: str
    spec: JobScheduleCreate
    state: JobScheduleState
    state_time: datetime
    previous_state: JobScheduleState | None
    previous_state_time: datetime | None
    created: datetime
    modified: datetime
    ended: datetime | None
    last_number: int
    last_run: datetime | None
    wake: datetime | None
    """When there is something to do for it; None while it waits for a job or a user."""
    force: bool
    """Whether it is being deleted without waiting for nodes."""

    @property
    def etag(self) -> str:
        """The ETag of the definition."""
        return etag(self.modified)

    @property
    def recent_job(self) -> str | None:
        """The id of the last job that it made."""
        return job_name(self.id, self.last_number) if self.last_number else None


def job_name(schedule_id: str, number: int) -> str:
    """Return the id of a schedule's job; they are counted from 1."""
    return f"{schedule_id}:job-{number}"


def schedule_of(job_id: str) -> str | None:
    """Return the id of the schedule that made a job; None for any other job, whose id has no colon."""
    schedule_id, colon, _ = job_id.partition(":")
    return schedule_id if colon else None


def _row(row: Row) -> JobScheduleRow:
    return JobScheduleRow(
        num=row[0],
        id=row[1],
        spec=_parse_spec(row[2]),
        state=JobScheduleState(row[3]),
        state_time=from_micros(row[4]),
        previous_state=None if row[5] is None else JobScheduleState(row[5]),
        previous_state_time=optional_time(row[6]),
        created=from_micros(row[7]),
        modified=from_micros(row[8]),
        ended=optional_time(row[9]),
        last_number=row[10],
        last_run=optional_time(row[11]),
        wake=optional_time(row[12]),
        force=bool(row[13]),
    )


def get(tx: Transaction, schedule_id: str) -> JobScheduleRow | None:
    """Return a job schedule by its id, in any case."""
    row = tx.one(f"{_SELECT} WHERE s.key = ?", (schedule_id.lower(),))
    return None if row is None else _row(row)


def by_num(tx: Transaction, num: int) -> JobScheduleRow | None:
    """Return a job schedule by its number."""
    row = tx.one(f"{_SELECT} WHERE s.num = ?", (num,))
    return None if row is None else _row(row)


def page(
    tx: Transaction, *, after: str | None = None, limit: int = 1000, where: Where | None = None
) -> list[JobScheduleRow]:
    """Return up to `limit` job schedules with ids after `after`, ordered by id."""
    sql, parameters = condition(where)
    rows = tx.execute(
        f"{_SELECT} WHERE s.key > ?{sql} ORDER BY s.key LIMIT ?", ((after or "").lower(), *parameters, limit)
    )
    return [_row(row) for row in rows]


def insert(tx: Transaction, spec: JobScheduleCreate, now: datetime) -> int:
    """Add an active job schedule that has made no job; return its number."""
    micros = to_micros(now)
    rows = tx.execute(
        "INSERT INTO job_schedules (key, id, spec, do_not_run_until, do_not_run_after, state, state_time, created,"
        " modified) VALUES (?,?,?,?,?,?,?,?,?) RETURNING num",
        (
            spec.id.lower(),
            spec.id,
            spec.to_json(),
            optional_micros(spec.schedule.do_not_run_until),
            optional_micros(spec.schedule.do_not_run_after),
            JobScheduleState.ACTIVE,
            micros,
            micros,
            micros,
        ),
    )
    return int(rows[0][0])


def replace_spec(tx: Transaction, num: int, spec: JobScheduleCreate) -> None:
    """Give a job schedule a new definition."""
    tx.execute(
        "UPDATE job_schedules SET spec = ?, do_not_run_until = ?, do_not_run_after = ? WHERE num = ?",
        (
            spec.to_json(),
            optional_micros(spec.schedule.do_not_run_until),
            optional_micros(spec.schedule.do_not_run_after),
            num,
        ),
    )


def set_state(tx: Transaction, num: int, state: JobScheduleState, now: datetime) -> None:
    """Move a job schedule to a state; the one before becomes `previous_state`."""
    tx.execute(
        "UPDATE job_schedules SET previous_state = state, previous_state_time = state_time, state = ?, state_time = ?"
        " WHERE num = ?",
        (state, to_micros(now), num),
    )


def set_completed(tx: Transaction, num: int, now: datetime) -> None:
    """End a job schedule. Of a terminated one, `previous_state` goes on showing what it was before, as of a job."""
    tx.execute(
        "UPDATE job_schedules SET previous_state = iif(state = 'terminating', previous_state, state),"
        " previous_state_time = iif(state = 'terminating', previous_state_time, state_time),"
        " state = 'completed', state_time = :now, ended = :now, wake = NULL WHERE num = :num",
        {"now": to_micros(now), "num": num},
    )


def touch(tx: Transaction, num: int, modified: datetime) -> None:
    """Give a job schedule a new ETag."""
    tx.execute("UPDATE job_schedules SET modified = ? WHERE num = ?", (to_micros(modified), num))


def set_run(tx: Transaction, num: int, number: int, now: datetime) -> None:
    """Record that the job of this number has been made."""
    tx.execute("UPDATE job_schedules SET last_number = ?, last_run = ? WHERE num = ?", (number, to_micros(now), num))


def set_force(tx: Transaction, num: int) -> None:
    """Record that the jobs of a job schedule are removed without waiting for nodes."""
    tx.execute("UPDATE job_schedules SET force = 1 WHERE num = ?", (num,))


def set_wake(tx: Transaction, num: int, wake: datetime | None) -> None:
    """Record when there is something to do for a job schedule; None for not before a job ends or a user acts."""
    tx.execute("UPDATE job_schedules SET wake = ? WHERE num = ?", (optional_micros(wake), num))


def wake_now(tx: Transaction, schedule_id: str) -> None:
    """Record that there is something to do for a job schedule at once."""
    tx.execute("UPDATE job_schedules SET wake = 0 WHERE key = ?", (schedule_id.lower(),))


def due(tx: Transaction, now: datetime) -> list[int]:
    """Return the numbers of job schedules that there is something to do for, some of them if they are many."""
    rows = tx.execute("SELECT num FROM job_schedules WHERE wake <= ? ORDER BY wake LIMIT ?", (to_micros(now), _BATCH))
    return [row[0] for row in rows]


def next_wake(tx: Transaction) -> datetime | None:
    """Return when there is next something to do for any job schedule."""
    row = tx.one("SELECT min(wake) FROM job_schedules WHERE wake IS NOT NULL")
    return None if row is None else optional_time(row[0])


def delete(tx: Transaction, num: int) -> None:
    """Remove a job schedule whose jobs are gone."""
    tx.execute("DELETE FROM job_schedules WHERE num = ?", (num,))


def jobs_page(
    tx: Transaction, schedule_id: str, *, after: str | None = None, limit: int = 1000, where: Where | None = None
) -> list[JobRow]:
    """Return up to `limit` jobs of a schedule with ids after `after`, ordered by id."""
    own = Where("j.key >= ? AND j.key < ?", _key_range(schedule_id))
    both = own if where is None else Where(f"{own.sql} AND ({where.sql})", (*own.parameters, *where.parameters))
    return jobs.page(tx, after=after, limit=limit, where=both)


def jobs_to_delete(tx: Transaction, schedule_id: str, limit: int) -> list[JobRow]:
    """Return up to `limit` jobs of a schedule that nobody has deleted yet."""
    return jobs_page(tx, schedule_id, limit=limit, where=Where("j.state <> ?", (JobState.DELETING,)))


def jobs_being_deleted(tx: Transaction, schedule_id: str) -> list[JobRow]:
    """Return the jobs of a schedule whose deletion waits for nodes, or for the removal of their rows."""
    return jobs_page(tx, schedule_id, where=Where("j.state = ?", (JobState.DELETING,)))


def has_jobs(tx: Transaction, schedule_id: str) -> bool:
    """Tell whether any job of a schedule is there still."""
    return tx.one("SELECT 1 FROM jobs WHERE key >= ? AND key < ? LIMIT 1", _key_range(schedule_id)) is not None


def used(tx: Transaction, schedule_id: str) -> UsedBySchedule | None:
    """Return what the jobs of a schedule used; None if no task of them has ended yet."""
    return statistics.of_schedule(tx, *_key_range(schedule_id))


def _key_range(schedule_id: str) -> tuple[str, str]:
    """Return where the keys of a schedule's jobs begin, and what comes after all of them."""
    return f"{schedule_id.lower()}:job-", f"{schedule_id.lower()}:job."
