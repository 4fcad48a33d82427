"""Attempts on their way to nodes: assigning them, and asking them to stop."""

from datetime import datetime, timedelta

from nodeagent.model.enums import TaskState
from nodeagent.model.job import JobPreparationTask
from nodeagent.model.protocol import (
    Assignment,
    AttemptKind,
    ChangeRetention,
    EndJobSession,
    PreparationGate,
    RemoveFiles,
    StopAttempt,
    StopReason,
    Work,
)
from nodeagent.rules.layout import task_directory
from nodeagent.service import task_events, work
from nodeagent.service.lifecycle.applications import with_packages
from nodeagent.service.store import attempts, counts, job_nodes, messages, nodes, pools, tasks
from nodeagent.service.store.attempts import AttemptRow, AttemptState, NewAttempt
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_nodes import JobNodeRow
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.tasks import TaskNode, TaskRow

_KEEPING = frozenset({AttemptState.ASSIGNED, AttemptState.RUNNING, AttemptState.COMPLETED})
"""States of attempts whose node has files of them, or will."""


def assign_task(tx: Transaction, job: JobRow, task: TaskRow, node: NodeRow, slots: int, now: datetime) -> None:
    """Give a waiting task to a node: hold the slots, queue the message, prepare the node first if it must be."""
    gate = _prepare(tx, job, node, now)
    attempt_id = attempts.new_id(now)
    assignment = Assignment(
        attempt_id=attempt_id,
        attempt_kind=task.kind,
        job_id=job.id,
        task_id=task.id,
        retry_count=task.execution.retry_count,
        system_task_version=task.system_task_version,
        required_slots=task.required_slots,
        work=with_packages(
            tx,
            with_user(tx, work.of_task(job.spec, task.spec), node.pool_id),
            task.spec.application_package_references,
        ),
        preparation=gate,
    )
    number = messages.add(tx, node.num, assignment)
    new = NewAttempt(attempt_id, task.kind, job.num, task.num, task.id, node.num, slots, number)
    attempt_num = attempts.insert(tx, new, now)
    nodes.hold_slots(tx, node.num, slots)
    place = TaskNode(node.num, node.id, node.pool_id, task_directory(job.id, task.id))
    state = TaskState.PREPARING if gate is not None and gate.wait_for_success else TaskState.ACTIVE
    tasks.assign(tx, task.num, attempt_num, place, state, now)
    counts.move(tx, job.num, task.state.value, state.value, task.required_slots)
    task_events.started(tx, job, task, place, now)


def _prepare(tx: Transaction, job: JobRow, node: NodeRow, now: datetime) -> PreparationGate | None:
    """Start the job's preparation on the node if that has not been done; return what the task is told of it.

    A task that need not wait is told as well: its environment names the preparation's directories (spec/node.md §2).
    """
    preparation = job.spec.job_preparation_task
    if preparation is None:
        return None
    row = job_nodes.ensure(tx, job.num, node.num, node.id, node.pool_id)
    if row.prepared:
        return _gate(row, preparation, waits=False)
    attempt_id = row.prep_attempt
    if attempt_id is None or row.prep_needed:
        attempt_id = attempts.new_id(now)
        job_nodes.begin_preparation(tx, job.num, node.num, attempt_id)
        _send(
            tx,
            job,
            node.num,
            Assignment(
                attempt_id=attempt_id,
                attempt_kind=AttemptKind.JOB_PREPARATION,
                job_id=job.id,
                task_id=preparation.id,
                retry_count=row.preparation.retry_count if row.preparation is not None and row.prep_cut_off else 0,
                required_slots=0,
                work=with_user(tx, work.of_preparation(job.spec, preparation), node.pool_id),
            ),
            now,
        )
    return PreparationGate(attempt_id=attempt_id, task_id=preparation.id, wait_for_success=preparation.wait_for_success)


def _gate(row: JobNodeRow, preparation: JobPreparationTask, *, waits: bool) -> PreparationGate:
    return PreparationGate(attempt_id=row.prep_attempt or "", task_id=preparation.id, wait_for_success=waits)


def assign_release(tx: Transaction, job: JobRow, row: JobNodeRow, now: datetime) -> None:
    """Start the job's release task on a node: in the background, without slots."""
    release = job.spec.job_release_task
    if release is None:
        raise ValueError(f"job {job.id} has no release task")
    preparation = job.spec.job_preparation_task
    attempt_id = attempts.new_id(now)
    job_nodes.begin_release(tx, row, attempt_id)
    _send(
        tx,
        job,
        row.node_num,
        Assignment(
            attempt_id=attempt_id,
            attempt_kind=AttemptKind.JOB_RELEASE,
            job_id=job.id,
            task_id=release.id,
            required_slots=0,
            work=with_user(tx, work.of_release(job.spec, release), row.pool_id),
            preparation=None if preparation is None else _gate(row, preparation, waits=False),
        ),
        now,
    )


def with_user(tx: Transaction, merged: Work, pool_id: str) -> Work:
    """Add what the node must know of a named user; the node refuses one that the pool does not have."""
    if merged.user_identity.username is None:
        return merged
    pool = pools.get(tx, pool_id)
    accounts = None if pool is None else pool.spec.user_accounts
    return merged.model_copy(update={"named_user": work.named_user(accounts or (), merged.user_identity.username)})


def _send(tx: Transaction, job: JobRow, node_num: int, assignment: Assignment, now: datetime) -> None:
    number = messages.add(tx, node_num, assignment)
    kind, task_id = assignment.attempt_kind, assignment.task_id
    attempts.insert(tx, NewAttempt(assignment.attempt_id, kind, job.num, None, task_id, node_num, 0, number), now)


def stop(tx: Transaction, attempt: AttemptRow, reason: StopReason) -> None:
    """Ask a node to end an attempt; the first reason stays, and asking twice sends nothing."""
    if attempt.live and attempt.stop_reason is None:
        attempts.request_stop(tx, attempt.num, reason)
        messages.add(tx, attempt.node_num, StopAttempt(attempt_id=attempt.id, reason=reason))


def change_retention(tx: Transaction, attempt: AttemptRow, retention_time: timedelta) -> None:
    """Tell a node how long to keep an attempt's files; one that is gone, or that lost the attempt, need not know."""
    if attempt.state in _KEEPING and nodes.by_num(tx, attempt.node_num) is not None:
        messages.add(tx, attempt.node_num, ChangeRetention(attempt_id=attempt.id, retention_time=retention_time))


def take_back(tx: Transaction, attempt: AttemptRow) -> None:
    """Withdraw an assignment that nobody waits for any longer, and stop what may have come of it.

    The stop becomes the attempt's message: once its node has that one, it has said all it knows of the attempt.
    """
    if attempt.message_number is not None:
        messages.withdraw(tx, attempt.message_number)
    if nodes.by_num(tx, attempt.node_num) is not None:
        stop_message = StopAttempt(attempt_id=attempt.id, reason=StopReason.SUPERSEDED)
        attempts.set_message(tx, attempt.num, messages.add(tx, attempt.node_num, stop_message))


def end_session(tx: Transaction, job: JobRow, row: JobNodeRow) -> None:
    """Tell a node that a job is over there, if it is there to hear it; once."""
    if row.session_ended:
        return
    job_nodes.end_session(tx, row)
    if nodes.by_num(tx, row.node_num) is not None:
        messages.add(tx, row.node_num, EndJobSession(job_id=job.id))


def remove_files(tx: Transaction, job_id: str, node_num: int, attempt_ids: tuple[str, ...] = ()) -> None:
    """Tell a node to delete the directories of attempts, or of the whole job; nodes that are gone need not know."""
    if nodes.by_num(tx, node_num) is not None:
        messages.add(tx, node_num, RemoveFiles(job_id=job_id, attempt_ids=attempt_ids))
