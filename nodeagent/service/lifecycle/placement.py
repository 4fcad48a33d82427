"""Scheduling in a transaction: read a snapshot of each pool with free slots, decide, assign.

It runs as a hook of the commit that freed the slots or added the tasks (store/database.py), so every commit leaves
nothing that could run waiting, and a restart has nothing to catch up with (docs/adr/0005).
"""

from datetime import datetime

from nodeagent.model.enums import NodeFillType
from nodeagent.model.protocol import AttemptKind
from nodeagent.service.lifecycle import dispatch
from nodeagent.service.scheduler import JobView, NodeView, Snapshot, TaskView, schedule
from nodeagent.service.store import attempts, job_nodes, jobs, nodes, pools, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow


def place_tasks(tx: Transaction, now: datetime) -> int:
    """Assign what can start now, in all pools; return how many tasks were assigned."""
    return sum(
        _place_in_pool(tx, pool_key, tuple(NodeView(*node) for node in free), now)
        for pool_key, free in nodes.with_free_slots(tx).items()
    )


def _place_in_pool(tx: Transaction, pool_key: str, free: tuple[NodeView, ...], now: datetime) -> int:
    waiting = _Waiting(tx, pool_key, free)
    if not waiting.tasks:
        return 0
    placements = schedule(waiting.snapshot(tx))
    rows = {num: nodes.by_num(tx, num) for num in {placement.node_num for placement in placements}}
    for placement in placements:
        job, task = waiting.tasks[placement.task_num]
        node = rows[placement.node_num]
        if node is None:
            raise LookupError("the scheduler placed a task on a node that is not there")
        dispatch.assign_task(tx, job, task, node, placement.slots, now)
    return len(placements)


class _Waiting:
    """What waits in a pool: no more tasks than could start, or reserve a node, in the order in which they want to."""

    def __init__(self, tx: Transaction, pool_key: str, free: tuple[NodeView, ...]) -> None:
        self._pool_key = pool_key
        self._free = free
        self._jobs: list[JobView] = []
        self.tasks: dict[int, tuple[JobRow, TaskRow]] = {}
        wanted = sum(node.free_slots for node in free) + len(free)
        for job_num, limit in jobs.with_waiting_tasks(tx, pool_key):
            self._add_job(tx, job_num, limit, wanted)
            if len(self.tasks) >= wanted:
                break

    def _add_job(self, tx: Transaction, job_num: int, limit: int, wanted: int) -> None:
        job = jobs.by_num(tx, job_num)
        if job is None:
            return
        headroom = None if limit == -1 else max(0, limit - attempts.count_assigned(tx, job_num))
        prepares = job.spec.job_preparation_task is not None
        ineligible = job_nodes.ineligible_nodes(tx, job_num) if prepares else frozenset()
        if headroom == 0 or all(node.num in ineligible for node in self._free):
            return
        largest = max(node.slots for node in self._free)
        self._jobs.append(JobView(job_num, headroom, ineligible))
        for task in tasks.ready(tx, job_num, max_slots=largest, limit=wanted - len(self.tasks)):
            self.tasks[task.num] = (job, task)

    def snapshot(self, tx: Transaction) -> Snapshot:
        """Return what the scheduler decides on."""
        pool = pools.get(tx, self._pool_key) if len(self._free) > 1 else None
        fill = NodeFillType.SPREAD if pool is None else pool.spec.task_scheduling_policy.node_fill_type
        views = tuple(_view(job, task) for job, task in self.tasks.values())
        return Snapshot(self._free, tuple(self._jobs), views, fill)


def _view(job: JobRow, task: TaskRow) -> TaskView:
    manager = job.spec.job_manager_task
    exclusive = task.kind is AttemptKind.JOB_MANAGER and manager is not None and manager.run_exclusive
    return TaskView(task.num, job.num, task.required_slots, exclusive)
