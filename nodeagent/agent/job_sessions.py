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
    """The sessions of this node, by job."""

    def __init__(self, database: Database, boundaries: BoundaryProvider, attempts: Attempts) -> None:
        self._database = database
        self._boundaries = boundaries
        self._attempts = attempts
        self._sessions: dict[str, SessionRow] = {}

    def load(self, rows: Iterable[SessionRow]) -> list[str]:
        """Take over what is stored; returns the jobs whose session was being ended."""
        self._sessions = {row.job_id: row for row in rows}
        return [row.job_id for row in self._sessions.values() if row.ending]

    def open(self, job_id: str, preparation: str) -> SessionRow:
        """Begin a session, or give it a new preparation attempt; the caller stores the row (`journal.put_session`)."""
        present = self._sessions.get(job_id)
        row = (
            SessionRow(job_id, preparation)
            if present is None
            else replace(present, preparation=preparation, ending=False)
        )
        self._sessions[job_id] = row
        return row

    async def boundary(self, job_id: str) -> dict[str, str]:
        """Make the session's boundary if need be, and store what it is before anything runs in it.

        Raises BoundaryError.
        """
        row = self._sessions[job_id]
        boundary = self._boundaries.create(_name(job_id))
        if row.boundary != boundary:
            row = replace(row, boundary=boundary)
            self._sessions[job_id] = row
            await self._database.write(lambda db: journal.put_session(db, row))
        return boundary

    async def end(self, job_id: str) -> None:
        """When no attempt of the job is live any more: sweep, prove empty, forget. Unknown jobs: nothing."""
        row = self._sessions.get(job_id)
        if row is None:
            return
        await self._attempts.until_retired(runner.attempt.attempt_id for runner in self._attempts.of_job(job_id))
        row = self._sessions.get(job_id, row)
        if row.boundary is not None:
            await self._sweep(job_id, dict(row.boundary))
        self._sessions.pop(job_id, None)
        await self._database.write(lambda db: journal.delete_session(db, job_id))

    async def _sweep(self, job_id: str, boundary: dict[str, str]) -> None:
        while (result := await self._boundaries.sweep(boundary)).remaining:
            log.warning("processes of a job session will not die", job=job_id, remaining=result.remaining)
            await asyncio.sleep(1)  # they hang in the kernel: nothing tells when that is over
        log.info("job session swept", job=job_id, killed=result.killed)
        try:
            self._boundaries.remove(boundary)
        except BoundaryError as error:
            log.warning("boundary not removed", job=job_id, why=str(error))


def _name(job_id: str) -> str:
    # a job of a schedule has one colon in its id, and no id has a dot
    return f"job-{job_id.replace(':', '.')}"
