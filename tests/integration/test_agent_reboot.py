"""What an agent makes of attempts of a former boot: start and preparation task come first again (spec/node.md §11).

The reboot is one that nobody has asked for: nothing was drained before it.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.files import ResourceFile
from nodeagent.model.protocol import AttemptKind, Transition
from tests.integration.faulty_server import Asked, Reply, faulty_server


@asynccontextmanager
async def agent(folder: Path, service: ScriptedService) -> AsyncIterator[None]:
    """Run one life of an agent, until it is registered and on."""
    stop, before = asyncio.Event(), len(service.registers)
    running = asyncio.create_task(run_agent(agent_settings(folder, service.url), stop))
    await service.registered(before + 1)
    yield
    stop.set()
    assert await running == 0


def reboot(folder: Path) -> None:
    """Let the next life of the agent find itself in another boot."""
    path = folder / "state" / "boot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"number": 1}))


async def test_what_was_not_launched_before_a_reboot_is_given_back(tmp_path: Path) -> None:
    """A task that still downloads, one that waits for its preparation: lost, and never launched in the new boot.

    The preparation is not begun anew by the node: the service sends another one when the start task is over.
    """
    log, hang = tmp_path / "log", asyncio.Event()

    async def answer(_: Asked, __: Reply) -> None:
        await hang.wait()

    async with ScriptedService() as service, faulty_server(answer) as server:
        file = ResourceFile(http_url=server.url(), file_path="data")
        async with agent(tmp_path, service):
            service.send(
                task("prep", f"/bin/sh -c 'echo prep >> {log}; exec sleep 60'", kind=AttemptKind.JOB_PREPARATION),
                task("waits", f"/bin/sh -c 'echo waits >> {log}'", gate="prep"),
                task("loads", f"/bin/sh -c 'echo loads >> {log}'", work={"resource_files": (file,)}),
            )
            await service.running("prep")
            await service.running("loads")
            await service.until(lambda: log.exists() and bool(service.heartbeats), "the preparation to begin")
        reboot(tmp_path)
        async with agent(tmp_path, service):
            for name in ("waits", "loads"):
                ended = await service.terminal(name)
                assert ended.transition is Transition.LOST
            beats = len(service.heartbeats)
            await service.until(
                lambda: any(beat.live_attempts == () for beat in service.heartbeats[beats:]), "an idle node"
            )
        hang.set()
        assert [report.transition for report in service.reports_of("prep")] == [Transition.RUNNING]
        assert service.registers[0].boot_id != service.registers[1].boot_id
    assert log.read_text().split() == ["prep"]
