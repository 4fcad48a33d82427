"""Kill -9 of the agent while files come and go: nothing is lost, no half file is seen, nothing runs twice."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nodeagent.agent.testing import ScriptedService, task
from nodeagent.model.protocol import AttemptKind, Outcome, StopAttempt, StopReason
from tests.faults.test_agent_kill import Node, assert_ended_once, exit_code
from tests.integration.azurite import Container
from tests.integration.faulty_server import Asked, Reply, faulty_server

pytest_plugins = ["tests.integration.storage_fixtures"]

CONTENT = bytes(range(256)) * 16_384
"""4 MiB."""


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def node(service: ScriptedService, tmp_path: Path) -> AsyncIterator[Node]:
    """A node, not started; afterwards its agent has ended well."""
    made = Node(tmp_path, service, cache_bytes=64 << 20, range_bytes=1 << 20)
    yield made
    if made.process is not None and made.process.returncode is None:
        assert await made.stop() == 0, made.log()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)


class Slow:
    """A server that holds back the end of each answer until the test lets go."""

    def __init__(self) -> None:
        self.half_sent = asyncio.Event()
        self.let_go = asyncio.Event()

    async def answer(self, asked: Asked, reply: Reply) -> None:
        """Send a range of the content; its second half later."""
        start, end = asked.range(len(CONTENT)) if "range" in asked.headers else (0, len(CONTENT))
        part = CONTENT[start:end]
        span = f"bytes {start}-{end - 1}/{len(CONTENT)}"
        status, more = (206, {"Content_Range": span}) if "range" in asked.headers else (200, {})
        await reply.head(status, Content_Length=str(len(part)), ETag='"one"', **more)
        await reply.body(part[: len(part) // 2])
        self.half_sent.set()
        await self.let_go.wait()
        await reply.body(part[len(part) // 2 :])


def wd(node: Node, name: str) -> Path:
    """The working directory of a task."""
    return node.settings.root / "workitems" / "job" / "job-1" / name / "wd"


async def outcome(service: ScriptedService, name: str) -> Outcome:
    """How an attempt ended."""
    found = (await service.terminal(name)).outcome
    assert found is not None
    return found


def output_file(pattern: str, container: Container, path: str) -> dict[str, object]:
    """An output file that goes to a container."""
    target = {"container": {"container_url": container.url_with_sas("racwl"), "path": path}}
    return {"file_pattern": pattern, "destination": target}


async def test_killed_during_a_download_the_next_life_brings_it_whole(service: ScriptedService, node: Node) -> None:
    """Also with the service down meanwhile; the half that was there is nowhere to be seen, and leaves nothing."""
    slow = Slow()
    async with faulty_server(slow.answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        await node.start()
        await service.registered()
        command = node.command("a1", 0).replace("exit 0", "cat f | md5sum; exit 4")
        service.send(task("a1", command, task_id="t", work={"resource_files": (file,)}))
        await slow.half_sent.wait()
        assert list(wd(node, "t").iterdir()) == []
        await node.kill()
        assert list(wd(node, "t").iterdir()) == []

        await service.stop()
        slow.let_go.set()
        await node.start()
        await until((wd(node, "t") / "f").exists)
        await service.start()

    assert exit_code(await service.terminal("a1")) == 4
    assert (wd(node, "t") / "f").read_bytes() == CONTENT
    assert len(node.ran("a1")) == 1
    assert not wd(node, "t~1").exists()
    assert list((node.settings.root / "volatile" / "staging").iterdir()) == []
    assert_ended_once(service)


async def test_a_stop_that_came_while_the_agent_was_dead_ends_the_download(
    service: ScriptedService, node: Node
) -> None:
    """The next life begins it again, hears of the stop, and tells the end."""
    slow = Slow()
    async with faulty_server(slow.answer) as server:
        await node.start()
        file = {"http_url": server.url(), "file_path": "f"}
        service.send(task("a1", node.command("a1", 0), task_id="t", work={"resource_files": (file,)}))
        await slow.half_sent.wait()
        await node.kill()
        service.send(StopAttempt(attempt_id="a1", reason=StopReason.TASK_DELETE))
        await node.start()
        ended = await outcome(service, "a1")

    assert (ended.exit_code, ended.stop_reason) == (None, StopReason.TASK_DELETE)
    assert node.ran("a1") == []


@pytest.mark.parametrize("point", ["after_directories", "after_transfer_in", "after_spec", "after_launch"])
@pytest.mark.parametrize("kind", [AttemptKind.USER, AttemptKind.JOB_PREPARATION])
async def test_killed_at_any_step_up_to_the_launch_the_files_are_there_once(
    point: str, kind: AttemptKind, service: ScriptedService, node: Node, container: Container
) -> None:
    """The directory that was begun is gone on with: the task's own files are not moved aside as an earlier try's."""
    container.put("f", b"x")
    file = {"http_url": container.blob_url("f"), "file_path": "f"}
    await node.start(point)
    command = node.command("a1", 0).replace("exit 0", "cat f; exit 4")
    service.send(task("a1", command, kind=kind, task_id="t", work={"resource_files": (file,)}))
    assert await node.ended() == -signal.SIGKILL, node.log()

    await node.start()
    assert exit_code(await service.terminal("a1")) == 4
    assert (wd(node, "t").parent / "stdout.txt").read_text() == "x"
    assert not wd(node, "t~1").exists()
    assert len(node.ran("a1")) == 1
    assert_ended_once(service)


@pytest.mark.parametrize(
    "point", ["after_exit_seen", "after_upload_begun", "after_transfer_out", "after_outbox_commit"]
)
async def test_killed_at_any_step_of_the_uploads_everything_is_there_once(
    point: str, service: ScriptedService, node: Node, container: Container
) -> None:
    """The exit code is the first one, and no file that was uploaded is sent again with other content."""
    await node.start(point)
    command = node.command("a1", 0).replace("exit 0", "for i in 1 2 3 4 5; do echo $i > $i.out; done; exit 4")
    files = (output_file("*.out", container, "p"),)
    service.send(task("a1", command, task_id="t", work={"output_files": files}))
    assert await node.ended() == -signal.SIGKILL, node.log()
    assert [report.transition for report in service.reports_of("a1") if report.outcome] == []

    await node.start()
    ended = await outcome(service, "a1")
    assert (ended.exit_code, ended.failure_info and ended.failure_info.code) == (4, "FailureExitCode")
    assert {name: container.content(name) for name in container.names()} == {
        f"p/{number}.out": f"{number}\n".encode() for number in range(1, 6)
    }
    assert len(node.ran("a1")) == 1
    assert_ended_once(service)


async def test_killed_during_an_upload_with_the_service_down_the_end_is_told_later(
    service: ScriptedService, node: Node
) -> None:
    """A storage that hangs; then the agent dies, the service goes, both come back, and the storage answers."""
    asked, answers = asyncio.Event(), asyncio.Event()

    async def storage(_: Asked, reply: Reply) -> None:
        asked.set()
        if answers.is_set():
            await reply.all(201, ETag='"1"', Last_Modified="Sat, 21 Nov 2026 10:00:00 GMT")
        else:
            await asyncio.Event().wait()

    async with faulty_server(storage) as server:
        target = {"container": {"container_url": server.url("/c?sig=SECRET"), "path": "p"}}
        rule = {"file_pattern": "../stdout.txt", "destination": target}
        await node.start()
        command = node.command("a1", 0).replace("exit 0", "echo x; exit 0")
        service.send(task("a1", command, work={"output_files": (rule,)}))
        await asked.wait()
        await service.stop()
        await node.kill()
        answers.set()
        asked.clear()
        await node.start()
        await asked.wait()
        await service.start()
        ended = await outcome(service, "a1")

    assert (ended.exit_code, ended.failure_info) == (0, None)
    assert len(node.ran("a1")) == 1
    assert "SECRET" not in node.log()
    assert_ended_once(service)
