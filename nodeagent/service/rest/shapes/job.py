"""Jobs on the wire (spec/rest.md §3.1)."""

from typing import Any

from nodeagent.model.job import Job, JobExecutionInfo
from nodeagent.model.times import format_time
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.jobs import JobRow

PROPERTIES = property_names(Job) | {"nodeagent"}


def job_shape(links: Links, row: JobRow) -> dict[str, Any]:
    """Return a job as "get a job" shows it."""
    execution = JobExecutionInfo(
        start_time=row.created, end_time=row.ended, pool_id=row.pool_id, terminate_reason=row.terminate_reason
    )
    entity: dict[str, Any] = {
        "url": links.job(row.id),
        "eTag": row.etag,
        "lastModified": format_time(row.modified),
        "creationTime": format_time(row.created),
        **without_secrets(row.spec.to_wire()),
        "id": row.id,
        "state": row.state.value,
        "stateTransitionTime": format_time(row.state_time),
        "executionInfo": execution.to_wire(),
    }
    if row.previous_state is not None and row.previous_state_time is not None:
        entity["previousState"] = row.previous_state.value
        entity["previousStateTransitionTime"] = format_time(row.previous_state_time)
    return entity
