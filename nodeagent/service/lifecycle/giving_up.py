"""Attempts that the service waits for no longer: their nodes are silent, or a user forced the end of a job."""

from datetime import datetime

from nodeagent.model.enums import ExecutionResult, NodeTaskState, TaskState
from nodeagent.model.protocol import AttemptKind, Outcome, StopReason
from nodeagent.rules.failures import UNKNOWN, failure_of, task_ended
from nodeagent.rules.retry import Next
from nodeagent.service.lifecycle import dispatch, ends
from nodeagent.service.store import attempts, job_nodes, tasks
from nodeagent.service.store.attempts import AttemptRow, AttemptState
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_nodes import JobNodeRow
from nodeagent.service.store.jobs import JobRow

_RELEASE_TRIES = 3
"""How often a release is assigned to a node that is there, and does not know what became of it."""


def abandon(tx: Transaction, job: JobRow, attempt: AttemptRow, now: datetime) -> None:
    """Give up an attempt of a job that is forced to its end: a running task completes as ended."""
    ends.close_attempt(tx, job, attempt, AttemptState.GIVEN_UP, now)
    task = carried_task(tx, attempt)
    if task is None:
        _session_lost(tx, job, attempt, now, again=False)
    elif task.state is TaskState.RUNNING:
        ends.complete_task(tx, job, task, ends.ended_execution(task, stopped(StopReason.JOB_TERMINATE, now)), now)
    else:
        ends.requeue_task(tx, task, Next.RECOVER, now)


def lose(
    tx: Transaction, job: JobRow, attempt: AttemptRow, state: AttemptState, now: datetime, *, again: bool = False
) -> None:
    """End an attempt whose outcome nobody will ever know: its task runs again, as a recovery.

    `state` is LOST where the node is there and sure that nothing runs, GIVEN_UP where it is not. `again`: the node is
    there with its files, so a release runs there once more.
    """
    ends.close_attempt(tx, job, attempt, state, now)
    task = carried_task(tx, attempt)
    if task is None:
        _session_lost(tx, job, attempt, now, again=again)
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


def _session_lost(tx: Transaction, job: JobRow, attempt: AttemptRow, now: datetime, *, again: bool) -> None:
    row = job_nodes.get(tx, attempt.job_num, attempt.node_num)
    if row is None:
        return
    if attempt.kind is AttemptKind.JOB_PREPARATION and row.prep_attempt == attempt.id:
        _preparation_lost(tx, row, now)
    elif attempt.kind is AttemptKind.JOB_RELEASE and row.release_attempt == attempt.id:
        tries = attempts.count_of_kind(tx, job.num, attempt.node_num, AttemptKind.JOB_RELEASE)
        if again and tries < _RELEASE_TRIES:
            dispatch.assign_release(tx, job, row, now)
        else:
            _release_lost(tx, row, attempt, now)


def _preparation_lost(tx: Transaction, row: JobNodeRow, now: datetime) -> None:
    """Show an execution that had begun as completed, so that nobody reads for ever that it runs; it must run anew."""
    info = row.preparation
    running = info is not None and info.state is NodeTaskState.RUNNING
    if info is not None and running:
        failure = failure_of(UNKNOWN, ("Message", "The node was lost while the job preparation task ran"))
        job_nodes.preparation_completed(
            tx,
            row,
            Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=failure),
            start_time=info.start_time,
            root_directory=None,
            retry_count=info.retry_count,
            last_retry_time=info.last_retry_time,
        )
    job_nodes.preparation_lost(tx, row, cut_off=running or row.prep_cut_off)


def _release_lost(tx: Transaction, row: JobNodeRow, attempt: AttemptRow, now: datetime) -> None:
    """Count the release on a node as completed with a failure: the job must not wait for ever."""
    failure = failure_of(UNKNOWN, ("Message", "The node was lost while the job release task ran"))
    outcome = Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=failure)
    start_time = attempt.start_time or attempt.assigned
    job_nodes.release_completed(tx, row, outcome, start_time=start_time, root_directory=None)
