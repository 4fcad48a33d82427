"""Scheduling in a transaction: read a snapshot of each pool with free slots, decide, assign.

It runs as a hook of the commit that freed the slots or added the tasks (store/database.py), so every commit leaves
nothing that could run waiting, and a restart has nothing to catch up with (docs/adr/0005).
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from nodeagent.model.enums import NodeFillType
from nodeagent.model.protocol import AttemptKind
from nodeagent.rules.affinity import preferred_node
from nodeagent.service.lifecycle import dispatch
from nodeagent.service.scheduler import JobView, NodeView, Plan, TaskView, schedule
from nodeagent.service.store import attempts, job_nodes, jobs, nodes, pools, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow

IN_TURN = "none"
"""The `jobDefaultOrder` under which jobs of one priority take turns; without one the oldest goes first."""


def place_tasks(tx: Transaction, now: datetime) -> int:
    """Assign what can start now, in all pools; return how many tasks were assigned."""
    return sum(
        _place_in_pool(tx, pool_key, tuple(NodeView(*node) for node in free), now)
        for pool_key, free in nodes.with_free_slots(tx).items()
    )


def _place_in_pool(tx: Transaction, pool_key: str, free: tuple[NodeView, ...], now: datetime) -> int:
    waiting = _Waiting(tx, pool_key, free)
    placements = waiting.decide().placements
    rows = {num: nodes.by_num(tx, num) for num in {placement.node_num for placement in placements}}
    for placement in placements:
        job, task = waiting.tasks[placement.task_num]
        node = rows[placement.node_num]
        if node is None:
            raise LookupError("the scheduler placed a task on a node that is not there")
        dispatch.assign_task(tx, job, task, node, placement.slots, now)
    return len(placements)


def offered(tx: Transaction, pool_key: str) -> tuple[NodeView, ...]:
    """Return the nodes of a pool that the scheduler offers tasks to now."""
    return tuple(NodeView(*node) for node in nodes.with_free_slots(tx).get(pool_key, ()))


def plan_before(tx: Transaction, pool_key: str, free: tuple[NodeView, ...], task_num: int) -> Plan:
    """Return the scheduler's decision as it stands when the turn of a task comes; nothing is assigned."""
    return _Waiting(tx, pool_key, free).decide(before=task_num)


def job_view(tx: Transaction, job: JobRow) -> JobView:
    """Return what the scheduler knows of a job."""
    limit = job.spec.max_parallel_tasks
    headroom = None if limit == -1 else max(0, limit - attempts.count_assigned(tx, job.num))
    prepares = job.spec.job_preparation_task is not None
    ineligible = job_nodes.ineligible_nodes(tx, job.num) if prepares else frozenset()
    return JobView(job.num, headroom, ineligible, job.spec.priority)


def task_view(job: JobRow, task: TaskRow, *, choice: bool) -> TaskView:
    """Return what the scheduler knows of a task; without a `choice` of nodes it need not know which is preferred."""
    manager = job.spec.job_manager_task
    exclusive = task.kind is AttemptKind.JOB_MANAGER and manager is not None and manager.run_exclusive
    affinity = task.spec.affinity_info if choice else None
    preferred = None if affinity is None else preferred_node(affinity.affinity_id)
    return TaskView(task.num, job.num, task.required_slots, exclusive, preferred)


class _Waiting:
    """What waits in a pool, read as far as the scheduler asks for it."""

    def __init__(self, tx: Transaction, pool_key: str, free: tuple[NodeView, ...]) -> None:
        self._tx = tx
        self._pool_key = pool_key
        self._free = free
        self.tasks: dict[int, tuple[JobRow, TaskRow]] = {}

    def decide(self, *, before: int | None = None) -> Plan:
        """Let the scheduler decide."""
        fill, in_turn = NodeFillType.SPREAD, False
        job_nums = jobs.with_waiting_tasks(self._tx, self._pool_key)
        if job_nums and (len(self._free) > 1 or len(job_nums) > 1):
            pool = pools.get(self._tx, self._pool_key)
            policy = None if pool is None else pool.spec.task_scheduling_policy
            fill = fill if policy is None else policy.node_fill_type
            in_turn = policy is not None and (policy.job_default_order or "").lower() == IN_TURN
            if in_turn:
                job_nums = jobs.with_waiting_tasks(self._tx, self._pool_key, in_turn=True)
        return schedule(self._free, self._jobs(job_nums), self._ready, fill=fill, in_turn=in_turn, before=before)

    def _jobs(self, job_nums: Sequence[int]) -> Iterator[JobView]:
        for num in job_nums:
            job = jobs.by_num(self._tx, num)
            if job is not None:
                yield job_view(self._tx, job)

    def _ready(self, job_num: int, after: int, max_slots: int, limit: int) -> list[TaskView]:
        job = jobs.by_num(self._tx, job_num)
        if job is None:
            raise LookupError("the scheduler asks for the tasks of a job that is not there")
        found = tasks.ready(self._tx, job_num, after=after, max_slots=max_slots, limit=limit)
        self.tasks |= {task.num: (job, task) for task in found}
        return [task_view(job, task, choice=len(self._free) > 1) for task in found]
