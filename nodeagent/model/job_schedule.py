"""Job schedules: when jobs are made, and what they are like (spec/rest.md §3.13, §8.6)."""

from datetime import timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import BatchEnum
from nodeagent.model.job import JobSpecification
from nodeagent.model.times import Duration, UtcTime
from nodeagent.model.values import BatchId, DisplayName, MetadataItem

SHORTEST = timedelta(minutes=1)
"""The least that `startWindow` and `recurrenceInterval` may be."""


class JobScheduleState(BatchEnum):
    """States of a job schedule (spec/rest.md §8.6)."""

    ACTIVE = "active"
    DISABLED = "disabled"
    TERMINATING = "terminating"
    COMPLETED = "completed"
    DELETING = "deleting"


def _a_minute_or_more(value: timedelta) -> timedelta:
    if value < SHORTEST:
        raise ValueError("must be at least PT1M")
    return value


Interval = Annotated[Duration, AfterValidator(_a_minute_or_more)]


class Schedule(BatchModel):
    """When jobs are made. Without `recurrence_interval` one job is made; without `start_window` it may be late."""

    do_not_run_until: UtcTime | None = None
    do_not_run_after: UtcTime | None = None
    start_window: Interval | None = None
    recurrence_interval: Interval | None = None

    @model_validator(mode="after")
    def _has_time_to_run(self) -> Self:
        if (
            self.do_not_run_until is not None
            and self.do_not_run_after is not None
            and self.do_not_run_after <= self.do_not_run_until
        ):
            raise ValueError("doNotRunAfter must be later than doNotRunUntil")
        return self


class JobScheduleUpdate(BatchModel):
    """The body of PUT: without `schedule` the schedule is removed, without `metadata` the metadata."""

    schedule: Schedule = Schedule()
    job_specification: JobSpecification
    metadata: tuple[MetadataItem, ...] | None = None


class JobSchedulePatch(BatchModel):
    """The body of PATCH: only the properties named are replaced, each as a whole."""

    schedule: Schedule | None = None
    job_specification: JobSpecification | None = None
    metadata: tuple[MetadataItem, ...] | None = None


class JobScheduleCreate(BatchModel):
    """The body of "add a job schedule"."""

    id: BatchId
    display_name: DisplayName | None = None
    schedule: Schedule
    job_specification: JobSpecification
    metadata: tuple[MetadataItem, ...] | None = None


class RecentJob(BatchModel):
    """The last job that a schedule made; it may have been deleted since."""

    id: str
    url: str


class JobScheduleExecutionInfo(BatchModel):
    """How a schedule stands; `end_time` only when completed."""

    next_run_time: UtcTime | None = None
    recent_job: RecentJob | None = None
    end_time: UtcTime | None = None


class JobSchedule(JobScheduleCreate):
    """A job schedule as "get a job schedule" shows it."""

    url: str
    e_tag: str
    last_modified: UtcTime
    creation_time: UtcTime
    state: JobScheduleState
    state_transition_time: UtcTime
    previous_state: JobScheduleState | None = None
    previous_state_transition_time: UtcTime | None = None
    execution_info: JobScheduleExecutionInfo
