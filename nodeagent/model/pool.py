"""Pools, and the start task of their nodes (spec/rest.md §3.9)."""

from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from nodeagent.model.base import BatchModel
from nodeagent.model.container import ContainerSettings
from nodeagent.model.enums import AllocationState, DrainOption, ElevationLevel, NodeFillType, PoolState
from nodeagent.model.files import ResourceFile
from nodeagent.model.task import CommandLine
from nodeagent.model.times import Duration, UtcTime, parse_duration
from nodeagent.model.values import (
    DEFAULT_USER_IDENTITY,
    ApplicationPackageReference,
    BatchId,
    DisplayName,
    EnvironmentSetting,
    MetadataItem,
    NameValuePair,
    UserIdentity,
)


class StartTask(BatchModel):
    """Runs on every node when it joins the pool and after each reboot (spec/node.md §10)."""

    command_line: CommandLine
    container_settings: ContainerSettings | None = None
    resource_files: tuple[ResourceFile, ...] | None = None
    environment_settings: tuple[EnvironmentSetting, ...] | None = None
    user_identity: UserIdentity = DEFAULT_USER_IDENTITY
    max_task_retry_count: Annotated[int, Field(ge=-1)] = 0
    wait_for_success: bool = True


class TaskSchedulingPolicy(BatchModel):
    """How tasks are laid over the nodes of a pool."""

    node_fill_type: NodeFillType = NodeFillType.SPREAD
    job_default_order: str | None = None


LinuxId = Annotated[int, Field(ge=0, le=2**32 - 2)]
"""A uid or gid; the highest number means "none" to the kernel."""


class LinuxUserConfiguration(BatchModel):
    """Linux side of a user account. The key is for logins between nodes, which a pool has only if it asks for them."""

    uid: LinuxId | None = None
    gid: LinuxId | None = None
    ssh_private_key: str | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.uid is None) != (self.gid is None):
            raise ValueError("uid and gid must be given together or not at all")
        return self


class UserAccount(BatchModel):
    """A named user of a pool; the password is never echoed."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=20, pattern=r"^[^\x00-\x20:/]+$")]
    password: str
    elevation_level: ElevationLevel = ElevationLevel.NON_ADMIN
    linux_user_configuration: LinuxUserConfiguration | None = None
    windows_user_configuration: dict[str, Any] | None = None


AutoScaleInterval = Annotated[Duration, Field(ge=parse_duration("PT5M"), le=parse_duration("P7D"))]
"""How often a formula is evaluated: 5 minutes to 168 hours."""
DEFAULT_AUTO_SCALE_INTERVAL = parse_duration("PT15M")


class PoolCreate(BatchModel):
    """The body of "add a pool". What describes Azure's machines is kept and echoed as it was sent."""

    id: BatchId
    display_name: DisplayName | None = None
    vm_size: str
    virtual_machine_configuration: dict[str, Any] | None = None
    resize_timeout: Duration = parse_duration("PT15M")
    target_dedicated_nodes: Annotated[int, Field(ge=0)] = 0
    target_low_priority_nodes: Annotated[int, Field(ge=0)] = 0
    enable_auto_scale: bool = False
    auto_scale_formula: str | None = None
    auto_scale_evaluation_interval: AutoScaleInterval | None = None
    enable_inter_node_communication: bool = False
    network_configuration: dict[str, Any] | None = None
    start_task: StartTask | None = None
    application_package_references: Annotated[tuple[ApplicationPackageReference, ...], Field(max_length=10)] | None = (
        None
    )
    task_slots_per_node: Annotated[int, Field(ge=1, le=256)] = 1
    task_scheduling_policy: TaskSchedulingPolicy = TaskSchedulingPolicy()
    user_accounts: tuple[UserAccount, ...] | None = None
    metadata: tuple[MetadataItem, ...] | None = None
    mount_configuration: tuple[dict[str, Any], ...] | None = None
    upgrade_policy: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _formula_or_targets(self) -> Self:
        if self.enable_auto_scale and self.auto_scale_formula is None:
            raise ValueError("autoScaleFormula must be given if enableAutoScale is true")
        if not self.enable_auto_scale and self.auto_scale_formula is not None:
            raise ValueError("autoScaleFormula must not be given unless enableAutoScale is true")
        if not self.enable_auto_scale and self.auto_scale_evaluation_interval is not None:
            raise ValueError("autoScaleEvaluationInterval must not be given unless enableAutoScale is true")
        return self

    @model_validator(mode="after")
    def _one_account_of_a_name(self) -> Self:
        names = [account.name for account in self.user_accounts or ()]
        if len(names) != len(set(names)):
            raise ValueError("userAccounts must have different names")
        return self


class PoolPatch(BatchModel):
    """The body of "patch a pool": what it names replaces what the pool has (spec/rest.md §3.9)."""

    display_name: DisplayName | None = None
    vm_size: str | None = None
    enable_inter_node_communication: bool | None = None
    start_task: StartTask | None = None
    application_package_references: tuple[ApplicationPackageReference, ...] | None = None
    metadata: tuple[MetadataItem, ...] | None = None
    virtual_machine_configuration: dict[str, Any] | None = None
    task_slots_per_node: Annotated[int, Field(ge=1, le=256)] | None = None
    task_scheduling_policy: TaskSchedulingPolicy | None = None
    network_configuration: dict[str, Any] | None = None
    user_accounts: tuple[UserAccount, ...] | None = None
    mount_configuration: tuple[dict[str, Any], ...] | None = None
    upgrade_policy: dict[str, Any] | None = None


class PoolProperties(BatchModel):
    """The body of "replace the properties of a pool": a start task that is left out is removed."""

    start_task: StartTask | None = None
    application_package_references: tuple[ApplicationPackageReference, ...]
    metadata: tuple[MetadataItem, ...]


class NodesToRemove(BatchModel):
    """The body of "remove nodes"."""

    node_list: Annotated[tuple[BatchId, ...], Field(min_length=1, max_length=100)]
    resize_timeout: Duration = parse_duration("PT15M")
    node_deallocation_option: DrainOption | None = None


LEAST_RESIZE_TIMEOUT = parse_duration("PT5M")


class PoolResize(BatchModel):
    """The body of "resize a pool"; a target that is left out stays as it is, one of them must be given."""

    target_dedicated_nodes: Annotated[int, Field(ge=0)] | None = None
    target_low_priority_nodes: Annotated[int, Field(ge=0)] | None = None
    resize_timeout: Annotated[Duration, Field(ge=LEAST_RESIZE_TIMEOUT)] = parse_duration("PT15M")
    node_deallocation_option: DrainOption | None = None

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if self.target_dedicated_nodes is None and self.target_low_priority_nodes is None:
            raise ValueError("targetDedicatedNodes or targetLowPriorityNodes must be given")
        return self


class EnableAutoScale(BatchModel):
    """The body of "enable automatic scaling": what is left out stays as it is."""

    auto_scale_formula: str | None = None
    auto_scale_evaluation_interval: AutoScaleInterval | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.auto_scale_formula is None and self.auto_scale_evaluation_interval is None:
            raise ValueError("autoScaleFormula or autoScaleEvaluationInterval must be given")
        return self


class EvaluateAutoScale(BatchModel):
    """The body of "evaluate automatic scaling"."""

    auto_scale_formula: str


class AutoScaleRunError(BatchModel):
    """Why a formula had no value."""

    code: str
    message: str | None = None
    values: tuple[NameValuePair, ...] = ()


class AutoScaleRun(BatchModel):
    """What the last evaluation of a formula came to."""

    timestamp: UtcTime
    results: str | None = None
    error: AutoScaleRunError | None = None


class ResizeError(BatchModel):
    """Why a pool did not get the nodes it wants."""

    code: str
    message: str | None = None
    values: tuple[NameValuePair, ...] = ()


class Pool(PoolCreate):
    """A pool as "get a pool" shows it."""

    url: str
    e_tag: str
    last_modified: UtcTime
    creation_time: UtcTime
    state: PoolState
    state_transition_time: UtcTime
    allocation_state: AllocationState
    allocation_state_transition_time: UtcTime
    current_dedicated_nodes: int
    current_low_priority_nodes: int = 0
    resize_errors: tuple[ResizeError, ...] | None = None
    auto_scale_run: AutoScaleRun | None = None
