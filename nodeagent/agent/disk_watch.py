"""Watches the disk on which tasks live: budgets of tasks, levels of pressure, the ballast (docs/limits.md).

A walk over the directories of what runs costs time, so it is made seldom, and at once when somebody met a full disk.
Everything is off that the settings do not ask for; then this does nothing but wait.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from nodeagent.agent import failpoints
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.ballast import Ballast
from nodeagent.agent.database import Database
from nodeagent.agent.disk_usage import free_bytes, take_away, used_bytes
from nodeagent.agent.janitor import Janitor
from nodeagent.agent.settings import AgentSettings
from nodeagent.agent.waiting import either
from nodeagent.model.protocol import StopReason
from nodeagent.rules.attempt_events import Ended, StopRequested
from nodeagent.rules.disk import Cleanup, Level, Thresholds, culprit, level, over_budget
from nodeagent.rules.failures import Detail, disk_full
from nodeagent.shim import kernel

if TYPE_CHECKING:
    from nodeagent.agent.attempt_runner import AttemptRunner

log = structlog.get_logger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the kernel says when there is no space."""
FULL_SECONDS = 0.5
"""How soon to try again what met a full disk."""
SHORT_SECONDS = 0.5
"""How soon to look again while the node is short of space."""
PAUSE_SECONDS = 2.0
"""How long to try to hold the processes of a task."""
END_SECONDS = 10.0
"""How long tasks are held at most until the culprit has ended and its files are gone."""


@dataclass(frozen=True, slots=True)
class DiskRules:
    """What the settings ask for."""

    thresholds: Thresholds
    budget: int | None
    seconds: float

    @classmethod
    def of(cls, settings: AgentSettings) -> "DiskRules":
        """Return what the settings ask for."""
        return cls(
            Thresholds(settings.disk_soft_free_bytes, settings.disk_hard_free_bytes),
            settings.disk_bytes_per_task,
            settings.disk_check_seconds,
        )

    @staticmethod
    def cleanup_of(settings: AgentSettings) -> Cleanup:
        """Return when files of ended tasks go before their time."""
        return Cleanup(settings.cleanup_free_bytes, settings.cleanup_free_inodes)

    def cache_cleanup_of(self, settings: AgentSettings) -> Cleanup:
        """Return when the cache goes: before files of tasks do, and before any task waits or ends for space."""
        room = max(settings.cleanup_free_bytes or 0, self.thresholds.room)
        return Cleanup(room or None, settings.cleanup_free_inodes)

    @property
    def watches(self) -> bool:
        """Whether there is anything to watch."""
        return self.budget is not None or self.thresholds != Thresholds()


class DiskWatch:
    """The one who knows how much space there is, and ends tasks for it."""

    def __init__(
        self,
        rules: DiskRules,
        ballast: Ballast,
        database: Database,
        attempts: Attempts,
        root: Path,
        empty_bin: Callable[[], Awaitable[None]],
        janitor: Janitor,
    ) -> None:
        """`root` is the node root; the ballast lies where the agent's own state is."""
        self._janitor = janitor
        self._rules = rules
        self._ballast = ballast
        self._database = database
        self._attempts = attempts
        self._root = root
        self._bin = root / "volatile" / "bin"
        self._empty_bin = empty_bin
        self._level = Level.NORMAL
        self._room = asyncio.Event()
        self._room.set()
        self._asked = asyncio.Event()

    @property
    def level(self) -> Level:
        """The level at the last look."""
        return self._level

    def look_now(self) -> None:
        """Look before it is time."""
        self._asked.set()

    def met_full(self) -> None:
        """The agent itself has met a full disk. Where tasks can be held, that comes before the ballast is let go."""
        if self._rules.thresholds.hard is None:
            self._ballast.release()
        self.look_now()

    async def room(self, given_up: asyncio.Event) -> None:
        """Wait until tasks may begin, or until nobody wants this one to any more."""
        await either(self._room, given_up)

    async def begin(self) -> None:
        """Make the ballast, and look once, before anything is launched."""
        if self._watches:
            await self._look()

    async def run(self) -> None:
        """Look for ever."""
        if self._rules.thresholds.hard is not None and self._level is not Level.HARD:
            await asyncio.to_thread(self._resume)
        while True:
            short = self._level is not Level.NORMAL
            with suppress(TimeoutError):
                async with asyncio.timeout(SHORT_SECONDS if short else self._rules.seconds):
                    await self._asked.wait()
            self._asked.clear()
            if self._watches:
                await self._look()

    @property
    def _watches(self) -> bool:
        return self._rules.watches or self._janitor.watches

    async def judged(self, runner: "AttemptRunner", event: Ended) -> Ended:
        """Return the end of an execution with what it has to do with the disk.

        One that was ended for space says how much it held. One that failed by itself on a full disk, and held most of
        it, failed for want of space as well. If the node was short, the task's files are taken away.
        """
        if event.stop_reason is StopReason.DISK_BUDGET:
            used = await asyncio.to_thread(used_bytes, runner.paths.root)
            told = (_held(used), ("Limit", f"disk_bytes_per_task {self._rules.budget} bytes"))
            return replace(event, evidence=event.evidence + told)
        if event.stop_reason is StopReason.DISK_PRESSURE:
            return replace(event, evidence=event.evidence + await self._cleared(runner.paths.root))
        if event.exit_code and event.stop_reason is None and self._rules.thresholds.hard is not None:
            return await self._judged_by_itself(runner, event)
        return event

    async def _judged_by_itself(self, runner: "AttemptRunner", event: Ended) -> Ended:
        free, used = await asyncio.to_thread(self._measure)
        if level(free, self._rules.thresholds) is not Level.HARD:
            return event
        if culprit(used, (self._rules.thresholds.hard or 0) - free) != runner.attempt.attempt_id:
            return event
        failure = disk_full(
            ("Message", "The task failed when the compute node was running out of disk space"),
            ("ExitCode", str(event.exit_code)),
            ("DiskFree", f"{free} bytes"),
            ("StandardError", event.stderr_tail),
        )
        return replace(event, failure=failure, evidence=event.evidence + await self._cleared(runner.paths.root))

    async def _cleared(self, directory: Path) -> tuple[Detail, ...]:
        """Take a task's files away; what it held. Called again after a restart it finds less to take away."""
        used = await asyncio.to_thread(used_bytes, directory)
        try:
            await asyncio.to_thread(self._take_away, directory)
            await self._empty_bin()
        except OSError as error:
            log.warning("files of a task could not be taken away", path=str(directory), why=error.strerror)
        self.look_now()
        return (
            _held(used),
            ("Limit", f"disk_hard_free_bytes {self._rules.thresholds.hard} bytes"),
            ("FilesRemoved", "the task's files were removed; of stdout.txt and stderr.txt the first MiB is kept"),
        )

    def _take_away(self, directory: Path) -> None:
        self._bin.mkdir(mode=0o700, exist_ok=True)
        take_away(directory, self._bin)

    async def _look(self) -> None:
        if self._janitor.watches:
            await self._janitor.make_room()
        free, used = await asyncio.to_thread(self._measure)
        self._turn(level(free, self._rules.thresholds), free)
        for attempt_id in over_budget(used, self._rules.budget):
            await self._end(attempt_id, StopReason.DISK_BUDGET, used[attempt_id])
        if self._level is Level.HARD:
            await self._relieve(free, used)
        elif free >= self._rules.thresholds.room + self._ballast.size:
            await asyncio.to_thread(self._ballast.make)

    def _measure(self) -> tuple[int, dict[str, int]]:
        free = free_bytes(self._root, self._ballast.path.parent)
        if self._rules.budget is None and level(free, self._rules.thresholds) is not Level.HARD:
            return free, {}
        return free, {
            runner.attempt.attempt_id: used_bytes(runner.paths.root)
            for runner in self._attempts
            if runner.attempt.executing
        }

    def _turn(self, found: Level, free: int) -> None:
        if found is not self._level:
            log.warning("disk pressure", pressure=found.name.lower(), before=self._level.name.lower(), free_bytes=free)
        self._level = found
        if found is Level.NORMAL:
            self._room.set()
        else:
            self._room.clear()

    async def _relieve(self, free: int, used: dict[str, int]) -> None:
        """Hold all tasks, make room for what must be written, end the one who takes most; one at a time.

        All of them are held for a moment, because any of them could fill what the ballast leaves.
        """
        ending = [runner for runner in self._attempts if runner.attempt.stop_reason is StopReason.DISK_PRESSURE]
        if any(runner.attempt.executing for runner in ending):
            self._ballast.release()
            for dying in ending:
                await asyncio.to_thread(self._make_room_for_its_end, dying)
            await self._empty_bin()
            return
        guilty = culprit(used, (self._rules.thresholds.hard or 0) - free)
        runner = None if guilty is None else self._attempts.get(guilty)
        if runner is None or guilty is None:
            log.warning("no task of this node is to blame for the full disk", free_bytes=free)
            self._ballast.release()
            return
        held = [boundary for each in self._attempts if (boundary := _boundary(each)) is not None]
        await asyncio.to_thread(_hold, held)
        failpoints.hit("after_hold_for_disk")
        self._ballast.release()
        try:
            await self._end(guilty, StopReason.DISK_PRESSURE, used[guilty])
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await runner.over.wait()
            await asyncio.to_thread(self._ballast.make)  # before anybody can fill that again
        finally:
            await asyncio.to_thread(_let_go, held)

    def _make_room_for_its_end(self, runner: "AttemptRunner") -> None:
        """Take away the files of a culprit that is dead already: its shim may be waiting for room to record that."""
        boundary = runner.recorded_boundary()
        if runner.attempt.executing and boundary is not None and not kernel.members(boundary):
            with suppress(OSError):  # the end itself does it again, and tells
                self._take_away(runner.paths.root)

    async def _end(self, attempt_id: str, reason: StopReason, used: int) -> None:
        runner = self._attempts.get(attempt_id)
        if runner is None or runner.attempt.stop_reason is not None:
            return
        log.warning("task ended for disk space", attempt=attempt_id, reason=reason.value, used_bytes=used)
        change = runner.apply(StopRequested(reason))
        if change.after != change.before:
            await self._database.write(change.save)
            runner.committed(change)
            runner.pursue(change.effects)

    def _resume(self) -> None:
        """A former life may have held tasks, and been killed before it let them go."""
        _let_go([boundary for runner in self._attempts if (boundary := _boundary(runner)) is not None])


def _held(used: int) -> Detail:
    return ("DiskUsed", f"{used} bytes")


def _boundary(runner: "AttemptRunner") -> dict[str, str] | None:
    """The boundary in which something of the attempt may run."""
    return runner.recorded_boundary() if runner.attempt.executing else None


def _hold(boundaries: list[dict[str, str]]) -> None:
    """Stop processes where they are: what is let go now must not be filled by them. Blocks."""
    for boundary in boundaries:
        kernel.pause(boundary, PAUSE_SECONDS)


def _let_go(boundaries: list[dict[str, str]]) -> None:
    for boundary in boundaries:
        kernel.resume(boundary)
