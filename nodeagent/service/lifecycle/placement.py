"""Scheduling in a transaction: read a snapshot of each pool with free slots, decide, assign.

It runs as a hook of the commit that freed the slots or added the tasks (store/database.py), so every commit leaves
nothing that could run waiting, and a restart has nothing to catch up with.
"""

from datetime import datetime

from nodeagent.model.enums import NodeFillType
from nodeagent.model.protocol import AttemptKind
from nodeagent.service.lifecycle import dispatch
from nodeagent.service.scheduler import JobView, NodeView, Snapshot, TaskView, schedule
from nodeagent.service.store import job_nodes, jobs, nodes, pools, tasks
from nodeagent.service.store.database import Transaction


def place_tasks(tx: Transaction, now: datetime) -> int:
    """Assign what can start now, in all pools; return how many tasks were assigned."""
    return sum(_place_in_pool(tx, pool_key, now) for pool_key in nodes.pools_with_free_slots(tx))


def _place_in_pool(tx: Transaction, pool_key: str, now: datetime) -> int:
    snapshot = read_snapshot(tx, pool_key)
    if snapshot is None:
        return 0
    placements = schedule(snapshot)
    for placement in placements:
        task = tasks.by_num(tx, placement.task_num)
        node = nodes.by_num(tx, placement.node_num)
        job = None if task is None else jobs.by_num(tx, task.job_num)
        if task is None or node is None or job is None:
            raise LookupError("the scheduler placed what is not there")
        dispatch.assign_task(tx, job, task, node, placement.slots, now)
    return len(placements)


def read_snapshot(tx: Transaction, pool_key: str) -> Snapshot | None:
    """Return what the scheduler must know of a pool: no more tasks than could start; None if there is nothing to do."""
    views = tuple(NodeView(*row) for row in nodes.with_free_slots(tx, pool_key))
    if not views:
        return None
    wanted = sum(view.free_slots for view in views) + len(views)
    largest = max(view.slots for view in views)
    job_views: list[JobView] = []
    task_views: list[TaskView] = []
    for waiting in jobs.with_waiting_tasks(tx, pool_key):
        ineligible = job_nodes.ineligible_nodes(tx, waiting.num) if waiting.has_preparation else frozenset()
        if waiting.headroom == 0 or all(view.num in ineligible for view in views):
            continue
        limit = wanted - len(task_views)
        found = tasks.ready(tx, waiting.num, max_slots=largest, limit=limit)
        if not found:
            continue
        job_views.append(JobView(waiting.num, waiting.headroom, ineligible))
        task_views += [
            TaskView(num, waiting.num, slots, kind is AttemptKind.JOB_MANAGER and waiting.exclusive_manager)
            for num, slots, kind in found
        ]
        if len(task_views) >= wanted:
            break
    if not task_views:
        return None
    pool = pools.get(tx, pool_key)
    fill = NodeFillType.SPREAD if pool is None else pool.spec.task_scheduling_policy.node_fill_type
    return Snapshot(views, tuple(job_views), tuple(task_views), fill)
