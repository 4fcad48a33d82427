"""What agent.db holds, as functions of a connection: attempts, journal, outbox, job sessions, removals, cursor.

They run in the writer thread, inside a transaction of `database.Database`.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from nodeagent.model.protocol import (
    Assignment,
    NodeCommand,
    Outcome,
    Registered,
    RemoveFiles,
    StopReason,
    Transition,
)
from nodeagent.model.times import format_time, parse_time
from nodeagent.rules.attempt import Attempt, State, plan_of
from nodeagent.rules.retention import expiry_after

_CURSOR = "cursor"
_REGISTERED = "registered"
_COMMAND = "command"
_BOOT = "boot"


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt as it is stored. `number` counts the executions of the task on this node, from 1."""

    attempt: Attempt
    assignment: Assignment
    number: int


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A job on this node, from its preparation attempt on: the boundary of what that leaves running.

    A job that is deleted and made again has a session of its own: they are told apart by the preparation attempt.
    """

    preparation: str
    job_id: str
    boundary: Mapping[str, str] | None = None
    ending: bool = False
    """The service has said that the job is over here."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A report that is not acknowledged, as JSON text."""

    attempt_id: str
    seq: int
    report: str
    terminal: bool


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of a task on this node."""

    attempt_id: str
    execution: int
    number: int
    job_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class Removal:
    """A wish of the service: the files of these attempts go; of the whole job, if nothing else of it is here."""

    number: int
    job_id: str
    attempt_ids: tuple[str, ...]
    whole_job: bool


def cursor(connection: sqlite3.Connection) -> int:
    """Return the number of the last message that was committed; 0 for none."""
    value = _meta(connection, _CURSOR)
    return 0 if value is None else int(value)


def set_cursor(connection: sqlite3.Connection, number: int) -> None:
    """Store the number of the last message of this transaction."""
    _set_meta(connection, _CURSOR, str(number))


def command(connection: sqlite3.Connection) -> NodeCommand | None:
    """Return the last command of the service; whether it has been obeyed, boot.json tells."""
    value = _meta(connection, _COMMAND)
    return None if value is None else NodeCommand.from_json(value)


def set_command(connection: sqlite3.Connection, given: NodeCommand) -> None:
    """Store a command, in the transaction that takes its message."""
    _set_meta(connection, _COMMAND, given.to_json())


def boot(connection: sqlite3.Connection) -> str | None:
    """Return the boot in which attempts were last taken over; None before the first time."""
    return _meta(connection, _BOOT)


def set_boot(connection: sqlite3.Connection, boot_id: str) -> None:
    """Store in which boot attempts have been taken over."""
    _set_meta(connection, _BOOT, boot_id)


def registered(connection: sqlite3.Connection) -> Registered | None:
    """Return the service's last answer to `register`: a restarted agent can go on before it reaches the service."""
    value = _meta(connection, _REGISTERED)
    return None if value is None else Registered.from_json(value)


def set_registered(connection: sqlite3.Connection, answer: Registered) -> None:
    """Store the service's answer to `register`."""
    _set_meta(connection, _REGISTERED, answer.to_json())


def _meta(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
    )


def insert_attempt(connection: sqlite3.Connection, attempt: Attempt, assignment: Assignment) -> int:
    """Store a new attempt and return its `number`: one more than any execution of the task on this node so far."""
    (last,) = connection.execute(
        "SELECT coalesce(max(number + execution), 0) FROM attempts WHERE job_id = ? AND task_id = ?",
        (assignment.job_id, assignment.task_id),
    ).fetchone()
    connection.execute(
        "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
        (
            attempt.attempt_id,
            assignment.job_id,
            assignment.task_id,
            last + 1,
            assignment.to_json(),
            *_dynamic(attempt),
        ),
    )
    return int(last) + 1


def update_attempt(connection: sqlite3.Connection, attempt: Attempt) -> None:
    """Store an attempt's new state."""
    connection.execute(
        "UPDATE attempts SET state = ?, stop_reason = ?, execution = ?, retry_count = ?, recoveries = ?,"
        " start_time = ?, last_retry_time = ?, last_seq = ?, outcome = ?, terminal = ?, muted = ? WHERE attempt_id = ?",
        (*_dynamic(attempt), attempt.attempt_id),
    )


def set_end(connection: sqlite3.Connection, attempt_id: str, ended: datetime, expires: datetime | None) -> None:
    """Store when an attempt has ended, and when its files may go (None: never)."""
    connection.execute(
        "UPDATE attempts SET ended = ?, expires = ? WHERE attempt_id = ?",
        (ended.timestamp(), None if expires is None else expires.timestamp(), attempt_id),
    )


def change_retention(connection: sqlite3.Connection, attempt_id: str, retention_time: timedelta) -> None:
    """Store another retention time; if the attempt has ended it counts from that end.

    An attempt that is not known, or whose files are on their way out already, is left as it is.
    """
    row = connection.execute(
        "SELECT assignment, ended, terminal FROM attempts WHERE attempt_id = ?", (attempt_id,)
    ).fetchone()
    if row is None:
        return
    text, ended, terminal = row
    assignment = with_retention(Assignment.from_json(text), retention_time)
    connection.execute("UPDATE attempts SET assignment = ? WHERE attempt_id = ?", (assignment.to_json(), attempt_id))
    if terminal is not None and ended is not None:
        end = datetime.fromtimestamp(ended, UTC)
        set_end(connection, attempt_id, end, expiry_after(end, plan_of(assignment).retention_time))


def with_retention(assignment: Assignment, retention_time: timedelta) -> Assignment:
    """Return the assignment with another retention time."""
    constraints = assignment.work.constraints.model_copy(update={"retention_time": retention_time})
    return assignment.model_copy(update={"work": assignment.work.model_copy(update={"constraints": constraints})})


def forget_uploads(connection: sqlite3.Connection, execution_id: str) -> None:
    """Forget what was uploaded of an execution: it is over, and nothing of it is uploaded again."""
    connection.execute("DELETE FROM uploads WHERE execution_id = ?", (execution_id,))


def _dynamic(attempt: Attempt) -> tuple[Any, ...]:
    return (
        attempt.state.value,
        attempt.stop_reason and attempt.stop_reason.value,
        attempt.execution,
        attempt.retry_count,
        attempt.recoveries,
        attempt.start_time and format_time(attempt.start_time),
        attempt.last_retry_time and format_time(attempt.last_retry_time),
        attempt.last_seq,
        attempt.outcome and attempt.outcome.to_json(),
        attempt.terminal and attempt.terminal.value,
        attempt.muted,
    )


def knows(connection: sqlite3.Connection, attempt_id: str) -> bool:
    """Tell whether there is a row of the attempt."""
    return connection.execute("SELECT 1 FROM attempts WHERE attempt_id = ?", (attempt_id,)).fetchone() is not None


def owed_attempts(connection: sqlite3.Connection) -> list[AttemptRow]:
    """Return the attempts that the service still counts on, in the order in which they were accepted."""
    return [_attempt_row(row) for row in connection.execute(f"{_SELECT} WHERE state <> 'retained' ORDER BY rowid")]


def attempt(connection: sqlite3.Connection, attempt_id: str) -> AttemptRow | None:
    """Return one attempt, whatever its state."""
    row = connection.execute(f"{_SELECT} WHERE attempt_id = ?", (attempt_id,)).fetchone()
    return None if row is None else _attempt_row(row)


_SELECT = (
    "SELECT assignment, number, state, stop_reason, execution, retry_count, recoveries, start_time, last_retry_time,"
    " last_seq, outcome, terminal, muted FROM attempts"
)


def _attempt_row(row: Sequence[Any]) -> AttemptRow:
    (text, number, state, stop, execution, retries, recoveries, started, retried, seq, outcome, terminal, muted) = row
    assignment = Assignment.from_json(text)
    return AttemptRow(
        attempt=Attempt(
            attempt_id=assignment.attempt_id,
            plan=plan_of(assignment),
            state=State(state),
            stop_reason=None if stop is None else StopReason(stop),
            execution=execution,
            retry_count=retries,
            recoveries=recoveries,
            start_time=None if started is None else parse_time(started),
            last_retry_time=None if retried is None else parse_time(retried),
            last_seq=seq,
            outcome=None if outcome is None else Outcome.from_json(outcome),
            terminal=None if terminal is None else Transition(terminal),
            muted=bool(muted),
        ),
        assignment=assignment,
        number=number,
    )


def executions_of_task(connection: sqlite3.Connection, job_id: str, task_id: str) -> list[Execution]:
    """Return the task's executions on this node, the latest first."""
    return _executions(connection, "job_id = ? AND task_id = ?", (job_id, task_id))


def executions_of_job(connection: sqlite3.Connection, job_id: str) -> list[Execution]:
    """Return all executions of the job's attempts on this node."""
    return _executions(connection, "job_id = ?", (job_id,))


def all_executions(connection: sqlite3.Connection) -> list[Execution]:
    """Return every execution that this node knows."""
    return _executions(connection, "1", ())


def _executions(connection: sqlite3.Connection, where: str, parameters: tuple[str, ...]) -> list[Execution]:
    rows = connection.execute(
        f"SELECT attempt_id, execution, number, job_id, task_id FROM attempts WHERE {where} ORDER BY number DESC",  # noqa: S608 - the conditions are the three above
        parameters,
    )
    return [
        Execution(attempt_id, execution, number + execution, job_id, task_id)
        for attempt_id, last, number, job_id, task_id in rows
        for execution in range(last, -1, -1)
    ]


def note(
    connection: sqlite3.Connection, attempt_id: str, at: datetime, event: str, state: str, detail: str | None = None
) -> None:
    """Write a line into the journal: what happened to an attempt, and the state that followed."""
    connection.execute(
        "INSERT INTO journal (attempt_id, at, event, state, detail) VALUES (?, ?, ?, ?, ?)",
        (attempt_id, format_time(at), event, state, detail),
    )


def add_report(connection: sqlite3.Connection, row: OutboxRow) -> None:
    """Put a report into the outbox."""
    connection.execute("INSERT INTO outbox VALUES (?, ?, ?)", (row.attempt_id, row.seq, row.report))


def outbox(connection: sqlite3.Connection) -> list[OutboxRow]:
    """Return the reports of the outbox: per attempt in order, attempts in the order of their acceptance."""
    rows = connection.execute(
        "SELECT o.attempt_id, o.seq, o.report, a.terminal IS NOT NULL AND o.seq = a.last_seq"
        " FROM outbox o JOIN attempts a USING (attempt_id) ORDER BY a.rowid, o.seq"
    )
    return [OutboxRow(attempt_id, seq, report, bool(terminal)) for attempt_id, seq, report, terminal in rows]


def drop_reports(connection: sqlite3.Connection, attempt_id: str) -> None:
    """Drop the reports of an attempt: the terminal one is acknowledged, or nobody wants them."""
    connection.execute("DELETE FROM outbox WHERE attempt_id = ?", (attempt_id,))


def put_session(connection: sqlite3.Connection, session: SessionRow) -> None:
    """Store a job session."""
    boundary = None if session.boundary is None else json.dumps(dict(session.boundary))
    connection.execute(
        "INSERT INTO job_sessions VALUES (?, ?, ?, ?)"
        " ON CONFLICT (preparation) DO UPDATE SET boundary = excluded.boundary",
        (session.preparation, session.job_id, boundary, session.ending),
    )


def sessions(connection: sqlite3.Connection) -> list[SessionRow]:
    """Return all job sessions of this node."""
    rows = connection.execute("SELECT preparation, job_id, boundary, ending FROM job_sessions")
    return [
        SessionRow(preparation, job_id, None if boundary is None else json.loads(boundary), bool(ending))
        for preparation, job_id, boundary, ending in rows
    ]


def end_session(connection: sqlite3.Connection, preparation: str) -> None:
    """Note that the service has ended a session."""
    connection.execute("UPDATE job_sessions SET ending = 1 WHERE preparation = ?", (preparation,))


def delete_session(connection: sqlite3.Connection, preparation: str) -> None:
    """Forget a session: it was swept."""
    connection.execute("DELETE FROM job_sessions WHERE preparation = ?", (preparation,))


def add_removal(connection: sqlite3.Connection, message: RemoveFiles) -> Removal:
    """Note that files are to be removed: those of the named attempts, or of all that the job has here by now."""
    ids = message.attempt_ids
    if not ids:
        rows = connection.execute("SELECT attempt_id FROM attempts WHERE job_id = ?", (message.job_id,))
        ids = tuple(attempt_id for (attempt_id,) in rows)
    cursor = connection.execute(
        "INSERT INTO removals (job_id, attempt_ids, whole_job) VALUES (?, ?, ?)",
        (message.job_id, json.dumps(ids), not message.attempt_ids),
    )
    return Removal(int(cursor.lastrowid or 0), message.job_id, ids, not message.attempt_ids)


def take_expired(connection: sqlite3.Connection, now: datetime, limit: int) -> list[Removal]:
    """Turn attempts whose files may go by now into removals, the earliest first.

    Only what the service has the end of; a preparation not before its job session is over.
    """
    return _take(connection, "expires <= ?", "expires", (now.timestamp(),), limit)


def take_oldest(connection: sqlite3.Connection, limit: int) -> list[Removal]:
    """Turn attempts into removals before their time, the earliest end first; the same ones are spared as there.

    A start task's directory is the node's, and stays.
    """
    return _take(connection, "ended IS NOT NULL AND job_id <> ''", "ended", (), limit)


def _take(
    connection: sqlite3.Connection, which: str, order: str, parameters: tuple[float, ...], limit: int
) -> list[Removal]:
    rows = connection.execute(
        f"SELECT attempt_id, job_id FROM attempts WHERE {which} AND state = 'retained'"  # noqa: S608 - constants of the two callers
        f" AND NOT EXISTS (SELECT 1 FROM job_sessions WHERE preparation = attempt_id) ORDER BY {order} LIMIT ?",
        (*parameters, limit),
    ).fetchall()
    of_jobs: dict[str, list[str]] = {}
    for attempt_id, job_id in rows:
        connection.execute("UPDATE attempts SET expires = NULL, ended = NULL WHERE attempt_id = ?", (attempt_id,))
        of_jobs.setdefault(job_id, []).append(attempt_id)
    return [add_removal(connection, RemoveFiles(job_id=job, attempt_ids=tuple(ids))) for job, ids in of_jobs.items()]


def removals(connection: sqlite3.Connection) -> list[Removal]:
    """Return the removals that are not done, oldest first."""
    rows = connection.execute("SELECT id, job_id, attempt_ids, whole_job FROM removals ORDER BY id")
    return [Removal(number, job_id, tuple(json.loads(ids)), bool(whole)) for number, job_id, ids, whole in rows]


def executions_to_remove(connection: sqlite3.Connection, removal: Removal) -> tuple[list[Execution], list[Execution]]:
    """Return the executions of a removal, and the other ones of its job: came later, or not to be removed."""
    mine: list[Execution] = []
    others: list[Execution] = []
    for execution in executions_of_job(connection, removal.job_id):
        (mine if execution.attempt_id in removal.attempt_ids else others).append(execution)
    return mine, others


def removal_done(connection: sqlite3.Connection, removal: Removal) -> None:
    """Forget a removal and its attempts: rows, reports, journals."""
    for attempt_id in removal.attempt_ids:
        for table in ("attempts", "outbox", "journal"):
            connection.execute(f"DELETE FROM {table} WHERE attempt_id = ?", (attempt_id,))  # noqa: S608 - three constants
    connection.execute("DELETE FROM removals WHERE id = ?", (removal.number,))
