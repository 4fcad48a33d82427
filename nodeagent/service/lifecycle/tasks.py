"""The verbs of tasks (spec/rest.md §8.2, §9; spec/node.md §9)."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from nodeagent.model.enums import ExecutionResult, JobState, TaskState
from nodeagent.model.protocol import AttemptKind, StopReason
from nodeagent.model.task import TaskConstraints, TaskCreate
from nodeagent.rules.dependencies import MAX_TASK_IDS_LENGTH, ids_too_long
from nodeagent.rules.exit_conditions import misplaced_action
from nodeagent.service.errors import BatchError, invalid_property, refusal
from nodeagent.service.lifecycle import dependents, dispatch, ends, giving_up, jobs
from nodeagent.service.lifecycle.consequences import task_ended
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.store import attempts, counts, task_logs, tasks
from nodeagent.service.store.columns import later
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow

_DEFAULTS = TaskConstraints()


def require(tx: Transaction, job_id: str, task_id: str) -> tuple[JobRow, TaskRow]:
    """Return a task with its job. Raises JobNotFound, TaskNotFound."""
    job = jobs.require(tx, job_id)
    task = tasks.get(tx, job.num, task_id)
    if task is None:
        raise refusal("TaskNotFound")
    return job, task


def add_task(tx: Transaction, job_id: str, spec: TaskCreate, now: datetime) -> TaskRow:
    """Add one task.

    Raises JobNotFound, JobBeingTerminated, JobCompleted, JobBeingDeleted, TaskExists,
    TaskIdSameAsJobPreparationTask, TaskIdSameAsJobReleaseTask, TaskDependenciesNotSpecifiedOnJob,
    TaskDependencyListTooLong, InvalidPropertyValue.
    """
    (added,) = add_tasks(tx, job_id, (spec,), now)
    if isinstance(added, BatchError):
        raise added
    return added


def add_tasks(tx: Transaction, job_id: str, specs: Sequence[TaskCreate], now: datetime) -> list[TaskRow | BatchError]:
    """Add tasks in one transaction; each gets its row or its own error, in the order of the request.

    Raises what concerns the job: JobNotFound, JobBeingTerminated, JobCompleted, JobBeingDeleted.
    """
    job = jobs.require(tx, job_id)
    jobs.require_open(job)
    results: list[TaskRow | BatchError] = []
    slots = 0
    for spec in specs:
        error = _refusal(tx, job, spec)
        if error is not None:
            results.append(error)
            continue
        row = tasks.insert(tx, job.num, AttemptKind.USER, spec, now)
        if spec.depends_on is not None:
            dependents.hold(tx, job.num, row.num, spec)
        results.append(row)
        slots += spec.required_slots
    added = sum(isinstance(result, TaskRow) for result in results)
    if added:
        counts.add(tx, job.num, TaskState.ACTIVE.value, tasks=added, slots=slots)
        tx.signal(SCHEDULE)
    return results


def _refusal(tx: Transaction, job: JobRow, spec: TaskCreate) -> BatchError | None:
    key = spec.id.lower()
    preparation, release = job.spec.job_preparation_task, job.spec.job_release_task
    if preparation is not None and preparation.id.lower() == key:
        return refusal("TaskIdSameAsJobPreparationTask")
    if release is not None and release.id.lower() == key:
        return refusal("TaskIdSameAsJobReleaseTask")
    if spec.depends_on is not None and not job.spec.uses_task_dependencies:
        return refusal("TaskDependenciesNotSpecifiedOnJob")
    if spec.depends_on is not None and ids_too_long(spec.depends_on):
        return refusal("TaskDependencyListTooLong", ("MaxLimit", str(MAX_TASK_IDS_LENGTH)))
    misplaced = misplaced_action(
        spec.exit_conditions,
        on_task_failure=job.spec.on_task_failure,
        uses_task_dependencies=job.spec.uses_task_dependencies,
    )
    if misplaced is not None:
        return invalid_property(misplaced.path, misplaced.value, misplaced.reason)
    return refusal("TaskExists") if tasks.exists(tx, job.num, spec.id) else None


def update_task(
    tx: Transaction, job_id: str, task_id: str, constraints: TaskConstraints | None, now: datetime
) -> TaskRow:
    """Replace the constraints of a task that has not completed; None is their defaults.

    The node of its newest attempt is told of another retention time; what else changes holds from the next attempt.

    Raises JobNotFound, TaskNotFound, TaskCompleted.
    """
    _, task = require(tx, job_id, task_id)
    if task.state is TaskState.COMPLETED:
        raise refusal("TaskCompleted")
    spec = task.spec.model_copy(update={"constraints": constraints})
    tasks.replace_spec(tx, task.num, spec, later(now, task.modified))
    before, after = _retention(task.spec), _retention(spec)
    newest = attempts.of_task(tx, task.num)[-1:] if before != after else []
    for attempt in newest:
        dispatch.change_retention(tx, attempt, after)
    return require(tx, job_id, task_id)[1]


def _retention(spec: TaskCreate) -> timedelta:
    return (spec.constraints or _DEFAULTS).retention_time


def terminate_task(tx: Transaction, job_id: str, task_id: str, now: datetime) -> TaskRow:
    """Complete a task at once, as ended by its user; what runs of it is stopped afterwards.

    Raises JobNotFound, TaskNotFound, TaskCompleted.
    """
    job, task = require(tx, job_id, task_id)
    if task.state is TaskState.COMPLETED:
        raise refusal("TaskCompleted")
    _detach(tx, task, StopReason.USER_TERMINATE)
    outcome = giving_up.stopped(StopReason.USER_TERMINATE, now)
    ends.complete_task(tx, job, task, ends.ended_execution(task, outcome), now, attempt_num=task.attempt_num)
    tx.signal(SCHEDULE)  # a node may have been kept for it
    task_ended(tx, job, task.num, now)
    return require(tx, job_id, task_id)[1]


def reactivate_task(tx: Transaction, job_id: str, task_id: str, now: datetime) -> TaskRow:
    """Let a task that failed run again, with its retry count at 0.

    It waits until what is left of its last attempt has ended. Raises JobNotFound, TaskNotFound, TaskNotCompleted,
    TaskSucceeded, JobBeingTerminated, JobCompleted, JobBeingDeleted.
    """
    job, task = require(tx, job_id, task_id)
    if task.state is not TaskState.COMPLETED:
        raise refusal("TaskNotCompleted")
    if task.execution.result is ExecutionResult.SUCCESS:
        raise refusal("TaskSucceeded")
    jobs.require_open(job)
    fresh = task.execution.model_copy(update={"retry_count": 0, "last_retry_time": None})
    tasks.set_active(tx, task.num, fresh, task.system_task_version, now, attempt_num=task.attempt_num)
    dependents.withdraw(tx, job.num, task)
    counts.move(tx, job.num, "failed", TaskState.ACTIVE.value, task.required_slots)
    tx.signal(SCHEDULE)
    return require(tx, job_id, task_id)[1]


def delete_task(tx: Transaction, job_id: str, task_id: str, now: datetime) -> None:
    """Remove a task in any state; what runs of it is stopped, and its files go.

    Raises JobNotFound, TaskNotFound, JobBeingDeleted.
    """
    job, task = require(tx, job_id, task_id)
    if job.state is JobState.DELETING:
        raise refusal("JobBeingDeleted")
    task_logs.forget(tx, task.num)
    _forget_attempts(tx, job, task)
    counts.add(tx, job.num, counts.bucket(task.state, task.execution.result), tasks=-1, slots=-task.required_slots)
    dependents.withdraw(tx, job.num, task)
    tasks.delete(tx, task.num)
    tx.signal(SCHEDULE)
    jobs.settle(tx, job.num, now)


def _detach(tx: Transaction, task: TaskRow, reason: StopReason) -> None:
    if task.attempt_num is None:
        return
    attempt = attempts.by_num(tx, task.attempt_num)
    if attempt is not None and attempt.live:
        attempts.detach(tx, attempt.num)
        dispatch.stop(tx, attempt, reason)


def _forget_attempts(tx: Transaction, job: JobRow, task: TaskRow) -> None:
    ended: dict[int, list[str]] = {}
    for attempt in attempts.of_task(tx, task.num):
        attempts.forget_task(tx, attempt.num)
        if attempt.live:
            dispatch.stop(tx, attempt, StopReason.TASK_DELETE)
        else:
            ended.setdefault(attempt.node_num, []).append(attempt.id)
    for node_num, attempt_ids in ended.items():
        dispatch.remove_files(tx, job.id, node_num, tuple(attempt_ids))
