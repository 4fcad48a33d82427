"""The node protocol: what agent and service say to each other (docs/node-protocol.md, design.md §5).

The agent calls; every body names the node and its epoch, so that a cloned image or an agent of a former life is
refused (fencing). What the service wants done is a queue of numbered messages per node: the agent commits them to
its own database before it asks for what follows, and asking is the acknowledgement. What the agent has seen is a
gapless sequence of reports per attempt.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Base64Bytes, Field

from nodeagent.model.base import BatchModel
from nodeagent.model.container import ContainerInfo, ContainerSettings
from nodeagent.model.enums import ElevationLevel, ExecutionResult
from nodeagent.model.failure import FailureInfo
from nodeagent.model.files import OutputFile, ResourceFile
from nodeagent.model.times import UNLIMITED, Duration, UtcTime
from nodeagent.model.values import EnvironmentSetting, NameValuePair, UserIdentity

PREFIX = "/nodeapi/v1"
"""Where the service serves the node protocol."""


class AttemptKind(StrEnum):
    """What an attempt executes."""

    USER = "user"
    JOB_MANAGER = "jobManager"
    JOB_PREPARATION = "jobPreparation"
    JOB_RELEASE = "jobRelease"
    START = "start"


class StopReason(StrEnum):
    """Why an attempt is to end before its time; reasons are data (design.md §4)."""

    USER_TERMINATE = "user_terminate"
    JOB_TERMINATE = "job_terminate"
    JOB_DISABLE_REQUEUE = "job_disable_requeue"
    JOB_DISABLE_TERMINATE = "job_disable_terminate"
    TASK_DELETE = "task_delete"
    WALL_CLOCK = "wall_clock"
    DRAIN_REQUEUE = "drain_requeue"
    DRAIN_TERMINATE = "drain_terminate"
    """The node is rebooted, reimaged or disabled, and its tasks are not to run again."""
    NODE_REMOVED = "node_removed"
    PREEMPTED = "preempted"
    DISK_PRESSURE = "disk_pressure"
    """The node was running out of disk space, and this was the task that held most of it."""
    DISK_BUDGET = "disk_budget"
    """The task's directory grew beyond what a task is allowed."""
    SUPERSEDED = "superseded"


class NodeCall(BatchModel):
    """What every call of an agent carries."""

    node_id: str
    epoch: Annotated[int, Field(ge=1)]


class FileServer(BatchModel):
    """Where the service reads this node's files, and the bearer token it must show."""

    url: str
    token: str


class Register(NodeCall):
    """`POST /register`: an agent has started (or the service asked it to begin anew)."""

    pool_id: str
    instance_id: str
    """Drawn anew by each life of the agent: two agents with one epoch are told apart by it."""
    boot_id: str
    boot_time: UtcTime
    slots: Annotated[int, Field(ge=1)]
    cores: int
    agent_version: str
    hostname: str
    ip_address: str
    root_directory: str
    """The value of AZ_BATCH_NODE_ROOT_DIR."""
    file_server: FileServer
    cursor: int
    """Number of the last message that the agent has committed; 0 for none."""
    live_attempts: tuple[str, ...] = ()
    """Attempts that the agent knows and whose terminal report is not acknowledged yet."""
    reimaged: bool = False
    """Nothing of the node's former life is left, until the answer to this registration is stored."""
    command_id: str | None = None
    """The command of the service that began this life of the node, if one did."""
    is_dedicated: bool = True
    """False for a machine that may be taken away at any time: some job managers must not run there."""
    capabilities: tuple[str, ...] = ()


class ApplicationPackage(BatchModel):
    """An application package that a pool or a task refers to, as the service knows it (spec/node.md §6)."""

    application_id: str
    version: str
    """Empty only together with `problem`."""
    is_default: bool = False
    """It is what a reference without a version means: of several versions, the variables without one name it."""
    sha256: str = ""
    """Hex digest of the zip file, which the service serves at `GET /packages/<sha256>` to who shows the node key."""
    size: int = 0
    """Of the zip file, in bytes."""
    problem: str | None = None
    """Why the reference cannot be resolved (no such package, no default version): the task fails before it starts."""


class Registered(BatchModel):
    """Answer to `register`."""

    account_name: str
    account_url: str
    heartbeat_seconds: float
    lease_seconds: float
    unknown_attempts: tuple[str, ...] = ()
    """Live attempts of the agent that the service does not know or has given up: stop them, report nothing."""
    pool_packages: tuple[ApplicationPackage, ...] = ()
    """To be installed before the node asks for work."""


class WorkConstraints(BatchModel):
    """The limits that the node enforces."""

    max_wall_clock_time: Duration = UNLIMITED
    retention_time: Duration
    max_task_retry_count: int = 0
    """Applied by the node for preparation and start tasks only; by the service for all others (design.md §4)."""


class NamedUser(BatchModel):
    """A user account of the pool, as far as a node needs to know it: never its password or key."""

    name: str
    elevation_level: ElevationLevel = ElevationLevel.NON_ADMIN
    uid: int | None = None
    gid: int | None = None


class Work(BatchModel):
    """What an attempt executes, merged by the service from job and task."""

    command_line: str
    environment_settings: tuple[EnvironmentSetting, ...] = ()
    """The job's common settings and then the task's own, later ones win."""
    constraints: WorkConstraints
    user_identity: UserIdentity
    named_user: NamedUser | None = None
    """The pool's account that `user_identity` names; absent if the pool has none of that name."""
    container_settings: ContainerSettings | None = None
    resource_files: tuple[ResourceFile, ...] = ()
    output_files: tuple[OutputFile, ...] = ()
    application_packages: tuple[ApplicationPackage, ...] = ()
    """Of user and job manager tasks; those of the pool are not repeated here."""
    wait_for_success: bool = True
    """Of a preparation or start task."""
    authentication_token: str | None = Field(default=None, repr=False)
    """AZ_BATCH_AUTHENTICATION_TOKEN. The service stores it empty, and fills it in on the way to the node."""


class PreparationGate(BatchModel):
    """The preparation task of the attempt's job on this node, and whether the attempt waits for its success."""

    attempt_id: str
    """Empty if nobody waits and the node knows no such attempt any more."""
    task_id: str
    wait_for_success: bool


class Assignment(BatchModel):
    """A message: execute this attempt."""

    kind: Literal["assignment"] = "assignment"
    attempt_id: str
    attempt_kind: AttemptKind
    job_id: str
    """Empty for a start task."""
    task_id: str
    """Empty for a start task."""
    retry_count: int = 0
    system_task_version: int = 0
    required_slots: int = 1
    work: Work
    preparation: PreparationGate | None = None


class StopAttempt(BatchModel):
    """A message: end this attempt; unknown or ended attempts are ignored."""

    kind: Literal["stop"] = "stop"
    attempt_id: str
    reason: StopReason


class EndJobSession(BatchModel):
    """A message: the job is over on this node; sweep what its preparation task left running.

    Sent after the release attempt has ended, or instead of it where the job has no release task.
    """

    kind: Literal["endJobSession"] = "endJobSession"
    job_id: str


class RemoveFiles(BatchModel):
    """A message: delete the directories of these attempts (task deleted) or of the whole job (`attempt_ids` empty)."""

    kind: Literal["removeFiles"] = "removeFiles"
    job_id: str
    attempt_ids: tuple[str, ...] = ()


class ChangeRetention(BatchModel):
    """A message: the retention time of this attempt's files is another one now; it counts from the attempt's end."""

    kind: Literal["changeRetention"] = "changeRetention"
    attempt_id: str
    retention_time: Duration


class NodeCommand(BatchModel):
    """A message: reboot or reimage the node now; its tasks have ended. Obeyed once, told apart by its id."""

    kind: Literal["nodeCommand"] = "nodeCommand"
    command: Literal["reboot", "reimage"]
    command_id: str


NodeMessage = Annotated[
    Assignment | StopAttempt | EndJobSession | RemoveFiles | ChangeRetention | NodeCommand,
    Field(discriminator="kind"),
]


class NumberedMessage(BatchModel):
    """One message of a node's queue; numbers rise without end and may have gaps."""

    number: int
    message: NodeMessage


class Poll(NodeCall):
    """`POST /assignments`: acknowledge everything up to `cursor`, wait up to `wait_seconds` for what follows."""

    cursor: int
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = 30


class Messages(BatchModel):
    """Answer to `assignments`, oldest first; empty when nothing came in time."""

    messages: tuple[NumberedMessage, ...] = ()


class Transition(StrEnum):
    """What a report tells of an attempt. `COMPLETED`, `LOST` and `RETURNED` are terminal."""

    RUNNING = "running"
    """On the node and no longer waiting for preparation: downloads, launch and uploads included (spec/node.md §9).

    Sent again with a new `retry_count` when the node itself retries (preparation, start task)."""
    COMPLETED = "completed"
    LOST = "lost"
    """The outcome is not known: requeue as a recovery, never counted as a retry."""
    RETURNED = "returned"
    """Never started here, and nothing ran: give it to another node."""


TERMINAL_TRANSITIONS = frozenset({Transition.COMPLETED, Transition.LOST, Transition.RETURNED})


class Statistics(BatchModel):
    """What an execution used: seconds, bytes."""

    wall_clock_seconds: float = 0.0
    user_cpu_seconds: float = 0.0
    kernel_cpu_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None


class Sweep(BatchModel):
    """Proof of the sweep: how many processes were killed, how many remain (0, or the sweep is not over)."""

    killed: int = 0
    remaining: int = 0


class Outcome(BatchModel):
    """How an execution ended. `exit_code` only if the kernel or a trustworthy runtime gave it (invariant I3)."""

    result: ExecutionResult
    end_time: UtcTime
    exit_code: int | None = None
    """Negative for a process that a signal ended (spec/node.md §9)."""
    failure_info: FailureInfo | None = None
    stop_reason: StopReason | None = None
    """Set when the execution was ended on request or by a limit."""
    container_info: ContainerInfo | None = None
    statistics: Statistics | None = None
    sweep: Sweep | None = None


class ReturnReason(StrEnum):
    """Why an attempt was given back without having run."""

    PREPARATION_FAILED = "preparation_failed"
    DRAINING = "draining"
    STOPPED = "stopped"
    """A stop came before launch. The service knows why: it asked for it."""


class KeptLog(BatchModel):
    """The end of a task's stdout.txt or stderr.txt, for when the node can no longer be asked."""

    name: Literal["stdout.txt", "stderr.txt"]
    size: int
    """Of the whole file, in bytes."""
    modified: UtcTime
    tail: Base64Bytes
    """The last bytes of the file; all of it if it is small."""


class Report(BatchModel):
    """One transition of one attempt; `seq` counts from 1 without gaps."""

    attempt_id: str
    seq: Annotated[int, Field(ge=1)]
    transition: Transition
    at: UtcTime
    start_time: UtcTime | None = None
    """Most recent start of the execution, when downloads began."""
    retry_count: int = 0
    last_retry_time: UtcTime | None = None
    task_root_directory: str | None = None
    """Relative to the node's root directory, e.g. `workitems/myjob/job-1/mytask`."""
    outcome: Outcome | None = None
    """Of `COMPLETED` only."""
    detail: str | None = None
    """Of `LOST` and `RETURNED`: what is known, for people."""
    return_reason: ReturnReason | None = None
    logs: tuple[KeptLog, ...] = ()
    """Of `COMPLETED` only: logs that are not empty."""


class Reports(NodeCall):
    """`POST /reports`."""

    reports: tuple[Report, ...]
    cursor: int | None = None
    """Number of the last message that the agent has committed: the answer brings what follows it. None: nothing."""


class ReportStatus(StrEnum):
    """What the service did with a report."""

    APPLIED = "applied"
    ALREADY = "already"
    GAP = "gap"
    """A report before this one is missing: send from `expected` on."""
    UNKNOWN = "unknown"
    """The service does not know the attempt, or has given it up: drop its reports, stop it if it runs."""


class ReportResult(BatchModel):
    """The answer to one report."""

    attempt_id: str
    seq: int
    status: ReportStatus
    expected: int | None = None


class ReportsAnswer(BatchModel):
    """Answer to `reports`, in the order of the request."""

    results: tuple[ReportResult, ...]
    messages: tuple[NumberedMessage, ...] = ()
    """What the reports have made room for, mostly: the same messages that the next poll would bring."""


class TransferPhase(StrEnum):
    """What a task that is `running` does before or after its command."""

    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    """Application packages."""
    UPLOADING = "uploading"


class TransferProgress(BatchModel):
    """How far the transfers of one attempt are; totals are absent while they are not known."""

    attempt_id: str
    phase: TransferPhase
    files_done: int = 0
    files_total: int | None = None
    bytes_done: int = 0
    bytes_total: int | None = None


class ProgressCall(NodeCall):
    """`POST /progress`: how far all transfers are that are under way on the node; never stored.

    Sent at most once a second while something changes, and once, empty, when nothing is under way any more.
    """

    transfers: tuple[TransferProgress, ...] = ()


class ProgressAnswer(BatchModel):
    """Answer to `progress`."""


class NodeError(BatchModel):
    """Something that is wrong with a node now (spec/node.md §13)."""

    code: str
    message: str
    error_details: tuple[NameValuePair, ...] = ()


class HostStatistics(BatchModel):
    """How the node's machine fares."""

    cpu_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int


class Heartbeat(NodeCall):
    """`POST /heartbeat`: the agent lives, and these attempts are not terminal at its side."""

    cursor: int
    live_attempts: tuple[str, ...] = ()
    host: HostStatistics | None = None
    errors: tuple[NodeError, ...] = ()
    """What is wrong with the node now: while there is something, it gets no work (`unusable`)."""


class HeartbeatAnswer(BatchModel):
    """Answer to `heartbeat`."""

    register_again: bool = False
    """The service does not know this node (any more): register."""
    unknown_attempts: tuple[str, ...] = ()


class ProtocolError(BatchModel):
    """The body of a refused call.

    `code` is `Fenced` (409), `NodeNotRegistered` (409), `NodeRemoved` (409: a user took the node from its pool),
    `NodeKeyRefused` (403), `PoolNotFound` (404) or `InvalidRequestBody` (400).
    """

    code: str
    message: str
