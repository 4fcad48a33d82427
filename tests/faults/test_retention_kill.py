"""Kill -9 in the middle of a removal that a retention time began: the next life finishes it, and no other file goes."""

import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from nodeagent.agent.testing import ScriptedService, task
from tests.faults.test_agent_kill import Node, until


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


async def test_killed_between_bin_and_deletion_the_next_life_finishes(service: ScriptedService, tmp_path: Path) -> None:
    """The wish to remove is stored with the look that found it; directory and records go, the newest attempt stays."""
    node = Node(tmp_path, service, cleanup_seconds=0.05)
    job = node.settings.root / "workitems" / "job" / "job-1"
    await node.start("after_bin")
    service.send(task("a1", "/bin/sh -c 'touch file; exit 1'", task_id="t", retention_time=timedelta(seconds=1)))
    await service.terminal("a1")
    service.send(task("a2", "/bin/sh -c 'echo newest'", task_id="t", retry_count=1))
    await service.terminal("a2")
    assert await node.ended() == -signal.SIGKILL, node.log()
    assert not (job / "t~1").exists()
    assert list((node.settings.root / "volatile" / "bin").iterdir())

    await node.start()
    await until(lambda: not list((node.settings.root / "volatile" / "bin").iterdir()), "the bin to be emptied")
    await until(lambda: not (tmp_path / "state" / "attempts" / "a1").exists(), "the records to go")
    assert (job / "t" / "stdout.txt").read_text() == "newest\n"
    assert (tmp_path / "state" / "attempts" / "a2").is_dir()
    assert await node.stop() == 0, node.log()
