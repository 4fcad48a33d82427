"""End the tasks of nodes whose agents have gone, by the same records that an agent would recover from.

The shims outlive their agent, so ending a stack means asking them: `stop.json` and a poke for each attempt that
runs, a sweep for what lost its shim, and last a sweep of the boundary of the whole node. What an attempt leaves
behind are true records: the next agent on the folder reports them.
"""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import structlog

from nodeagent.agent.errors import StateInUseError
from nodeagent.agent.identity import StateDirectory
from nodeagent.agent.node_sweep import sweep_nodes
from nodeagent.model.protocol import StopReason
from nodeagent.runtime.base import LostCandidate, Running
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.shim import records

log = structlog.get_logger(__name__)

_SETTLE_SECONDS = 20.0


async def end_tasks(state_dirs: Iterable[Path], *, grace_seconds: float, hurry: asyncio.Event) -> None:
    """End every attempt below the agents' state directories; returns when their processes are gone.

    SIGTERM first, SIGKILL after `grace_seconds` or as soon as `hurry` is set. The tasks are to run again if the
    folder is used again: they carry the stop reason `drain_requeue`. A folder that an agent holds is left alone.
    Raises ExceptionGroup of RuntimeFailure for what would not die.
    """
    async with asyncio.TaskGroup() as group:
        for state_dir in state_dirs:
            group.create_task(_end_node(state_dir, grace_seconds, hurry))


async def _end_node(state_dir: Path, grace_seconds: float, hurry: asyncio.Event) -> None:
    names = _attempts(state_dir)
    if not names:
        return
    try:
        with StateDirectory(state_dir):
            runtime = ProcessRuntime(state_dir)
            try:
                async with asyncio.TaskGroup() as group:
                    for name in names:
                        group.create_task(_end_attempt(runtime, name, grace_seconds, hurry))
            finally:
                await runtime.close()
            await sweep_nodes(runtime.attempts, names)
    except StateInUseError:
        log.warning("tasks are left to the agent that holds the folder", state_dir=str(state_dir))


def _attempts(state_dir: Path) -> list[str]:
    """Return the attempts to look at; thousands that have long been swept cost one stat each."""
    attempts = state_dir / "attempts"
    if not attempts.is_dir():
        return []
    known = sorted(entry for entry in attempts.iterdir() if records.exists(str(entry), records.Spec.FILE))
    unsettled = [entry for entry in known if not records.exists(str(entry), records.SweptRecord.FILE)]
    # the newest one in any case: it knows the boundary of the node, which is swept last
    return sorted({entry.name for entry in (*unsettled, *known[-1:])})


async def _end_attempt(runtime: ProcessRuntime, name: str, grace_seconds: float, hurry: asyncio.Event) -> None:
    seen = runtime.look(name)
    if isinstance(seen, Running):
        await runtime.stop(name, StopReason.DRAIN_REQUEUE, 0 if hurry.is_set() else grace_seconds)
        impatience = asyncio.create_task(_kill_when_hurried(runtime, name, hurry))
        try:
            async with asyncio.timeout(grace_seconds + _SETTLE_SECONDS):
                await runtime.wait(name)
        finally:
            impatience.cancel()
    elif isinstance(seen, LostCandidate):
        await runtime.resolve_lost(name)


async def _kill_when_hurried(runtime: ProcessRuntime, name: str, hurry: asyncio.Event) -> None:
    await hurry.wait()
    await runtime.stop(name, StopReason.DRAIN_REQUEUE, 0)
