"""What the service's answers mean for attempts: acknowledged, disowned, registered; stored before it has effect."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

import structlog

from nodeagent.agent import failpoints, journal
from nodeagent.agent.attempt_change import Change
from nodeagent.agent.attempt_runner import AttemptRunner
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.database import Database
from nodeagent.agent.introduction import Introduction
from nodeagent.model.protocol import Registered
from nodeagent.rules.attempt_events import Acknowledged, Disowned, Event

log = structlog.get_logger(__name__)

Save = Callable[[sqlite3.Connection], None]


class Correspondence:
    """Applies answers to the attempts that they are about."""

    def __init__(
        self,
        database: Database,
        attempts: Attempts,
        introduction: Introduction,
        tasks: asyncio.TaskGroup,
        told: Callable[[], None],
    ) -> None:
        """`told` is called when an answer to a registration is stored."""
        self._told = told
        self._database = database
        self._attempts = attempts
        self._introduction = introduction
        self._tasks = tasks

    def acknowledged(self, attempt_ids: Sequence[str]) -> None:
        """The service has the terminal reports of these attempts.

        Nobody waits for that to be stored: a life that does not know it sends the reports once more.
        """
        self._tasks.create_task(self._store(self._apply(attempt_ids, Acknowledged()), self._database.submit_soon))

    def disowned(self, attempt_ids: Sequence[str]) -> None:
        """The service does not know these attempts or has given them up: stop them, report nothing."""
        changes = self._apply(attempt_ids, Disowned())
        for _, change in changes:
            log.warning("attempt disowned by the service", attempt=change.after.attempt_id, state=change.before.state)
        self._tasks.create_task(self._store(changes, self._database.submit))

    async def registered(self, answer: Registered) -> None:
        """The service has registered this node."""
        self._introduction.learn(answer)
        await self._database.write(lambda db: journal.set_registered(db, answer))
        self._told()
        if answer.unknown_attempts:
            self.disowned(answer.unknown_attempts)

    def _apply(self, attempt_ids: Sequence[str], event: Event) -> list[tuple[AttemptRunner, Change]]:
        runners = [runner for attempt_id in attempt_ids if (runner := self._attempts.get(attempt_id)) is not None]
        changes = [(runner, runner.apply(event)) for runner in runners]
        return [(runner, change) for runner, change in changes if change.after != change.before]

    async def _store(
        self, changes: Sequence[tuple[AttemptRunner, Change]], submit: Callable[[Save], "asyncio.Future[None]"]
    ) -> None:
        if not changes:
            return

        def save(connection: sqlite3.Connection) -> None:
            for _, change in changes:
                change.save(connection)

        await submit(save)
        if changes[0][1].after.acknowledged:
            failpoints.hit("after_ack_commit")
        for runner, change in changes:
            runner.committed(change)
            runner.pursue(change.effects)
