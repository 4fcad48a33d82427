"""Rows of what a job did on a node: its preparation, its release, and whether the node may take its tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from nodeagent.model.container import ContainerInfo
from nodeagent.model.enums import ExecutionResult, NodeTaskState
from nodeagent.model.failure import FailureInfo
from nodeagent.model.job import JobPreparationTaskExecutionInfo, JobReleaseTaskExecutionInfo
from nodeagent.model.protocol import Outcome
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


def _execution_columns(path: str, prefix: str) -> dict[str, Column]:
    return {
        f"{path}/state": Column(f"{prefix}_state", ColumnType.ENUM),
        f"{path}/startTime": Column(f"{prefix}_start_time", ColumnType.TIME),
        f"{path}/endTime": Column(f"{prefix}_end_time", ColumnType.TIME),
        f"{path}/exitCode": Column(f"{prefix}_exit_code", ColumnType.INTEGER),
        f"{path}/result": Column(f"{prefix}_result", ColumnType.ENUM),
    }


COLUMNS: Mapping[str, Column] = {
    "poolId": Column("lower(pool_id)", ColumnType.ID),
    "nodeId": Column("node_key", ColumnType.ID),
    **_execution_columns("jobPreparationTaskExecutionInfo", "prep"),
    **_execution_columns("jobReleaseTaskExecutionInfo", "release"),
}

_SELECT = """
SELECT job_num, node_num, node_id, pool_id, ineligible, had_task, session_ended, prep_needed,
       prep_attempt, prep_state, prep_start_time, prep_end_time, prep_exit_code, prep_result, prep_container_info,
       prep_failure_info, prep_root_directory, prep_retry_count, prep_last_retry_time,
       release_attempt, release_state, release_start_time, release_end_time, release_exit_code, release_result,
       release_container_info, release_failure_info, release_root_directory
FROM job_nodes
"""


class Progress(IntEnum):
    """How far a job has come on a node since the node was last as new: what its release depends on."""

    NOTHING = 0
    ASSIGNED = 1
    """A task of the job was sent there."""
    PREPARED = 2
    """The preparation task has succeeded there, for a task that was sent."""
    RAN = 3
    """A task of the job has run there."""


@dataclass(frozen=True, slots=True)
class JobNodeRow:
    """A job on a node, which may be gone. `task_root_directory_url` is left for the REST side to fill in.

    `prep_cut_off`: the preparation was lost while it ran, so the next one goes on with its retries.
    """

    job_num: int
    node_num: int
    node_id: str
    pool_id: str
    ineligible: bool
    progress: Progress
    session_ended: bool
    prep_needed: bool
    prep_cut_off: bool
    prep_attempt: str | None
    preparation: JobPreparationTaskExecutionInfo | None
    release_attempt: str | None
    release: JobReleaseTaskExecutionInfo | None

    @property
    def prepared(self) -> bool:
        """Whether the preparation task has completed here, and need not run again."""
        return (
            self.preparation is not None and self.preparation.state is NodeTaskState.COMPLETED and not self.prep_needed
        )

    @property
    def to_be_released(self) -> bool:
        """Whether the release task runs here when the job ends (spec/node.md §11).

        The preparation task ran and completed; and it succeeded, or tasks of the job have run beside or after it.
        """
        completed = self.preparation is not None and self.preparation.state is NodeTaskState.COMPLETED
        return completed and self.progress >= Progress.PREPARED


_CUT_OFF = 2
"""In `prep_needed`, which is otherwise 0 or 1."""


def _row(row: Row) -> JobNodeRow:
    return JobNodeRow(
        job_num=row[0],
        node_num=row[1],
        node_id=row[2],
        pool_id=row[3],
        ineligible=bool(row[4]),
        progress=Progress(row[5]),
        session_ended=bool(row[6]),
        prep_needed=bool(row[7]),
        prep_cut_off=row[7] == _CUT_OFF,
        prep_attempt=row[8],
        preparation=None if row[9] is None else _preparation(row[9:19]),
        release_attempt=row[19],
        release=None if row[20] is None else _release(row[20:28]),
    )


def _preparation(row: Row) -> JobPreparationTaskExecutionInfo:
    return JobPreparationTaskExecutionInfo(
        state=NodeTaskState(row[0]),
        start_time=from_micros(row[1]),
        end_time=optional_time(row[2]),
        exit_code=row[3],
        result=None if row[4] is None else ExecutionResult(row[4]),
        container_info=None if row[5] is None else ContainerInfo.from_json(row[5]),
        failure_info=None if row[6] is None else FailureInfo.from_json(row[6]),
        task_root_directory=row[7],
        retry_count=row[8],
        last_retry_time=optional_time(row[9]),
    )


def _release(row: Row) -> JobReleaseTaskExecutionInfo:
    return JobReleaseTaskExecutionInfo(
        state=NodeTaskState(row[0]),
        start_time=from_micros(row[1]),
        end_time=optional_time(row[2]),
        exit_code=row[3],
        result=None if row[4] is None else ExecutionResult(row[4]),
        container_info=None if row[5] is None else ContainerInfo.from_json(row[5]),
        failure_info=None if row[6] is None else FailureInfo.from_json(row[6]),
        task_root_directory=row[7],
    )


def get(tx: Transaction, job_num: int, node_num: int) -> JobNodeRow | None:
    """Return what a job did on a node."""
    row = tx.one(f"{_SELECT} WHERE job_num = ? AND node_num = ?", (job_num, node_num))
    return None if row is None else _row(row)


def of_job(tx: Transaction, job_num: int) -> list[JobNodeRow]:
    """Return every node that a job was on, ordered by node id."""
    rows = tx.execute(f"{_SELECT} WHERE job_num = ? ORDER BY node_key, node_num", (job_num,))
    return [_row(row) for row in rows]


def of_node(tx: Transaction, node_num: int) -> list[JobNodeRow]:
    """Return every job that was on a node."""
    return [_row(row) for row in tx.execute(f"{_SELECT} WHERE node_num = ? ORDER BY job_num", (node_num,))]


def page(
    tx: Transaction, job_num: int, *, after: str | None = None, limit: int = 1000, where: Where | None = None
) -> list[JobNodeRow]:
    """Return up to `limit` nodes where the preparation or release task of a job ran, ordered by node id.

    A node id may appear twice if a node was removed and another took its id; `after` is `<node id>` or
    `<node id>/<node number>` (`cursor` makes it).
    """
    sql, parameters = condition(where)
    node, _, number = (after or "").partition("/")
    rows = tx.execute(
        f"{_SELECT} WHERE job_num = ? AND prep_state IS NOT NULL AND (node_key > ? OR (node_key = ? AND node_num > ?))"
        f"{sql} ORDER BY node_key, node_num LIMIT ?",
        (
            job_num,
            node.lower(),
            node.lower(),
            int(number) if number.isascii() and number.isdigit() and len(number) < 19 else 1 << 62,
            *parameters,
            limit,
        ),
    )
    return [_row(row) for row in rows]


def cursor(row: JobNodeRow) -> str:
    """Return the `after` of the page that follows a row."""
    return f"{row.node_id}/{row.node_num}"


def ineligible_nodes(tx: Transaction, job_num: int) -> frozenset[int]:
    """Return the numbers of the nodes that may not take tasks of a job."""
    rows = tx.execute("SELECT node_num FROM job_nodes WHERE job_num = ? AND ineligible = 1", (job_num,))
    return frozenset(row[0] for row in rows)


def ensure(tx: Transaction, job_num: int, node_num: int, node_id: str, pool_id: str) -> JobNodeRow:
    """Return the row of a job on a node, made if it is missing, and record that a task of the job goes there."""
    tx.execute(
        "INSERT INTO job_nodes (job_num, node_num, node_key, node_id, pool_id, had_task) VALUES (?,?,?,?,?,1)"
        " ON CONFLICT (job_num, node_num) DO UPDATE SET had_task = max(had_task, 1)",
        (job_num, node_num, node_id.lower(), node_id, pool_id),
    )
    row = tx.one(f"{_SELECT} WHERE job_num = ? AND node_num = ?", (job_num, node_num))
    if row is None:
        raise LookupError("a row that was just inserted is not there")
    return _row(row)


def reach(tx: Transaction, job_num: int, node_num: int, progress: Progress) -> None:
    """Record how far a job has come on a node; it does not go back but by `forget_node`."""
    tx.execute(
        "UPDATE job_nodes SET had_task = :progress WHERE job_num = :job AND node_num = :node AND had_task < :progress",
        {"progress": int(progress), "job": job_num, "node": node_num},
    )


def begin_preparation(tx: Transaction, job_num: int, node_num: int, attempt_id: str) -> None:
    """Record the attempt that prepares a node."""
    tx.execute(
        "UPDATE job_nodes SET prep_attempt = ?, prep_needed = 0 WHERE job_num = ? AND node_num = ?",
        (attempt_id, job_num, node_num),
    )


# an execution that goes on with the retries of one that was cut off does not know when the last of them began
_RETRIES = (
    "prep_root_directory = coalesce(?, prep_root_directory), prep_retry_count = ?,"
    " prep_last_retry_time = CASE WHEN ? > 0 THEN coalesce(?, prep_last_retry_time) END"
)


def preparation_running(
    tx: Transaction,
    row: JobNodeRow,
    *,
    start_time: datetime,
    root_directory: str | None,
    retry_count: int,
    last_retry_time: datetime | None,
) -> None:
    """Show the preparation task as running on a node, for the first time or again."""
    tx.execute(
        "UPDATE job_nodes SET prep_state = 'running', prep_start_time = ?, prep_end_time = NULL, prep_exit_code = NULL,"  # noqa: S608 - a constant
        " prep_result = NULL, prep_container_info = NULL, prep_failure_info = NULL,"
        f" {_RETRIES} WHERE job_num = ? AND node_num = ?",
        (
            to_micros(start_time),
            root_directory,
            retry_count,
            retry_count,
            optional_micros(last_retry_time),
            row.job_num,
            row.node_num,
        ),
    )


def preparation_completed(
    tx: Transaction,
    row: JobNodeRow,
    outcome: Outcome,
    *,
    start_time: datetime,
    root_directory: str | None,
    retry_count: int,
    last_retry_time: datetime | None,
) -> None:
    """Show the preparation task as completed on a node."""
    tx.execute(
        "UPDATE job_nodes SET prep_state = 'completed', prep_start_time = ?, prep_end_time = ?, prep_exit_code = ?,"  # noqa: S608 - a constant
        " prep_result = ?, prep_container_info = ?, prep_failure_info = ?,"
        f" {_RETRIES} WHERE job_num = ? AND node_num = ?",
        (
            to_micros(start_time),
            *_ended(outcome),
            root_directory,
            retry_count,
            retry_count,
            optional_micros(last_retry_time),
            row.job_num,
            row.node_num,
        ),
    )


def set_ineligible(tx: Transaction, row: JobNodeRow) -> None:
    """Give a node no more tasks of a job."""
    tx.execute("UPDATE job_nodes SET ineligible = 1 WHERE job_num = ? AND node_num = ?", (row.job_num, row.node_num))


def need_preparation(tx: Transaction, row: JobNodeRow) -> None:
    """Run the preparation task again before the next task of the job on a node."""
    tx.execute(
        "UPDATE job_nodes SET prep_needed = 1, prep_attempt = NULL WHERE job_num = ? AND node_num = ?",
        (row.job_num, row.node_num),
    )


def forget_node(tx: Transaction, node_num: int) -> None:
    """A node was reimaged: nothing of any job is there any more, so every one prepares it again, and none releases it.

    What the tasks did there before stays to be seen (spec/node.md §11).
    """
    tx.execute(
        "UPDATE job_nodes SET prep_needed = 1, prep_attempt = NULL, ineligible = 0, had_task = 0 WHERE node_num = ?",
        (node_num,),
    )


def preparation_lost(tx: Transaction, row: JobNodeRow, *, cut_off: bool) -> None:
    """Forget the attempt of a preparation whose end is not known: another runs before the job's next task there.

    `cut_off`: it had begun.
    """
    tx.execute(
        "UPDATE job_nodes SET prep_needed = ?, prep_attempt = NULL, ineligible = 0 WHERE job_num = ? AND node_num = ?",
        (_CUT_OFF if cut_off else 1, row.job_num, row.node_num),
    )


def begin_release(tx: Transaction, row: JobNodeRow, attempt_id: str) -> None:
    """Record the attempt that releases a node."""
    tx.execute(
        "UPDATE job_nodes SET release_attempt = ? WHERE job_num = ? AND node_num = ?",
        (attempt_id, row.job_num, row.node_num),
    )


def release_running(tx: Transaction, row: JobNodeRow, *, start_time: datetime, root_directory: str | None) -> None:
    """Show the release task as running on a node, for the first time or again."""
    tx.execute(
        "UPDATE job_nodes SET release_state = 'running', release_start_time = ?, release_end_time = NULL,"
        " release_exit_code = NULL, release_result = NULL, release_container_info = NULL, release_failure_info = NULL,"
        " release_root_directory = coalesce(?, release_root_directory) WHERE job_num = ? AND node_num = ?",
        (to_micros(start_time), root_directory, row.job_num, row.node_num),
    )


def release_completed(
    tx: Transaction, row: JobNodeRow, outcome: Outcome, *, start_time: datetime, root_directory: str | None
) -> None:
    """Show the release task as completed on a node."""
    tx.execute(
        "UPDATE job_nodes SET release_state = 'completed', release_start_time = ?, release_end_time = ?,"
        " release_exit_code = ?, release_result = ?, release_container_info = ?, release_failure_info = ?,"
        " release_root_directory = coalesce(?, release_root_directory) WHERE job_num = ? AND node_num = ?",
        (to_micros(start_time), *_ended(outcome), root_directory, row.job_num, row.node_num),
    )


def end_session(tx: Transaction, row: JobNodeRow) -> None:
    """Record that the node was told that the job is over."""
    tx.execute("UPDATE job_nodes SET session_ended = 1 WHERE job_num = ? AND node_num = ?", (row.job_num, row.node_num))


def _ended(outcome: Outcome) -> tuple[object, ...]:
    return (
        to_micros(outcome.end_time),
        outcome.exit_code,
        outcome.result,
        None if outcome.container_info is None else outcome.container_info.to_json(),
        None if outcome.failure_info is None else outcome.failure_info.to_json(),
    )
