"""Joining the pool: its application packages are on the node before it asks for work (spec/node.md §6).

What the service said last is stored, so that tasks which a former life has left can go on before it is reached.
"""

import asyncio
from collections.abc import Awaitable, Callable

from nodeagent.agent.packages import Packages
from nodeagent.model.protocol import Registered


class Joining:
    """`ready` is set when no task has to wait for packages of the pool any more."""

    def __init__(self, packages: Packages, ready: asyncio.Event) -> None:
        self._packages = packages
        self._ready = ready

    async def run(
        self,
        stored: Registered | None,
        registration: Awaitable[None],
        answer: Callable[[], Registered],
        tell: Callable[[], Awaitable[object]],
    ) -> None:
        """Install the pool's packages; where that failed `tell` the service, before it can give the node any work.

        `registration` is over when the service's `answer` is there.
        """
        if stored is not None:
            await self._packages.install_pool(stored.pool_packages)
            self._ready.set()
        await registration
        await self._packages.install_pool(answer().pool_packages)
        if self._packages.errors:
            await tell()
        self._ready.set()
