"""What preparation and release of a job did on each node, as each api-version shows it (spec/rest.md §3.7).

One shape is made, today's; an older client gets it translated. Seed 000 is the page of the older one: another metadata
fragment and path of the next link, no `result` and no `containerInfo`, details of a failure as `values`, and a
`retryCount` of the release task, which is never retried.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nodeagent.model.job import (
    JobPreparationAndReleaseTaskStatus,
    JobPreparationTaskExecutionInfo,
    JobReleaseTaskExecutionInfo,
)
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.paging import SKIP_PARAMETER
from nodeagent.service.rest.shapes.entity import property_names
from nodeagent.service.rest.versions import has_results_of_tasks
from nodeagent.service.store.job_nodes import JobNodeRow

_PREPARATION = "jobPreparationTaskExecutionInfo"
_RELEASE = "jobReleaseTaskExecutionInfo"
_NOT_IN_2016 = ("result", "containerInfo")

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


def status_shape_of_2016(links: Links, row: JobNodeRow) -> dict[str, Any]:
    """Return the same as clients of before 2017-05 know it."""
    entity = status_shape(links, row)
    for name in (_PREPARATION, _RELEASE):
        if name in entity:
            entity[name] = _execution_of_2016(entity[name])
    if _RELEASE in entity:
        entity[_RELEASE]["retryCount"] = 0
    return entity


def _execution_of_2016(execution: dict[str, Any]) -> dict[str, Any]:
    older = {name: value for name, value in execution.items() if name not in _NOT_IN_2016}
    failure = older.get("failureInfo")
    if failure is not None:
        older["failureInfo"] = {"values" if name == "details" else name: value for name, value in failure.items()}
    return older


@dataclass(frozen=True, slots=True)
class StatusForm:
    """How the list looks to clients of some api-versions: `path` is that of its next links, below the job."""

    fragment: str
    path: str
    skip_parameter: str
    shape: Callable[[Links, JobNodeRow], dict[str, Any]]


_TODAY = StatusForm(
    "jobpreparationandreleasetaskstatuslist", "jobpreparationandreleasetaskstatus", SKIP_PARAMETER, status_shape
)
_OF_2016 = StatusForm(
    "jobpreparationandreleasestatuslist", "jobpreparationandreleasestatus", "$skipToken", status_shape_of_2016
)


def status_form(version: str) -> StatusForm:
    """Return the form of the list that clients of an api-version know."""
    return _TODAY if has_results_of_tasks(version) else _OF_2016
