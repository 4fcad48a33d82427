"""The agent is killed between giving a uid to a task, and taking it back: nobody ever gets what is another's."""

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from nodeagent.agent.testing import ScriptedService, task
from nodeagent.model.enums import AutoUserScope
from nodeagent.model.protocol import Assignment
from nodeagent.model.values import AutoUserSpecification, UserIdentity
from tests.faults.test_agent_kill import Node, assert_ended_once, exit_code

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving tasks users of their own needs root")

FIRST, LAST = 60900, 60902
"""The pool's auto user, and two for tasks: `slots` is 2."""


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may pass."""
    path = Path(tempfile.mkdtemp(prefix="users-"))
    path.chmod(0o711)
    yield path
    rmtree(path)


def in_task_scope(attempt_id: str, script: str) -> Assignment:
    """A task with a user of its own."""
    assignment = task(attempt_id, f"/bin/sh -c '{script}'")
    identity = UserIdentity(auto_user=AutoUserSpecification(scope=AutoUserScope.TASK))
    return assignment.model_copy(update={"work": assignment.work.model_copy(update={"user_identity": identity})})


@pytest.mark.parametrize("point", ["after_account_commit", "after_account_close"])
async def test_killed_around_a_uid_the_next_life_keeps_and_frees_it(
    service: ScriptedService, folder: Path, point: str
) -> None:
    """The attempt ends once, with the uid that it was given; then its directory is closed, and the uid is free."""
    node = Node(folder, service, accounts="uids", uid_range=(FIRST, LAST))
    where = folder / "root/workitems/job/job-1"
    await node.start(point)
    await service.registered()
    service.send(in_task_scope("a", "echo secret > secret; chmod 644 secret; id -u"))
    assert await node.ended() == -9

    await node.start()
    assert exit_code(await service.terminal("a")) == 0
    assert (where / "task-a/stdout.txt").read_text() == f"{FIRST + 1}\n"
    closed = (where / "task-a").stat()
    assert (closed.st_uid, stat.S_IMODE(closed.st_mode)) == (0, 0o700)

    uids = []
    for name in ("b", "c"):
        service.send(in_task_scope(name, f"id -u; cat {where}/task-a/wd/secret && exit 9 || exit 0"))
        assert exit_code(await service.terminal(name)) == 0
        uids.append((where / f"task-{name}/stdout.txt").read_text().strip())
    assert uids == [str(FIRST + 2), str(FIRST + 1)]
    assert_ended_once(service)
    assert await node.stop() == 0
