"""What a node reports of its attempts, applied exactly once (design.md §5), and what follows for task and job."""

from datetime import datetime

from nodeagent.model.enums import ExecutionResult, JobState
from nodeagent.model.job import JobPreparationTask
from nodeagent.model.protocol import (
    AttemptKind,
    Outcome,
    Report,
    ReportResult,
    ReportStatus,
    ReturnReason,
    StopReason,
    Transition,
)
from nodeagent.rules.failures import recoveries_used_up
from nodeagent.rules.retry import MAX_INTERNAL_RETRIES, REQUEUE_REASONS, Next, after_completed, after_lost
from nodeagent.service.lifecycle import dispatch, ends, giving_up, jobs, start_tasks
from nodeagent.service.lifecycle.consequences import task_ended
from nodeagent.service.store import attempts, counts, job_nodes, nodes, task_logs, tasks
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store.attempts import TASK_KINDS, AttemptRow, AttemptState
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_nodes import JobNodeRow, Progress
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow
from nodeagent.service.work import max_task_retry_count


def apply_report(tx: Transaction, node_num: int, report: Report, now: datetime) -> ReportResult:
    """Apply a report if it is the next one of its attempt, and say what was done with it."""
    attempt = attempts.get(tx, report.attempt_id)
    if attempt is None and (result := start_tasks.apply_report(tx, node_num, report, now)) is not None:
        return result
    if attempt is None or attempt.node_num != node_num or attempt.state is AttemptState.GIVEN_UP:
        return _result(report, ReportStatus.UNKNOWN)
    if report.seq <= attempt.last_seq:
        return _result(report, ReportStatus.ALREADY)
    if report.seq > attempt.last_seq + 1:
        return _result(report, ReportStatus.GAP, expected=attempt.last_seq + 1)
    job = job_rows.by_num(tx, attempt.job_num)
    if job is None:
        return _result(report, ReportStatus.UNKNOWN)
    if attempt.live:
        _apply(tx, job, attempt, report, now)
    if report.transition is not Transition.RUNNING or not attempt.live:
        attempts.set_seq(tx, attempt.num, report.seq)
    return _result(report, ReportStatus.APPLIED)


def _result(report: Report, status: ReportStatus, expected: int | None = None) -> ReportResult:
    return ReportResult(attempt_id=report.attempt_id, seq=report.seq, status=status, expected=expected)


def _apply(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    if attempt.kind in TASK_KINDS:
        _apply_to_task(tx, job, attempt, report, now)
    elif attempt.kind is AttemptKind.JOB_PREPARATION:
        _apply_to_preparation(tx, job, attempt, report, now)
    else:
        _apply_to_release(tx, job, attempt, report, now)
    if report.transition is not Transition.RUNNING and job.state in (
        JobState.DISABLING,
        JobState.TERMINATING,
        JobState.DELETING,
    ):
        jobs.advance(tx, job.num, now)


def _apply_to_task(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    match report.transition:
        case Transition.RUNNING:
            _task_running(tx, job, attempt, report, now)
        case Transition.COMPLETED:
            _task_completed(tx, job, attempt, report, _outcome(report), now)
        case Transition.LOST:
            _task_lost(tx, job, attempt, report, now)
        case Transition.RETURNED:
            _task_returned(tx, job, attempt, report, now)


def _task_running(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    start_time = report.start_time or report.at
    attempts.set_running(tx, attempt.num, seq=report.seq, start_time=start_time)
    if attempt.state is not AttemptState.RUNNING:
        nodes.count_running(tx, attempt.node_num, tasks=1, slots=attempt.slots, now=now)
        if job.spec.job_preparation_task is not None:
            job_nodes.reach(tx, job.num, attempt.node_num, Progress.RAN)
    if attempt.task_num is None or attempt.detached:
        return
    root_directory = report.task_root_directory
    before = tasks.set_running(tx, attempt.task_num, start_time=start_time, root_directory=root_directory, now=now)
    if before is not None:
        state, slots = before
        counts.move(tx, attempt.job_num, state.value, "running", slots)


def _task_completed(
    tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, outcome: Outcome, now: datetime
) -> None:
    ends.close_attempt(tx, job, attempt, AttemptState.COMPLETED, now, outcome)
    if attempt.task_num is not None:
        task_logs.keep(tx, attempt.task_num, attempt.num, report.logs)
    task = giving_up.carried_task(tx, attempt)
    if task is None:
        return
    follows = _what_follows(job, attempt, task, outcome)
    if follows is Next.COMPLETE:
        execution = ends.ended_execution(task, outcome, start_time=report.start_time or attempt.start_time)
        ends.complete_task(tx, job, task, execution, now, statistics=outcome.statistics)
        task_ended(tx, job, task.num, now)
    else:
        ends.requeue_task(tx, task, follows, now)


def _task_lost(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    """Recover the task, unless that has been tried so often that the node will never be able to run it."""
    task = giving_up.carried_task(tx, attempt)
    if task is None or _may_recover(task):
        giving_up.lose(tx, job, attempt, AttemptState.LOST, now)
    else:
        ends.close_attempt(tx, job, attempt, AttemptState.LOST, now)
        failure = recoveries_used_up(MAX_INTERNAL_RETRIES, report.detail)
        outcome = Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=failure)
        ends.complete_task(tx, job, task, ends.ended_execution(task, outcome), now)
    if task is not None:
        task_ended(tx, job, task.num, now)


def _may_recover(task: TaskRow) -> bool:
    counted = task.execution.requeue_count
    return after_lost(system_task_version=task.system_task_version, requeue_count=counted) is Next.RECOVER


def _what_follows(job: JobRow, attempt: AttemptRow, task: TaskRow, outcome: Outcome) -> Next:
    follows = after_completed(
        outcome,
        retry_count=task.execution.retry_count,
        max_task_retry_count=max_task_retry_count(job.spec, task.spec),
    )
    asked_to_end = attempt.stop_reason is not None and attempt.stop_reason not in REQUEUE_REASONS
    return Next.COMPLETE if follows is Next.RETRY and asked_to_end else follows


def _task_returned(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    """The attempt never started: nothing is counted; where a user wanted the task's end, this is its end."""
    ends.close_attempt(tx, job, attempt, AttemptState.RETURNED, now)
    if report.return_reason is ReturnReason.PREPARATION_FAILED:
        _preparation_failed(tx, attempt)
    if report.return_reason is ReturnReason.DRAINING:
        nodes.disable_scheduling(tx, attempt.node_num, "agent", now)
    task = giving_up.carried_task(tx, attempt)
    if task is None:
        return
    if attempt.stop_reason is StopReason.JOB_DISABLE_TERMINATE:
        outcome = giving_up.stopped(attempt.stop_reason, now)
        ends.complete_task(tx, job, task, ends.ended_execution(task, outcome), now)
        task_ended(tx, job, task.num, now)
    else:
        ends.requeue_task(tx, task, Next.RECOVER, now)


def _preparation_failed(tx: Transaction, attempt: AttemptRow) -> None:
    """A task was given back before the report of the failed preparation came: do not send it there again."""
    row = job_nodes.get(tx, attempt.job_num, attempt.node_num)
    if row is not None and row.prep_attempt is not None:
        job_nodes.set_ineligible(tx, row)


def _apply_to_preparation(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    row = job_nodes.get(tx, attempt.job_num, attempt.node_num)
    preparation = job.spec.job_preparation_task
    if row is None or preparation is None:
        raise LookupError(f"the preparation {attempt.id} belongs to no node of job {job.id}")
    start_time = report.start_time or attempt.start_time or report.at
    match report.transition:
        case Transition.RUNNING:
            attempts.set_running(tx, attempt.num, seq=report.seq, start_time=start_time)
            job_nodes.preparation_running(
                tx,
                row,
                start_time=start_time,
                root_directory=report.task_root_directory,
                retry_count=report.retry_count,
                last_retry_time=report.last_retry_time,
            )
        case Transition.COMPLETED:
            outcome = _outcome(report)
            ends.close_attempt(tx, job, attempt, AttemptState.COMPLETED, now, outcome)
            job_nodes.preparation_completed(
                tx,
                row,
                outcome,
                start_time=start_time,
                root_directory=report.task_root_directory,
                retry_count=report.retry_count,
                last_retry_time=report.last_retry_time,
            )
            _prepared(tx, row, preparation, outcome)
        case Transition.LOST | Transition.RETURNED:
            state = AttemptState.LOST if report.transition is Transition.LOST else AttemptState.RETURNED
            giving_up.lose(tx, job, attempt, state, now)
            if preparation.wait_for_success:
                _send_waiting_back(tx, attempt)


def _prepared(tx: Transaction, row: JobNodeRow, preparation: JobPreparationTask, outcome: Outcome) -> None:
    """A node whose preparation failed takes no tasks of the job, unless they do not wait for its success."""
    if outcome.result is ExecutionResult.SUCCESS:
        job_nodes.reach(tx, row.job_num, row.node_num, Progress.PREPARED)
    elif preparation.wait_for_success:
        job_nodes.set_ineligible(tx, row)


def _send_waiting_back(tx: Transaction, preparation: AttemptRow) -> None:
    """Tasks that wait for a preparation that will never end come back, and bring a new preparation along."""
    for attempt in attempts.open_on_node(tx, preparation.node_num):
        if attempt.job_num == preparation.job_num and attempt.state is AttemptState.ASSIGNED:
            dispatch.stop(tx, attempt, StopReason.SUPERSEDED)


def _apply_to_release(tx: Transaction, job: JobRow, attempt: AttemptRow, report: Report, now: datetime) -> None:
    row = job_nodes.get(tx, attempt.job_num, attempt.node_num)
    if row is None:
        raise LookupError(f"the release {attempt.id} belongs to no node of job {job.id}")
    start_time = report.start_time or attempt.start_time or report.at
    match report.transition:
        case Transition.RUNNING:
            attempts.set_running(tx, attempt.num, seq=report.seq, start_time=start_time)
            job_nodes.release_running(tx, row, start_time=start_time, root_directory=report.task_root_directory)
        case Transition.COMPLETED:
            outcome = _outcome(report)
            ends.close_attempt(tx, job, attempt, AttemptState.COMPLETED, now, outcome)
            job_nodes.release_completed(
                tx, row, outcome, start_time=start_time, root_directory=report.task_root_directory
            )
        case Transition.LOST | Transition.RETURNED:
            # it runs again (a reboot in between, say), but not for ever
            giving_up.lose(tx, job, attempt, AttemptState.LOST, now, again=attempt.stop_reason is None)


def _outcome(report: Report) -> Outcome:
    """Return the outcome of a COMPLETED report; the call's validation has made sure that there is one."""
    if report.outcome is None:
        raise ValueError(f"the report {report.seq} of {report.attempt_id} has no outcome")
    return report.outcome
