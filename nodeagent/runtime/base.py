"""What the agent asks of a runtime, and the answers.

RuntimeFailure
├── LaunchError      nothing ran, and nothing will run because of this launch
└── LaunchUnknown    the attempt had been taken before, or nobody answered: look, do not conclude anything
"""

from dataclasses import dataclass
from typing import Protocol

from nodeagent.shim.records import ExitRecord, StartedRecord, SweptRecord


class RuntimeFailure(Exception):  # noqa: N818 - RuntimeError is taken
    """A runtime could not do what it was asked."""


class LaunchError(RuntimeFailure):
    """The attempt was not taken; nothing ran because of this launch."""


class LaunchUnknown(RuntimeFailure):
    """The attempt was taken or given up before this launch, or no shim answered in time. `look` and `wait` tell."""


@dataclass(frozen=True)
class Running:
    """A shim holds the attempt. `started` is None until the command has been executed."""

    shim_pid: int
    started: StartedRecord | None


@dataclass(frozen=True)
class Ended:
    """The attempt ended and its records are whole. `swept` is None if leftovers belong to someone else."""

    exit: ExitRecord
    swept: SweptRecord | None


@dataclass(frozen=True)
class Lost:
    """The shim died before it could record an exit: the outcome is not known. The boundary has been swept.

    `remaining` > 0: that many processes would not die; nothing may be started in their place (call resolve_lost again).
    """

    detail: str
    killed: int = 0
    remaining: int = 0


@dataclass(frozen=True)
class LostCandidate:
    """An attempt was taken, nobody holds it, no exit is recorded: `resolve_lost` makes this a `Lost` or an `Ended`."""

    detail: str


@dataclass(frozen=True)
class NeverStarted:
    """No shim ever took the attempt: nothing ran. It may be launched (again), or given up with `resolve_lost`."""

    detail: str


Seen = Running | Ended | Lost | LostCandidate | NeverStarted


class Runtime(Protocol):
    """Runs attempts whose spec.json the agent has written. Safe to use from one event loop only."""

    async def open(self) -> None:
        """Make ready to launch."""

    async def close(self) -> None:
        """Let go: what runs goes on running, and the next agent adopts it."""

    async def launch(self, attempt_id: str) -> None:
        """Start the attempt at most once; returns when a shim holds it. Raises LaunchError or LaunchUnknown."""

    async def wait(self, attempt_id: str) -> Ended | Lost:
        """The outcome, at once if there is one already, else when there is. Sweeps if the shim could not.

        An attempt that nobody ever took is given up by this: an Ended with `exit.never_started`.
        Cancelling it changes nothing.
        """

    async def stop(self, attempt_id: str, reason: str, grace: float) -> None:
        """SIGTERM, `grace` seconds, then kill. Durable before it returns; the first reason stands, a later call may
        shorten the grace; before the launch it means that the command will not be run. Harmless after the end.
        """  # noqa: D205 - two short sentences

    def look(self, attempt_id: str) -> Seen:
        """What the disk and the kernel say, without any effect."""

    async def resolve_lost(self, attempt_id: str) -> Ended | Lost:
        """Settle an attempt that nobody holds: sweep its boundary, prove it empty, record that. Repeating is harmless.

        Also gives up an attempt that was never taken (Ended with `exit.never_started`): no shim will take it later.
        Raises RuntimeFailure if a shim holds it.
        """

    async def adopt(self, attempt_id: str) -> None:
        """Take over an attempt that runs under a shim of an earlier agent, so that `wait` is woken by its end."""
