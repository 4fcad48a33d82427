"""What tasks and jobs used, as `$expand=stats` shows it (spec/rest.md §3.1, §3.3)."""

from typing import Annotated

from pydantic import Field, PlainSerializer

from nodeagent.model.base import BatchModel
from nodeagent.model.times import Duration, UtcTime

CountText = Annotated[int, PlainSerializer(str, return_type=str, when_used="json")]
"""A 64-bit counter: text on the wire."""


class OwnStatistics(BatchModel):
    """What nodeagent knows and Batch has no property for."""

    peak_memory_bytes: int
    """The most memory that the first process of a task, or one that it waited for, had resident at once."""


class ResourceStatistics(BatchModel):
    """Resources that executions used from `start_time` to `last_update_time`, retries and lost tries included.

    Nobody counts operations (`readIOps`, `writeIOps`), so they are left out.
    """

    url: str
    start_time: UtcTime
    last_update_time: UtcTime
    user_cpu_time: Annotated[Duration, Field(alias="userCPUTime")]
    kernel_cpu_time: Annotated[Duration, Field(alias="kernelCPUTime")]
    wall_clock_time: Duration
    read_io_gib: Annotated[float, Field(alias="readIOGiB")]
    write_io_gib: Annotated[float, Field(alias="writeIOGiB")]
    wait_time: Duration
    """From the creation of a task to its last start."""
    nodeagent: OwnStatistics | None = None


class TaskStatistics(ResourceStatistics):
    """The statistics of one task."""


class JobStatistics(ResourceStatistics):
    """The statistics of all tasks of a job, preparation and release left out."""

    num_succeeded_tasks: CountText
    num_failed_tasks: CountText
    num_task_retries: CountText
