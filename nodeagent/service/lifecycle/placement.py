"""Scheduling in a transaction: read a snapshot of each pool with free slots, decide, assign.

It runs as a hook of the commit that freed the slots or added the tasks (store/database.py), so every commit leaves
nothing that could run waiting, and a restart has nothing to catch up with (docs/adr/0005).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from nodeagent.model.enums import NodeFillType
from nodeagent.model.protocol import AttemptKind, StopReason
from nodeagent.rules.affinity import preferred_node
from nodeagent.service.lifecycle import dispatch
from nodeagent.service.preemption import Holder, Preemption, preempt
from nodeagent.service.scheduler import JobView, NodeView, Plan, TaskView, schedule
from nodeagent.service.store import attempts, job_nodes, jobs, nodes, pools, tasks
from nodeagent.service.store.attempts import SlotHolder
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow

IN_TURN = "none"
"""The `jobDefaultOrder` under which jobs of one priority take turns; without one the oldest goes first."""


def place_tasks(tx: Transaction, now: datetime) -> int:
    """Assign what can start now, in all pools, and make way for what cannot; return how many tasks were assigned."""
    contested = jobs.pools_with_preemption(tx)
    placed = sum(
        _place_in_pool(tx, _Waiting(tx, pool_key, tuple(NodeView(*node) for node in free)), now)
        for pool_key, free in nodes.with_free_slots(tx).items()
        if pool_key not in contested
    )
    return placed + sum(_place_in_pool(tx, _contested(tx, pool_key), now) for pool_key in contested)


def _place_in_pool(tx: Transaction, waiting: "_Waiting", now: datetime) -> int:
    plan = waiting.decide()
    preemption = waiting.preempt(plan)
    rows = {num: nodes.by_num(tx, num) for num in {placement.node_num for placement in plan.placements}}
    for placement in plan.placements:
        job, task = waiting.tasks[placement.task_num]
        node = rows[placement.node_num]
        if node is None:
            raise LookupError("the scheduler placed a task on a node that is not there")
        dispatch.assign_task(tx, job, task, node, placement.slots, now)
    for attempt_num in preemption.stops:
        attempt = attempts.by_num(tx, attempt_num)
        if attempt is not None:
            dispatch.stop(tx, attempt, StopReason.PREEMPTED)
    return len(plan.placements)


def _contested(tx: Transaction, pool_key: str) -> "_Waiting":
    """Return what waits in a pool where tasks may have to make way: its nodes count although no slot is free."""
    holders = attempts.holding_slots(tx, pool_key)
    returning: Counter[int] = Counter()
    for holder in holders:
        if holder.stop_reason is StopReason.PREEMPTED:
            returning[holder.node_num] += holder.slots
    taking = nodes.taking_tasks(tx, pool_key)
    views = tuple(NodeView(*node, returning=returning[node[0]]) for node in taking)
    return _Waiting(tx, pool_key, views, holders)


def offered(tx: Transaction, pool_key: str) -> tuple[NodeView, ...]:
    """Return the nodes of a pool that the scheduler offers tasks to now."""
    if pool_key in jobs.pools_with_preemption(tx):
        return _contested(tx, pool_key).free
    return tuple(NodeView(*node) for node in nodes.with_free_slots(tx).get(pool_key, ()))


def plan_before(tx: Transaction, pool_key: str, free: tuple[NodeView, ...], task_num: int) -> Plan:
    """Return the scheduler's decision as it stands when the turn of a task comes; nothing is assigned."""
    return _Waiting(tx, pool_key, free).decide(before=task_num)


def awaited_node(tx: Transaction, pool_key: str, task_num: int) -> int | None:
    """Return the number of the node that a task gets when those that make way for it there have ended."""
    if pool_key not in jobs.pools_with_preemption(tx):
        return None
    waiting = _contested(tx, pool_key)
    return waiting.preempt(waiting.decide()).awaited.get(task_num)


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
    dedicated_only = (
        task.kind is AttemptKind.JOB_MANAGER and manager is not None and not manager.allow_low_priority_node
    )
    return TaskView(task.num, job.num, task.required_slots, exclusive, preferred, dedicated_only)


class _Waiting:
    """What waits in a pool, read as far as the scheduler asks for it."""

    def __init__(
        self, tx: Transaction, pool_key: str, free: tuple[NodeView, ...], holders: Sequence[SlotHolder] = ()
    ) -> None:
        self._tx = tx
        self._pool_key = pool_key
        self._holders = holders
        self.free = free
        self.tasks: dict[int, tuple[JobRow, TaskRow]] = {}

    def decide(self, *, before: int | None = None) -> Plan:
        """Let the scheduler decide."""
        fill, in_turn = NodeFillType.SPREAD, False
        job_nums = jobs.with_waiting_tasks(self._tx, self._pool_key)
        if job_nums and (len(self.free) > 1 or len(job_nums) > 1):
            pool = pools.get(self._tx, self._pool_key)
            policy = None if pool is None else pool.spec.task_scheduling_policy
            fill = fill if policy is None else policy.node_fill_type
            in_turn = policy is not None and (policy.job_default_order or "").lower() == IN_TURN
            if in_turn:
                job_nums = jobs.with_waiting_tasks(self._tx, self._pool_key, in_turn=True)
        return schedule(self.free, self._jobs(job_nums), self._ready, fill=fill, in_turn=in_turn, before=before)

    def preempt(self, plan: Plan) -> Preemption:
        """Decide who makes way for what the plan leaves waiting."""
        holders = [
            Holder(
                item.attempt_num,
                item.node_num,
                item.slots,
                item.priority,
                preemptible=item.preemptible,
                ending=item.stop_reason is not None,
            )
            for item in self._holders
        ]
        job_nums = jobs.with_waiting_tasks(self._tx, self._pool_key) if holders else ()
        return preempt(plan, self._jobs(job_nums), self._ready, holders)

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
        return [task_view(job, task, choice=len(self.free) > 1) for task in found]
