"""Rows of start tasks: how the one of its pool stands on each node since the node began (spec/node.md §10)."""

from dataclasses import dataclass

from nodeagent.model.enums import ExecutionResult
from nodeagent.model.node import StartTaskInfo
from nodeagent.model.pool import StartTask
from nodeagent.service.store.database import Row, Transaction

_SELECT = "SELECT node_num, attempt_id, message_number, spec, completed, last_seq, tries, info FROM start_tasks"


@dataclass(frozen=True, slots=True)
class StartTaskRow:
    """A start task on a node; `info` is absent until the node has reported that it runs."""

    node_num: int
    attempt_id: str
    message_number: int
    spec: StartTask
    """As the pool had it when this execution was assigned: a change applies when the node begins anew."""
    completed: bool
    last_seq: int
    tries: int
    """How often it was assigned since the node began: an execution whose end nobody knows is repeated."""
    info: StartTaskInfo | None

    @property
    def holds_up(self) -> bool:
        """Whether the node must take no task because of it: it has not succeeded, and success is waited for."""
        return self.spec.wait_for_success and not self.succeeded

    @property
    def succeeded(self) -> bool:
        """Whether it has completed with success."""
        return self.completed and self.info is not None and self.info.result is ExecutionResult.SUCCESS


def _row(row: Row) -> StartTaskRow:
    return StartTaskRow(
        node_num=row[0],
        attempt_id=row[1],
        message_number=row[2],
        spec=StartTask.from_json(row[3]),
        completed=bool(row[4]),
        last_seq=row[5],
        tries=row[6],
        info=None if row[7] is None else StartTaskInfo.from_json(row[7]),
    )


def of_node(tx: Transaction, node_num: int) -> StartTaskRow | None:
    """Return the start task of a node, if its pool had one when the node began."""
    row = tx.one(f"{_SELECT} WHERE node_num = ?", (node_num,))
    return None if row is None else _row(row)


def by_attempt(tx: Transaction, attempt_id: str) -> StartTaskRow | None:
    """Return the start task that is executed under an attempt."""
    row = tx.one(f"{_SELECT} WHERE attempt_id = ?", (attempt_id,))
    return None if row is None else _row(row)


def put(tx: Transaction, row: StartTaskRow) -> None:
    """Store how a start task stands on its node, in place of what was there."""
    tx.execute(
        "INSERT OR REPLACE INTO start_tasks (node_num, attempt_id, message_number, spec, completed, last_seq, tries,"
        " info) VALUES (?,?,?,?,?,?,?,?)",
        (
            row.node_num,
            row.attempt_id,
            row.message_number,
            row.spec.to_json(),
            row.completed,
            row.last_seq,
            row.tries,
            None if row.info is None else row.info.to_json(),
        ),
    )


def forget(tx: Transaction, node_num: int) -> None:
    """Forget the start task of a node."""
    tx.execute("DELETE FROM start_tasks WHERE node_num = ?", (node_num,))
