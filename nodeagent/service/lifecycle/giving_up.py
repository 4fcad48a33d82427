"""Attempts that the service waits for no longer: their nodes are silent, or a user forced the end of a job."""

from datetime import datetime

from nodeagent.model.enums import ExecutionResult, TaskState
from nodeagent.model.protocol import AttemptKind, Outcome, StopReason
from nodeagent.rules.failures import UNKNOWN, failure_of, task_ended
from nodeagent.rules.retry import Next
from nodeagent.service.lifecycle import ends
from nodeagent.service.store import job_nodes, tasks
from nodeagent.service.store.attempts import AttemptRow, AttemptState
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_nodes import JobNodeRow
from nodeagent.service.store.jobs import JobRow


def abandon(tx: Transaction, job: JobRow, attempt: AttemptRow, now: datetime) -> None:
    """Give up an attempt of a job that is forced to its end: a running task completes as ended."""
    ends.close_attempt(tx, job, attempt, AttemptState.GIVEN_UP, now)
    task = carried_task(tx, attempt)
    if task is None:
        _session_lost(tx, attempt, now)
    elif task.state is TaskState.RUNNING:
        ends.complete_task(tx, job, task, ends.ended_execution(task, stopped(StopReason.JOB_TERMINATE, now)), now)
    else:
        ends.requeue_task(tx, task, Next.RECOVER, now)


def lose(tx: Transaction, job: JobRow, attempt: AttemptRow, state: AttemptState, now: datetime) -> None:
    """End an attempt whose outcome nobody will ever know: its task runs again, as a recovery.

    `state` is LOST where the node is there and sure that nothing runs, GIVEN_UP where it is not.
    """
    ends.close_attempt(tx, job, attempt, state, now)
    task = carried_task(tx, attempt)
    if task is None:
        _session_lost(tx, attempt, now)
    elif attempt.stop_reason in (StopReason.JOB_DISABLE_TERMINATE, StopReason.JOB_TERMINATE) and (
        task.state is TaskState.RUNNING
    ):
        outcome = stopped(attempt.stop_reason, now)
        ends.complete_task(tx, job, task, ends.ended_execution(task, outcome), now)
    else:
        ends.requeue_task(tx, task, Next.RECOVER, now)


def carried_task(tx: Transaction, attempt: AttemptRow) -> "tasks.TaskRow | None":
    """Return the task that waits for this attempt; None if it does not wait any longer, or there is none."""
    if attempt.task_num is None or attempt.detached:
        return None
    return tasks.by_num(tx, attempt.task_num)


def stopped(reason: StopReason, now: datetime) -> Outcome:
    """Return the outcome of an execution that was ended without anybody having seen its exit code."""
    return Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=task_ended(reason), stop_reason=reason)


def _session_lost(tx: Transaction, attempt: AttemptRow, now: datetime) -> None:
    row = job_nodes.get(tx, attempt.job_num, attempt.node_num)
    if row is None:
        return
    if attempt.kind is AttemptKind.JOB_PREPARATION and row.prep_attempt == attempt.id:
        job_nodes.preparation_lost(tx, row)
    elif attempt.kind is AttemptKind.JOB_RELEASE and row.release_attempt == attempt.id:
        release_lost(tx, row, attempt, now)


def release_lost(tx: Transaction, row: JobNodeRow, attempt: AttemptRow, now: datetime) -> None:
    """Count the release on a node as completed with a failure: the job must not wait for ever."""
    failure = failure_of(UNKNOWN, ("Message", "The node was lost while the job release task ran"))
    outcome = Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=failure)
    start_time = attempt.start_time or attempt.assigned
    job_nodes.release_completed(tx, row, outcome, start_time=start_time, root_directory=None)
