"""What the service does of its own accord: deadlines, and the removal of deleted jobs."""

import asyncio
import time
from datetime import datetime, timedelta

from nodeagent.model.times import utc_now
from nodeagent.service.lifecycle import deadlines, jobs
from nodeagent.service.lifecycle.names import DEADLINES, PURGE
from nodeagent.service.signals import Signals
from nodeagent.service.store import nodes
from nodeagent.service.store.database import Database, Transaction

_DRIFT_SECONDS = 1.0
_LONGEST_SLEEP = 3600.0
"""A deadline far away is looked at again after so long, in case the clock was set."""


class ClockWatch:
    """Notices when the wall clock was set, or stood still while the machine slept: then silence proves nothing."""

    def __init__(self, wall: datetime, monotonic: float) -> None:
        self._wall = wall
        self._monotonic = monotonic

    def jumped(self, wall: datetime, monotonic: float) -> bool:
        """Tell whether the wall clock has gone another way than the monotonic one (seconds) since the last look."""
        drift = (wall - self._wall).total_seconds() - (monotonic - self._monotonic)
        self._wall, self._monotonic = wall, monotonic
        return abs(drift) > _DRIFT_SECONDS


async def watch_deadlines(database: Database, signals: Signals, lease: timedelta) -> None:
    """Do what falls due, for ever: the next deadline is in the store, so a restart loses none.

    Nodes get a whole lease after a start of the service, and after a jump of its clock: it was not there to hear
    them.
    """
    clock = ClockWatch(utc_now(), time.monotonic())
    await database.write(lambda tx: nodes.grant_grace(tx, utc_now()))
    with signals.subscribe(DEADLINES) as wake:
        while True:
            wake.clear()
            if clock.jumped(utc_now(), time.monotonic()):
                await database.write(lambda tx: nodes.grant_grace(tx, utc_now()))
            following = await database.write(lambda tx: deadlines.expire(tx, utc_now(), lease))
            seconds = _LONGEST_SLEEP
            if following is not None:
                seconds = min(seconds, max(0.0, (following - utc_now()).total_seconds()))
            try:
                async with asyncio.timeout(seconds):
                    await wake.wait()
            except TimeoutError:
                continue


async def purge_deleted_jobs(database: Database, signals: Signals) -> None:
    """Remove the rows of deleted jobs, some in each transaction so that other writers go on, for ever."""
    with signals.subscribe(PURGE) as wake:
        while True:
            wake.clear()
            if not await database.write(_purge_some):
                await wake.wait()


def _purge_some(tx: Transaction) -> bool:
    """Purge one job a bit; tell whether there was one."""
    for job_num in jobs.purgeable(tx):
        jobs.purge(tx, job_num)
        return True
    return False
