"""The absolute URLs of entities, under the address that the caller used (spec/rest.md §1.3)."""

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Links:
    """`base` is scheme and authority, without a slash at the end."""

    base: str

    def metadata(self, fragment: str) -> str:
        """Return the value of `odata.metadata`."""
        return f"{self.base}/$metadata#{fragment}"

    def pools(self) -> str:
        """Return the URL of the list of pools."""
        return f"{self.base}/pools"

    def pool(self, pool_id: str) -> str:
        """Return the URL of a pool."""
        return f"{self.base}/pools/{_segment(pool_id)}"

    def node(self, pool_id: str, node_id: str) -> str:
        """Return the URL of a node."""
        return f"{self.pool(pool_id)}/nodes/{_segment(node_id)}"

    def node_file(self, pool_id: str, node_id: str, path: str) -> str:
        """Return the URL of a file of a node; `path` is relative to the node's root."""
        return f"{self.node(pool_id, node_id)}/files/{_file(path)}"

    def jobs(self) -> str:
        """Return the URL of the list of jobs."""
        return f"{self.base}/jobs"

    def job(self, job_id: str) -> str:
        """Return the URL of a job."""
        return f"{self.base}/jobs/{_segment(job_id)}"

    def job_schedules(self) -> str:
        """Return the URL of the list of job schedules."""
        return f"{self.base}/jobschedules"

    def job_schedule(self, schedule_id: str) -> str:
        """Return the URL of a job schedule."""
        return f"{self.base}/jobschedules/{_segment(schedule_id)}"

    def tasks(self, job_id: str) -> str:
        """Return the URL of the list of a job's tasks."""
        return f"{self.job(job_id)}/tasks"

    def task(self, job_id: str, task_id: str) -> str:
        """Return the URL of a task."""
        return f"{self.job(job_id)}/tasks/{_segment(task_id)}"

    def task_file(self, job_id: str, task_id: str, path: str) -> str:
        """Return the URL of a file of a task; `path` is relative to the task's directory."""
        return f"{self.task(job_id, task_id)}/files/{_file(path)}"


def _segment(text: str) -> str:
    return quote(text, safe=":")


def _file(path: str) -> str:
    """A name need not be UTF-8: bytes that are not are surrogates here (`os.fsdecode`), and encoded as they are."""
    return quote(path, safe="/~", errors="surrogateescape")
