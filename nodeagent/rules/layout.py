"""Where things lie below AZ_BATCH_NODE_ROOT_DIR (spec/node.md §1). Pure path arithmetic: nothing is created here."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STARTUP = "startup"
SHARED = "shared"
WORK_ITEMS = "workitems"


def job_directory(job_id: str) -> str:
    """Return the job's directory relative to the node root.

    A job of a schedule, `<schedule>:job-<n>`, lies below its schedule; every other below `job-1`.
    """
    schedule, colon, instance = job_id.partition(":")
    return f"{WORK_ITEMS}/{schedule}/{instance}" if colon else f"{WORK_ITEMS}/{job_id}/job-1"


def task_directory(job_id: str, task_id: str) -> str:
    """Return `workitems/<job>/job-1/<task>`: what `nodeInfo.taskRootDirectory` shows."""
    return f"{job_directory(job_id)}/{task_id}"


def earlier_attempt_directory(directory: str, number: int) -> str:
    """Return where the `number`-th (from 1) earlier attempt of a task's directory is kept, beside the newest.

    `~` is no character of an id, so that no task's directory can have this name.
    """
    return f"{directory}~{number}"


@dataclass(frozen=True, slots=True)
class TaskPaths:
    """The directory of one execution. All paths are absolute but `relative`, which is below the node root."""

    relative: str
    root: Path
    wd: Path
    stdout: Path
    stderr: Path
    certificates: Path
    error_file: Path
    """NODEAGENT_ERROR_FILE: where a task may say in its own words why it failed."""


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """The tree below the node root."""

    root: Path

    @property
    def shared(self) -> Path:
        """AZ_BATCH_NODE_SHARED_DIR."""
        return self.root / SHARED

    @property
    def startup(self) -> Path:
        """AZ_BATCH_NODE_STARTUP_DIR: the start task's directory."""
        return self.root / STARTUP

    @property
    def applications(self) -> Path:
        """Where application packages are installed."""
        return self.root / "applications"

    @property
    def mounts(self) -> Path:
        """AZ_BATCH_NODE_MOUNTS_DIR."""
        return self.root / "fsmounts"

    @property
    def volatile(self) -> Path:
        """The agent's own things; nobody may rely on them."""
        return self.root / "volatile"

    @property
    def work_items(self) -> Path:
        """The directories of all jobs."""
        return self.root / WORK_ITEMS

    def top_level(self) -> tuple[Path, ...]:
        """Return the directories that every node has from its first start on."""
        return (self.applications, self.mounts, self.shared, self.startup, self.volatile, self.work_items)

    def task(self, job_id: str, task_id: str) -> TaskPaths:
        """Return the paths of a task, preparation or release task; with an empty job id, of the start task."""
        return _task_paths(self.root, job_id, task_id)


@lru_cache(maxsize=1024)  # asked several times per task, and paths are slow to make
def _task_paths(node_root: Path, job_id: str, task_id: str) -> TaskPaths:
    relative = task_directory(job_id, task_id) if job_id else STARTUP
    root = node_root / relative
    return TaskPaths(
        relative=relative,
        root=root,
        wd=root / "wd",
        stdout=root / "stdout.txt",
        stderr=root / "stderr.txt",
        certificates=root / "certs",
        error_file=root / "error.txt",
    )
