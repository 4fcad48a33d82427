"""The agent as a whole: who it is, what it finds, whom it talks to, and how it ends (design.md §5, §6).

Ending the agent is not a drain: tasks run on under their shims, and the next life takes them over.
"""

import asyncio
import signal
import sqlite3
import sys
from typing import TypeVar

import structlog

from nodeagent.agent import node_commands
from nodeagent.agent.boot import BootFile
from nodeagent.agent.errors import AgentError, RemovedError, UnwritableError
from nodeagent.agent.identity import StateDirectory
from nodeagent.agent.life import CommandGiven, StopAsked, live
from nodeagent.agent.node_sweep import end_everything
from nodeagent.agent.settings import AgentSettings
from nodeagent.model.protocol import NodeCommand
from nodeagent.runtime.base import Runtime

log = structlog.get_logger(__name__)

E = TypeVar("E", bound=BaseException)

SWITCH_SECONDS = 0.0002
"""SQLite lets go of the interpreter at every statement: the writer thread must not wait 5 ms to get it back."""


async def run_agent(
    settings: AgentSettings, stop: asyncio.Event | None = None, *, runtime: Runtime | None = None
) -> int:
    """Live as the agent of one node until SIGTERM, SIGINT or `stop`; return the exit status.

    What keeps the agent from starting or going on is written to standard error in one line; tasks run on. `runtime`
    is used instead of the one that the settings name: a test's, or one that somebody else brings.
    """
    stop = stop or asyncio.Event()
    status = 0
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with StateDirectory(settings.state_dir) as state, _stopped_by_signals(stop):
            await _lives(settings, state, stop, runtime)
    except* AgentError as group:
        status = _tell(_first(group))
    except* sqlite3.OperationalError as group:
        status = _tell(UnwritableError(f"{settings.state_dir}/agent.db cannot be used: {_first(group)}"))
    except* StopAsked:
        log.info("agent stopped; tasks run on")
    return status


def _tell(error: AgentError) -> int:
    sys.stderr.write(f"nodeagent: {error}\n")
    return error.exit_status


def _first(group: BaseExceptionGroup[E]) -> E:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


class _stopped_by_signals:  # noqa: N801 - a context, used like a function
    """SIGTERM and SIGINT set the event while the context is open."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in self._SIGNALS:
            loop.add_signal_handler(number, self._stop.set)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._SIGNALS:
            loop.remove_signal_handler(number)


async def _lives(settings: AgentSettings, state: StateDirectory, stop: asyncio.Event, given: Runtime | None) -> None:
    """Live until somebody stops the agent; a reboot or reimage of the node comes between two lives."""
    pending = BootFile(state.boot).read().pending
    while True:
        if pending is not None:
            await node_commands.obey(settings, state, pending, stop)
            if stop.is_set():
                raise StopAsked
        pending = await _life(settings, state, stop, given)


async def _life(
    settings: AgentSettings, state: StateDirectory, stop: asyncio.Event, given: Runtime | None
) -> NodeCommand:
    """Live once, and return the command that ended that life."""
    commands: list[NodeCommand] = []
    try:
        await live(settings, state, stop, given)
    except* CommandGiven as group:
        commands.append(_first(group).command)
    except* RemovedError:
        await end_everything(state.attempts)
        raise
    return commands[0]
