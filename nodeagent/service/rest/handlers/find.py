"""Looks an entity up, or refuses with its own "not found"."""

from nodeagent.service.errors import refusal
from nodeagent.service.store import jobs, nodes, pools, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow
from nodeagent.service.store.tasks import TaskRow


def find_pool(tx: Transaction, pool_id: str) -> PoolRow:
    """Return a pool. Raises BatchError `PoolNotFound`."""
    row = pools.get(tx, pool_id)
    if row is None:
        raise refusal("PoolNotFound")
    return row


def find_node(tx: Transaction, pool_id: str, node_id: str) -> NodeRow:
    """Return a node. Raises BatchError `PoolNotFound`, `NodeNotFound`."""
    find_pool(tx, pool_id)
    row = nodes.get(tx, pool_id, node_id)
    if row is None:
        raise refusal("NodeNotFound")
    return row


def find_job(tx: Transaction, job_id: str) -> JobRow:
    """Return a job. Raises BatchError `JobNotFound`."""
    row = jobs.get(tx, job_id)
    if row is None:
        raise refusal("JobNotFound")
    return row


def find_task(tx: Transaction, job_id: str, task_id: str) -> tuple[JobRow, TaskRow]:
    """Return a task with its job. Raises BatchError `JobNotFound`, `TaskNotFound`."""
    job = find_job(tx, job_id)
    task = tasks.get(tx, job.num, task_id)
    if task is None:
        raise refusal("TaskNotFound")
    return job, task
