"""Job schedules on the wire (spec/rest.md §3.13)."""

from datetime import datetime
from typing import Any

from nodeagent.model.job_schedule import JobSchedule, JobScheduleExecutionInfo, JobScheduleState, RecentJob
from nodeagent.model.times import format_time
from nodeagent.rules.recurrence import next_run, timetable
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.entity import property_names, without_secrets
from nodeagent.service.store.job_schedules import JobScheduleRow

PROPERTIES = property_names(JobSchedule)

_MAKES_JOBS = frozenset({JobScheduleState.ACTIVE, JobScheduleState.DISABLED})


def job_schedule_shape(links: Links, row: JobScheduleRow, now: datetime) -> dict[str, Any]:
    """Return a job schedule as "get a job schedule" shows it.

    `nextRunTime` in the past says that the job of that time is to be made as soon as the last one has ended.
    """
    entity: dict[str, Any] = {
        "url": links.job_schedule(row.id),
        "eTag": row.etag,
        "lastModified": format_time(row.modified),
        "creationTime": format_time(row.created),
        **without_secrets(row.spec.to_wire()),
        "id": row.id,
        "state": row.state.value,
        "stateTransitionTime": format_time(row.state_time),
        "executionInfo": _execution(links, row, now).to_wire(),
    }
    if row.previous_state is not None and row.previous_state_time is not None:
        entity["previousState"] = row.previous_state.value
        entity["previousStateTransitionTime"] = format_time(row.previous_state_time)
    return entity


def _execution(links: Links, row: JobScheduleRow, now: datetime) -> JobScheduleExecutionInfo:
    recent = row.recent_job
    return JobScheduleExecutionInfo(
        next_run_time=next_run(timetable(row.spec.schedule, row.created), row.last_run, now)
        if row.state in _MAKES_JOBS
        else None,
        recent_job=None if recent is None else RecentJob(id=recent, url=links.job(recent)),
        end_time=row.ended,
    )
