"""Jobs with their manager, preparation and release tasks (spec/rest.md §3.1, §3.4, §3.5)."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from nodeagent.model.base import BatchModel
from nodeagent.model.container import ContainerInfo, ContainerSettings
from nodeagent.model.enums import ExecutionResult, JobState, NodeTaskState, OnAllTasksComplete, OnTaskFailure
from nodeagent.model.failure import FailureInfo
from nodeagent.model.files import OutputFile, ResourceFile
from nodeagent.model.task import DEFAULT_RETENTION, CommandLine, TaskConstraints
from nodeagent.model.times import UNLIMITED, UtcTime, parse_duration
from nodeagent.model.values import (
    DEFAULT_USER_IDENTITY,
    ApplicationPackageReference,
    AuthenticationTokenSettings,
    BatchId,
    DisplayName,
    EnvironmentSetting,
    Int32,
    JobId,
    MetadataItem,
    NameValuePair,
    Positive,
    RetryCount,
    TimeLimit,
    UserIdentity,
)

RELEASE_WALL_CLOCK_LIMIT = parse_duration("PT15M")

Priority = Annotated[int, Field(ge=-1000, le=1000)]


def _minus_one_or_positive(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("must be -1 (no limit) or at least 1")
    return value


MaxParallelTasks = Annotated[Int32, AfterValidator(_minus_one_or_positive)]


class JobConstraints(BatchModel):
    """Limits of a job: wall clock from creation, and the retry count its tasks inherit (-1 is unlimited)."""

    max_wall_clock_time: TimeLimit = UNLIMITED
    max_task_retry_count: RetryCount = 0


class JobManagerTask(BatchModel):
    """The task that controls a job; it appears in the task list under its id."""

    id: BatchId
    command_line: CommandLine
    display_name: DisplayName | None = None
    container_settings: ContainerSettings | None = None
    resource_files: tuple[ResourceFile, ...] | None = None
    output_files: tuple[OutputFile, ...] | None = None
    environment_settings: tuple[EnvironmentSetting, ...] | None = None
    constraints: TaskConstraints | None = None
    required_slots: Positive = 1
    kill_job_on_completion: bool = True
    user_identity: UserIdentity | None = None
    run_exclusive: bool = True
    application_package_references: tuple[ApplicationPackageReference, ...] | None = None
    authentication_token_settings: AuthenticationTokenSettings | None = None
    allow_low_priority_node: bool = True


class PreparationConstraints(TaskConstraints):
    """Constraints of a job preparation task: its retry count is its own, not the job's."""

    max_task_retry_count: RetryCount = 0


class JobPreparationTask(BatchModel):
    """Runs on a node before the first task of the job there (spec/node.md §11)."""

    id: BatchId = "jobpreparation"
    command_line: CommandLine
    container_settings: ContainerSettings | None = None
    resource_files: tuple[ResourceFile, ...] | None = None
    environment_settings: tuple[EnvironmentSetting, ...] | None = None
    constraints: PreparationConstraints = PreparationConstraints()
    wait_for_success: bool = True
    user_identity: UserIdentity = DEFAULT_USER_IDENTITY
    rerun_on_node_reboot_after_success: bool = True


def _within_release_limit(value: Any) -> Any:  # noqa: ANN401 - keeps the type it is given
    if value > RELEASE_WALL_CLOCK_LIMIT:
        raise ValueError("a job release task may run for at most PT15M")
    return value


class JobReleaseTask(BatchModel):
    """Runs when the job ends, on the nodes where the preparation task ran; never retried (spec/node.md §11)."""

    id: BatchId = "jobrelease"
    command_line: CommandLine
    container_settings: ContainerSettings | None = None
    resource_files: tuple[ResourceFile, ...] | None = None
    environment_settings: tuple[EnvironmentSetting, ...] | None = None
    max_wall_clock_time: Annotated[TimeLimit, AfterValidator(_within_release_limit)] = RELEASE_WALL_CLOCK_LIMIT
    retention_time: TimeLimit = DEFAULT_RETENTION
    user_identity: UserIdentity = DEFAULT_USER_IDENTITY


class PoolInfo(BatchModel):
    """The pool a job runs on: an existing one, or one made for it."""

    pool_id: BatchId | None = None
    auto_pool_specification: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.pool_id is None) == (self.auto_pool_specification is None):
            raise ValueError("exactly one of poolId and autoPoolSpecification must be given")
        return self


class JobNetworkConfiguration(BatchModel):
    """The network of a job's tasks."""

    subnet_id: str
    skip_withdraw_from_v_net: Annotated[bool, Field(alias="skipWithdrawFromVNet")] = False


class JobUpdatable(BatchModel):
    """The properties of a job that PUT replaces and PATCH may name (spec/rest.md §3.1)."""

    priority: Priority = 0
    allow_task_preemption: bool = False
    max_parallel_tasks: MaxParallelTasks = -1
    constraints: JobConstraints = JobConstraints()
    on_all_tasks_complete: OnAllTasksComplete = OnAllTasksComplete.NO_ACTION
    metadata: tuple[MetadataItem, ...] | None = None
    pool_info: PoolInfo


class JobSpecification(JobUpdatable):
    """A job without its id: what a job schedule says of its jobs (spec/rest.md §3.13)."""

    display_name: DisplayName | None = None
    uses_task_dependencies: bool = False
    job_manager_task: JobManagerTask | None = None
    job_preparation_task: JobPreparationTask | None = None
    job_release_task: JobReleaseTask | None = None
    common_environment_settings: tuple[EnvironmentSetting, ...] | None = None
    on_task_failure: OnTaskFailure = OnTaskFailure.NO_ACTION
    network_configuration: JobNetworkConfiguration | None = None

    @model_validator(mode="after")
    def _special_tasks_fit_together(self) -> Self:
        if self.job_release_task is not None and self.job_preparation_task is None:
            raise ValueError("jobReleaseTask needs a jobPreparationTask")
        ids = [
            task.id.lower()
            for task in (self.job_manager_task, self.job_preparation_task, self.job_release_task)
            if task is not None
        ]
        if len(set(ids)) != len(ids):
            raise ValueError("jobManagerTask, jobPreparationTask and jobReleaseTask need different ids")
        return self


class JobCreate(JobSpecification):
    """The body of "add a job"."""

    id: JobId


class JobUpdate(JobUpdatable):
    """The body of PUT: what is left out goes back to its default."""


class JobPatch(BatchModel):
    """The body of PATCH: only the properties named are replaced, each as a whole."""

    priority: Priority | None = None
    allow_task_preemption: bool | None = None
    max_parallel_tasks: MaxParallelTasks | None = None
    constraints: JobConstraints | None = None
    on_all_tasks_complete: OnAllTasksComplete | None = None
    metadata: tuple[MetadataItem, ...] | None = None
    pool_info: PoolInfo | None = None
    network_configuration: JobNetworkConfiguration | None = None


class JobSchedulingError(BatchModel):
    """Why a job cannot run."""

    category: str
    code: str
    message: str | None = None
    details: tuple[NameValuePair, ...] = ()


class JobExecutionInfo(BatchModel):
    """How a job stands; `end_time` only when completed."""

    start_time: UtcTime
    end_time: UtcTime | None = None
    pool_id: str | None = None
    scheduling_error: JobSchedulingError | None = None
    terminate_reason: str | None = None


class Job(JobCreate):
    """A job as "get a job" shows it."""

    url: str
    e_tag: str
    last_modified: UtcTime
    creation_time: UtcTime
    state: JobState
    state_transition_time: UtcTime
    previous_state: JobState | None = None
    previous_state_transition_time: UtcTime | None = None
    execution_info: JobExecutionInfo


class JobReleaseTaskExecutionInfo(BatchModel):
    """How the job release task stands on one node (spec/rest.md §3.7)."""

    start_time: UtcTime
    end_time: UtcTime | None = None
    state: NodeTaskState
    task_root_directory: str | None = None
    task_root_directory_url: str | None = None
    exit_code: int | None = None
    container_info: ContainerInfo | None = None
    failure_info: FailureInfo | None = None
    result: ExecutionResult | None = None


class JobPreparationTaskExecutionInfo(JobReleaseTaskExecutionInfo):
    """How the job preparation task stands on one node; `last_retry_time` only if it was retried."""

    retry_count: int = 0
    last_retry_time: UtcTime | None = None


class JobPreparationAndReleaseTaskStatus(BatchModel):
    """Preparation and release of one job on one node; the release part only once it has started there."""

    pool_id: str
    node_id: str
    node_url: str
    job_preparation_task_execution_info: JobPreparationTaskExecutionInfo | None = None
    job_release_task_execution_info: JobReleaseTaskExecutionInfo | None = None
