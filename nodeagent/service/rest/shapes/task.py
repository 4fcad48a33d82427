"""Tasks on the wire (spec/rest.md §3.3)."""

from typing import Any

import orjson

from nodeagent.model.task import NodeInfo, Task, TaskConstraints
from nodeagent.model.times import format_time
from nodeagent.model.values import DEFAULT_USER_IDENTITY
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.tasks import TaskRow

PROPERTIES = property_names(Task)

_DEFAULT_IDENTITY = DEFAULT_USER_IDENTITY.to_wire()
_DEFAULT_CONSTRAINTS = TaskConstraints().to_wire()


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
