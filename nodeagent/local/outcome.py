"""What became of a run: the document that `--json` prints and the table is made of."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from nodeagent.model.times import parse_time


class _Document(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, frozen=True, extra="forbid")


class Execution(_Document):
    """One task, or the preparation or release on one node."""

    id: str
    state: str
    result: str | None = None
    exit_code: int | None = None
    retry_count: int = 0
    start_time: str | None = None
    end_time: str | None = None
    duration_seconds: float | None = None
    node_id: str | None = None
    directory: str | None = None
    """Absolute path of the task's directory; null if it never ran."""
    failure_info: dict[str, Any] | None = None
    stderr_tail: str | None = None
    """The last lines of stderr.txt, of failures only."""
    stdout_tail: str | None = None
    """The last lines of stdout.txt, of release tasks only."""

    @property
    def succeeded(self) -> bool:
        """It ended well."""
        return self.result == "success"

    @property
    def failed(self) -> bool:
        """It ended, and not well."""
        return self.result is not None and self.result != "success"


class RunOutcome(_Document):
    """A run as a whole."""

    job_id: str
    job_state: str
    interrupted: bool
    problem: str | None
    """Why the run could not go on, if it was not the tasks' doing."""
    elapsed_seconds: float
    state_dir: str
    kept: bool
    """False with `--ephemeral`: the directories are gone."""
    nodes: dict[str, str]
    """AZ_BATCH_NODE_ROOT_DIR of each node."""
    tasks: tuple[Execution, ...]
    preparation: tuple[Execution, ...]
    release: tuple[Execution, ...]

    @property
    def succeeded(self) -> bool:
        """Every task succeeded, and so did preparation and release wherever they ran."""
        well = all(task.succeeded for task in self.tasks)
        return well and self.problem is None and not any(item.failed for item in (*self.preparation, *self.release))

    @property
    def failures(self) -> tuple[Execution, ...]:
        """All that ended and not well, in the order in which it ran."""
        return tuple(item for item in (*self.preparation, *self.tasks, *self.release) if item.failed)


def execution_of_task(task: Mapping[str, Any], roots: Mapping[str, str]) -> Execution:
    """Make the row of a task from its wire form."""
    node = task.get("nodeInfo") or {}
    info = task["executionInfo"]
    return _execution(task["id"], task["state"], info, node.get("nodeId"), node.get("taskRootDirectory"), roots)


def executions_of_special(
    statuses: Iterable[Mapping[str, Any]], key: str, task_id: str, roots: Mapping[str, str]
) -> list[Execution]:
    """Make the rows of the preparation or release (`key` names which) from the status list."""
    found = [(status["nodeId"], status[key]) for status in statuses if status.get(key) is not None]
    return [
        _execution(task_id, info["state"], info, node_id, info.get("taskRootDirectory"), roots)
        for node_id, info in found
    ]


def _execution(
    task_id: str,
    state: str,
    info: Mapping[str, Any],
    node_id: str | None,
    relative: str | None,
    roots: Mapping[str, str],
) -> Execution:
    start, end = info.get("startTime"), info.get("endTime")
    lasted = (parse_time(end) - parse_time(start)).total_seconds() if start and end else None
    return Execution(
        id=task_id,
        state=state,
        result=info.get("result"),
        exit_code=info.get("exitCode"),
        retry_count=info.get("retryCount", 0),
        start_time=start,
        end_time=end,
        duration_seconds=lasted,
        node_id=node_id,
        directory=str(Path(roots[node_id]) / relative) if node_id and node_id in roots and relative else None,
        failure_info=info.get("failureInfo"),
    )
