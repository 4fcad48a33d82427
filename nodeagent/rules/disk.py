"""What a node does when disk space runs short: levels, budgets, and whom it costs (docs/limits.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How short of space the node is."""

    NORMAL = 0
    SOFT = 1
    """No task begins; what runs goes on."""
    HARD = 2
    """The task that holds most is ended, and the ballast is let go."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Free bytes below which a level begins; None for never."""

    soft: int | None = None
    hard: int | None = None

    @property
    def room(self) -> int:
        """Free bytes from which on all is normal."""
        return max(self.soft or 0, self.hard or 0)


@dataclass(frozen=True, slots=True)
class Free:
    """What a file system has left; `inodes` is None where it makes them as they are needed."""

    bytes: int
    inodes: int | None


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Free bytes and inodes below which what nobody needs any more goes before its time; None for never."""

    bytes: int | None = None
    inodes: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether files go before their time at all."""
        return self.bytes is not None or self.inodes is not None

    def short_of_bytes(self, free: Free) -> int:
        """Return how many bytes are missing; 0 if there is room."""
        return max(0, (self.bytes or 0) - free.bytes)

    def short_of_inodes(self, free: Free) -> int:
        """Return how many inodes are missing; 0 if there are enough."""
        return 0 if free.inodes is None else max(0, (self.inodes or 0) - free.inodes)

    def is_short(self, free: Free) -> bool:
        """Whether something has to go."""
        return bool(self.short_of_bytes(free) or self.short_of_inodes(free))


def level(free: int, thresholds: Thresholds) -> Level:
    """Return the level at so many free bytes."""
    if thresholds.hard is not None and free < thresholds.hard:
        return Level.HARD
    if thresholds.soft is not None and free < thresholds.soft:
        return Level.SOFT
    return Level.NORMAL


def culprit(used: Mapping[str, int], shortfall: int) -> str | None:
    """Return the attempt that holds most, if ending tasks can help at all: together they hold what is missing.

    Where something else has filled the disk, no task is made to pay for it.
    """
    if not used or sum(used.values()) < shortfall:
        return None
    return max(used, key=lambda attempt: used[attempt])


def over_budget(used: Mapping[str, int], budget: int | None) -> list[str]:
    """Return the attempts that hold more than a task is allowed."""
    return [] if budget is None else [attempt for attempt, size in used.items() if size > budget]
