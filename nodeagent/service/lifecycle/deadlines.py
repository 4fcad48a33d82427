"""What happens because time has passed: leases, wall clocks of jobs, job schedules, timeouts of resizing."""

from datetime import datetime, timedelta

from nodeagent.service.lifecycle import job_schedules, jobs, nodes, pools
from nodeagent.service.store import job_schedules as job_schedule_rows
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store import nodes as node_rows
from nodeagent.service.store import pools as pool_rows
from nodeagent.service.store.database import Transaction

_AWAY_LEASES = 10
"""A node that is rebooted or reimaged may be silent for so many leases: a machine takes its time."""


def expire(tx: Transaction, now: datetime, lease: timedelta) -> datetime | None:
    """Do what is due, and return when to look again: the next deadline in the store, None if there is none."""
    for job in job_rows.deadlines_due(tx, now):
        jobs.expire_job(tx, job, now)
    for num in job_schedule_rows.due(tx, now):
        job_schedules.advance(tx, num, now)
    for pool in pool_rows.resizes_due(tx, now):
        pools.expire_resize(tx, pool, now)
    for node in node_rows.silent_since(tx, now - lease, now - _AWAY_LEASES * lease):
        nodes.expire_lease(tx, node, now)
    heard, away = (node_rows.oldest_heartbeat(tx, away=away) for away in (False, True))
    candidates = (
        job_rows.next_deadline(tx),
        job_schedule_rows.next_wake(tx),
        pool_rows.next_resize_deadline(tx),
        None if heard is None else heard + lease,
        None if away is None else away + _AWAY_LEASES * lease,
    )
    return min((moment for moment in candidates if moment is not None), default=None)
