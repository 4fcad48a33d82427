"""Joining the pool: its application packages are on the node before it asks for work (spec/node.md §6).

What the service said last is stored, so that tasks which a former life has left can go on before it is reached. A node
that has to register again, because its pool was made anew say, gets the packages that the pool refers to then.
"""

import asyncio
from collections.abc import Awaitable, Callable

from nodeagent.agent.packages import Packages
from nodeagent.model.protocol import Registered

Accepted = Callable[[Registered], Awaitable[None]]


class Joining:
    """`ready` is set when no task has to wait for packages of the pool any more."""

    def __init__(self, packages: Packages, ready: asyncio.Event, tell: Callable[[], Awaitable[object]]) -> None:
        """`tell` sends a heartbeat, which has the errors of the packages."""
        self._packages = packages
        self._ready = ready
        self._tell = tell
        self._joined = False
        self._again: asyncio.Queue[Registered] = asyncio.Queue()

    def after(self, accepted: Accepted) -> Accepted:
        """Return `accepted`, which takes the answer to a registration; from the second one on `keep` has work to do."""

        async def taken(answer: Registered) -> None:
            await accepted(answer)
            if self._joined:
                self._ready.clear()
                self._again.put_nowait(answer)

        return taken

    async def keep(self) -> None:
        """Install what each further registration asks for, for ever; tasks wait for it meanwhile."""
        while True:
            await self._install(await self._again.get())

    async def run(
        self, stored: Registered | None, registration: Awaitable[None], answer: Callable[[], Registered]
    ) -> None:
        """Install the pool's packages; where that failed the service hears it before it can give the node any work.

        `registration` is over when the service's `answer` is there.
        """
        if stored is not None:
            await self._packages.install_pool(stored.pool_packages)
            self._ready.set()
        await registration
        self._joined = True
        await self._install(answer())

    async def _install(self, answer: Registered) -> None:
        had_errors = bool(self._packages.errors)
        await self._packages.install_pool(answer.pool_packages)
        if self._packages.errors or had_errors:
            await self._tell()
        if self._again.empty():
            self._ready.set()
