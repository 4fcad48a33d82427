"""The diagnostic events of tasks, field by field as their pages give them (spec/node.md §17)."""

from datetime import datetime

from nodeagent.model.enums import ErrorCategory, ExecutionResult
from nodeagent.model.events import (
    EndExecutionInfo,
    EventConstraints,
    EventNodeInfo,
    EventOwn,
    EventSchedulingError,
    StartExecutionInfo,
    TaskEndEvent,
    TaskStartEvent,
)
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import AttemptKind, Statistics
from nodeagent.model.task import TaskExecutionInfo
from nodeagent.service.store import events
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskNode, TaskRow
from nodeagent.service.work import max_task_retry_count

_TYPES = {AttemptKind.USER: "User", AttemptKind.JOB_MANAGER: "JobManager"}
_CATEGORIES = {ErrorCategory.USER_ERROR: "UserError", ErrorCategory.SERVER_ERROR: "ServerError"}
_RESULTS = {ExecutionResult.SUCCESS: "Success", ExecutionResult.FAILURE: "Failure"}


def started(tx: Transaction, job: JobRow, task: TaskRow, node: TaskNode, now: datetime) -> None:
    """Tell that a task is scheduled to start on a node; told again for every retry and requeue."""
    event = TaskStartEvent(
        job_id=job.id,
        id=task.id,
        task_type=_TYPES[task.kind],
        system_task_version=task.system_task_version,
        required_slots=task.required_slots,
        node_info=EventNodeInfo(pool_id=node.pool_id, node_id=node.id),
        constraints=EventConstraints(max_task_retry_count=max_task_retry_count(job.spec, task.spec)),
        execution_info=StartExecutionInfo(retry_count=task.execution.retry_count),
    )
    events.add(tx, "TaskStartEvent", event, now)


def ended(
    tx: Transaction,
    job: JobRow,
    task: TaskRow,
    execution: TaskExecutionInfo,
    now: datetime,
    *,
    statistics: Statistics | None,
) -> None:
    """Tell that a task has completed, and, if it failed, that too; with what its last execution used, if known.

    A task that never had a node shows a blank node id, as Batch does.
    """
    result = execution.result or ExecutionResult.FAILURE
    event = TaskEndEvent(
        job_id=job.id,
        id=task.id,
        task_type=_TYPES[task.kind],
        system_task_version=task.system_task_version,
        required_slots=task.required_slots,
        node_info=EventNodeInfo(
            pool_id=job.pool_id if task.node is None else task.node.pool_id,
            node_id=" " if task.node is None else task.node.id,
        ),
        constraints=EventConstraints(max_task_retry_count=max_task_retry_count(job.spec, task.spec)),
        execution_info=EndExecutionInfo(
            start_time=execution.start_time,
            end_time=execution.end_time or now,
            exit_code=execution.exit_code,
            retry_count=execution.retry_count,
            requeue_count=execution.requeue_count,
            result=_RESULTS[result],
            scheduling_error=_error(execution.failure_info),
        ),
        nodeagent=None if statistics is None else EventOwn(statistics=statistics),
    )
    events.add(tx, "TaskCompleteEvent", event, now)
    if result is ExecutionResult.FAILURE:
        events.add(tx, "TaskFailEvent", event, now)


def _error(failure: FailureInfo | None) -> EventSchedulingError:
    if failure is None:
        return EventSchedulingError()
    return EventSchedulingError(
        category=_CATEGORIES[failure.category], code=failure.code, message=failure.message, details=failure.details
    )
