"""The verbs of job schedules, and the jobs that they make (spec/rest.md §3.13, §8.6).

What a schedule does next follows from its row, its last job and the time alone, and is done in one transaction with
the record that it was done: a service that is killed makes no job twice, and at its next start every one that is
still due. A schedule waits for its last job without a deadline: the end of that job wakes it (lifecycle/jobs.py).
"""

from datetime import datetime

from nodeagent.model.enums import JobState
from nodeagent.model.job import JobCreate, JobSpecification
from nodeagent.model.job_schedule import JobScheduleCreate, JobSchedulePatch, JobScheduleState, JobScheduleUpdate
from nodeagent.rules.recurrence import is_over, next_run, timetable
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import jobs
from nodeagent.service.lifecycle.names import DEADLINES
from nodeagent.service.store import job_schedules
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store.columns import later
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_schedules import JobScheduleRow, job_name
from nodeagent.service.store.jobs import JobRow

TERMINATE_JOB_SCHEDULE = "TerminateJobSchedule"

_JOBS_AT_ONCE = 100
"""So many jobs of a deleted schedule are ended in one transaction."""
_ENDING = {
    JobScheduleState.TERMINATING: "JobScheduleBeingTerminated",
    JobScheduleState.COMPLETED: "JobScheduleCompleted",
    JobScheduleState.DELETING: "JobScheduleBeingDeleted",
}


def require(tx: Transaction, schedule_id: str) -> JobScheduleRow:
    """Return a job schedule. Raises JobScheduleNotFound."""
    row = job_schedules.get(tx, schedule_id)
    if row is None:
        raise refusal("JobScheduleNotFound")
    return row


def job_of(specification: JobSpecification, schedule_id: str, number: int) -> JobCreate:
    """Return the definition of a schedule's job; they are counted from 1."""
    given = {name: getattr(specification, name) for name in JobSpecification.model_fields}
    return JobCreate.model_validate({**given, "id": job_name(schedule_id, number)})


def create_schedule(tx: Transaction, spec: JobScheduleCreate, now: datetime) -> JobScheduleRow:
    """Add a job schedule, and its first job if that is due. Raises JobScheduleExists, JobWithSameIdExists."""
    if job_schedules.get(tx, spec.id) is not None:
        raise refusal("JobScheduleExists")
    if job_rows.get(tx, spec.id) is not None or job_schedules.has_jobs(tx, spec.id):
        raise refusal("JobWithSameIdExists")
    advance(tx, job_schedules.insert(tx, spec, now), now)
    return require(tx, spec.id)


def update_schedule(tx: Transaction, schedule_id: str, update: JobScheduleUpdate, now: datetime) -> JobScheduleRow:
    """Replace schedule, job specification and metadata (PUT); only jobs made later know it.

    Raises JobScheduleNotFound, JobScheduleBeingTerminated, JobScheduleCompleted, JobScheduleBeingDeleted.
    """
    changes = {name: getattr(update, name) for name in JobScheduleUpdate.model_fields}
    return _redefine(tx, require(tx, schedule_id), changes, now)


def patch_schedule(tx: Transaction, schedule_id: str, patch: JobSchedulePatch, now: datetime) -> JobScheduleRow:
    """Replace exactly the properties that a patch names. Raises as `update_schedule`."""
    changes = {name: getattr(patch, name) for name in JobSchedulePatch.model_fields if getattr(patch, name) is not None}
    return _redefine(tx, require(tx, schedule_id), changes, now)


def _redefine(tx: Transaction, row: JobScheduleRow, changes: dict[str, object], now: datetime) -> JobScheduleRow:
    _require_open(row)
    job_schedules.replace_spec(tx, row.num, row.spec.model_copy(update=changes))
    job_schedules.touch(tx, row.num, later(now, row.modified))
    advance(tx, row.num, now)
    return require(tx, row.id)


def disable_schedule(tx: Transaction, schedule_id: str, now: datetime) -> JobScheduleRow:
    """Make no more jobs; the one that runs goes on. Raises as `update_schedule`."""
    row = require(tx, schedule_id)
    _require_open(row)
    if row.state is JobScheduleState.ACTIVE:
        job_schedules.set_state(tx, row.num, JobScheduleState.DISABLED, now)
        job_schedules.touch(tx, row.num, later(now, row.modified))
        advance(tx, row.num, now)
    return require(tx, schedule_id)


def enable_schedule(tx: Transaction, schedule_id: str, now: datetime) -> JobScheduleRow:
    """Let a disabled schedule go on: what is due and not lost is made now. Raises as `update_schedule`."""
    row = require(tx, schedule_id)
    _require_open(row)
    if row.state is JobScheduleState.DISABLED:
        job_schedules.set_state(tx, row.num, JobScheduleState.ACTIVE, now)
        job_schedules.touch(tx, row.num, later(now, row.modified))
        advance(tx, row.num, now)
    return require(tx, schedule_id)


def terminate_schedule(tx: Transaction, schedule_id: str, now: datetime, *, force: bool = False) -> JobScheduleRow:
    """End a schedule with the job that runs; it is completed when that job is. `force` does not wait for nodes.

    Raises as `update_schedule`.
    """
    row = require(tx, schedule_id)
    if not (force and row.state is JobScheduleState.TERMINATING):
        _require_open(row)
        job_schedules.set_state(tx, row.num, JobScheduleState.TERMINATING, now)
    job_schedules.touch(tx, row.num, later(now, row.modified))
    job = _unfinished_job(tx, row)
    if job is not None and not force:
        jobs.end_job(tx, job, TERMINATE_JOB_SCHEDULE, now)
    elif job is not None and job.state is JobState.DELETING:
        jobs.delete_job(tx, job.id, now, force=True)
    elif job is not None:
        jobs.terminate_job(tx, job.id, now, reason=TERMINATE_JOB_SCHEDULE, force=True)
    advance(tx, row.num, now)
    return require(tx, schedule_id)


def delete_schedule(tx: Transaction, schedule_id: str, now: datetime, *, force: bool = False) -> None:
    """Remove a schedule with all of its jobs, which end first. `force` does not wait for nodes.

    Raises JobScheduleNotFound, JobScheduleBeingDeleted.
    """
    row = require(tx, schedule_id)
    if row.state is not JobScheduleState.DELETING:
        job_schedules.set_state(tx, row.num, JobScheduleState.DELETING, now)
    elif not force:
        raise refusal("JobScheduleBeingDeleted")
    job_schedules.touch(tx, row.num, later(now, row.modified))
    if force:
        job_schedules.set_force(tx, row.num)
        for job in job_schedules.jobs_being_deleted(tx, row.id):
            jobs.delete_job(tx, job.id, now, force=True)
    advance(tx, row.num, now)


def advance(tx: Transaction, num: int, now: datetime) -> None:
    """Do what is due for a schedule, and record when to look again."""
    row = job_schedules.by_num(tx, num)
    if row is None:
        return
    match row.state:
        case JobScheduleState.ACTIVE:
            _run(tx, row, now)
        case JobScheduleState.TERMINATING if _unfinished_job(tx, row) is None:
            job_schedules.set_completed(tx, num, now)
        case JobScheduleState.DELETING:
            _remove(tx, row, now)
        case _:
            job_schedules.set_wake(tx, num, None)
    tx.signal(DEADLINES)


def _run(tx: Transaction, row: JobScheduleRow, now: datetime) -> None:
    """Make the job that is due, if the last one has ended; complete the schedule if there will be none."""
    if _unfinished_job(tx, row) is not None:
        job_schedules.set_wake(tx, row.num, None)
        return
    table = timetable(row.spec.schedule, row.created)
    when = next_run(table, row.last_run, now)
    if when is not None and when <= now:
        number = row.last_number + 1
        job_schedules.set_run(tx, row.num, number, now)
        jobs.create_job(tx, job_of(row.spec.job_specification, row.id, number), now)
        advance(tx, row.num, now)  # a job without tasks may be complete already
    elif is_over(table, row.last_run, now):
        job_schedules.set_completed(tx, row.num, now)
    else:
        job_schedules.set_wake(tx, row.num, when or table.closes)


def _remove(tx: Transaction, row: JobScheduleRow, now: datetime) -> None:
    for job in job_schedules.jobs_to_delete(tx, row.id, _JOBS_AT_ONCE):
        jobs.delete_job(tx, job.id, now, force=row.force)
    if job_schedules.jobs_to_delete(tx, row.id, 1):
        job_schedules.set_wake(tx, row.num, now)
    elif job_schedules.has_jobs(tx, row.id):
        job_schedules.set_wake(tx, row.num, None)
    else:
        job_schedules.delete(tx, row.num)


def _unfinished_job(tx: Transaction, row: JobScheduleRow) -> JobRow | None:
    """Return the last job of a schedule unless it has ended or is gone: there is never another one beside it."""
    job = None if row.recent_job is None else job_rows.get(tx, row.recent_job)
    return None if job is None or job.state is JobState.COMPLETED else job


def _require_open(row: JobScheduleRow) -> None:
    if row.state in _ENDING:
        raise refusal(_ENDING[row.state])
