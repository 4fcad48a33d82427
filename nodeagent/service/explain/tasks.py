"""Why a task is in its state."""

from collections.abc import Mapping

from nodeagent.model.enums import TaskState
from nodeagent.model.explanation import Explanation
from nodeagent.model.protocol import TransferProgress
from nodeagent.rules.explain import Code, Finding, changes, finding, history, job_gate, task_ended, transfer
from nodeagent.service.explain import dependencies, slots
from nodeagent.service.lifecycle import tasks as lifecycle
from nodeagent.service.store import attempts, job_nodes, lines, nodes
from nodeagent.service.store.attempts import AttemptRow
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow
from nodeagent.service.work import max_task_retry_count


def explain_task(
    tx: Transaction, job_id: str, task_id: str, transfers: Mapping[str, TransferProgress] | None = None
) -> Explanation:
    """Explain a task; `transfers` is what nodes have told last, by attempt. Raises JobNotFound, TaskNotFound."""
    job, task = lifecycle.require(tx, job_id, task_id)
    found = findings(tx, job, task, transfers or {})
    return Explanation(
        kind="task",
        id=f"{job.id}/{task.id}",
        state=task.state.value,
        since=task.state_time,
        reasons=tuple(item.reason for item in found),
        would_change=changes(found),
    )


def findings(tx: Transaction, job: JobRow, task: TaskRow, transfers: Mapping[str, TransferProgress]) -> list[Finding]:
    """Return the reasons for a task's state, the most decisive first."""
    attempt = None if task.attempt_num is None else attempts.by_num(tx, task.attempt_num)
    recoveries = task.system_task_version - task.execution.requeue_count
    if task.state is TaskState.COMPLETED:
        return [*task_ended(task.execution, recoveries=recoveries), *_last_attempt(tx, attempt)]
    if attempt is None:
        found = _waiting(tx, job, task)
    elif attempt.detached:
        found = _last_attempt(tx, attempt)
    else:
        found = _at_node(tx, job, task, attempt)
        progress = transfers.get(attempt.id)
        if progress is not None:
            found.insert(1, transfer(progress, None if task.node is None else task.node.id))
    return [*found, *_retry(job, task), *history(task.execution, recoveries=recoveries)]


def _waiting(tx: Transaction, job: JobRow, task: TaskRow) -> list[Finding]:
    gate = job_gate(job.id, job.state, job.state_time)
    if gate is not None:
        return [gate]
    if lines.waits_for_others(tx, task.num):
        return dependencies.unmet(tx, task)
    return slots.no_node(tx, job, task)


def _retry(job: JobRow, task: TaskRow) -> list[Finding]:
    if not task.execution.retry_count or task.state is not TaskState.ACTIVE:
        return []
    limit = max_task_retry_count(job.spec, task.spec)
    text = f"It failed and is going to run again: retry {task.execution.retry_count} of"
    return [finding(Code.RETRY_PENDING, f"{text} {'any number' if limit == -1 else limit}.", since=task.state_time)]


def _at_node(tx: Transaction, job: JobRow, task: TaskRow, attempt: AttemptRow) -> list[Finding]:
    node = nodes.by_num(tx, attempt.node_num)
    name = "a node that is gone" if node is None else f"node {node.id}"
    subject = None if node is None else node.id
    stop = _stop(attempt, name, subject)
    if task.state is TaskState.RUNNING:
        text = f"It runs on {name} (downloads before and uploads after the command included)."
        return [finding(Code.RUNNING, text, since=attempt.start_time, subject=subject, change="It ends."), *stop]
    if lines.is_unfetched(tx, attempt.message_number):
        text = f"It was given to {name}, which has not fetched it yet."
        change = f"The agent of {name} asks for its work."
        return [finding(Code.ASSIGNED, text, since=attempt.assigned, subject=subject, change=change), *stop]
    if task.state is TaskState.PREPARING:
        return [_preparation(tx, job, attempt, name, subject), *stop]
    text = f"It was given to {name}, which has not started it yet."
    return [finding(Code.ASSIGNED, text, since=attempt.assigned, subject=subject, change="The node starts it."), *stop]


def _preparation(tx: Transaction, job: JobRow, attempt: AttemptRow, name: str, subject: str | None) -> Finding:
    row = job_nodes.get(tx, job.num, attempt.node_num)
    preparation = None if row is None else row.preparation
    text, since = "has not started there yet", attempt.assigned
    if preparation is not None and preparation.end_time is None:
        text, since = "runs there", preparation.start_time
        if preparation.retry_count:
            text += f", for the {preparation.retry_count + 1}. time after failures"
    elif preparation is not None:
        text = "has ended there; the node is about to start the task, or to give it back"
    return finding(
        Code.PREPARATION,
        f"It waits on {name} for the job's preparation task, which {text}.",
        since=since,
        subject=subject,
        change="The preparation task succeeds there; if it fails, the task goes to another node.",
    )


def _stop(attempt: AttemptRow, name: str, subject: str | None) -> list[Finding]:
    if attempt.stop_reason is None:
        return []
    reason = attempt.stop_reason.value.replace("_", " ")
    text = f"{name[:1].upper()}{name[1:]} was asked to end it ({reason}), and has not said yet that it has ended."
    return [finding(Code.STOP_REQUESTED, text, subject=subject)]


def _last_attempt(tx: Transaction, attempt: AttemptRow | None) -> list[Finding]:
    """Explain what is left of an execution that the task waits for no longer."""
    if attempt is None or not attempt.live:
        return []
    node = nodes.by_num(tx, attempt.node_num)
    name = "a node that is gone" if node is None else f"node {node.id}"
    return [
        finding(
            Code.LAST_ATTEMPT,
            f"What runs of its last attempt on {name} is being ended; until then the task cannot run again.",
            since=attempt.assigned,
            subject=None if node is None else node.id,
            change=f"The agent of {name} reports the end of that attempt, or its lease runs out.",
        )
    ]
