"""Rows of attempts: each execution of something on a node, under an id made by the service."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from nodeagent.model.protocol import AttemptKind, Outcome, StopReason
from nodeagent.service.store.columns import from_micros, optional_time, to_micros
from nodeagent.service.store.database import Row, Transaction


class AttemptState(StrEnum):
    """How an attempt stands at the service. `COMPLETED`, `LOST`, `RETURNED` and `GIVEN_UP` are terminal."""

    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    LOST = "lost"
    RETURNED = "returned"
    GIVEN_UP = "given_up"
    """The service stopped waiting for the node: later reports are unknown to it."""


LIVE = frozenset({AttemptState.ASSIGNED, AttemptState.RUNNING})
TASK_KINDS = frozenset({AttemptKind.USER, AttemptKind.JOB_MANAGER})
"""Kinds that are tasks of the job, hold slots and count on the node."""

_SELECT = """
SELECT a.num, a.id, a.kind, a.job_num, a.task_num, a.task_key, a.node_num, a.message_number, a.state, a.last_seq,
       a.slots, a.slots_held, a.stop_reason, a.detached, a.remove_files, a.assigned, a.start_time, a.end_time
FROM attempts a
"""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """An attempt as it stands. `slots` is what it takes of a node, `slots_held` what it holds now.

    `detached`: its task no longer waits for it (terminated or deleted); only its slots and processes still count.
    """

    num: int
    id: str
    kind: AttemptKind
    job_num: int
    task_num: int | None
    task_key: str
    node_num: int
    message_number: int | None
    state: AttemptState
    last_seq: int
    slots: int
    slots_held: int
    stop_reason: StopReason | None
    detached: bool
    remove_files: bool
    assigned: datetime
    start_time: datetime | None
    end_time: datetime | None

    @property
    def live(self) -> bool:
        """Whether the service waits for its end."""
        return self.state in LIVE


def _row(row: Row) -> AttemptRow:
    return AttemptRow(
        num=row[0],
        id=row[1],
        kind=AttemptKind(row[2]),
        job_num=row[3],
        task_num=row[4],
        task_key=row[5],
        node_num=row[6],
        message_number=row[7],
        state=AttemptState(row[8]),
        last_seq=row[9],
        slots=row[10],
        slots_held=row[11],
        stop_reason=None if row[12] is None else StopReason(row[12]),
        detached=bool(row[13]),
        remove_files=bool(row[14]),
        assigned=from_micros(row[15]),
        start_time=optional_time(row[16]),
        end_time=optional_time(row[17]),
    )


def new_id(now: datetime) -> str:
    """Draw an attempt id: ids that are drawn later sort later, and no two services draw the same."""
    return f"{to_micros(now) // 1000:011x}{secrets.token_hex(6)}"


def get(tx: Transaction, attempt_id: str) -> AttemptRow | None:
    """Return an attempt by its id."""
    row = tx.one(f"{_SELECT} WHERE a.id = ?", (attempt_id,))
    return None if row is None else _row(row)


def by_num(tx: Transaction, num: int) -> AttemptRow | None:
    """Return an attempt by its number."""
    row = tx.one(f"{_SELECT} WHERE a.num = ?", (num,))
    return None if row is None else _row(row)


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """An attempt that is about to be assigned; `slots` is what it takes of its node."""

    id: str
    kind: AttemptKind
    job_num: int
    task_num: int | None
    task_key: str
    node_num: int
    slots: int
    message_number: int


def insert(tx: Transaction, new: NewAttempt, now: datetime) -> int:
    """Add an attempt that holds its slots; return its number."""
    rows = tx.execute(
        "INSERT INTO attempts (id, kind, job_num, task_num, task_key, node_num, message_number, state, slots,"
        " slots_held, assigned) VALUES (?,?,?,?,?,?,?,?,?,?,?) RETURNING num",
        (
            new.id,
            new.kind,
            new.job_num,
            new.task_num,
            new.task_key,
            new.node_num,
            new.message_number,
            AttemptState.ASSIGNED,
            new.slots,
            new.slots,
            to_micros(now),
        ),
    )
    return int(rows[0][0])


def set_message(tx: Transaction, num: int, message_number: int) -> None:
    """Record another message as the one that its node must have fetched before it can say anything of an attempt."""
    tx.execute("UPDATE attempts SET message_number = ? WHERE num = ?", (message_number, num))


def set_seq(tx: Transaction, num: int, seq: int) -> None:
    """Record the last report that was applied."""
    tx.execute("UPDATE attempts SET last_seq = ? WHERE num = ?", (seq, num))


def set_running(tx: Transaction, num: int, *, seq: int, start_time: datetime) -> None:
    """Record that an attempt runs, for the first time or again, and the report that said so."""
    tx.execute(
        "UPDATE attempts SET state = ?, last_seq = ?, start_time = ? WHERE num = ?",
        (AttemptState.RUNNING, seq, to_micros(start_time), num),
    )


def set_ended(
    tx: Transaction, num: int, state: AttemptState, *, outcome: Outcome | None, slots_held: int, now: datetime
) -> None:
    """Record the end of an attempt; `slots_held` is what it goes on holding (of given up attempts)."""
    tx.execute(
        "UPDATE attempts SET state = ?, end_time = ?, outcome = ?, slots_held = ? WHERE num = ?",
        (state, to_micros(now), None if outcome is None else outcome.to_json(), slots_held, num),
    )


def free_slots(tx: Transaction, num: int) -> None:
    """Record that a given up attempt is gone from its node; if its job is gone too, so is its row."""
    tx.execute("UPDATE attempts SET slots_held = 0 WHERE num = ?", (num,))
    tx.execute("DELETE FROM attempts WHERE num = ? AND job_num NOT IN (SELECT num FROM jobs)", (num,))


def request_stop(tx: Transaction, num: int, reason: StopReason) -> None:
    """Record why an attempt is asked to end; the first reason stays."""
    tx.execute("UPDATE attempts SET stop_reason = coalesce(stop_reason, ?) WHERE num = ?", (reason, num))


def detach(tx: Transaction, num: int) -> None:
    """Let the task of an attempt wait for it no longer."""
    tx.execute("UPDATE attempts SET detached = 1 WHERE num = ?", (num,))


def forget_task(tx: Transaction, num: int) -> None:
    """Cut an attempt from a task that is deleted; its files go when it has ended."""
    tx.execute("UPDATE attempts SET detached = 1, task_num = NULL, remove_files = 1 WHERE num = ?", (num,))


def live_of_job(tx: Transaction, job_num: int) -> list[AttemptRow]:
    """Return the attempts of a job that have not ended, oldest first."""
    rows = tx.execute(
        f"{_SELECT} WHERE a.job_num = ? AND a.state IN ('assigned', 'running') ORDER BY a.num", (job_num,)
    )
    return [_row(row) for row in rows]


def open_on_node(tx: Transaction, node_num: int) -> list[AttemptRow]:
    """Return the attempts of a node that have not ended, or hold slots although they were given up."""
    rows = tx.execute(
        f"{_SELECT} WHERE a.node_num = ? AND (a.state IN ('assigned', 'running') OR a.slots_held > 0) ORDER BY a.num",
        (node_num,),
    )
    return [_row(row) for row in rows]


def of_task(tx: Transaction, task_num: int) -> list[AttemptRow]:
    """Return all attempts of a task, oldest first."""
    return [_row(row) for row in tx.execute(f"{_SELECT} WHERE a.task_num = ? ORDER BY a.num", (task_num,))]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A live attempt, and the task that waits for it."""

    attempt_id: str
    job_num: int
    task_num: int
    task_id: str
    node_id: str


_CARRIERS_AT_ONCE = 500


def carrying(tx: Transaction, attempt_ids: Iterable[str]) -> list[Carrier]:
    """Return those of these attempts that a task waits for."""
    wanted, found = list(attempt_ids), []
    for start in range(0, len(wanted), _CARRIERS_AT_ONCE):
        some = wanted[start : start + _CARRIERS_AT_ONCE]
        marks = ",".join("?" * len(some))
        found += tx.execute(
            "SELECT a.id, a.job_num, t.num, t.id, coalesce(t.node_id, '') FROM attempts a"  # noqa: S608
            " JOIN tasks t ON t.num = a.task_num AND t.attempt_num = a.num"
            f" WHERE a.id IN ({marks}) AND a.state IN ('assigned', 'running') AND a.detached = 0",
            some,
        )
    return [Carrier(*row) for row in found]


def any_live(tx: Transaction, job_num: int, kinds: Iterable[AttemptKind]) -> bool:
    """Tell whether a job has an attempt of one of these kinds that has not ended."""
    names = tuple(kinds)
    marks = ",".join("?" * len(names))
    row = tx.one(
        f"SELECT 1 FROM attempts WHERE job_num = ? AND state IN ('assigned', 'running') AND kind IN ({marks}) LIMIT 1",  # noqa: S608
        (job_num, *names),
    )
    return row is not None


def count_of_kind(tx: Transaction, job_num: int, node_num: int, kind: AttemptKind) -> int:
    """Return how many attempts of a kind a job has had on a node."""
    row = tx.one(
        "SELECT count(*) FROM attempts WHERE job_num = ? AND node_num = ? AND kind = ?", (job_num, node_num, kind)
    )
    return 0 if row is None else int(row[0])


def delete(tx: Transaction, num: int) -> None:
    """Remove an attempt that has ended."""
    tx.execute("DELETE FROM attempts WHERE num = ?", (num,))


def count_assigned(tx: Transaction, job_num: int) -> int:
    """Return how many tasks of a job are at nodes: what `maxParallelTasks` limits."""
    row = tx.one(
        "SELECT count(*) FROM attempts"
        " WHERE job_num = ? AND state IN ('assigned', 'running') AND kind IN ('user', 'jobManager')",
        (job_num,),
    )
    return 0 if row is None else int(row[0])


@dataclass(frozen=True, slots=True)
class SlotHolder:
    """A live attempt that holds slots, and what its job allows to be done with it."""

    attempt_num: int
    node_num: int
    slots: int
    priority: int
    preemptible: bool
    stop_reason: StopReason | None


def holding_slots(tx: Transaction, pool_key: str) -> list[SlotHolder]:
    """Return the live attempts of the tasks on a pool's nodes; only tasks of active jobs may be preemptible."""
    rows = tx.execute(
        "SELECT a.num, a.node_num, a.slots_held, j.priority,"
        " j.state = 'active' AND coalesce(json_extract(j.spec, '$.allowTaskPreemption'), 0), a.stop_reason"
        " FROM pools p JOIN nodes n ON n.pool_num = p.num JOIN attempts a ON a.node_num = n.num"
        " JOIN jobs j ON j.num = a.job_num WHERE p.key = ?"
        " AND (a.state IN ('assigned', 'running') OR a.slots_held > 0)"
        " AND a.state IN ('assigned', 'running') AND a.slots_held > 0 ORDER BY a.num",
        (pool_key,),
    )
    return [
        SlotHolder(
            attempt_num=row[0],
            node_num=row[1],
            slots=row[2],
            priority=row[3],
            preemptible=bool(row[4]),
            stop_reason=None if row[5] is None else StopReason(row[5]),
        )
        for row in rows
    ]


def nodes_of_job(tx: Transaction, job_num: int) -> list[int]:
    """Return the numbers of the nodes that any attempt of a job went to."""
    return [row[0] for row in tx.execute("SELECT DISTINCT node_num FROM attempts WHERE job_num = ?", (job_num,))]


def delete_some(tx: Transaction, job_num: int, limit: int) -> int:
    """Remove up to `limit` attempts of a job that hold no slots; return how many.

    A given up attempt that may still run keeps its row, and its slots, until its node has said that it is gone.
    """
    return len(
        tx.execute(
            "DELETE FROM attempts WHERE num IN"
            " (SELECT num FROM attempts WHERE job_num = ? AND slots_held = 0 LIMIT ?) RETURNING num",
            (job_num, limit),
        )
    )
