"""Kill -9 of the agent at each step of a reboot and a reimage: it ends as if nobody had been killed, and once."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.agent import failpoints
from nodeagent.agent.testing import ScriptedService, task
from nodeagent.model.protocol import Assignment, AttemptKind, NodeCommand, Transition, Work, WorkConstraints
from nodeagent.model.times import UNLIMITED
from nodeagent.model.values import DEFAULT_USER_IDENTITY
from tests.faults.test_agent_kill import Node, alive, until

POINTS = [name for name in failpoints.NAMES if "_node_command_" in name]


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """Return the service of one node."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def node(tmp_path: Path, service: ScriptedService) -> AsyncIterator[Node]:
    """Return a node whose agent the test starts."""
    made = Node(tmp_path, service)
    yield made
    if made.process is not None:
        await made.kill()


def start_task(attempt_id: str, command: str) -> Assignment:
    """Return the assignment of a start task."""
    return Assignment(
        attempt_id=attempt_id,
        attempt_kind=AttemptKind.START,
        job_id="",
        task_id="",
        work=Work(
            command_line=command,
            constraints=WorkConstraints(retention_time=UNLIMITED),
            user_identity=DEFAULT_USER_IDENTITY,
        ),
    )


def boot_number(node: Node) -> int:
    """Return how many boots the agent has made itself."""
    return int(json.loads((node.settings.state_dir / "boot.json").read_text()).get("number", 0))


def left_behind(node: Node) -> str:
    """Return a command line that leaves a process running and writes its pid."""
    return f"/bin/sh -c 'sleep 700 & echo $! >> {node.pids}/left; echo x > {node.shared}/kept'"


async def begun(service: ScriptedService, node: Node) -> int:
    """Let a start task leave a process, and begin another start task that does not end; return the process."""
    service.send(start_task("s1", left_behind(node)))
    await service.terminal("s1")
    pid = await node.pid_of("left")
    assert alive(pid)
    return pid


@pytest.mark.parametrize("point", POINTS)
async def test_a_reboot_that_is_cut_short_is_finished(point: str, service: ScriptedService, node: Node) -> None:
    """Everything of the former boot is dead, and one new boot begins, whose agent says which command it obeyed."""
    await node.start(point)
    former = await service.registered()
    pid = await begun(service, node)
    service.send(start_task("s2", node.command("s2", 0, "never")))
    running = await node.pid_of("s2")
    service.send(NodeCommand(command="reboot", command_id="c1"))
    assert await node.ended() == -9
    await node.start()
    await until(lambda: bool([call for call in service.registers if call.command_id == "c1"]), "the new boot")
    call = service.registers[-1]
    assert call.boot_id != former.boot_id
    assert (call.reimaged, boot_number(node)) == (False, 1)
    assert not alive(pid)
    assert not alive(running)
    assert (node.shared / "kept").exists()
    service.send(task("next", node.command("next", 0)))
    assert (await service.terminal("next")).transition is Transition.COMPLETED
    assert len(node.ran("s2")) == 1  # it belonged to the former boot: the service sends another one
    assert boot_number(node) == 1


@pytest.mark.parametrize("point", POINTS)
async def test_a_reimage_that_is_cut_short_is_finished(point: str, service: ScriptedService, node: Node) -> None:
    """Beside that, no file of the node is left; the agent is the same node with a higher epoch."""
    await node.start(point)
    former = await service.registered()
    pid = await begun(service, node)
    service.send(NodeCommand(command="reimage", command_id="c1"))
    assert await node.ended() == -9
    await node.start()
    await until(lambda: bool([call for call in service.registers if call.command_id == "c1"]), "the new boot")
    call = service.registers[-1]
    assert (call.reimaged, call.cursor, call.live_attempts) == (True, 0, ())
    assert call.epoch > former.epoch
    assert not alive(pid)
    assert not (node.shared / "kept").exists()
    assert boot_number(node) == 1
    await until(lambda: not json.loads((node.settings.state_dir / "boot.json").read_text())["reimaged"], "it is told")
    await node.kill()
    await node.start()
    again = len(service.registers)
    await until(lambda: len(service.registers) > again, "the next life")
    assert service.registers[-1].reimaged is False


async def test_a_command_is_obeyed_once_however_often_it_comes(service: ScriptedService, node: Node) -> None:
    """A queue that is read again, as after a lost answer, reboots nothing again; another command does."""
    await node.start()
    await service.registered()
    for number, command_id in enumerate(("c1", "c1", "c2"), start=1):
        seen = len(service.registers)
        service.send(NodeCommand(command="reboot", command_id=command_id))
        if number != 2:
            await until(lambda seen=seen: len(service.registers) > seen, "the next life")  # type: ignore[misc]
        service.send(task(f"t{number}", node.command(f"t{number}", 0)))
        await service.terminal(f"t{number}")
    assert boot_number(node) == 2
    assert [call.command_id for call in service.registers] == [None, "c1", "c2"]


async def test_a_configured_command_does_it_and_the_agent_waits(tmp_path: Path, service: ScriptedService) -> None:
    """The agent begins nothing more; started again on the same boot it runs the command again, as nothing happened."""
    script = f"open({str(tmp_path / 'asked')!r}, 'a').write('x')"
    node = Node(tmp_path, service, reboot_command=(sys.executable, "-c", script))
    asked = tmp_path / "asked"
    try:
        await node.start()
        await service.registered()
        service.send(NodeCommand(command="reboot", command_id="c1"))
        await until(asked.exists, "the command")
        assert await node.stop() == 0
        await node.start()
        await until(lambda: asked.read_text() == "xx", "the second try")
        assert len(service.registers) == 1
        assert await node.stop() == 0
        # the machine has been rebooted: the kernel's boot is another one
        file = node.settings.state_dir / "boot.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"kernel": "another"}))
        await node.start()
        await until(lambda: len(service.registers) == 2, "the new boot")
        assert service.registers[-1].command_id == "c1"
        assert asked.read_text() == "xx"
    finally:
        await node.kill()


async def test_a_configured_command_that_fails_is_told(tmp_path: Path, service: ScriptedService) -> None:
    """The agent ends with its words; whoever keeps it running starts it again, and it tries again."""
    node = Node(tmp_path, service, reboot_command=("/bin/sh", "-c", "echo not allowed >&2; exit 4"))
    try:
        await node.start()
        await service.registered()
        service.send(NodeCommand(command="reboot", command_id="c1"))
        assert await node.ended() == 3
        assert "reboot_command ended with 4: not allowed" in node.log()
    finally:
        await node.kill()


async def test_a_removed_node_ends_what_it_has_left(service: ScriptedService, node: Node) -> None:
    """Its agent ends with a status of its own, and nothing of the node runs any more."""
    await node.start()
    await service.registered()
    pid = await begun(service, node)
    service.refuse("register", 409, "NodeRemoved", times=100)
    service.forget_node()
    assert await node.ended() == 10
    await asyncio.to_thread(lambda: None)
    assert not alive(pid)
