"""Job sessions: the preparation task of a job on this node may leave services running until the job is over here.

Their boundary belongs to the session, not to the attempt (design.md §4); it is swept when the service ends the
session, and only then forgotten.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import structlog

from nodeagent.agent import journal
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.database import Database
from nodeagent.agent.journal import SessionRow
from nodeagent.boundary.base import BoundaryError, BoundaryProvider

log = structlog.get_logger(__name__)


class JobSessions:
    """The sessions of this node, by the preparation attempt that began them."""

    def __init__(self, database: Database, boundaries: BoundaryProvider, attempts: Attempts) -> None:
        self._database = database
        self._boundaries = boundaries
        self._attempts = attempts
        self._sessions: dict[str, SessionRow] = {}

    def load(self, rows: Iterable[SessionRow]) -> list[str]:
        """Take over what is stored; returns the sessions that were being ended, by preparation attempt."""
        self._sessions = {row.preparation: row for row in rows}
        return [row.preparation for row in self._sessions.values() if row.ending]

    def open(self, job_id: str, preparation: str) -> SessionRow:
        """Begin a session; the caller stores the row (`journal.put_session`)."""
        return self._sessions.setdefault(preparation, SessionRow(preparation, job_id))

    def of_job(self, job_id: str) -> list[str]:
        """Return the sessions of a job, by preparation attempt."""
        return [row.preparation for row in self._sessions.values() if row.job_id == job_id]

    def all(self) -> list[str]:
        """Return all sessions, by preparation attempt."""
        return list(self._sessions)

    async def boundary(self, preparation: str) -> dict[str, str]:
        """Make the session's boundary if need be, and store what it is before anything runs in it.

        Raises BoundaryError.
        """
        row = self._sessions[preparation]
        boundary = self._boundaries.create(f"session-{preparation}")
        if row.boundary != boundary:
            row = replace(row, boundary=boundary)
            self._sessions[preparation] = row
            await self._database.write(lambda db: journal.put_session(db, row))
        return boundary

    async def end(self, preparation: str, attempts: Iterable[str]) -> None:
        """When none of these attempts of the job is live any more: sweep the session, prove it empty, forget it."""
        await self._attempts.until_retired(attempts)
        row = self._sessions.get(preparation)
        if row is None:
            return
        if row.boundary is not None:
            await self._sweep(row.job_id, dict(row.boundary))
        self._sessions.pop(preparation, None)
        await self._database.write(lambda db: journal.delete_session(db, preparation))

    async def _sweep(self, job_id: str, boundary: dict[str, str]) -> None:
        while (result := await self._boundaries.sweep(boundary)).remaining:
            log.warning("processes of a job session will not die", job=job_id, remaining=result.remaining)
            await asyncio.sleep(1)  # they hang in the kernel: nothing tells when that is over
        log.info("job session swept", job=job_id, killed=result.killed)
        try:
            self._boundaries.remove(boundary)
        except BoundaryError as error:
            log.warning("boundary not removed", job=job_id, why=str(error))
