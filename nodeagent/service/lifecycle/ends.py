"""The ends of attempts and of tasks: what they free, count and tell. What follows for the job is in reports.py."""

from datetime import datetime

from nodeagent.model.enums import ExecutionResult
from nodeagent.model.protocol import Outcome, Statistics
from nodeagent.model.task import TaskExecutionInfo
from nodeagent.rules.retry import Next
from nodeagent.service import task_events
from nodeagent.service.lifecycle import dependents, dispatch
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.store import attempts, counts, nodes, tasks
from nodeagent.service.store.attempts import TASK_KINDS, AttemptRow, AttemptState
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow


def close_attempt(
    tx: Transaction,
    job: JobRow,
    attempt: AttemptRow,
    state: AttemptState,
    now: datetime,
    outcome: Outcome | None = None,
) -> None:
    """End an attempt: give its slots back, count it out; a task that waits for it is the caller's to move on.

    A given up attempt may still run, so it holds its slots until its node says otherwise.
    """
    given_up = state is AttemptState.GIVEN_UP
    attempts.set_ended(
        tx, attempt.num, state, outcome=outcome, slots_held=attempt.slots_held if given_up else 0, now=now
    )
    if given_up:
        dispatch.take_back(tx, attempt)
    tx.signal(SCHEDULE)
    if attempt.kind not in TASK_KINDS:
        return
    ran = attempt.state is AttemptState.RUNNING
    nodes.count_running(
        tx,
        attempt.node_num,
        tasks=-1 if ran else 0,
        slots=-attempt.slots if ran else 0,
        freed=0 if given_up else attempt.slots_held,
        now=now,
    )
    if attempt.task_num is not None and attempt.detached:
        if outcome is not None and outcome.stop_reason is attempt.stop_reason and outcome.failure_info is not None:
            failure, exit_code = outcome.failure_info, outcome.exit_code
            tasks.add_evidence(tx, attempt.task_num, attempt.num, exit_code=exit_code, failure=failure)
        tasks.release_attempt(tx, attempt.task_num, attempt.num)
    if attempt.remove_files:
        dispatch.remove_files(tx, job.id, attempt.node_num, (attempt.id,))


def complete_task(
    tx: Transaction,
    job: JobRow,
    task: TaskRow,
    execution: TaskExecutionInfo,
    now: datetime,
    *,
    attempt_num: int | None = None,
    statistics: Statistics | None = None,
) -> None:
    """Move a task to completed, once and for all, and tell it, with what its last execution used.

    `attempt_num` is an attempt that has yet to end.
    """
    tasks.set_completed(tx, task.num, execution, now, attempt_num=attempt_num)
    before = counts.bucket(task.state, task.execution.result)
    after = "succeeded" if execution.result is ExecutionResult.SUCCESS else "failed"
    counts.move(tx, job.num, before, after, task.required_slots)
    if task.node is not None and execution.start_time is not None:
        nodes.count_ended(tx, task.node.num, succeeded=execution.result is ExecutionResult.SUCCESS)
    if job.spec.uses_task_dependencies:
        dependents.release(tx, job.num, task, execution)
    task_events.ended(tx, job, task, execution, now, statistics=statistics)


def requeue_task(tx: Transaction, task: TaskRow, why: Next, now: datetime) -> None:
    """Make a task active again: a retry or a user's requeue is counted, a recovery only in `systemTaskVersion`."""
    changes: dict[str, object] = {}
    if why is Next.RETRY:
        # the time of a retry is when it starts running: the next report of that tells it
        changes = {"retry_count": task.execution.retry_count + 1, "last_retry_time": None}
    elif why is Next.REQUEUE:
        changes = {"requeue_count": task.execution.requeue_count + 1, "last_requeue_time": now}
    version = task.system_task_version + (0 if why is Next.RETRY else 1)
    tasks.set_active(tx, task.num, task.execution.model_copy(update=changes), version, now)
    counts.move(tx, task.job_num, counts.bucket(task.state, task.execution.result), "active", task.required_slots)
    tx.signal(SCHEDULE)


def ended_execution(task: TaskRow, outcome: Outcome, *, start_time: datetime | None = None) -> TaskExecutionInfo:
    """Return the execution information of a task whose last attempt ended like this."""
    return task.execution.model_copy(
        update={
            "start_time": start_time or task.execution.start_time,
            "end_time": outcome.end_time,
            "exit_code": outcome.exit_code,
            "result": outcome.result,
            "failure_info": outcome.failure_info,
            "container_info": outcome.container_info,
        }
    )
