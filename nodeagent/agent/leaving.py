"""The pool is gone in which this agent's node was: what the node keeps for it goes (spec/node.md §1).

Retention ends early when a node leaves its pool. What the service has the end of is removed, and what preparation
tasks have left running is ended once nothing of their jobs is live. An end that the service has not heard of stays
(I5), as does everything if the pool was gone before this life began: then a wrong setting may be all there is to it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from nodeagent.agent import journal
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.database import Database
from nodeagent.agent.job_sessions import JobSessions
from nodeagent.agent.removal import Removals
from nodeagent.model.protocol import Registered

log = structlog.get_logger(__name__)

Accepted = Callable[[Registered], Awaitable[None]]

AT_ONCE = 100
"""Attempts of one transaction."""


class Leaving:
    """Knows whether the node is in its pool."""

    def __init__(
        self,
        database: Database,
        removals: Removals,
        sessions: JobSessions,
        attempts: Attempts,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._database = database
        self._removals = removals
        self._sessions = sessions
        self._attempts = attempts
        self._tasks = tasks
        self._member = False

    def after(self, accepted: Accepted) -> Accepted:
        """Return `accepted`, which takes the answer to a registration, and notes that the node is in its pool."""

        async def taken(answer: Registered) -> None:
            await accepted(answer)
            self._member = True

        return taken

    def pool_gone(self) -> None:
        """The service knows no such pool; told as often as it is asked."""
        if self._member:
            self._member = False
            log.warning("the pool is gone: files and job sessions of this node go too")
            self._tasks.create_task(self._leave())

    async def _leave(self) -> None:
        await self._remove()
        for preparation in self._sessions.all():
            await self._database.write(partial(journal.end_session, preparation=preparation))
            self._tasks.create_task(self._end(preparation))

    async def _end(self, preparation: str) -> None:
        await self._sessions.end(preparation, self._attempts.ids())
        await self._remove()

    async def _remove(self) -> None:
        while removals := await self._database.write(lambda db: journal.take_oldest(db, AT_ONCE)):
            for removal in removals:
                await self._removals.carry_out(removal)
