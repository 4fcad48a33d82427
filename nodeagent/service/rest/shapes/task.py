"""Tasks on the wire (spec/rest.md §3.3)."""

from datetime import datetime
from typing import Any

import orjson

from nodeagent.model.enums import TaskState
from nodeagent.model.protocol import TransferProgress
from nodeagent.model.task import NodeInfo, Task, TaskConstraints
from nodeagent.model.times import format_time
from nodeagent.model.values import DEFAULT_USER_IDENTITY
from nodeagent.rules import sas
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow
from nodeagent.service.transfers import transfer_shape

PROPERTIES = property_names(Task) | {"nodeagent"}

_DEFAULT_IDENTITY = DEFAULT_USER_IDENTITY.to_wire()
_NO_CONSTRAINTS = TaskConstraints()
_DEFAULT_CONSTRAINTS = _NO_CONSTRAINTS.to_wire()


def task_shape(links: Links, job: JobRow, row: TaskRow) -> dict[str, Any]:
    """Return a task as "get a task" shows it; defaults that the job gives are filled in."""
    # the stored text is the wire form already: no need to build the model for every line of a long list
    spec = without_secrets(orjson.loads(row.spec_text))
    constraints = {"maxTaskRetryCount": job.spec.constraints.max_task_retry_count} | spec.get("constraints", {})
    modified = format_time(row.modified)
    entity: dict[str, Any] = {
        "url": links.task(job.id, row.id),
        "eTag": row.etag,
        "lastModified": modified,
        "creationTime": format_time(row.created),
        "userIdentity": _DEFAULT_IDENTITY,
        **spec,
        "id": row.id,
        "constraints": _DEFAULT_CONSTRAINTS | constraints,
        "state": row.state.value,
        "stateTransitionTime": format_time(row.state_time),
        "executionInfo": row.execution.to_wire(),
    }
    if row.previous_state is not None and row.previous_state_time is not None:
        entity["previousState"] = row.previous_state.value
        entity["previousStateTransitionTime"] = format_time(row.previous_state_time)
    if row.node is not None:
        node_url = links.node(row.node.pool_id, row.node.id)
        entity["nodeInfo"] = NodeInfo(
            affinity_id=f"TVM:{row.node.id}",
            node_url=node_url,
            pool_id=row.node.pool_id,
            node_id=row.node.id,
            task_root_directory=row.node.task_root_directory,
            task_root_directory_url=links.node_file(row.node.pool_id, row.node.id, row.node.task_root_directory),
        ).to_wire()
    return entity


def nodeagent_shape(row: TaskRow, transfer: TransferProgress | None, now: datetime) -> dict[str, Any]:
    """Return what is shown beyond Batch: warnings about the task's URLs, and how far its transfers are."""
    shape: dict[str, Any] = {}
    found = sas_warnings(row, now)
    if found:
        shape["warnings"] = [warning.to_wire() for warning in found]
    if transfer is not None:
        shape["transfer"] = transfer_shape(transfer)
    return shape


def sas_warnings(row: TaskRow, now: datetime) -> tuple[sas.SasWarning, ...]:
    """Return what is told of the SAS of a task's files; cheap for a task that has none."""
    if "?" not in row.spec_text:  # no URL with a query, so no SAS: the definition need not be parsed
        return ()
    limit = (row.spec.constraints or _NO_CONSTRAINTS).max_wall_clock_time
    return sas.told(row.spec, row.created, now, limit, completed=row.state is TaskState.COMPLETED)
