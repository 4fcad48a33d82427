"""Jobs on the wire, and what preparation and release did on each node (spec/rest.md §3.1, §3.7)."""

from typing import Any, TypeVar

from nodeagent.model.job import (
    Job,
    JobExecutionInfo,
    JobPreparationAndReleaseTaskStatus,
    JobReleaseTaskExecutionInfo,
)
from nodeagent.model.times import format_time
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.job_nodes import JobNodeRow
from nodeagent.service.store.jobs import JobRow

PROPERTIES = property_names(Job) | {"nodeagent"}
STATUS_PROPERTIES = property_names(JobPreparationAndReleaseTaskStatus)

Execution = TypeVar("Execution", bound=JobReleaseTaskExecutionInfo)


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


def status_shape(links: Links, row: JobNodeRow) -> dict[str, Any]:
    """Return what preparation and release did on one node, which may have been removed since."""
    return JobPreparationAndReleaseTaskStatus(
        pool_id=row.pool_id,
        node_id=row.node_id,
        node_url=links.node(row.pool_id, row.node_id),
        job_preparation_task_execution_info=_located(links, row, row.preparation),
        job_release_task_execution_info=_located(links, row, row.release),
    ).to_wire()


def _located(links: Links, row: JobNodeRow, execution: Execution | None) -> Execution | None:
    if execution is None or execution.task_root_directory is None:
        return execution
    url = links.node_file(row.pool_id, row.node_id, execution.task_root_directory)
    return execution.model_copy(update={"task_root_directory_url": url})
