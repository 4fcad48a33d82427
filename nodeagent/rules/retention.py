"""How long the files of an execution stay on the node (spec/node.md §1): counted from its end, at least so long."""

from datetime import datetime, timedelta

from nodeagent.rules.attempt import Attempt

_FOR_EVER = timedelta(days=36500)
"""A retention time beyond this is none that a node could see the end of."""


def expiry(attempt: Attempt, at: datetime) -> datetime | None:
    """Return when the files of an attempt that has ended, at the latest at `at`, may go; None for never."""
    retention = attempt.plan.retention_time
    if attempt.terminal is None or retention >= _FOR_EVER:
        return None
    ended = at if attempt.outcome is None else attempt.outcome.end_time
    return ended + retention
