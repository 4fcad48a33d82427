"""Why no node takes a task now: the scheduler's own plan, asked for its hindrances (docs/adr/0026)."""

from dataclasses import dataclass

from nodeagent.model.enums import PoolState
from nodeagent.model.protocol import StopReason
from nodeagent.rules.explain import Code, Finding, count, finding, how_it_ended, names, node_unavailable, shortened
from nodeagent.service.lifecycle import placement
from nodeagent.service.scheduler import Hindrance, JobView, NodeView, Plan, TaskView
from nodeagent.service.store import attempts, job_nodes, jobs, lines, nodes, pools, tasks
from nodeagent.service.store.attempts import AttemptRow
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow
from nodeagent.service.store.tasks import TaskRow


@dataclass(frozen=True, slots=True)
class Turn:
    """A task when its turn comes: the plan as it stands then, over all nodes of the pool.

    Nodes that the scheduler does not offer tasks to are in it without a free slot.
    """

    plan: Plan
    job: JobView
    task: TaskView
    offered: frozenset[int]

    def hindrance(self, node_num: int) -> Hindrance | None:
        """Return what hinders the task on a node."""
        return self.plan.hindrance(node_num, self.job, self.task)

    @property
    def limited(self) -> bool:
        """Whether maxParallelTasks keeps the task from starting anywhere."""
        headroom = self.plan.headroom(self.job)
        return headroom is not None and headroom <= 0


def turn_of(tx: Transaction, job: JobRow, task: TaskRow, rows: list[NodeRow]) -> Turn:
    """Return the turn of a task that stands in line; nothing is assigned."""
    pool_key = job.pool_id.lower()
    free = {view.num: view for view in placement.offered(tx, pool_key)}
    views = tuple(free.get(row.num, NodeView(row.num, row.slots, 0, row.id.lower(), row.is_dedicated)) for row in rows)
    plan = placement.plan_before(tx, pool_key, views, task.num)
    view = placement.task_view(job, task, choice=False)
    return Turn(plan, placement.job_view(tx, job), view, frozenset(free))


def no_node(tx: Transaction, job: JobRow, task: TaskRow) -> list[Finding]:
    """Explain why a task that may run stands in line."""
    pool = pools.get(tx, job.pool_id)
    gate = _pool_gate(job, pool)
    if gate is not None or pool is None:
        return [] if gate is None else [gate]
    rows = nodes.of_pool(tx, pool.num)
    if not rows:
        return [_no_nodes(pool)]
    turn = turn_of(tx, job, task, rows)
    found = [*_preempting(tx, job, task), *([limit(job)] if turn.limited else []), *_nodes(tx, job, task, turn, rows)]
    if not found:
        return [finding(Code.STARTABLE, "Nothing hinders it: it is placed with the next change in the pool.")]
    return found + _ahead(tx, job, task, found)


def _preempting(tx: Transaction, job: JobRow, task: TaskRow) -> list[Finding]:
    """Explain a task that others make way for: who, and where."""
    num = placement.awaited_node(tx, job.pool_id.lower(), task.num)
    node = None if num is None else nodes.by_num(tx, num)
    if node is None:
        return []
    leaving = [item for item in attempts.open_on_node(tx, node.num) if item.stop_reason is StopReason.PREEMPTED]
    if not leaving:
        return []
    who = names([_holder(tx, attempt) for attempt in leaving])
    return [
        finding(
            Code.PREEMPTING,
            f"It waits for preempted tasks, which make way for job {job.id} (priority {job.spec.priority}) on node"
            f" {node.id}: {who}.",
            subject=node.id,
            change=f"What was preempted on node {node.id} ends.",
        )
    ]


def _pool_gate(job: JobRow, pool: PoolRow | None) -> Finding | None:
    if pool is None:
        text = f"There is no pool {job.pool_id}."
        change = f"Add pool {job.pool_id}, or disable the job and give it another pool."
        return finding(Code.POOL_MISSING, text, subject=job.pool_id, change=change)
    if pool.state is PoolState.DELETING:
        text = f"Pool {pool.id} is being deleted: nothing starts there."
        change = "Disable the job and give it another pool, or add the pool again once it is gone."
        return finding(Code.POOL_DELETING, text, since=pool.state_time, subject=pool.id, change=change)
    return None


def _no_nodes(pool: PoolRow) -> Finding:
    wanted = pool.spec.target_dedicated_nodes + pool.spec.target_low_priority_nodes
    errors = "".join(f"; {error.code}: {error.message}" for error in pool.resize_errors)
    return finding(
        Code.NO_NODES,
        f"Pool {pool.id} has no nodes (it wants {wanted}, its allocation is {pool.allocation_state.value}{errors}).",
        since=pool.allocation_state_time,
        subject=pool.id,
        change=f"A node joins the pool: nodeagent agent --pool {pool.id} ...",
    )


def limit(job: JobRow) -> Finding:
    """Explain that a job has as many tasks at nodes as it may have."""
    most = count(job.spec.max_parallel_tasks, "task")
    text = f"Job {job.id} runs at most {most} at a time (maxParallelTasks), and as many are at nodes."
    change = f"A task of job {job.id} ends, or its maxParallelTasks is raised."
    return finding(Code.MAX_PARALLEL, text, subject=job.id, change=change)


def _nodes(tx: Transaction, job: JobRow, task: TaskRow, turn: Turn, rows: list[NodeRow]) -> list[Finding]:
    """Explain for each node why it does not take the task; nothing if one of them could."""
    ineligible, fleeting, away, busy, reserved = [], [], [], [], []
    small: list[NodeRow] = []
    for row in rows:
        away_from = node_unavailable(row.id, row.state, row.scheduling_state, since=row.state_time, heard=row.heartbeat)
        match turn.hindrance(row.num):
            case Hindrance.INELIGIBLE:
                ineligible.append(ineligibility(tx, job, row))
            case Hindrance.NOT_DEDICATED:
                fleeting.append(not_dedicated(job, row))
            case Hindrance.TOO_SMALL:
                small.append(row)
            case _ if row.num not in turn.offered and away_from is not None:
                away.append(away_from)
            case Hindrance.RESERVED:
                reserved.append(_reservation(tx, turn.plan, row))
            case Hindrance.NO_ROOM:
                busy.append(_no_room(tx, turn.task, row))
            case None:
                return []
    return [
        *shortened(busy, "node"),
        *shortened(reserved, "node"),
        *shortened(ineligible, "node"),
        *shortened(fleeting, "node"),
        *_too_small(task, small),
        *shortened(away, "node"),
    ]


def ineligibility(tx: Transaction, job: JobRow, node: NodeRow) -> Finding:
    """Explain why a node takes no task of a job: its preparation failed there."""
    row = job_nodes.get(tx, job.num, node.num)
    preparation = None if row is None else row.preparation
    ended = "" if preparation is None or preparation.result is None else f" with {how_it_ended(preparation)}"
    return finding(
        Code.INELIGIBLE,
        f"Node {node.id} takes no task of job {job.id}: the job's preparation task failed there{ended}.",
        since=None if preparation is None else preparation.end_time,
        subject=node.id,
        change=f"Reimage node {node.id}, or let another node join the pool: preparation is not tried there again.",
    )


def not_dedicated(job: JobRow, node: NodeRow) -> Finding:
    """Explain why a node does not take the manager of a job: it may be taken away."""
    return finding(
        Code.NOT_DEDICATED,
        f"Node {node.id} is not dedicated, and the manager of job {job.id} must not run on such a node"
        " (allowLowPriorityNode is false).",
        subject=node.id,
        change=f"A dedicated node joins pool {node.pool_id}.",
    )


def _too_small(task: TaskRow, small: list[NodeRow]) -> list[Finding]:
    if not small:
        return []
    largest = max(row.slots for row in small)
    who = f"node {small[0].id} has" if len(small) == 1 else f"{len(small)} nodes have at most"
    text = f"It needs {count(task.required_slots, 'slot')}, and {who} {largest}: {names([row.id for row in small])}."
    change = f"A node with at least {count(task.required_slots, 'slot')} joins the pool."
    return [finding(Code.TOO_MANY_SLOTS, text, change=change)]


def _reservation(tx: Transaction, plan: Plan, node: NodeRow) -> Finding:
    other = tasks.by_num(tx, plan.reserved[node.num])
    job = None if other is None else jobs.by_num(tx, other.job_num)
    name = "another task" if other is None or job is None else f"{job.id}/{other.id}"
    wants = "" if other is None else f", which needs {count(other.required_slots, 'slot')}"
    return finding(
        Code.RESERVED,
        f"Node {node.id} is kept for task {name}, which comes first{wants} and waits for the node to empty.",
        subject=name,
        change=f"Task {name} starts.",
    )


def _no_room(tx: Transaction, task: TaskView, node: NodeRow) -> Finding:
    held = [attempt for attempt in attempts.open_on_node(tx, node.num) if attempt.slots_held > 0]
    needs = "the whole node (runExclusive)" if task.exclusive else count(task.required_slots, "slot")
    text = f"It needs {needs}; node {node.id} has {node.free_slots} of {count(node.slots, 'slot')} free"
    by = f", the others are held by {names([_holder(tx, attempt) for attempt in held])}" if held else ""
    return finding(
        Code.NO_ROOM,
        f"{text}{by}.",
        since=min((attempt.assigned for attempt in held), default=None),
        subject=node.id,
        change=f"What runs on node {node.id} ends, or another node joins the pool.",
    )


def _holder(tx: Transaction, attempt: AttemptRow) -> str:
    job = jobs.by_num(tx, attempt.job_num)
    name = f"{'a deleted job' if job is None else job.id}/{attempt.task_key}"
    if attempt.live:
        return f"{name} ({attempt.slots_held})"
    return f"{name} ({attempt.slots_held}, given up, until the node says that it is gone)"


def _ahead(tx: Transaction, job: JobRow, task: TaskRow, found: list[Finding]) -> list[Finding]:
    """Tell how many tasks come first, where it is for slots that the task waits."""
    if not any(item.reason.code in (Code.NO_ROOM, Code.RESERVED, Code.MAX_PARALLEL) for item in found):
        return []
    above, own = lines.before(tx, job.pool_id.lower(), priority=job.spec.priority, job_num=job.num, task_num=task.num)
    if not above + own:
        return []
    text = f"{count(own, 'task')} of its job, and {above} of jobs with a higher priority, stand in line before it."
    change = f"Job {job.id} gets a higher priority." if above else None
    return [finding(Code.TASKS_AHEAD, text, change=change)]
