"""Why a node is in its state: what it runs, and why it gets nothing else."""

from nodeagent.model.explanation import Explanation
from nodeagent.model.protocol import AttemptKind
from nodeagent.rules.explain import Code, Finding, changes, count, finding, node_unavailable, shortened
from nodeagent.service.errors import refusal
from nodeagent.service.explain import slots
from nodeagent.service.explain.node_conditions import conditions
from nodeagent.service.lifecycle import pools as lifecycle
from nodeagent.service.scheduler import Hindrance, TaskView
from nodeagent.service.store import attempts, jobs, nodes, tasks
from nodeagent.service.store.attempts import AttemptRow
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.nodes import NodeRow

_ANY_SIZE = 1 << 30
_JOBS = 10
"""So many jobs with waiting tasks are asked why they start nothing on the node."""
_KINDS = {
    AttemptKind.USER: "task",
    AttemptKind.JOB_MANAGER: "job manager",
    AttemptKind.JOB_PREPARATION: "job preparation",
    AttemptKind.JOB_RELEASE: "job release",
    AttemptKind.START: "start task",
}


def explain_node(tx: Transaction, pool_id: str, node_id: str) -> Explanation:
    """Explain a node. Raises PoolNotFound, NodeNotFound."""
    lifecycle.require(tx, pool_id)
    node = nodes.get(tx, pool_id, node_id)
    if node is None:
        raise refusal("NodeNotFound")
    held = attempts.open_on_node(tx, node.num)
    found = [*_idle(tx, node), *conditions(tx, node), *shortened([_runs(tx, attempt) for attempt in held], "attempt")]
    return Explanation(
        kind="node",
        id=f"{node.pool_id}/{node.id}",
        state=node.state.value,
        since=node.state_time,
        reasons=tuple(item.reason for item in found),
        would_change=changes(found),
    )


def _runs(tx: Transaction, attempt: AttemptRow) -> Finding:
    job = jobs.by_num(tx, attempt.job_num)
    name = f"{'a deleted job' if job is None else job.id}/{attempt.task_key}"
    how = "runs" if attempt.start_time is not None else "is assigned"
    if not attempt.live:
        how = "was given up, and holds its slots until the node says that it is gone"
    elif attempt.stop_reason is not None:
        how = f"is being ended ({attempt.stop_reason.value.replace('_', ' ')})"
    held = f", {count(attempt.slots_held, 'slot')}" if attempt.slots_held else ""
    text = f"The {_KINDS[attempt.kind]} {name} {how}{held}."
    return finding(Code.NODE_RUNS, text, since=attempt.start_time or attempt.assigned, subject=name)


def _idle(tx: Transaction, node: NodeRow) -> list[Finding]:
    """Explain why the node is given nothing more."""
    away = node_unavailable(node.id, node.state, node.scheduling_state, since=node.state_time, heard=node.heartbeat)
    if away is not None:
        return [away]
    pool_key = node.pool_id.lower()
    if node.free_slots == 0:
        text = f"All its slots are held ({count(node.slots, 'slot')})."
        return [finding(Code.NO_ROOM, text, subject=node.id, change="What runs there ends.")]
    waiting = [job for num in jobs.with_waiting_tasks(tx, pool_key) if (job := jobs.by_num(tx, num)) is not None]
    found = [_not_from(tx, node, job) for job in waiting[:_JOBS]]
    told = [item for item in found if item is not None]
    if told:
        return told
    text = f"{node.free_slots} of {count(node.slots, 'slot')} are free, and no task of its pool is ready to run."
    change = f"A task is added to an active job on pool {node.pool_id}, or what tasks there wait for completes."
    return [finding(Code.NOTHING_WAITS, text, subject=node.pool_id, change=change)]


def _not_from(tx: Transaction, node: NodeRow, job: JobRow) -> Finding | None:
    """Explain why the first task of a job that stands in line is not given to the node; None if none does."""
    ready = tasks.ready(tx, job.num, max_slots=_ANY_SIZE, limit=1)
    if not ready:
        return None
    turn = slots.turn_of(tx, job, ready[0], nodes.of_pool(tx, node.pool_num))
    hindrance = turn.hindrance(node.num)
    if turn.limited:
        return slots.limit(job)
    if hindrance is Hindrance.INELIGIBLE:
        return slots.ineligibility(tx, job, node)
    if hindrance is Hindrance.NOT_DEDICATED:
        return slots.not_dedicated(job, node)
    return _hindered(f"{job.id}/{ready[0].id}", turn.task, node, hindrance)


def _hindered(name: str, task: TaskView, node: NodeRow, hindrance: Hindrance | None) -> Finding:
    needs = "the whole node" if task.exclusive else count(task.required_slots, "slot")
    match hindrance:
        case Hindrance.TOO_SMALL:
            text = f"Task {name} needs {needs}, more than the node has ({node.slots})."
            return finding(Code.TOO_MANY_SLOTS, text, subject=name)
        case Hindrance.RESERVED:
            text = f"Task {name} is not given to it: the node is kept for a larger task that comes first."
            return finding(Code.RESERVED, text, subject=name)
        case Hindrance.NO_ROOM:
            text = (
                f"Task {name} needs {needs}, and {node.free_slots} of {node.slots} are free: it waits for the others."
            )
            return finding(Code.NO_ROOM, text, subject=name, change="What runs there ends.")
        case _:
            return finding(Code.STARTABLE, f"Task {name} is placed with the next change in the pool.", subject=name)
