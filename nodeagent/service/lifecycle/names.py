"""Signals that the lifecycles raise."""

SCHEDULE = "schedule"
"""A task waits or slots are free: place tasks in this same transaction (placement.py)."""

DEADLINES = "deadlines"
"""A deadline may have come nearer."""

PURGE = "purge"
"""A job is over and its rows are to be removed, some at a time."""

ALLOCATION = "allocation"
"""A pool may want other nodes than it has: whoever starts machines for it should look (local mode does)."""

AUTO_SCALE = "autoScale"
"""A pool has come to scale by a formula, or by another one."""
