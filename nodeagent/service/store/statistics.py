"""Sums of what the attempts of tasks used, taken from their outcomes when somebody asks (docs/adr/0021).

Only attempts whose node reported statistics count: those that never ran, or were lost, have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nodeagent.service.store.columns import from_micros
from nodeagent.service.store.database import Row, Transaction

_SUMS = """
total(a.outcome ->> '$.statistics.wallClockSeconds'), total(a.outcome ->> '$.statistics.userCpuSeconds'),
total(a.outcome ->> '$.statistics.kernelCpuSeconds'), total(a.outcome ->> '$.statistics.readBytes'),
total(a.outcome ->> '$.statistics.writeBytes'), max(a.outcome ->> '$.statistics.peakMemoryBytes'),
max(coalesce(a.start_time, a.assigned)), max(a.end_time)
"""
_COUNTED = "a.kind IN ('user', 'jobManager') AND a.outcome ->> '$.statistics' IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Used:
    """What executions used together; `started` is the start of the last one, `ended` the end of the last one."""

    wall_clock: timedelta
    user_cpu: timedelta
    kernel_cpu: timedelta
    read_bytes: int
    write_bytes: int
    peak_memory_bytes: int | None
    started: datetime
    ended: datetime


@dataclass(frozen=True, slots=True)
class UsedBySchedule:
    """What the tasks of a schedule's jobs used, of the jobs that are still there, and how they ended."""

    used: Used
    retries: int
    waited: timedelta
    succeeded: int
    failed: int


@dataclass(frozen=True, slots=True)
class UsedByJob:
    """What the tasks of a job used, how often they were retried, and how long they waited for their starts."""

    used: Used
    retries: int
    waited: timedelta


def _used(row: Row) -> Used:
    wall_clock, user_cpu, kernel_cpu, read_bytes, write_bytes, peak, started, ended = row
    return Used(
        wall_clock=timedelta(seconds=wall_clock),
        user_cpu=timedelta(seconds=user_cpu),
        kernel_cpu=timedelta(seconds=kernel_cpu),
        read_bytes=int(read_bytes),
        write_bytes=int(write_bytes),
        peak_memory_bytes=peak,
        started=from_micros(started),
        ended=from_micros(ended),
    )


def of_tasks(tx: Transaction, task_nums: Sequence[int]) -> dict[int, Used]:
    """Return what each of these tasks used, of those that have ended at least once."""
    marks = ",".join("?" * len(task_nums))
    rows = tx.execute(
        f"SELECT a.task_num, {_SUMS} FROM attempts a WHERE a.task_num IN ({marks}) AND {_COUNTED} GROUP BY a.task_num",  # noqa: S608
        tuple(task_nums),
    )
    return {int(row[0]): _used(row[1:]) for row in rows}


def of_job(tx: Transaction, job_num: int) -> UsedByJob | None:
    """Return what all tasks of a job used, deleted ones included; None if none has ended yet."""
    row = tx.one(f"SELECT {_SUMS} FROM attempts a WHERE a.job_num = ? AND {_COUNTED}", (job_num,))  # noqa: S608
    if row is None or row[-1] is None:
        return None
    retries, waited = tx.execute(
        "SELECT coalesce(sum(retry_count), 0), coalesce(sum(start_time - created), 0) FROM tasks WHERE job_num = ?",
        (job_num,),
    )[0]
    return UsedByJob(_used(row), int(retries), timedelta(microseconds=waited))


def of_schedule(tx: Transaction, first_key: str, end_key: str) -> UsedBySchedule | None:
    """Return what the tasks of the jobs with keys from `first_key` to before `end_key` used; None if none has ended."""
    keys = (first_key, end_key)
    row = tx.one(
        f"SELECT {_SUMS} FROM jobs j JOIN attempts a ON a.job_num = j.num"  # noqa: S608
        f" WHERE j.key >= ? AND j.key < ? AND {_COUNTED}",
        keys,
    )
    if row is None or row[-1] is None:
        return None
    retries, waited = tx.execute(
        "SELECT coalesce(sum(t.retry_count), 0), coalesce(sum(t.start_time - t.created), 0)"
        " FROM jobs j JOIN tasks t ON t.job_num = j.num WHERE j.key >= ? AND j.key < ?",
        keys,
    )[0]
    succeeded, failed = tx.execute(
        "SELECT coalesce(sum(c.succeeded), 0), coalesce(sum(c.failed), 0)"
        " FROM jobs j JOIN job_counts c ON c.job_num = j.num WHERE j.key >= ? AND j.key < ?",
        keys,
    )[0]
    return UsedBySchedule(_used(row), int(retries), timedelta(microseconds=waited), int(succeeded), int(failed))
