"""Logs are uploaded while their task runs: block by block, and never so that the task notices."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from aiohttp import web

from nodeagent.model.enums import UploadCondition
from nodeagent.transfer.live_logs import MOST_SMALL, LiveLogs, live_targets
from nodeagent.transfer.output_files import OutputFiles
from tests.integration.azurite import Azurite, Container
from tests.integration.output_files import Task, no_token, rule
from tests.integration.storage_proxy import Asked, Proxy, running_proxy

pytest_plugins = ["tests.integration.storage_fixtures"]

MIB = 1 << 20
SECONDS = 0.02


class Committed:
    """A proxy's fault that makes none: it tells when the next blob is committed."""

    def __init__(self, proxy: Proxy) -> None:
        self._event = asyncio.Event()
        proxy.fault = self

    async def __call__(self, asked: Asked) -> web.StreamResponse | bytes | None:
        """See every request."""
        if asked.kind == "Put Block List":
            self._event.set()
        return None

    async def holds(self, container: Container, name: str, content: bytes) -> None:
        """Return when the blob has this content."""
        async with asyncio.timeout(20):
            while True:
                await self._event.wait()
                self._event.clear()
                if name in await asyncio.to_thread(container.names):
                    found = await asyncio.to_thread(container.content, name)
                    if found == content:
                        return
                if not self._event.is_set():
                    asyncio.get_running_loop().call_later(0.05, self._event.set)  # the commit is on its way


@pytest.fixture
async def proxy(azurite: Azurite) -> AsyncIterator[Proxy]:
    """A proxy before Azurite."""
    async with running_proxy(azurite.endpoint) as running:
        yield running


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A task's directory."""
    return Task(tmp_path / "task")


@contextlib.asynccontextmanager
async def followed(task: Task) -> AsyncIterator["asyncio.Task[None]"]:
    """Follow the task's logs for the `with` block."""
    async with OutputFiles(task.settings, no_token).connected() as output_files:
        following = asyncio.create_task(LiveLogs(output_files, SECONDS).follow(task.uploads()))
        try:
            yield following
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def test_what_a_task_says_is_in_storage_while_it_runs(task: Task, container: Container, proxy: Proxy) -> None:
    """Only what is new is sent; the upload at the end replaces the blob."""
    task.rules = [rule("../std*.txt", proxy.through(container.url_with_sas("cw")), "logs")]
    stdout = task.root / "stdout.txt"
    committed = Committed(proxy)
    async with followed(task):
        stdout.write_text("first\n")
        await committed.holds(container, "logs/stdout.txt", b"first\n")
        with stdout.open("a") as file:
            file.write("second\n")
        await committed.holds(container, "logs/stdout.txt", b"first\nsecond\n")
    sent = [asked.body for asked in proxy.asked if asked.kind == "Put Block"]
    assert sent == [b"first\n", b"second\n"]
    assert container.client.get_blob_client("logs/stdout.txt").get_blob_properties().content_settings.content_type == (
        "text/plain"
    )
    (task.root / "stderr.txt").write_text("")
    with stdout.open("a") as file:
        file.write("last\n")
    assert await task.upload() is None
    assert container.content("logs/stdout.txt") == b"first\nsecond\nlast\n"
    assert container.content("logs/stderr.txt") == b""


async def test_many_small_pieces_are_joined(task: Task, container: Container, proxy: Proxy) -> None:
    """A blob has 50,000 blocks at most; a task may say more often something."""
    task.rules = [rule("../stdout.txt", proxy.through(container.url_with_sas("cw")))]
    stdout = task.root / "stdout.txt"
    committed = Committed(proxy)
    content = b""
    async with followed(task):
        for number in range(MOST_SMALL + 5):
            content += f"line {number}\n".encode()
            stdout.write_bytes(content)
            await committed.holds(container, "stdout.txt", content)
        content += os.urandom(5 * MIB)
        stdout.write_bytes(content)
        await committed.holds(container, "stdout.txt", content)
    committed_blocks, _ = container.client.get_blob_client("stdout.txt").get_block_list("committed")
    assert [block.size for block in committed_blocks] == [4 * MIB, len(content) - 4 * MIB]
    most = max(asked.body.count(b"<Latest>") for asked in proxy.asked if asked.kind == "Put Block List")
    assert most <= MOST_SMALL


async def test_a_log_that_begins_anew_is_sent_anew(task: Task, container: Container, proxy: Proxy) -> None:
    """A capped log is rewritten; a file of another inode is another file."""
    task.rules = [rule("../stdout.txt", proxy.through(container.url_with_sas("cw")))]
    stdout = task.root / "stdout.txt"
    committed = Committed(proxy)
    async with followed(task):
        stdout.write_text("a long beginning")
        await committed.holds(container, "stdout.txt", b"a long beginning")
        stdout.write_text("short")
        await committed.holds(container, "stdout.txt", b"short")
        (task.root / "new").write_text("another file altogether")
        (task.root / "new").rename(stdout)
        await committed.holds(container, "stdout.txt", b"another file altogether")


async def test_trouble_is_logged_once_without_a_secret_and_passes(
    task: Task, container: Container, proxy: Proxy
) -> None:
    """Nothing is raised; when the storage is well again everything is there."""
    url = proxy.through(container.url_with_sas("cw"))
    task.rules = [rule("../stdout.txt", url)]
    (task.root / "stdout.txt").write_text("said\n")
    committed = Committed(proxy)
    refused = 0
    enough = asyncio.Event()

    async def refuse(_asked: Asked) -> web.StreamResponse:
        nonlocal refused
        refused += 1
        if refused == 4:
            enough.set()
        return web.Response(status=403, headers={"x-ms-error-code": "AuthorizationFailure"})

    proxy.fault = refuse
    with structlog.testing.capture_logs() as logs:
        async with followed(task) as following:
            await asyncio.wait_for(enough.wait(), 20)
            proxy.fault = committed
            await committed.holds(container, "stdout.txt", b"said\n")
            assert not following.done()
    (line,) = logs
    assert line["blob"] == f"{proxy.through(container.url)}/stdout.txt"
    assert "AuthorizationFailure" in line["why"]
    assert "sig" not in str(logs)


async def test_a_commit_that_is_under_way_is_waited_for(task: Task, container: Container, proxy: Proxy) -> None:
    """The upload of the task's end would else be replaced by what was before it."""
    task.rules = [rule("../stdout.txt", proxy.through(container.url_with_sas("cw")))]
    (task.root / "stdout.txt").write_text("said\n")
    committing, released = asyncio.Event(), asyncio.Event()

    async def slow(asked: Asked) -> None:
        if asked.kind == "Put Block List":
            committing.set()
            await released.wait()

    proxy.fault = slow
    async with followed(task) as following:
        await asyncio.wait_for(committing.wait(), 20)
        following.cancel()
        done, _ = await asyncio.wait([following], timeout=0.2)
        assert not done
        released.set()
        await asyncio.wait([following], timeout=20)
        assert following.cancelled()
    assert container.content("stdout.txt") == b"said\n"


async def test_a_pipe_in_place_of_a_log_holds_nobody(task: Task, container: Container, proxy: Proxy) -> None:
    """The other log goes on."""
    os.mkfifo(task.root / "stdout.txt")
    (task.root / "stderr.txt").write_text("complaint")
    task.rules = [rule("../std*.txt", proxy.through(container.url_with_sas("cw")))]
    committed = Committed(proxy)
    async with followed(task):
        await committed.holds(container, "stderr.txt", b"complaint")
    assert container.names() == ["stderr.txt"]


async def test_without_a_rule_for_a_log_nothing_is_followed(task: Task, container: Container) -> None:
    """Then it is over at once."""
    task.rules = [rule("out/*", container.url_with_sas("cw"))]
    async with followed(task) as following:
        await asyncio.wait_for(following, 5)


@pytest.mark.parametrize(
    ("pattern", "path", "blobs"),
    [
        ("../std*.txt", "p", ["p/stdout.txt"]),
        ("../stdout.txt", "p", ["p"]),
        ("../stdout.txt", None, ["stdout.txt"]),
        ("{root}/*.txt", "p", ["p/stdout.txt"]),
        ("{root}/../*/stdout.txt", "p", ["p/task/stdout.txt"]),
        ("{root}/**/*.txt", None, ["stdout.txt"]),
        ("/**/*.txt", None, ["{root}/stdout.txt"]),
        ("../stderr.txt", None, []),
        ("**/*.txt", None, []),
        ("*/../x", None, []),
    ],
)
def test_a_log_goes_where_its_file_will_go(task: Task, pattern: str, path: str | None, blobs: list[str]) -> None:
    """The same blob as after the end, or it would be there twice."""
    root = str(task.root)
    task.rules = [rule(pattern.replace("{root}", root), "https://host/c", path)]
    found = [target.blob for target in live_targets(task.uploads(), "stdout.txt")]
    assert found == [blob.replace("{root}", root.lstrip("/")) for blob in blobs]


def test_rules_of_one_end_only_are_not_followed(task: Task) -> None:
    """Nobody knows yet how the task will end."""
    task.rules = [
        rule("../stdout.txt", "https://host/c", condition=UploadCondition.TASK_SUCCESS),
        rule("../stdout.txt", "https://host/c", condition=UploadCondition.TASK_FAILURE),
    ]
    assert live_targets(task.uploads(), "stdout.txt") == []
