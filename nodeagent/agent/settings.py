"""What an agent can be told; the command line merges it from file, environment and flags (docs/configuration.md)."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from nodeagent.model.values import BatchId

LEAST_BALLAST_BYTES = 1 << 20
"""What a few records and transactions need."""


class AgentSettings(BaseModel):
    """The settings of one agent. Paths are made absolute by the agent; durations are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    service: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+(/.*)?$")] = "http://127.0.0.1:8190"
    """URL of the service that gives this node its work, e.g. `http://10.0.0.5:8190`."""
    service_ca_file: Path | None = None
    """Certificates (PEM) of the authorities that an https `service` may be signed by; default: the system's."""
    node_key_file: Path | None = None
    """File with the key that nodes show to the service (one line); required unless `node_key` is given."""
    node_key: SecretStr | None = None
    """The key itself, for where no file can be mounted; the file is safer."""
    pool: BatchId = "local"
    """Id of the pool that the node joins."""
    node: BatchId = "node-1"
    """Id of this node, unique in its pool."""
    slots: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """Task slots: how many tasks of one slot run at a time. Default: the number of cores."""
    state_dir: Path = Path("/var/lib/nodeagent/agent")
    """The agent's own folder (0700): identity, database, records of attempts. Outside `root`."""
    root: Path = Path("/var/lib/nodeagent/tasks")
    """AZ_BATCH_NODE_ROOT_DIR: where tasks live."""
    is_dedicated: bool = True
    """AZ_BATCH_NODE_IS_DEDICATED: false for a machine that may be taken away at any time."""
    reserved_disk_bytes: Annotated[int, Field(ge=0)] = 1_000_000
    """AZ_BATCH_TASK_RESERVED_EPHEMERAL_DISK_SPACE_BYTES."""
    runtime: Literal["process", "zero"] = "process"
    """`process` runs tasks; `zero` runs nothing and says that all went well: it measures the agent's own cost."""
    boundary: Literal["auto", "cgroup2", "cgroup1", "process_group"] = "auto"
    """What contains a task's processes; `auto` takes the best that works here."""
    cgroup_parent: str | None = None
    """Cgroup directory (absolute path) below which boundaries are made; default: the agent's own, if writable."""
    durability: Literal["process", "power"] = "process"
    """What a task's exit record survives: the death of any process, or a power cut too (fsync per task)."""
    grace_seconds: Annotated[float, Field(ge=0)] = 10
    """From SIGTERM to SIGKILL when a task is ended."""
    stderr_tail: bool = True
    """Whether a failure tells the last 4 KiB of the task's stderr; false if tasks may print what must stay here."""
    memory_bytes_per_slot: Annotated[int, Field(ge=1 << 20)] | None = None
    """Memory of a task per slot that it takes, page cache included; needs the cgroup controller `memory`."""
    cpu_cores_per_slot: Annotated[float, Field(ge=0.01)] | None = None
    """Processor time of a task per slot that it takes, in cores; needs the cgroup controller `cpu`."""
    pids_per_task: Annotated[int, Field(ge=1)] | None = None
    """Processes and threads that a task may have at a time; needs the cgroup controller `pids`."""
    open_files_per_task: Annotated[int, Field(ge=16)] | None = None
    """Soft limit of open files of each process of a task."""
    output_head_bytes: Annotated[int, Field(ge=0)] | None = None
    """Cap of stdout.txt and stderr.txt: how much of their beginning is kept. No cap if neither this nor the tail is
    given."""
    output_tail_bytes: Annotated[int, Field(ge=0)] | None = None
    """How much of the end of capped output is kept."""
    disk_bytes_per_task: Annotated[int, Field(ge=1 << 20)] | None = None
    """A task whose directory takes more is ended with `DiskFull`."""
    disk_check_seconds: Annotated[float, Field(gt=0)] = 5
    """How often the directories of running tasks are measured, if a limit of disk space is set."""
    disk_soft_free_bytes: Annotated[int, Field(ge=0)] | None = None
    """With less free space no task begins: those assigned wait."""
    disk_hard_free_bytes: Annotated[int, Field(ge=0)] | None = None
    """With less free space the task that holds most is ended with `DiskFull`, and its files are removed."""
    ballast_bytes: Annotated[int, Field(ge=0)] = 0
    """Size of a file in `state_dir` that is only there to be removed when the disk is full."""
    cleanup_seconds: Annotated[float, Field(gt=0)] = 60
    """How often the agent looks for task directories whose retention time is over."""
    cleanup_free_bytes: Annotated[int, Field(ge=0)] | None = None
    """With less free space the cache and files of ended tasks go before their retention time is over, oldest first."""
    cleanup_free_inodes: Annotated[int, Field(ge=0)] | None = None
    """The same for free inodes of the file system of `root`."""
    transfers: Annotated[int, Field(ge=1, le=256)] = 8
    """Downloads and uploads in flight at a time, over all tasks; a range of a large file counts as one."""
    range_bytes: Annotated[int, Field(ge=1 << 16)] = 8 << 20
    """Files larger than this are downloaded in ranges of this size, side by side, where the server allows it."""
    transfer_tries: Annotated[int, Field(ge=1)] = 5
    """How often a request of a transfer is made before it counts as failed, if trying again may help."""
    transfer_idle_seconds: Annotated[float, Field(gt=0)] = 60
    """A transfer that moves no byte for so long is cut, and tried again."""
    transfer_seconds: Annotated[float, Field(gt=0)] = 3600
    """Deadline of one file's transfer, all tries included."""
    cache_bytes: Annotated[int, Field(ge=0)] | None = None
    """Size of the cache of downloaded files; 0 for none, default: a tenth of the file system of `root`."""
    cache_verify: Literal["stat", "content"] = "stat"
    """What is compared before a cached file is used: size, times and inode, or the checksum of its bytes too."""
    identity_endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+(/.*)?$")] = (
        "http://169.254.169.254/metadata/identity/oauth2/token"
    )
    """Where the node gets tokens of its managed identities: the Azure instance metadata service, or one like it."""
    live_logs_seconds: Annotated[float, Field(ge=1)] | None = None
    """How often logs that outputFiles name are uploaded while the task runs; default: never."""
    kept_log_bytes: Annotated[int, Field(ge=0, le=1 << 20)] = 65536
    """How much of the end of stdout.txt and stderr.txt the service keeps for when the node is gone; 0: none."""
    package_bytes: Annotated[int, Field(ge=1 << 20)] = 16 << 30
    """An application package that unpacks to more is refused."""
    accounts: Literal["auto", "uids", "none"] = "auto"
    """`uids`: tasks run as uids of `uid_range` (needs root); `none`: as the agent's user; `auto`: `uids` for root."""
    uid_range: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (60720, 61183)
    """First and last of the uids that tasks run as, this agent's alone on its machine: at least `slots` + 1."""
    gid: Annotated[int, Field(ge=1)] | None = None
    """Group of the pool's auto user, to which directories of tasks belong; default: the number of its uid."""
    reboot_command: tuple[str, ...] = ()
    """What reboots this machine, e.g. `["systemctl", "reboot"]`; without one a reboot only ends all that runs."""
    reimage_command: tuple[str, ...] = ()
    """What brings this machine back to its image; without one a reimage removes all files of the node."""
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = 30
    """How long the service may hold a request for work before it answers "nothing"."""
    call_seconds: Annotated[float, Field(gt=0)] = 30
    """Deadline of every other call to the service; for a request for work it is added to `poll_seconds`."""
    retry_seconds: Annotated[float, Field(gt=0)] = 15
    """Longest pause between two tries while the service cannot be reached."""
    file_server_host: str = "127.0.0.1"
    """Address that the file server listens on."""
    file_server_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the file server; 0 takes a free one."""
    advertise_host: str | None = None
    """Host name or address under which the service reaches the file server; default: `file_server_host`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.node_key is None) == (self.node_key_file is None):
            raise ValueError("exactly one of node_key_file and node_key must be given")
        first, last = self.uid_range
        if last - first < self.slots:
            raise ValueError("uid_range must have a uid for the pool's auto user and one for each slot, lowest first")
        if self.gid is not None and first < self.gid <= last:
            raise ValueError("gid must not be of uid_range: each task's user has a group of its own number")
        state, root = self.state_dir.absolute(), self.root.absolute()
        if state == root or state.is_relative_to(root) or root.is_relative_to(state):
            raise ValueError("state_dir and root must not contain each other: tasks could read the agent's state")
        soft, hard = self.disk_soft_free_bytes, self.disk_hard_free_bytes
        if soft is not None and hard is not None and soft < hard:
            raise ValueError("disk_soft_free_bytes must not be less than disk_hard_free_bytes")
        if hard is not None and self.ballast_bytes < LEAST_BALLAST_BYTES:
            raise ValueError(
                "disk_hard_free_bytes needs ballast_bytes of at least 1048576, or a task's end has no room"
            )
        return self
