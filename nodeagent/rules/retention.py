"""How long the files of an execution stay on the node (spec/node.md §1): counted from its end, at least so long."""

from datetime import datetime, timedelta

from nodeagent.rules.attempt import Attempt

_FOR_EVER = timedelta(days=36500)
"""A retention time beyond this is none that a node could see the end of."""


def ended(attempt: Attempt, at: datetime) -> datetime:
    """Return when an attempt that is over by now, at the latest at `at`, has ended."""
    return at if attempt.outcome is None else attempt.outcome.end_time


def expiry(attempt: Attempt, at: datetime) -> datetime | None:
    """Return when the files of an attempt that has ended, at the latest at `at`, may go; None for never."""
    return None if attempt.terminal is None else expiry_after(ended(attempt, at), attempt.plan.retention_time)


def expiry_after(end: datetime, retention_time: timedelta) -> datetime | None:
    """Return when files may go that are kept so long from that end on; None for never."""
    return None if retention_time >= _FOR_EVER else end + retention_time
