"""Pools and nodes on the wire (spec/rest.md §3.9, §3.10)."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nodeagent.model.enums import NodeState
from nodeagent.model.node import Node, NodeAgentInfo, RecentTask
from nodeagent.model.pool import Pool
from nodeagent.model.times import format_time
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow
from nodeagent.service.store.tasks import TaskRow

PROPERTIES = property_names(Pool)
NODE_PROPERTIES = property_names(Node)

_COUNT_NAMES = {
    NodeState.START_TASK_FAILED: "startTaskFailed",
    NodeState.WAITING_FOR_START_TASK: "waitingForStartTask",
    NodeState.LEAVING_POOL: "leavingPool",
    NodeState.UPGRADING_OS: "upgradingOS",
}


def pool_shape(links: Links, row: PoolRow) -> dict[str, Any]:
    """Return a pool as "get a pool" shows it."""
    spec = without_secrets(row.spec.to_wire()) | {"id": row.id, "vmSize": row.spec.vm_size.lower()}
    image = spec.get("virtualMachineConfiguration", {}).get("imageReference")
    if isinstance(image, dict) and "publisher" in image:
        image.setdefault("version", "latest")
    if row.spec.enable_auto_scale:
        for name in ("targetDedicatedNodes", "targetLowPriorityNodes", "resizeTimeout"):
            spec.pop(name, None)
    entity: dict[str, Any] = {
        "url": links.pool(row.id),
        "eTag": row.etag,
        "lastModified": format_time(row.modified),
        "creationTime": format_time(row.created),
        **spec,
        "state": row.state.value,
        "stateTransitionTime": format_time(row.state_time),
        "allocationState": row.allocation_state.value,
        "allocationStateTransitionTime": format_time(row.allocation_state_time),
        "currentDedicatedNodes": row.current_dedicated_nodes,
        "currentLowPriorityNodes": 0,
    }
    if row.resize_errors:
        entity["resizeErrors"] = [error.to_wire() for error in row.resize_errors]
    return entity


def node_shape(links: Links, row: NodeRow, recent: Iterable[tuple[str, TaskRow]]) -> dict[str, Any]:
    """Return a node as "get a node" shows it; `recent` is pairs of job id and task, newest first."""
    return Node(
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
        errors=row.errors or None,
        node_agent_info=NodeAgentInfo(version=row.agent_version, last_update_time=row.agent_updated),
    ).to_wire()


def _recent_task(links: Links, job_id: str, task: TaskRow) -> RecentTask:
    return RecentTask(
        task_url=links.task(job_id, task.id),
        job_id=job_id,
        task_id=task.id,
        task_state=task.state,
        execution_info=task.execution,
    )


def node_counts_shape(row: PoolRow, nodes: Iterable[NodeRow]) -> dict[str, Any]:
    """Return how many nodes of a pool are in which state; all of them count as dedicated."""
    states = Counter(node.state for node in nodes)
    dedicated = {_COUNT_NAMES.get(state, state.value): states[state] for state in NodeState}
    return {
        "poolId": row.id,
        "dedicated": dedicated | {"total": states.total()},
        "lowPriority": dict.fromkeys(dedicated, 0) | {"total": 0},
    }
