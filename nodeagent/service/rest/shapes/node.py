"""Nodes on the wire (spec/rest.md §3.10)."""

from collections.abc import Iterable
from typing import Any

from nodeagent.model.node import Node, NodeAgentInfo, RecentTask
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.start_tasks import StartTaskRow
from nodeagent.service.store.tasks import TaskRow

PROPERTIES = property_names(Node)


def node_shape(
    links: Links, row: NodeRow, recent: Iterable[tuple[str, TaskRow]], start_task: StartTaskRow | None
) -> dict[str, Any]:
    """Return a node as "get a node" shows it; `recent` is pairs of job id and task, newest first.

    The start task is the one that the node has begun with, not the one that its pool may have by now.
    """
    entity: dict[str, Any] = Node(
        id=row.id,
        url=links.node(row.pool_id, row.id),
        state=row.state,
        scheduling_state=row.scheduling_state,
        state_transition_time=row.state_time,
        last_boot_time=row.booted,
        allocation_time=row.allocated,
        ip_address=row.ip_address,
        affinity_id=row.affinity_id,
        vm_size=row.vm_size.lower(),
        total_tasks_run=row.total_tasks_run,
        running_tasks_count=row.running_tasks,
        running_task_slots_count=row.running_slots,
        total_tasks_succeeded=row.total_tasks_succeeded,
        recent_tasks=tuple(_recent_task(links, job_id, task) for job_id, task in recent),
        start_task=None if start_task is None else start_task.spec,
        start_task_info=None if start_task is None else start_task.info,
        errors=row.errors or None,
        is_dedicated=row.is_dedicated,
        node_agent_info=NodeAgentInfo(version=row.agent_version, last_update_time=row.agent_updated),
    ).to_wire()
    shown: dict[str, Any] = without_secrets(entity)
    return shown


def _recent_task(links: Links, job_id: str, task: TaskRow) -> RecentTask:
    return RecentTask(
        task_url=links.task(job_id, task.id),
        job_id=job_id,
        task_id=task.id,
        task_state=task.state,
        execution_info=task.execution,
    )
