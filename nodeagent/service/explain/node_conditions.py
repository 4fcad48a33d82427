"""What is the matter with a node itself: a command that it has to obey, its errors, its start task (ADR 0027)."""

from nodeagent.model.enums import NodeState
from nodeagent.rules.explain import Code, Finding, count, finding, how_it_ended, names
from nodeagent.service.lifecycle.start_tasks import MAX_TRIES
from nodeagent.service.store import attempts, jobs, lines, start_tasks
from nodeagent.service.store.attempts import TASK_KINDS, AttemptRow
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.start_tasks import StartTaskRow


def conditions(tx: Transaction, node: NodeRow) -> list[Finding]:
    """Explain all that is the matter with a node, the most decisive first; nothing if all is well."""
    start_task = start_tasks.of_node(tx, node.num)
    return [
        *_leaving(tx, node),
        *_command(tx, node),
        *_errors(node),
        *([] if start_task is None else _start_task(tx, node, start_task)),
    ]


def _leaving(tx: Transaction, node: NodeRow) -> list[Finding]:
    tasks = _live_tasks(tx, node) if node.state is NodeState.LEAVING_POOL else []
    if not tasks:
        return []
    text = f"It leaves pool {node.pool_id} when its tasks have ended: {names([_name(tx, item) for item in tasks])}."
    return [finding(Code.NODE_COMMAND, text, since=node.state_time, subject=node.id, change="These tasks end.")]


def _command(tx: Transaction, node: NodeRow) -> list[Finding]:
    if node.command is None:
        return []
    tasks = _live_tasks(tx, node)
    what = "reboot" if node.command == "reboot" else "be reimaged"
    if tasks:
        text = f"It is to {what} when its tasks have ended: {names([_name(tx, item) for item in tasks])}."
        change = "These tasks end."
    else:
        heard = f"{node.heartbeat:%Y-%m-%dT%H:%M:%SZ}"
        text = f"It was told to {what}, and has not come back yet; it was last heard of at {heard}."
        change = f"The agent of node {node.id} registers again."
    return [finding(Code.NODE_COMMAND, text, since=node.state_time, subject=node.id, change=change)]


def _live_tasks(tx: Transaction, node: NodeRow) -> list[AttemptRow]:
    return [item for item in attempts.open_on_node(tx, node.num) if item.live and item.kind in TASK_KINDS]


def _name(tx: Transaction, attempt: AttemptRow) -> str:
    job = jobs.by_num(tx, attempt.job_num)
    asked = "" if attempt.stop_reason is None else f" (asked to end: {attempt.stop_reason.value.replace('_', ' ')})"
    return f"{'a deleted job' if job is None else job.id}/{attempt.task_key}{asked}"


def _errors(node: NodeRow) -> list[Finding]:
    found = []
    for error in node.errors:
        details = "".join(f"; {item.name}: {item.value}" for item in error.error_details)
        text = f"Its agent tells an error: {error.code}: {error.message}{details}"
        found.append(finding(Code.NODE_ERROR, text, subject=node.id, change=f"The cause of {error.code} is removed."))
    return found


def _start_task(tx: Transaction, node: NodeRow, row: StartTaskRow) -> list[Finding]:
    if row.succeeded:
        return []
    waits = "the node takes no task before it has succeeded" if row.spec.wait_for_success else "tasks run beside it"
    if row.completed:
        waits = "the node takes no task" if row.spec.wait_for_success else "tasks run all the same"
        return [_failed(node, row, waits)]
    info, again = row.info, _again(row)
    if info is not None:
        text, since = f"The start task runs{again}; {waits}.", info.start_time
    else:
        unfetched = lines.is_unfetched(tx, row.message_number)
        text = f"The start task {'was not fetched' if unfetched else 'has not started'} yet{again}; {waits}."
        since = node.state_time
    return [finding(Code.START_TASK, text, since=since, subject=node.id, change="The start task succeeds.")]


def _failed(node: NodeRow, row: StartTaskRow, waits: str) -> Finding:
    info = row.info
    ended = "" if info is None else f" with {how_it_ended(info)}"
    return finding(
        Code.START_TASK_FAILED,
        f"The start task failed{ended}{_again(row)}; {waits}.",
        since=None if info is None else info.end_time,
        subject=node.id,
        change=f"Correct the start task of pool {node.pool_id}, then reboot node {node.id}.",
    )


def _again(row: StartTaskRow) -> str:
    """Tell how often it was tried: retries after failures, and executions whose end nobody knows."""
    told = []
    if row.info is not None and row.info.retry_count:
        most = row.spec.max_task_retry_count
        told.append(f"retry {row.info.retry_count} of {'any number' if most == -1 else most}")
    if row.tries > 1:
        told.append(f"{count(row.tries - 1, 'execution')} lost, of {MAX_TRIES} at most")
    return f" ({', '.join(told)})" if told else ""
