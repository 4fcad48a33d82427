"""Pools on the wire, and their nodes counted (spec/rest.md §3.9)."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nodeagent.model.enums import NodeState
from nodeagent.model.pool import Pool
from nodeagent.model.times import format_time
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow

PROPERTIES = property_names(Pool)

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
        "currentLowPriorityNodes": row.current_low_priority_nodes,
    }
    if row.resize_errors:
        entity["resizeErrors"] = [error.to_wire() for error in row.resize_errors]
    if row.auto_scale_run is not None:
        entity["autoScaleRun"] = row.auto_scale_run.to_wire()
    return entity


def node_counts_shape(row: PoolRow, nodes: Iterable[NodeRow]) -> dict[str, Any]:
    """Return how many nodes of a pool are in which state, dedicated ones and those of low priority apart."""
    dedicated, low_priority = Counter[NodeState](), Counter[NodeState]()
    for node in nodes:
        (dedicated if node.is_dedicated else low_priority)[node.state] += 1
    return {"poolId": row.id, "dedicated": _states_shape(dedicated), "lowPriority": _states_shape(low_priority)}


def _states_shape(states: Counter[NodeState]) -> dict[str, int]:
    counted = {_COUNT_NAMES.get(state, state.value): states[state] for state in NodeState}
    return counted | {"total": states.total()}
