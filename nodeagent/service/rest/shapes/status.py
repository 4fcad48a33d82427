"""What preparation and release of a job did on each node, as each api-version shows it (spec/rest.md §3.7).

One shape is made, today's; an older client, such as that of seed 000, gets it translated (translation.py).
"""

from typing import Any, TypeVar

from nodeagent.model.job import (
    JobPreparationAndReleaseTaskStatus,
    JobPreparationTaskExecutionInfo,
    JobReleaseTaskExecutionInfo,
)
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names
from nodeagent.service.store.job_nodes import JobNodeRow

_PREPARATION = "jobPreparationTaskExecutionInfo"
_RELEASE = "jobReleaseTaskExecutionInfo"

PROPERTIES = (
    (property_names(JobPreparationAndReleaseTaskStatus) - {"stats"})
    | {f"{_PREPARATION}/{name}" for name in property_names(JobPreparationTaskExecutionInfo) - {"stats"}}
    | {f"{_RELEASE}/{name}" for name in property_names(JobReleaseTaskExecutionInfo) - {"stats"}}
    | {f"{_RELEASE}/retryCount"}
)
"""What may be selected, nested properties included."""

Execution = TypeVar("Execution", bound=JobReleaseTaskExecutionInfo)


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
