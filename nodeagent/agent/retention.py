"""The directories of tasks whose retention time is over go, the earliest first (spec/node.md §1).

The retention time is the least that files stay. They go only when the service has the end of their attempt (I5), and
those of a preparation task not before its job is over on this node: tasks may still look there. An expiry becomes a
removal in the transaction that finds it, and removals survive a restart.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from nodeagent.agent import journal
from nodeagent.agent.database import Database
from nodeagent.agent.removal import Removals

log = structlog.get_logger(__name__)

AT_ONCE = 100
"""How many attempts one look takes, so that no transaction gets long."""


class Retention:
    """Looks for expired directories at a steady pace."""

    def __init__(
        self, database: Database, removals: Removals, every_seconds: float, now: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._removals = removals
        self._every_seconds = every_seconds
        self._now = now

    async def run(self) -> None:
        """Look for ever."""
        while True:
            if await self.look() < AT_ONCE:
                await asyncio.sleep(self._every_seconds)

    async def look(self) -> int:
        """Remove what has expired by now, at most `AT_ONCE` attempts; return how many that were."""
        now = self._now()
        expired = await self._database.write(lambda db: journal.take_expired(db, now, AT_ONCE))
        for removal in expired:
            log.info("retention time is over", job=removal.job_id, attempts=len(removal.attempt_ids))
            await self._removals.carry_out(removal)
        return sum(len(removal.attempt_ids) for removal in expired)
