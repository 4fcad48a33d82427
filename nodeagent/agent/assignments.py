"""The queue of messages: long poll, commit messages and cursor in one transaction, then act (docs/node-protocol.md)."""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from nodeagent.agent import failpoints, journal
from nodeagent.agent.attempt_change import Change
from nodeagent.agent.attempt_runner import AttemptRunner
from nodeagent.agent.errors import RefusedError
from nodeagent.agent.membership import Membership
from nodeagent.agent.removal import Removals
from nodeagent.agent.tools import Tools
from nodeagent.model.protocol import (
    Assignment,
    AttemptKind,
    ChangeRetention,
    EndJobSession,
    Messages,
    NodeCommand,
    NumberedMessage,
    Poll,
    RemoveFiles,
    StopAttempt,
)
from nodeagent.rules.attempt import new_attempt
from nodeagent.rules.attempt_events import Accepted, StopRequested

log = structlog.get_logger(__name__)

_EXECUTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TASK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JOB_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}(:job-[0-9]+)?")


@dataclass
class _Taken:
    """What the messages of one answer come to: writes for one transaction, actions for after it."""

    cursor: int
    writes: list[Callable[[sqlite3.Connection], None]] = field(default_factory=list)
    actions: list[Callable[[], None]] = field(default_factory=list)

    def save(self, connection: sqlite3.Connection) -> None:
        """Store everything. Runs in the writer thread."""
        for write in self.writes:
            write(connection)
        journal.set_cursor(connection, self.cursor)


class Assignments:
    """Takes messages from the service and hands them to whom they concern."""

    def __init__(
        self, tools: Tools, removals: Removals, cursor: int, obeyed: str | None, obey: Callable[[NodeCommand], None]
    ) -> None:
        """`obeyed` is the id of the last command of the service that was obeyed; `obey` ends this life for another."""
        self._tools = tools
        self._removals = removals
        self._obeyed = obeyed
        self._obey = obey
        self.cursor = cursor
        """Number of the last message that is committed."""
        self._taking = asyncio.Lock()

    async def run(self, membership: Membership, node_id: str, epoch: int, wait_seconds: float) -> None:
        """Ask for ever. Raises RefusedError for a message that this version cannot obey."""

        def body() -> str:
            return Poll(node_id=node_id, epoch=epoch, cursor=self.cursor, wait_seconds=wait_seconds).to_json()

        while True:
            answer = await membership.insist("assignments", body, Messages, extra_seconds=wait_seconds)
            if answer.messages:
                await self.take(answer.messages)

    async def take(self, messages: Iterable[NumberedMessage]) -> None:
        """Commit messages with the cursor, then act on them. Messages that were taken before are skipped.

        A poll and an answer to reports may bring the same ones.
        """
        async with self._taking:
            fresh = [item for item in messages if item.number > self.cursor]
            if fresh:
                await self._take(fresh)

    async def _take(self, fresh: Sequence[NumberedMessage]) -> None:
        taken = _Taken(cursor=fresh[-1].number)
        for item in fresh:
            self._read(taken, item)
        await self._tools.database.write(taken.save)
        failpoints.hit("after_accept_commit")
        self.cursor = taken.cursor
        for act in taken.actions:
            act()

    def _read(self, taken: _Taken, item: NumberedMessage) -> None:
        match item.message:
            case Assignment() as assignment:
                self._assignment(taken, assignment)
            case StopAttempt() as stop:
                self._stop(taken, stop)
            case EndJobSession(job_id=job_id):
                for preparation in self._tools.sessions.of_job(job_id):
                    self._end_session(taken, job_id, preparation)
            case RemoveFiles() as removal:
                self._remove(taken, removal)
            case NodeCommand() as command if command.command_id != self._obeyed:
                taken.writes.append(lambda db: journal.set_command(db, command))
                taken.actions.append(lambda: self._begin_obeying(command))
            case ChangeRetention() as change:
                self._change_retention(taken, change)

    def _begin_obeying(self, command: NodeCommand) -> None:
        failpoints.hit("after_node_command_commit")
        self._obey(command)

    def _assignment(self, taken: _Taken, assignment: Assignment) -> None:
        check_names(assignment)
        tools = self._tools
        if tools.attempts.get(assignment.attempt_id) is not None:
            return
        runner = AttemptRunner(tools, new_attempt(assignment), assignment)
        tools.attempts.add(runner)
        change = runner.apply(Accepted())
        if assignment.attempt_kind is AttemptKind.JOB_PREPARATION:
            session = tools.sessions.open(assignment.job_id, assignment.attempt_id)
            taken.writes.append(lambda db: journal.put_session(db, session))

        def save(connection: sqlite3.Connection) -> None:
            if not journal.knows(connection, assignment.attempt_id):
                runner.number = journal.insert_attempt(connection, change.after, assignment)
                change.save_tracks(connection)

        taken.writes.append(save)
        taken.actions.append(lambda: _begin(runner, change) if runner.number else tools.attempts.retire(runner))

    def _stop(self, taken: _Taken, stop: StopAttempt) -> None:
        runner = self._tools.attempts.get(stop.attempt_id)
        if runner is None:
            return
        change = runner.apply(StopRequested(stop.reason))
        if change.after != change.before:
            taken.writes.append(change.save)
            taken.actions.append(lambda: _begin(runner, change))

    def _remove(self, taken: _Taken, message: RemoveFiles) -> None:
        # which attempts that is, is settled in the transaction: job or task may come again under the same name
        noted: list[journal.Removal] = []

        def save(connection: sqlite3.Connection) -> None:
            noted[:] = [journal.add_removal(connection, message)]

        taken.writes.append(save)
        taken.actions.append(lambda: self._removals.begin(noted[0]))

    def _change_retention(self, taken: _Taken, change: ChangeRetention) -> None:
        runner = self._tools.attempts.get(change.attempt_id)
        if runner is not None:
            runner.change_retention(change.retention_time)
        taken.writes.append(lambda db: journal.change_retention(db, change.attempt_id, change.retention_time))

    def _end_session(self, taken: _Taken, job_id: str, preparation: str) -> None:
        # those that are live now: a job that is made again under the same name has a session of its own
        live = [runner.attempt.attempt_id for runner in self._tools.attempts.of_job(job_id)]
        tools = self._tools
        taken.writes.append(lambda db: journal.end_session(db, preparation))
        taken.actions.append(lambda: _spawn(tools, tools.sessions.end(preparation, live)))


def _spawn(tools: Tools, work: Coroutine[None, None, None]) -> None:
    tools.tasks.create_task(work)


def _begin(runner: AttemptRunner, change: Change) -> None:
    runner.committed(change)
    runner.pursue(change.effects)


def check_names(assignment: Assignment) -> None:
    """Raise RefusedError if an id could not be a file name: nothing that comes over a wire names a path."""
    names = (
        ("attemptId", _EXECUTION_NAME, assignment.attempt_id),
        ("jobId", _JOB_NAME, assignment.job_id),
        ("taskId", _TASK_NAME, assignment.task_id),
    )
    for name, pattern, value in names:
        of_start_task = assignment.attempt_kind is AttemptKind.START and name != "attemptId" and not value
        if not of_start_task and not pattern.fullmatch(value):
            raise RefusedError(f"the service sent an assignment whose {name} cannot be a file name: {value!r}")
