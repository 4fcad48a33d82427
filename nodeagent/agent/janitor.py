"""Makes room on the node's disk before it is needed: bytes and inodes (docs/limits.md).

What can be brought again goes first: the cache of downloaded files. Then the files of attempts that have ended, the
earliest end first, whatever their retention time; never before the service has their end (I5), and never those of a
preparation task whose job lives here. Such an attempt becomes a removal as if its time were over, so that a restart
goes on with it.
"""

import asyncio
from pathlib import Path
from typing import Protocol

import structlog

from nodeagent.agent import journal
from nodeagent.agent.database import Database
from nodeagent.agent.disk_usage import free_of
from nodeagent.agent.removal import Removals
from nodeagent.rules.disk import Cleanup, Free

log = structlog.get_logger(__name__)

_LEAST_SHRINK_BYTES = 1 << 20
_AT_ONCE = 64
"""Attempts that go between two looks at the disk at most: few at first, more if that is not enough."""


class Shrinks(Protocol):
    """A cache that can be made smaller."""

    async def shrink(self, wanted_bytes: int) -> int:
        """Free so many bytes if possible, least recently used first; return how many were freed."""


class Janitor:
    """The one who decides what goes when there is no room."""

    def __init__(
        self,
        cleanup: Cleanup,
        cache_cleanup: Cleanup,
        root: Path,
        database: Database,
        removals: Removals,
        cache: Shrinks | None,
    ) -> None:
        """`cleanup`: when files of tasks go; `cache_cleanup`: when the cache goes, at the same time or earlier."""
        self._cleanup = cleanup
        self._cache_cleanup = cache_cleanup
        self._root = root
        self._database = database
        self._removals = removals
        self._cache = cache
        self._told = False
        """It has been said that nothing is left that could go."""

    @property
    def watches(self) -> bool:
        """Whether there is anything to do here, ever."""
        return self._cleanup.wanted or (self._cache is not None and self._cache_cleanup.wanted)

    async def make_room(self) -> None:
        """Let things go until there is room, or nothing is left that may go."""
        await self._shrink_cache()
        many = 1
        while self._cleanup.is_short(free := await self._free()):
            removed = await self._remove_oldest(many, free)
            if not removed:
                self._tell_helpless(free)
                return
            many = min(2 * many, _AT_ONCE)
        self._told = False

    async def _shrink_cache(self) -> None:
        wanted = _LEAST_SHRINK_BYTES
        while self._cache is not None and self._cache_cleanup.is_short(free := await self._free()):
            freed = await self._cache.shrink(max(wanted, self._cache_cleanup.short_of_bytes(free)))
            if not freed:
                return
            log.info("cache made smaller for room", freed_bytes=freed, free_bytes=free.bytes, free_inodes=free.inodes)
            wanted *= 2

    async def _remove_oldest(self, many: int, free: Free) -> int:
        removals = await self._database.write(lambda db: journal.take_oldest(db, many))
        for removal in removals:
            log.warning(
                "files of ended tasks go before their time, for room",
                job=removal.job_id,
                attempts=list(removal.attempt_ids),
                free_bytes=free.bytes,
                free_inodes=free.inodes,
            )
            await self._removals.carry_out(removal)
        return sum(len(removal.attempt_ids) for removal in removals)

    def _tell_helpless(self, free: Free) -> None:
        if not self._told:
            log.warning("no room, and nothing left that may go", free_bytes=free.bytes, free_inodes=free.inodes)
        self._told = True

    async def _free(self) -> Free:
        return await asyncio.to_thread(free_of, self._root)
