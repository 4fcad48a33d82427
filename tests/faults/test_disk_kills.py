"""The agent is killed while it holds tasks on a full disk: the next life ends the culprit and lets the others go."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nodeagent.agent.testing import ScriptedService, task
from tests.faults.test_agent_kill import Node, assert_ended_once, exit_code, until

MIB = 1 << 20
LOOP = "with open('big', 'wb', 0) as f:\n  try:\n    while f.write(b'x' * 65536): pass\n"
FILLER = f'{sys.executable} -c "import time\n{LOOP}  except OSError: time.sleep(600)"'

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 MiB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={64 * MIB},mode=755", "nodeagent-test", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def state_of(pid: int) -> str:
    """The state of a process: `T` if it is held."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_killed_while_tasks_are_held(service: ScriptedService, disk: Path) -> None:
    """The disk is full to the last byte at the start of the next life; the ballast is what it starts from."""
    pressure = {"disk_hard_free_bytes": 8 * MIB, "ballast_bytes": 4 * MIB, "disk_check_seconds": 0.1}
    node = Node(disk, service, **pressure)
    await node.start("after_hold_for_disk")
    await service.registered()
    service.send(task("small", node.command("small", 5, wait_for="go")))
    small = await node.pid_of("small")
    service.send(task("big", FILLER))
    assert await node.ended() == -9
    await until(lambda: state_of(small) == "T", "the small task to be held")

    await node.start()
    report = await service.terminal("big")
    assert report.outcome is not None
    assert report.outcome.failure_info is not None
    assert report.outcome.failure_info.code == "DiskFull"
    await until(lambda: state_of(small) != "T", "the small task to go on")
    (node.pids / "go").touch()
    assert exit_code(await service.terminal("small")) == 5
    assert_ended_once(service)
    assert await node.stop() == 0
