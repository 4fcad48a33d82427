"""Start tasks: they run when a node joins, and after each reboot and reimage (spec/node.md §10)."""

from dataclasses import replace
from datetime import datetime

from nodeagent.model.enums import ExecutionResult, NodeTaskState
from nodeagent.model.node import StartTaskInfo
from nodeagent.model.pool import StartTask
from nodeagent.model.protocol import (
    Assignment,
    AttemptKind,
    Outcome,
    Report,
    ReportResult,
    ReportStatus,
    Transition,
)
from nodeagent.rules.failures import recoveries_used_up
from nodeagent.service import work
from nodeagent.service.lifecycle import dispatch, node_state
from nodeagent.service.store import attempts, messages, nodes, pools, start_tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.start_tasks import StartTaskRow

MAX_TRIES = 3
"""How often a start task is assigned whose end nobody knows. The node repeats lost executions itself before that."""


def begin(tx: Transaction, node: NodeRow, now: datetime) -> None:
    """Run the pool's start task on a node that begins: it joined, was rebooted or reimaged.

    The pool's present start task is taken: a change reaches a node here.
    """
    pool = pools.get(tx, node.pool_id)
    spec = None if pool is None else pool.spec.start_task
    if spec is None:
        start_tasks.forget(tx, node.num)
    else:
        _assign(tx, node, spec, tries=1, now=now)


def _assign(tx: Transaction, node: NodeRow, spec: StartTask, *, tries: int, now: datetime) -> None:
    assignment = Assignment(
        attempt_id=attempts.new_id(now),
        attempt_kind=AttemptKind.START,
        job_id="",
        task_id="",
        required_slots=0,
        work=dispatch.with_user(tx, work.of_start_task(spec), node.pool_id),
    )
    number = messages.add(tx, node.num, assignment)
    start_tasks.put(tx, StartTaskRow(node.num, assignment.attempt_id, number, spec, False, 0, tries, None))


def lost(tx: Transaction, row: StartTaskRow, detail: str | None, now: datetime) -> None:
    """Run a start task again whose end nobody knows; after `MAX_TRIES` it has failed."""
    node = nodes.by_num(tx, row.node_num)
    if node is None:
        return
    if row.tries < MAX_TRIES:
        _assign(tx, node, row.spec, tries=row.tries + 1, now=now)
        return
    failure = recoveries_used_up(MAX_TRIES, detail)
    outcome = Outcome(result=ExecutionResult.FAILURE, end_time=now, failure_info=failure)
    _end(tx, row, _ended(row.info or _began(now, 0, None), outcome), now)


def owed(tx: Transaction, node: NodeRow, live_attempts: frozenset[str], cursor: int, now: datetime) -> None:
    """A node has registered: what it has fetched of its start task and does not know any more is lost."""
    row = start_tasks.of_node(tx, node.num)
    if row is None or row.completed or row.attempt_id in live_attempts or row.message_number > cursor:
        return
    lost(tx, row, "the node does not know it any more", now)


def apply_report(tx: Transaction, node_num: int, report: Report, now: datetime) -> ReportResult | None:
    """Apply a report of a start task, if it is the next one; None if the attempt is none of a start task."""
    row = start_tasks.by_attempt(tx, report.attempt_id)
    if row is None or row.node_num != node_num:
        return None
    if report.seq != row.last_seq + 1:
        status = ReportStatus.ALREADY if report.seq <= row.last_seq else ReportStatus.GAP
        expected = row.last_seq + 1 if status is ReportStatus.GAP else None
        return ReportResult(attempt_id=report.attempt_id, seq=report.seq, status=status, expected=expected)
    _apply(tx, replace(row, last_seq=report.seq), report, now)
    return ReportResult(attempt_id=report.attempt_id, seq=report.seq, status=ReportStatus.APPLIED)


def _apply(tx: Transaction, row: StartTaskRow, report: Report, now: datetime) -> None:
    info = _began(report.start_time or report.at, report.retry_count, report.last_retry_time)
    if report.transition is Transition.RUNNING:
        start_tasks.put(tx, replace(row, info=info))
    elif report.transition is Transition.COMPLETED and report.outcome is not None:
        _end(tx, row, _ended(info, report.outcome), now)
    else:
        lost(tx, row, report.detail, now)


def _end(tx: Transaction, row: StartTaskRow, info: StartTaskInfo, now: datetime) -> None:
    start_tasks.put(tx, replace(row, info=info, completed=True))
    node_state.settle(tx, row.node_num, now)


def _began(start_time: datetime, retry_count: int, last_retry_time: datetime | None) -> StartTaskInfo:
    return StartTaskInfo(
        state=NodeTaskState.RUNNING, start_time=start_time, retry_count=retry_count, last_retry_time=last_retry_time
    )


def _ended(info: StartTaskInfo, outcome: Outcome) -> StartTaskInfo:
    return info.model_copy(
        update={
            "state": NodeTaskState.COMPLETED,
            "end_time": outcome.end_time,
            "exit_code": outcome.exit_code,
            "failure_info": outcome.failure_info,
            "container_info": outcome.container_info,
            "result": outcome.result,
        }
    )
