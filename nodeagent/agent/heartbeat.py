"""The heartbeat: this agent lives, these attempts are not over, and so the machine fares (docs/node-protocol.md)."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from nodeagent.agent.membership import Membership
from nodeagent.model.protocol import Heartbeat, HeartbeatAnswer, HostStatistics


def host_statistics(root: Path) -> HostStatistics:
    """Return how the machine fares; the processor since the last call, the disk where tasks live."""
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage(str(root))
    return HostStatistics(
        cpu_percent=psutil.cpu_percent(),
        memory_used_bytes=memory.total - memory.available,
        memory_total_bytes=memory.total,
        disk_free_bytes=disk.free,
        disk_total_bytes=disk.total,
    )


async def beat_once(membership: Membership, body: Callable[[HostStatistics], Heartbeat], root: Path) -> HeartbeatAnswer:
    """Send one heartbeat, until it is answered."""
    host = await asyncio.to_thread(host_statistics, root)
    return await membership.insist("heartbeat", lambda: body(host).to_json(), HeartbeatAnswer)


async def beat(
    membership: Membership,
    body: Callable[[HostStatistics], Heartbeat],
    root: Path,
    seconds: Callable[[], float],
    disowned: Callable[[Sequence[str]], None],
) -> None:
    """Send a heartbeat every so many seconds, for ever."""
    while True:
        answer = await beat_once(membership, body, root)
        if answer.unknown_attempts:
            disowned(answer.unknown_attempts)
        if answer.register_again:
            membership.leave()
            await membership.register()
        await asyncio.sleep(seconds())
