"""Rows of tasks. The definition is kept apart from the state, so that a change of state writes little."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from nodeagent.model.container import ContainerInfo
from nodeagent.model.enums import ExecutionResult, TaskState
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import AttemptKind
from nodeagent.model.task import TaskCreate, TaskExecutionInfo
from nodeagent.model.times import etag
from nodeagent.service.store.columns import (
    Column,
    ColumnType,
    Where,
    condition,
    from_micros,
    optional_micros,
    optional_time,
    to_micros,
)
from nodeagent.service.store.database import Row, Transaction

COLUMNS: Mapping[str, Column] = {
    "id": Column("t.key", ColumnType.ID),
    "state": Column("t.state", ColumnType.ENUM),
    "stateTransitionTime": Column("t.state_time", ColumnType.TIME),
    "creationTime": Column("t.created", ColumnType.TIME),
    "lastModified": Column("t.modified", ColumnType.TIME),
    "lastModifiedTime": Column("t.modified", ColumnType.TIME),
    "executionInfo/startTime": Column("t.start_time", ColumnType.TIME),
    "executionInfo/endTime": Column("t.end_time", ColumnType.TIME),
    "executionInfo/exitCode": Column("t.exit_code", ColumnType.INTEGER),
    "executionInfo/result": Column("t.result", ColumnType.ENUM),
}

_SELECT = """
SELECT t.num, t.job_num, t.id, t.kind, t.required_slots, t.state, t.state_time, t.previous_state,
       t.previous_state_time, t.created, t.modified, t.attempt_num, t.system_task_version, t.start_time, t.end_time,
       t.exit_code, t.result, t.container_info, t.failure_info, t.retry_count, t.last_retry_time, t.requeue_count,
       t.last_requeue_time, t.node_num, t.node_id, t.pool_id, t.task_root_directory, s.spec
FROM tasks t JOIN task_specs s ON s.task_num = t.num
"""


@lru_cache(maxsize=1024)
def parse_spec(text: str) -> TaskCreate:
    """Return the definition of a task from its stored text."""
    return TaskCreate.from_json(text)


@dataclass(frozen=True, slots=True)
class TaskNode:
    """Where a task runs, or ran last; the node may be gone (then `num` names no node)."""

    num: int
    id: str
    pool_id: str
    task_root_directory: str


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as it stands; `attempt_num` is the attempt that carries it now, `spec_text` its definition as JSON."""

    num: int
    job_num: int
    id: str
    kind: AttemptKind
    required_slots: int
    state: TaskState
    state_time: datetime
    previous_state: TaskState | None
    previous_state_time: datetime | None
    created: datetime
    modified: datetime
    attempt_num: int | None
    system_task_version: int
    execution: TaskExecutionInfo
    node: TaskNode | None
    spec_text: str

    @property
    def spec(self) -> TaskCreate:
        """The definition."""
        return parse_spec(self.spec_text)

    @property
    def etag(self) -> str:
        """The ETag of the definition: it does not move with the state."""
        return etag(self.modified)


def _execution(row: Row) -> TaskExecutionInfo:
    return TaskExecutionInfo(
        start_time=optional_time(row[13]),
        end_time=optional_time(row[14]),
        exit_code=row[15],
        result=None if row[16] is None else ExecutionResult(row[16]),
        container_info=None if row[17] is None else ContainerInfo.from_json(row[17]),
        failure_info=None if row[18] is None else FailureInfo.from_json(row[18]),
        retry_count=row[19],
        last_retry_time=optional_time(row[20]),
        requeue_count=row[21],
        last_requeue_time=optional_time(row[22]),
    )


def _row(row: Row) -> TaskRow:
    return TaskRow(
        num=row[0],
        job_num=row[1],
        id=row[2],
        kind=AttemptKind(row[3]),
        required_slots=row[4],
        state=TaskState(row[5]),
        state_time=from_micros(row[6]),
        previous_state=None if row[7] is None else TaskState(row[7]),
        previous_state_time=optional_time(row[8]),
        created=from_micros(row[9]),
        modified=from_micros(row[10]),
        attempt_num=row[11],
        system_task_version=row[12],
        execution=_execution(row),
        node=None if row[23] is None else TaskNode(row[23], row[24], row[25], row[26]),
        spec_text=row[27],
    )


def get(tx: Transaction, job_num: int, task_id: str) -> TaskRow | None:
    """Return a task of a job by its id, in any case."""
    row = tx.one(f"{_SELECT} WHERE t.job_num = ? AND t.key = ?", (job_num, task_id.lower()))
    return None if row is None else _row(row)


def by_num(tx: Transaction, num: int) -> TaskRow | None:
    """Return a task by its number."""
    row = tx.one(f"{_SELECT} WHERE t.num = ?", (num,))
    return None if row is None else _row(row)


def page(
    tx: Transaction, job_num: int, *, after: str | None = None, limit: int = 1000, where: Where | None = None
) -> list[TaskRow]:
    """Return up to `limit` tasks of a job with ids after `after`, ordered by id."""
    sql, parameters = condition(where)
    rows = tx.execute(
        f"{_SELECT} WHERE t.job_num = ? AND t.key > ?{sql} ORDER BY t.key LIMIT ?",
        (job_num, (after or "").lower(), *parameters, limit),
    )
    return [_row(row) for row in rows]


def ready(tx: Transaction, job_num: int, *, after: int = 0, max_slots: int, limit: int) -> list[TaskRow]:
    """Return the first active, unassigned tasks behind `after` that wait for no other and need at most so many slots.

    `after` is a task's number.
    """
    rows = tx.execute(
        f"{_SELECT} WHERE t.job_num = ? AND t.num > ? AND t.state = 'active' AND t.attempt_num IS NULL"
        " AND t.waits = 0 AND t.required_slots <= ? ORDER BY t.num LIMIT ?",
        (job_num, after, max_slots, limit),
    )
    return [_row(row) for row in rows]


def recent_on_node(tx: Transaction, node_num: int, limit: int = 10) -> list[tuple[str, TaskRow]]:
    """Return (job id, task) of the tasks on a node whose state changed last, newest first."""
    rows = tx.execute(
        f"{_SELECT} WHERE t.node_num = ? AND t.state <> 'active' ORDER BY t.state_time DESC, t.num DESC LIMIT ?",
        (node_num, limit),
    )
    found = [_row(row) for row in rows]
    names = {
        num: str(row[0])
        for num in {task.job_num for task in found}
        if (row := tx.one("SELECT id FROM jobs WHERE num = ?", (num,))) is not None
    }
    return [(names[task.job_num], task) for task in found if task.job_num in names]


def exists(tx: Transaction, job_num: int, task_id: str) -> bool:
    """Tell whether a job has a task of this id, in any case."""
    return tx.one("SELECT 1 FROM tasks WHERE job_num = ? AND key = ?", (job_num, task_id.lower())) is not None


def insert(tx: Transaction, job_num: int, kind: AttemptKind, spec: TaskCreate, now: datetime) -> TaskRow:
    """Add an active task; return its row. The caller counts it."""
    micros = to_micros(now)
    rows = tx.execute(
        "INSERT INTO tasks (job_num, key, id, kind, required_slots, state, state_time, created, modified)"
        " VALUES (?,?,?,?,?,?,?,?,?) RETURNING num",
        (job_num, spec.id.lower(), spec.id, kind, spec.required_slots, TaskState.ACTIVE, micros, micros, micros),
    )
    num, text = int(rows[0][0]), spec.to_json()
    tx.execute("INSERT INTO task_specs (task_num, spec) VALUES (?, ?)", (num, text))
    return TaskRow(
        num=num,
        job_num=job_num,
        id=spec.id,
        kind=kind,
        required_slots=spec.required_slots,
        state=TaskState.ACTIVE,
        state_time=now,
        previous_state=None,
        previous_state_time=None,
        created=now,
        modified=now,
        attempt_num=None,
        system_task_version=0,
        execution=TaskExecutionInfo(),
        node=None,
        spec_text=text,
    )


def replace_spec(tx: Transaction, num: int, spec: TaskCreate, modified: datetime) -> None:
    """Give a task a new definition."""
    tx.execute("UPDATE task_specs SET spec = ? WHERE task_num = ?", (spec.to_json(), num))
    tx.execute("UPDATE tasks SET modified = ? WHERE num = ?", (to_micros(modified), num))


def assign(tx: Transaction, num: int, attempt_num: int, node: TaskNode, state: TaskState, now: datetime) -> None:
    """Give a task to an attempt on a node; `state` is active or preparing."""
    tx.execute(
        "UPDATE tasks SET attempt_num = :attempt, node_num = :node_num, node_id = :node_id, pool_id = :pool_id,"
        " task_root_directory = :root,"
        " previous_state = CASE WHEN state = :state THEN previous_state ELSE state END,"
        " previous_state_time = CASE WHEN state = :state THEN previous_state_time ELSE state_time END,"
        " state_time = CASE WHEN state = :state THEN state_time ELSE :now END, state = :state WHERE num = :num",
        {
            "attempt": attempt_num,
            "node_num": node.num,
            "node_id": node.id,
            "pool_id": node.pool_id,
            "root": node.task_root_directory,
            "state": state,
            "now": to_micros(now),
            "num": num,
        },
    )


def set_running(
    tx: Transaction, num: int, *, start_time: datetime, root_directory: str | None, now: datetime
) -> tuple[TaskState, int] | None:
    """Move a task to running, or let it run again; return the state it was in and its slots, None if it is gone.

    The first start after a retry was decided is the time of that retry; later ones are recoveries (spec/node.md §9).
    """
    before = tx.one("SELECT state, required_slots FROM tasks WHERE num = ?", (num,))
    if before is None:
        return None
    tx.execute(
        "UPDATE tasks SET previous_state = CASE WHEN state = :running THEN previous_state ELSE state END,"
        " previous_state_time = CASE WHEN state = :running THEN previous_state_time ELSE state_time END,"
        " state_time = CASE WHEN state = :running THEN state_time ELSE :now END, state = :running,"
        " last_retry_time = CASE WHEN retry_count > 0 THEN coalesce(last_retry_time, :start) END,"
        " start_time = :start, task_root_directory = coalesce(:root, task_root_directory) WHERE num = :num",
        {
            "running": TaskState.RUNNING,
            "now": to_micros(now),
            "start": to_micros(start_time),
            "root": root_directory,
            "num": num,
        },
    )
    return TaskState(before[0]), int(before[1])


def set_completed(
    tx: Transaction, num: int, execution: TaskExecutionInfo, now: datetime, *, attempt_num: int | None = None
) -> None:
    """Move a task to completed: end time, exit code, result and failure are those of `execution`.

    `attempt_num` is an attempt that is still to end; it stays attached until then (`release_attempt`).
    """
    tx.execute(
        "UPDATE tasks SET previous_state = state, previous_state_time = state_time, state = ?, state_time = ?,"
        " attempt_num = ?, start_time = ?, end_time = ?, exit_code = ?, result = ?, container_info = ?,"
        " failure_info = ? WHERE num = ?",
        (
            TaskState.COMPLETED,
            to_micros(now),
            attempt_num,
            optional_micros(execution.start_time),
            optional_micros(execution.end_time),
            execution.exit_code,
            execution.result,
            None if execution.container_info is None else execution.container_info.to_json(),
            None if execution.failure_info is None else execution.failure_info.to_json(),
            num,
        ),
    )


def set_active(
    tx: Transaction,
    num: int,
    execution: TaskExecutionInfo,
    system_task_version: int,
    now: datetime,
    *,
    attempt_num: int | None = None,
) -> None:
    """Make a task active again: nothing of its last execution is shown but the counters of `execution`.

    `attempt_num` is an attempt that is still to end; the task waits for that (`release_attempt`).
    """
    tx.execute(
        "UPDATE tasks SET previous_state = CASE WHEN state = :active THEN previous_state ELSE state END,"
        " previous_state_time = CASE WHEN state = :active THEN previous_state_time ELSE state_time END,"
        " state_time = CASE WHEN state = :active THEN state_time ELSE :now END, state = :active,"
        " attempt_num = :attempt, start_time = NULL, end_time = NULL, exit_code = NULL, result = NULL,"
        " container_info = NULL, failure_info = NULL, retry_count = :retries, last_retry_time = :retried,"
        " requeue_count = :requeues, last_requeue_time = :requeued, system_task_version = :version"
        " WHERE num = :num",
        {
            "active": TaskState.ACTIVE,
            "attempt": attempt_num,
            "now": to_micros(now),
            "retries": execution.retry_count,
            "retried": optional_micros(execution.last_retry_time),
            "requeues": execution.requeue_count,
            "requeued": optional_micros(execution.last_requeue_time),
            "version": system_task_version,
            "num": num,
        },
    )


def release_attempt(tx: Transaction, num: int, attempt_num: int) -> None:
    """Cut a task from an attempt that has ended."""
    tx.execute("UPDATE tasks SET attempt_num = NULL WHERE num = ? AND attempt_num = ?", (num, attempt_num))


def add_evidence(tx: Transaction, num: int, attempt_num: int, *, exit_code: int | None, failure: FailureInfo) -> None:
    """Show of a task that was completed before its attempt ended what is known of that end.

    A task that has been reactivated since, and not run again, has nothing to do with it any longer.
    """
    tx.execute(
        "UPDATE tasks SET exit_code = ?, failure_info = ?"
        " WHERE num = ? AND attempt_num = ? AND state = 'completed' AND start_time IS NOT NULL",
        (exit_code, failure.to_json(), num, attempt_num),
    )


def set_waiting(tx: Transaction, num: int, *, waits: bool) -> None:
    """Record whether a task waits for others, and so must not be assigned."""
    tx.execute("UPDATE tasks SET waits = ? WHERE num = ?", (waits, num))


def delete(tx: Transaction, num: int) -> None:
    """Remove a task."""
    tx.execute("DELETE FROM tasks WHERE num = ?", (num,))


def delete_some(tx: Transaction, job_num: int, limit: int) -> int:
    """Remove up to `limit` tasks of a job; return how many."""
    return len(
        tx.execute(
            "DELETE FROM tasks WHERE num IN (SELECT num FROM tasks WHERE job_num = ? LIMIT ?) RETURNING num",
            (job_num, limit),
        )
    )
