"""The verbs of jobs, and how a job goes on when something of it has ended (spec/rest.md §8.1, spec/node.md §11)."""

from datetime import datetime

from nodeagent.model.enums import DisableTasks, JobState, OnAllTasksComplete, TaskState
from nodeagent.model.job import JobConstraints, JobCreate, JobPatch, JobUpdate, PoolInfo
from nodeagent.model.protocol import AttemptKind, StopReason
from nodeagent.model.times import UNLIMITED
from nodeagent.service import work
from nodeagent.service.errors import BatchError, invalid_property, refusal
from nodeagent.service.lifecycle import dispatch, giving_up
from nodeagent.service.lifecycle.names import DEADLINES, PURGE, SCHEDULE
from nodeagent.service.store import attempts, counts, dependencies, job_nodes, job_schedules, jobs, nodes, tasks
from nodeagent.service.store.attempts import TASK_KINDS
from nodeagent.service.store.columns import later
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.nodes import EXPECTED

USER_TERMINATE = "UserTerminate"
ALL_TASKS_COMPLETE = "AllTasksComplete"
MAX_WALL_CLOCK_TIME_EXPIRY = "MaxWallClockTimeExpiry"
JOB_MANAGER_COMPLETE = "JMComplete"
TASK_FAILED = "TaskFailed"

_PURGE_ROWS = 1000
_ENDING = {
    JobState.TERMINATING: "JobBeingTerminated",
    JobState.COMPLETED: "JobCompleted",
    JobState.DELETING: "JobBeingDeleted",
}
_STOP_ON_DISABLE = {
    DisableTasks.REQUEUE: StopReason.JOB_DISABLE_REQUEUE,
    DisableTasks.TERMINATE: StopReason.JOB_DISABLE_TERMINATE,
}


def require(tx: Transaction, job_id: str) -> JobRow:
    """Return a job. Raises JobNotFound."""
    job = jobs.get(tx, job_id)
    if job is None:
        raise refusal("JobNotFound")
    return job


def require_open(job: JobRow) -> None:
    """Raise JobBeingTerminated, JobCompleted or JobBeingDeleted if a job is on its way out."""
    if job.state in _ENDING:
        raise refusal(_ENDING[job.state])


def create_job(tx: Transaction, spec: JobCreate, now: datetime) -> JobRow:
    """Add a job, with its job manager task if it has one. Raises JobExists, JobScheduleWithSameIdExists."""
    if jobs.get(tx, spec.id) is not None:
        raise refusal("JobExists")
    if job_schedules.get(tx, spec.id) is not None:
        raise refusal("JobScheduleWithSameIdExists")
    num = jobs.insert(tx, spec, _pool_id(spec.pool_info), _deadline(spec.constraints, now), now)
    if spec.job_manager_task is not None:
        manager = work.task_of_manager(spec.job_manager_task)
        tasks.insert(tx, num, AttemptKind.JOB_MANAGER, manager, now)
        counts.add(tx, num, TaskState.ACTIVE.value, tasks=1, slots=manager.required_slots)
        tx.signal(SCHEDULE)
    tx.signal(DEADLINES)
    settle(tx, num, now)
    return require(tx, spec.id)


def update_job(tx: Transaction, job_id: str, update: JobUpdate, now: datetime) -> JobRow:
    """Replace the updatable properties of a job; those left out go back to their defaults (PUT).

    Raises JobNotFound, JobBeingTerminated, JobCompleted, JobBeingDeleted, InvalidPropertyValue.
    """
    job = require(tx, job_id)
    changes = {name: getattr(update, name) for name in JobUpdate.model_fields}
    return _redefine(tx, job, changes, now)


def patch_job(tx: Transaction, job_id: str, patch: JobPatch, now: datetime) -> JobRow:
    """Replace exactly the properties that a patch names. Raises as `update_job`."""
    job = require(tx, job_id)
    changes = {name: getattr(patch, name) for name in patch.model_fields_set}
    return _redefine(tx, job, changes, now)


def _redefine(tx: Transaction, job: JobRow, changes: dict[str, object], now: datetime) -> JobRow:
    require_open(job)
    spec = job.spec.model_copy(update=changes)
    if job.spec.on_all_tasks_complete is OnAllTasksComplete.TERMINATE_JOB and (
        spec.on_all_tasks_complete is OnAllTasksComplete.NO_ACTION
    ):
        raise invalid_property("onAllTasksComplete", "noaction", "terminatejob cannot be changed back to noaction")
    if not _same_pool(spec.pool_info, job.spec.pool_info) and job.state is not JobState.DISABLED:
        raise BatchError(
            409, "OperationInvalidForCurrentState", "The pool of a job can be changed only while the job is disabled."
        )
    jobs.replace_spec(
        tx,
        job.num,
        spec,
        pool_id=_pool_id(spec.pool_info),
        deadline=_deadline(spec.constraints, job.created),
        modified=later(now, job.modified),
    )
    tx.signal(DEADLINES)
    tx.signal(SCHEDULE)
    settle(tx, job.num, now)
    return require(tx, job.id)


def disable_job(tx: Transaction, job_id: str, disable_tasks: DisableTasks, now: datetime) -> JobRow:
    """Stop starting tasks of a job; its running tasks are requeued, terminated or waited for.

    Raises JobNotFound, JobBeingTerminated, JobCompleted, JobBeingDeleted.
    """
    job = require(tx, job_id)
    require_open(job)
    if job.state is JobState.DISABLED:
        return job
    if job.state is not JobState.DISABLING:
        jobs.set_state(tx, job.num, JobState.DISABLING, now)
    tx.signal(SCHEDULE)  # a node that was kept for a task of this job is free for others
    jobs.touch(tx, job.num, later(now, job.modified))
    reason = _STOP_ON_DISABLE.get(disable_tasks)
    if reason is not None:
        _stop_tasks(tx, job, reason)
    advance(tx, job.num, now)
    return require(tx, job_id)


def enable_job(tx: Transaction, job_id: str, now: datetime) -> JobRow:
    """Let a disabled job go on. Raises JobNotFound, JobBeingTerminated, JobCompleted, JobBeingDeleted."""
    job = require(tx, job_id)
    require_open(job)
    if job.state is JobState.ACTIVE:
        return job
    jobs.set_state(tx, job.num, JobState.ENABLING, now)
    jobs.set_state(tx, job.num, JobState.ACTIVE, now)
    jobs.touch(tx, job.num, later(now, job.modified))
    tx.signal(SCHEDULE)
    settle(tx, job.num, now)
    return require(tx, job_id)


def terminate_job(
    tx: Transaction, job_id: str, now: datetime, *, reason: str | None = None, force: bool = False
) -> JobRow:
    """End a job: running tasks are stopped, active ones stay active, then release runs where preparation ran.

    `force` does not wait for nodes to answer, and leaves out release. Raises JobNotFound, JobBeingTerminated,
    JobCompleted, JobBeingDeleted.
    """
    job = require(tx, job_id)
    if not (force and job.state is JobState.TERMINATING):
        require_open(job)
    jobs.touch(tx, job.num, later(now, job.modified))
    _begin_end(tx, job, reason or USER_TERMINATE, now)
    if force:
        _abandon(tx, job, now)
    advance(tx, job.num, now)
    return require(tx, job_id)


def delete_job(tx: Transaction, job_id: str, now: datetime, *, force: bool = False) -> None:
    """Remove a job: it ends first (with release, if it had not ended), then everything of it goes.

    `force` does not wait for nodes to answer, and leaves out release. Raises JobNotFound, JobBeingDeleted.
    """
    job = require(tx, job_id)
    if job.state is JobState.DELETING and not force:
        raise refusal("JobBeingDeleted")
    jobs.touch(tx, job.num, later(now, job.modified))
    if job.state is JobState.COMPLETED:
        jobs.set_release_begun(tx, job.num)
    if job.state is not JobState.DELETING:
        jobs.forget_deadline(tx, job.num)
        jobs.set_state(tx, job.num, JobState.DELETING, now)
        tx.signal(SCHEDULE)
        _stop_tasks(tx, job, StopReason.JOB_TERMINATE)
    if force:
        _abandon(tx, job, now)
    advance(tx, job.num, now)


def expire_job(tx: Transaction, job: JobRow, now: datetime) -> None:
    """End a job whose maxWallClockTime is over."""
    jobs.forget_deadline(tx, job.num)
    end_job(tx, job, MAX_WALL_CLOCK_TIME_EXPIRY, now)


def end_job(tx: Transaction, job: JobRow, reason: str, now: datetime) -> None:
    """End a job for a reason of its own, unless it is ending already."""
    if job.state not in _ENDING:
        _begin_end(tx, job, reason, now)
        advance(tx, job.num, now)


def _begin_end(tx: Transaction, job: JobRow, reason: str, now: datetime) -> None:
    if job.state is not JobState.TERMINATING:
        jobs.set_state(tx, job.num, JobState.TERMINATING, now)
        jobs.set_terminating(tx, job.num, reason)
        tx.signal(SCHEDULE)
    _stop_tasks(tx, job, StopReason.JOB_TERMINATE)


def _stop_tasks(tx: Transaction, job: JobRow, reason: StopReason) -> None:
    for attempt in attempts.live_of_job(tx, job.num):
        if attempt.kind in TASK_KINDS:
            dispatch.stop(tx, attempt, reason)


def _abandon(tx: Transaction, job: JobRow, now: datetime) -> None:
    """Wait for no node any longer: what is sent stays sent, what they report is unknown from now on."""
    jobs.set_release_begun(tx, job.num)
    for attempt in attempts.live_of_job(tx, job.num):
        dispatch.stop(tx, attempt, StopReason.JOB_TERMINATE)
        giving_up.abandon(tx, job, attempt, now)


def settle(tx: Transaction, job_num: int, now: datetime) -> None:
    """End an active job whose tasks are all complete, if it asks for that. A job without tasks counts as complete."""
    job = jobs.by_num(tx, job_num)
    if (
        job is not None
        and job.state is JobState.ACTIVE
        and job.spec.on_all_tasks_complete is OnAllTasksComplete.TERMINATE_JOB
        and counts.get(tx, job_num).unfinished == 0
    ):
        end_job(tx, job, ALL_TASKS_COMPLETE, now)


def advance(tx: Transaction, job_num: int, now: datetime) -> None:
    """Take a job that is disabling, terminating or deleting as far as its attempts allow."""
    job = jobs.by_num(tx, job_num)
    if job is None or job.state not in (JobState.DISABLING, JobState.TERMINATING, JobState.DELETING):
        return
    if attempts.any_live(tx, job_num, TASK_KINDS):
        return
    if job.state is JobState.DISABLING:
        jobs.set_state(tx, job_num, JobState.DISABLED, now)
        return
    if attempts.any_live(tx, job_num, (AttemptKind.JOB_PREPARATION,)):
        for attempt in attempts.live_of_job(tx, job_num):
            dispatch.stop(tx, attempt, StopReason.JOB_TERMINATE)
        return
    if not job.release_begun:
        jobs.set_release_begun(tx, job_num)
        _begin_release(tx, job, now)
    if not attempts.any_live(tx, job_num, (AttemptKind.JOB_RELEASE,)):
        _finish(tx, job, now)


def _begin_release(tx: Transaction, job: JobRow, now: datetime) -> None:
    """Start the release task where the preparation and tasks of the job have been, on nodes that are still there."""
    if job.spec.job_release_task is None:
        return
    for row in job_nodes.of_job(tx, job.num):
        node = nodes.by_num(tx, row.node_num)
        if row.to_be_released and node is not None and node.state in EXPECTED:
            dispatch.assign_release(tx, job, row, now)


def _finish(tx: Transaction, job: JobRow, now: datetime) -> None:
    for row in job_nodes.of_job(tx, job.num):
        dispatch.end_session(tx, job, row)
    if job.state is JobState.TERMINATING:
        jobs.set_completed(tx, job.num, now)
        _wake_schedule(tx, job)
        return
    for node_num in attempts.nodes_of_job(tx, job.num):
        dispatch.remove_files(tx, job.id, node_num)
    if not purge(tx, job.num):
        tx.signal(PURGE)


def purgeable(tx: Transaction) -> list[int]:
    """Return the numbers of the deleted jobs whose rows are still to be removed."""
    return [
        job.num
        for job in jobs.being_deleted(tx)
        if job.release_begun and not attempts.any_live(tx, job.num, AttemptKind)
    ]


def purge(tx: Transaction, job_num: int) -> bool:
    """Remove some of the rows of a deleted job; tell whether it is gone."""
    removed = tasks.delete_some(tx, job_num, _PURGE_ROWS)
    if removed < _PURGE_ROWS:
        removed += attempts.delete_some(tx, job_num, _PURGE_ROWS - removed)
    if removed < _PURGE_ROWS:
        removed += dependencies.delete_some(tx, job_num, _PURGE_ROWS - removed)
    if removed == _PURGE_ROWS:
        return False
    job = jobs.by_num(tx, job_num)
    jobs.delete(tx, job_num)
    if job is not None:
        _wake_schedule(tx, job)
    return True


def _wake_schedule(tx: Transaction, job: JobRow) -> None:
    """Let the schedule that made a job go on, now that the job has ended or is gone (job_schedules.py)."""
    schedule_id = job_schedules.schedule_of(job.id)
    if schedule_id is not None:
        job_schedules.wake_now(tx, schedule_id)
        tx.signal(DEADLINES)


def _same_pool(one: PoolInfo, other: PoolInfo) -> bool:
    """Ids compare without case (spec/rest.md §1.3)."""
    return (one.pool_id or "").lower() == (other.pool_id or "").lower() and (
        one.auto_pool_specification == other.auto_pool_specification
    )


def _pool_id(info: PoolInfo) -> str:
    if info.pool_id is None:
        raise invalid_property("poolInfo", "autoPoolSpecification", "auto pools are not supported by this version")
    return info.pool_id


def _deadline(constraints: JobConstraints, created: datetime) -> datetime | None:
    """Return when the job's wall clock runs out: it counts from the job's creation."""
    limit = constraints.max_wall_clock_time
    if (
        limit >= UNLIMITED
        or limit.total_seconds() > (datetime.max.replace(tzinfo=created.tzinfo) - created).total_seconds()
    ):
        return None
    return created + limit
