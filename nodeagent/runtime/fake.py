"""The fake runtime: every outcome is decided by a test, while it goes.

world = World()
runtime = FakeRuntime(world)            # given to the agent under test
await world.launched("a1")              # the agent asked for it
await world.exit("a1", 3)                     # its wait() now returns
FakeRuntime(world)                      # "the agent was restarted": it finds what its predecessor left
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nodeagent.runtime.base import (
    Ended,
    LaunchError,
    LaunchUnknown,
    Lost,
    LostCandidate,
    NeverStarted,
    Running,
    RuntimeFailure,
    Seen,
)
from nodeagent.shim.records import ExecError, ExitRecord, StopRecord, SweptRecord


@dataclass
class _Attempt:
    """What a world knows of one attempt; `changed` wakes who waits."""

    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    taken: bool = False
    shim_dead: bool = False
    outcome: Ended | Lost | None = None
    stop: StopRecord | None = None
    refusal: str | None = None


class World:
    """The machine that outlives fake runtimes: attempts, and what a test makes of them."""

    def __init__(self) -> None:
        self._attempts: dict[str, _Attempt] = {}
        self.launches: list[str] = []
        """Attempt ids in the order in which they were launched; at most once each."""
        self.swept: list[str] = []
        """Attempt ids that were swept because their shim was dead."""

    def attempt(self, attempt_id: str) -> _Attempt:
        """The attempt, known from now on."""
        return self._attempts.setdefault(attempt_id, _Attempt())

    def refuse(self, attempt_id: str, text: str) -> None:
        """Let the launch of this attempt fail with LaunchError."""
        self.attempt(attempt_id).refusal = text

    async def launched(self, attempt_id: str) -> None:
        """Wait until it has been launched."""
        await self._until(attempt_id, lambda one: one.taken)

    async def stopped(self, attempt_id: str) -> StopRecord:
        """Wait until somebody wants it stopped; the request as it stands."""
        await self._until(attempt_id, lambda one: one.stop is not None)
        stop = self.attempt(attempt_id).stop
        assert stop is not None  # noqa: S101 - that is what was waited for
        return stop

    async def exit(
        self,
        attempt_id: str,
        code: int | None = 0,
        *,
        signal: int | None = None,
        exec_error: ExecError | None = None,
        killed: int = 0,
    ) -> None:
        """End a running attempt: with a code, a signal, or because its command could not be executed."""
        one = self._running(attempt_id)
        now = time.time()
        ran = exec_error is None
        exited = ExitRecord(
            attempt_id,
            ended_at=now,
            started_at=now if ran else None,
            exit_code=code if ran and signal is None else None,
            signal=signal,
            exec_error=exec_error,
            stop_reason=one.stop.reason if one.stop else None,
            runtime="fake",
        )
        await self.finish(attempt_id, Ended(exited, SweptRecord(attempt_id, killed, 0, "fake")))

    async def kill_shim(self, attempt_id: str) -> None:
        """Let the shim die without a record: the attempt becomes lost as soon as somebody settles it."""
        self._running(attempt_id).shim_dead = True
        await self.notify(attempt_id)

    def _running(self, attempt_id: str) -> _Attempt:
        one = self.attempt(attempt_id)
        if not one.taken or one.shim_dead or one.outcome is not None:
            raise AssertionError(f"{attempt_id} does not run")
        return one

    async def finish(self, attempt_id: str, outcome: Ended | Lost) -> None:
        """Set the outcome and wake who waits."""
        self.attempt(attempt_id).outcome = outcome
        await self.notify(attempt_id)

    async def notify(self, attempt_id: str) -> None:
        """Wake who waits for anything about this attempt."""
        changed = self.attempt(attempt_id).changed
        async with changed:
            changed.notify_all()

    async def _until(self, attempt_id: str, ready: Callable[[_Attempt], bool]) -> None:
        one = self.attempt(attempt_id)
        async with one.changed:
            await one.changed.wait_for(lambda: ready(one))


class FakeRuntime:
    """What an agent sees of a `World`. See `Runtime`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def open(self) -> None:
        """Nothing is started."""

    async def close(self) -> None:
        """What runs in the world goes on running."""

    async def launch(self, attempt_id: str) -> None:
        """See Runtime.launch."""
        world, one = self._world, self._world.attempt(attempt_id)
        if one.refusal is not None:
            raise LaunchError(f"{attempt_id}: {one.refusal}")
        if one.taken or one.outcome is not None:
            raise LaunchUnknown(f"{attempt_id} was taken before: an attempt runs at most once")
        if one.stop is not None:
            await world.finish(attempt_id, self._never_started(attempt_id))
            return
        one.taken = True
        world.launches.append(attempt_id)
        await world.notify(attempt_id)

    async def wait(self, attempt_id: str) -> Ended | Lost:
        """See Runtime.wait."""
        one = self._world.attempt(attempt_id)
        if one.taken:
            async with one.changed:
                await one.changed.wait_for(lambda: one.shim_dead or one.outcome is not None)
        return await self.resolve_lost(attempt_id)

    async def stop(self, attempt_id: str, reason: str, grace: float) -> None:
        """See Runtime.stop; what the task makes of it is the test's to say."""
        one = self._world.attempt(attempt_id)
        if one.stop is None or grace < one.stop.grace_seconds:
            one.stop = StopRecord(one.stop.reason if one.stop else reason, grace, time.time())
        await self._world.notify(attempt_id)

    def look(self, attempt_id: str) -> Seen:
        """See Runtime.look."""
        one = self._world.attempt(attempt_id)
        if one.outcome is not None:
            return one.outcome
        if not one.taken:
            return NeverStarted(f"no shim took {attempt_id}")
        if one.shim_dead:
            return LostCandidate("the shim is gone and left no exit record")
        return Running(0, None)

    async def resolve_lost(self, attempt_id: str) -> Ended | Lost:
        """See Runtime.resolve_lost."""
        seen = self.look(attempt_id)
        if isinstance(seen, Running):
            raise RuntimeFailure(f"{attempt_id}: a shim holds the attempt")
        if isinstance(seen, NeverStarted):
            seen = self._never_started(attempt_id)
        if isinstance(seen, LostCandidate):
            self._world.swept.append(attempt_id)
            seen = Lost(seen.detail)
        await self._world.finish(attempt_id, seen)
        return seen

    async def adopt(self, attempt_id: str) -> None:
        """See Runtime.adopt; the world wakes whoever waits, so nothing is to be done."""

    def _never_started(self, attempt_id: str) -> Ended:
        stop = self._world.attempt(attempt_id).stop
        reason = stop.reason if stop else None
        exited = ExitRecord(attempt_id, time.time(), never_started=True, stop_reason=reason, runtime="fake")
        return Ended(exited, None)
