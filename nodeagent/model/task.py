"""Tasks: what a client sends, and what Batch reports of them (spec/rest.md §3.3)."""

from typing import Annotated, Self

from pydantic import StringConstraints, model_validator

from nodeagent.model.base import BatchModel
from nodeagent.model.container import ContainerInfo, ContainerSettings
from nodeagent.model.enums import DependencyAction, ExecutionResult, JobAction, TaskState
from nodeagent.model.failure import FailureInfo
from nodeagent.model.files import OutputFile, ResourceFile
from nodeagent.model.times import UNLIMITED, UtcTime, parse_duration
from nodeagent.model.values import (
    AffinityInfo,
    ApplicationPackageReference,
    AuthenticationTokenSettings,
    BatchId,
    DisplayName,
    EnvironmentSetting,
    Int32,
    Natural,
    Positive,
    RetryCount,
    TimeLimit,
    UserIdentity,
)

DEFAULT_RETENTION = parse_duration("P7D")

CommandLine = Annotated[str, StringConstraints(max_length=32767, pattern=r"^[^\x00]*$")]


class TaskConstraints(BatchModel):
    """Limits of a task's execution; an absent `max_task_retry_count` is the job's (spec/node.md §9)."""

    max_wall_clock_time: TimeLimit = UNLIMITED
    retention_time: TimeLimit = DEFAULT_RETENTION
    max_task_retry_count: RetryCount | None = None


class ExitOptions(BatchModel):
    """What an exit does to the job and to dependent tasks."""

    job_action: JobAction | None = None
    dependency_action: DependencyAction | None = None


class ExitCodeMapping(BatchModel):
    """What one exit code does."""

    code: Int32
    exit_options: ExitOptions


class ExitCodeRangeMapping(BatchModel):
    """What the exit codes from `start` to `end` (both included) do."""

    start: Int32
    end: Int32
    exit_options: ExitOptions

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start > self.end:
            raise ValueError("start must not be greater than end")
        return self


class ExitConditions(BatchModel):
    """What the ways in which a task can end do (spec/rest.md §3.3.1)."""

    exit_codes: tuple[ExitCodeMapping, ...] | None = None
    exit_code_ranges: tuple[ExitCodeRangeMapping, ...] | None = None
    pre_processing_error: ExitOptions | None = None
    file_upload_error: ExitOptions | None = None
    default: ExitOptions | None = None


class TaskIdRange(BatchModel):
    """Integer task ids from `start` to `end`, both included."""

    start: Natural
    end: Natural

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start > self.end:
            raise ValueError("start must not be greater than end")
        return self


class TaskDependencies(BatchModel):
    """The tasks that must have ended before this one starts."""

    task_ids: tuple[str, ...] | None = None
    task_id_ranges: tuple[TaskIdRange, ...] | None = None


class MultiInstanceSettings(BatchModel):
    """A task that runs on several nodes at once."""

    number_of_instances: Positive = 1
    coordination_command_line: CommandLine
    common_resource_files: tuple[ResourceFile, ...] | None = None


class TaskCreate(BatchModel):
    """The body of "add a task"."""

    id: BatchId
    display_name: DisplayName | None = None
    command_line: CommandLine
    container_settings: ContainerSettings | None = None
    exit_conditions: ExitConditions | None = None
    resource_files: tuple[ResourceFile, ...] | None = None
    output_files: tuple[OutputFile, ...] | None = None
    environment_settings: tuple[EnvironmentSetting, ...] | None = None
    affinity_info: AffinityInfo | None = None
    constraints: TaskConstraints | None = None
    required_slots: Positive = 1
    user_identity: UserIdentity | None = None
    multi_instance_settings: MultiInstanceSettings | None = None
    depends_on: TaskDependencies | None = None
    application_package_references: tuple[ApplicationPackageReference, ...] | None = None
    authentication_token_settings: AuthenticationTokenSettings | None = None

    @model_validator(mode="after")
    def _a_multi_instance_task_takes_one_slot(self) -> Self:
        if self.multi_instance_settings is not None and self.required_slots != 1:
            raise ValueError("requiredSlots must be 1 for a task with multiInstanceSettings")
        return self


class TaskExecutionInfo(BatchModel):
    """How a task's execution stands; which fields are present when: spec/node.md §9."""

    start_time: UtcTime | None = None
    end_time: UtcTime | None = None
    exit_code: int | None = None
    container_info: ContainerInfo | None = None
    failure_info: FailureInfo | None = None
    retry_count: int = 0
    last_retry_time: UtcTime | None = None
    requeue_count: int = 0
    last_requeue_time: UtcTime | None = None
    result: ExecutionResult | None = None


class NodeInfo(BatchModel):
    """Where a task ran last."""

    affinity_id: str
    node_url: str
    pool_id: str
    node_id: str
    task_root_directory: str
    task_root_directory_url: str


class Task(TaskCreate):
    """A task as "get a task" shows it."""

    url: str
    e_tag: str
    last_modified: UtcTime
    creation_time: UtcTime
    state: TaskState
    state_transition_time: UtcTime
    previous_state: TaskState | None = None
    previous_state_transition_time: UtcTime | None = None
    execution_info: TaskExecutionInfo
    node_info: NodeInfo | None = None


class TaskCounts(BatchModel):
    """How many tasks (or slots) of a job are in which state; `preparing` counts as running (spec/rest.md §3.8)."""

    active: int = 0
    running: int = 0
    completed: int = 0
    succeeded: int = 0
    failed: int = 0
