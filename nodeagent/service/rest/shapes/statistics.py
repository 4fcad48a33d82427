"""Statistics on the wire (spec/rest.md §3.1, §3.3)."""

from datetime import timedelta
from typing import Any

from nodeagent.model.statistics import JobStatistics, OwnStatistics, TaskStatistics
from nodeagent.service.rest.links import Links
from nodeagent.service.store.counts import JobCounts
from nodeagent.service.store.job_schedules import JobScheduleRow
from nodeagent.service.store.jobs import JobRow
from nodeagent.service.store.statistics import Used, UsedByJob, UsedBySchedule
from nodeagent.service.store.tasks import TaskRow

_GIB = 1 << 30


def task_statistics(links: Links, job: JobRow, task: TaskRow, used: Used) -> dict[str, Any]:
    """Return the `stats` of a task."""
    waited = max(timedelta(0), used.started - task.created)
    url, start_time = links.task(job.id, task.id), task.created
    return TaskStatistics(url=url, start_time=start_time, wait_time=waited, **_resources(used)).to_wire()


def job_statistics(links: Links, job: JobRow, found: UsedByJob, counted: JobCounts) -> dict[str, Any]:
    """Return the `stats` of a job."""
    return JobStatistics(
        url=links.job(job.id),
        start_time=job.created,
        wait_time=max(timedelta(0), found.waited),
        num_succeeded_tasks=counted.tasks.succeeded,
        num_failed_tasks=counted.tasks.failed,
        num_task_retries=found.retries,
        **_resources(found.used),
    ).to_wire()


def job_schedule_statistics(links: Links, schedule: JobScheduleRow, found: UsedBySchedule) -> dict[str, Any]:
    """Return the `stats` of a job schedule."""
    return JobStatistics(
        url=links.job_schedule(schedule.id),
        start_time=schedule.created,
        wait_time=max(timedelta(0), found.waited),
        num_succeeded_tasks=found.succeeded,
        num_failed_tasks=found.failed,
        num_task_retries=found.retries,
        **_resources(found.used),
    ).to_wire()


def _resources(used: Used) -> dict[str, Any]:
    peak = used.peak_memory_bytes
    return {
        "last_update_time": used.ended,
        "user_cpu_time": used.user_cpu,
        "kernel_cpu_time": used.kernel_cpu,
        "wall_clock_time": used.wall_clock,
        "read_io_gib": used.read_bytes / _GIB,
        "write_io_gib": used.write_bytes / _GIB,
        "nodeagent": None if peak is None else OwnStatistics(peak_memory_bytes=peak),
    }
