"""Uploads when storage, network or the task's own files misbehave: what is tried again, told, stored."""

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer.base import IdentityError, TransferSettings
from nodeagent.transfer.output_files import CHANGED, OutputFiles
from nodeagent.transfer.upload_plan import FileState
from tests.integration.azurite import Azurite, Container
from tests.integration.output_files import Task, details, rule
from tests.integration.storage_proxy import Asked, Proxy, no_fault, running_proxy

pytest_plugins = ["tests.integration.storage_fixtures"]

MIB = 1 << 20
IN_BLOCKS = TransferSettings(transfers=2, range_bytes=MIB, transfer_tries=3, transfer_idle_seconds=20)


@pytest.fixture
async def proxy(azurite: Azurite) -> AsyncIterator[Proxy]:
    """A proxy before Azurite."""
    async with running_proxy(azurite.endpoint) as running:
        yield running


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """A task's directory."""
    return Task(tmp_path / "task", settings=IN_BLOCKS)


def once(
    answer: Callable[[Asked], web.StreamResponse | bytes], kind: str
) -> Callable[[Asked], Awaitable[web.StreamResponse | bytes | None]]:
    """Return a fault of the first request of a kind."""
    seen: list[Asked] = []

    async def fault(asked: Asked) -> web.StreamResponse | bytes | None:
        if asked.kind != kind or seen:
            return None
        seen.append(asked)
        return answer(asked)

    return fault


@pytest.mark.parametrize("kind", ["Put Blob", "Put Block", "Put Block List"])
async def test_a_busy_storage_is_asked_again_when_it_says(
    task: Task, container: Container, proxy: Proxy, kind: str
) -> None:
    """Whatever the request; the attempts are told."""
    content = os.urandom(MIB * (1 if kind == "Put Blob" else 3))
    task.file("a", content)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    proxy.fault = once(lambda _: web.Response(status=503, headers={"Retry-After": "0"}), kind)
    assert await task.upload() is None
    assert container.content("a") == content
    assert "2 attempts" in task.log()
    assert task.meter.progress().bytes_done == len(content)


@pytest.mark.parametrize("kind", ["Put Blob", "Put Block"])
async def test_bytes_that_arrive_as_others_are_sent_again(
    task: Task, container: Container, proxy: Proxy, kind: str
) -> None:
    """The storage compares the MD5 that each request carries."""
    content = os.urandom(MIB * (1 if kind == "Put Blob" else 2))
    task.file("a", content)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    proxy.fault = once(lambda asked: b"x" + asked.body[1:], kind)
    assert await task.upload() is None
    assert container.content("a") == content
    assert "2 attempts" in task.log()


async def test_a_storage_that_falls_silent_is_a_time_out(task: Task, container: Container, proxy: Proxy) -> None:
    """Each try is cut after the time that nothing has moved; nothing of the URL's query is told."""
    released = asyncio.Event()

    async def hang(_asked: Asked) -> None:
        await released.wait()

    proxy.fault = hang
    task.file("a")
    task.settings = TransferSettings(transfer_tries=2, transfer_idle_seconds=0.3)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    failure = await task.upload()
    released.set()
    assert failure is not None
    assert failure.code == "FileUploadTimedOut"
    assert details(failure)["Attempts"] == "2"
    assert len(proxy.asked) == 2
    assert "sig=" not in failure.to_json() + task.log("fileuploaderr.txt")


async def test_a_transfer_has_a_deadline_whatever_moves(task: Task, container: Container, proxy: Proxy) -> None:
    """A storage that is always busy does not hold a task for ever."""

    async def busy(_asked: Asked) -> web.StreamResponse:
        return web.Response(status=503)

    proxy.fault = busy
    task.file("a")
    task.settings = TransferSettings(transfer_tries=100, transfer_seconds=0.5)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadTimedOut"
    assert "not uploaded within the 0.5 seconds" in details(failure)["Message"]


async def test_a_storage_that_says_to_come_back_too_late_is_not_waited_for(
    task: Task, container: Container, proxy: Proxy
) -> None:
    """The deadline would be over before."""

    async def busy(_asked: Asked) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": "100", "x-ms-error-code": "ServerBusy"})

    proxy.fault = busy
    task.file("a")
    task.settings = TransferSettings(transfer_tries=100, transfer_seconds=50)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadTimedOut"
    assert details(failure)["HttpStatus"] == "503"
    assert len(proxy.asked) == 1


async def test_a_redirect_is_not_followed(task: Task, container: Container, proxy: Proxy) -> None:
    """Storage does not redirect: who does would get the content and the token."""

    async def redirect(_asked: Asked) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": container.url_with_sas("cw")})

    proxy.fault = redirect
    task.file("a")
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    failure = await task.upload()
    assert failure is not None
    assert details(failure)["HttpStatus"] == "307"
    assert len(proxy.asked) == 1
    assert container.names() == []


async def test_blocks_that_somebody_else_has_dropped_are_sent_once_more(
    task: Task, container: Container, proxy: Proxy
) -> None:
    """Another task's upload of the same blob takes the uncommitted blocks away: the commit is refused."""
    content = os.urandom(3 * MIB)
    task.file("a", content)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]
    lost = web.Response(status=400, headers={"x-ms-error-code": "InvalidBlockList"})
    proxy.fault = once(lambda _: lost, "Put Block List")
    assert await task.upload() is None
    assert container.content("a") == content
    assert proxy.count("Put Block") == 6
    assert task.meter.progress().bytes_done == len(content)


async def test_a_token_opens_the_container_of_an_identity(tmp_path: Path, container: Container, proxy: Proxy) -> None:
    """It goes in the header, and nowhere else."""
    task = Task(tmp_path / "task")
    task.file("a")
    task.rules = [rule("a", proxy.through(container.url), identity="/subscriptions/x/me")]

    async def token(identity: NodeIdentityReference) -> str:
        assert identity.resource_id == "/subscriptions/x/me"
        return "the-token"

    async def created(_asked: Asked) -> web.StreamResponse:
        return web.Response(status=201)

    proxy.fault = created
    async with task.ledgers() as ledgers, OutputFiles(task.settings, token).connected() as output_files:
        assert await output_files.upload(task.uploads(), ledgers.of("a1-1"), task.meter) is None
    (asked,) = proxy.asked
    assert asked.headers["authorization"] == "Bearer the-token"
    assert asked.headers["content-md5"]
    assert asked.body == b"content"
    assert "the-token" not in task.log()


async def test_an_identity_without_a_token_is_no_access(tmp_path: Path, container: Container) -> None:
    """A token is shown to nobody over plain HTTP, either."""
    task = Task(tmp_path / "task")
    task.file("a")

    async def token(_identity: NodeIdentityReference) -> str:
        raise IdentityError("the node has no such identity", 400)

    task.rules = [rule("a", "https://127.0.0.1:1/c", identity="me"), rule("a", "http://192.0.2.1/c", identity="me")]
    async with task.ledgers() as ledgers, OutputFiles(task.settings, token).connected() as output_files:
        failure = await output_files.upload(task.uploads(), ledgers.of("a1-1"), task.meter)
    assert failure is not None
    assert failure.code == "FileUploadAccessDenied"
    assert "the node has no such identity" in details(failure)["File1"]
    assert "only be used with an https:// URL" in details(failure)["File2"]


async def test_a_file_that_grows_is_uploaded_as_long_as_it_was(task: Task, container: Container, proxy: Proxy) -> None:
    """What counts is its size when it was opened."""
    content = os.urandom(3 * MIB)
    path = task.file("a", content)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]

    async def grow(asked: Asked) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    proxy.fault = grow
    assert await task.upload() is None
    assert container.content("a") == content


async def test_a_file_that_becomes_shorter_fails_and_is_named(task: Task, container: Container, proxy: Proxy) -> None:
    """No blob is made of a half of it."""
    path = task.file("a", os.urandom(6 * MIB))
    task.settings = TransferSettings(transfers=1, range_bytes=MIB)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]

    async def shrink(_asked: Asked) -> None:
        os.truncate(path, MIB + 1)

    proxy.fault = shrink
    failure = await task.upload()
    assert failure is not None
    assert failure.code == "FileUploadMiscError"
    assert f"it became shorter while it was read: {MIB + 1} of {6 * MIB} bytes" in details(failure)["Message"]
    assert container.names() == []


async def test_a_file_that_goes_away_before_its_turn_fails(task: Task, container: Container, proxy: Proxy) -> None:
    """It was planned, so its loss is told."""
    first, second = task.file("a"), task.file("b")
    task.settings = TransferSettings(transfers=1)
    task.rules = [rule("*", proxy.through(container.url_with_sas("cw")))]

    async def remove(_asked: Asked) -> None:
        second.unlink()

    proxy.fault = remove
    failure = await task.upload()
    assert f"{second}: it cannot be opened: No such file or directory" in details(failure)["Message"]
    assert container.names() == [first.name]


class _CutError(BaseException):
    """Ends an upload where a kill might, so that the ledger stays as it is then."""


@pytest.mark.parametrize("change", [False, True])
async def test_an_upload_that_was_cut_goes_on_only_with_the_same_content(
    task: Task, container: Container, proxy: Proxy, *, change: bool
) -> None:
    """Blocks that are there are not sent again; a file that is another one by now is not uploaded at all."""
    content = os.urandom(3 * MIB)
    path = task.file("a", content)
    task.rules = [rule("a", proxy.through(container.url_with_sas("rcw")))]

    def cut(name: str) -> None:
        if name == "before_upload_commit":
            raise _CutError

    async def no_token(_identity: NodeIdentityReference) -> str:
        raise AssertionError

    async with task.ledgers() as ledgers, OutputFiles(task.settings, no_token, hit=cut).connected() as output_files:
        with pytest.raises(BaseExceptionGroup):
            await output_files.upload(task.uploads(), ledgers.of("a1-1"), task.meter)
    assert proxy.count("Put Block") == 3
    planned = await task.planned()
    assert planned is not None
    assert planned[0].state is FileState.BEGUN
    proxy.asked.clear()
    if change:
        path.write_bytes(content[::-1])
    failure = await task.upload()
    assert proxy.count("Put Block") == 0
    if change:
        assert CHANGED in details(failure)["Message"]
        assert container.names() == []
    else:
        assert failure is None
        assert hashlib.sha256(container.content("a")).digest() == hashlib.sha256(content).digest()
        assert "going on with 1 of 1 files" in task.log()


async def test_without_permission_to_look_all_blocks_are_sent_again(
    task: Task, container: Container, proxy: Proxy
) -> None:
    """A SAS that only writes can't tell which blocks are there."""
    content = os.urandom(3 * MIB)
    task.file("a", content)
    task.rules = [rule("a", proxy.through(container.url_with_sas("cw")))]

    def cut(name: str) -> None:
        if name == "before_upload_commit":
            raise _CutError

    async def no_token(_identity: NodeIdentityReference) -> str:
        raise AssertionError

    async with task.ledgers() as ledgers, OutputFiles(task.settings, no_token, hit=cut).connected() as output_files:
        with pytest.raises(BaseExceptionGroup):
            await output_files.upload(task.uploads(), ledgers.of("a1-1"), task.meter)
    assert await task.upload() is None
    assert proxy.count("Put Block") == 6
    assert container.content("a") == content


async def test_an_upload_that_is_cancelled_leaves_nothing_open_and_goes_on_later(
    task: Task, container: Container, proxy: Proxy
) -> None:
    """As when the agent is stopped in the middle of it: the next one finishes it."""
    for number in range(20):
        task.file(f"{number:02}", os.urandom(2 * MIB if number == 5 else 10))
    task.rules = [rule("*", proxy.through(container.url_with_sas("rcw")))]
    half = asyncio.Event()
    released = asyncio.Event()

    async def hang(asked: Asked) -> None:
        if asked.number > 10:
            half.set()
            await released.wait()

    proxy.fault = hang

    def handles() -> set[str]:
        return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}

    before = handles()
    uploading = asyncio.create_task(task.upload())
    await asyncio.wait_for(half.wait(), 20)
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert not [name for name in handles() - before if str(task.root) in name]
    proxy.fault = no_fault
    released.set()
    assert await task.upload() is None
    assert len(container.names()) == 20
    planned = await task.planned()
    assert planned is not None
    assert all(file.state is FileState.DONE for file in planned)


async def test_a_slow_connection_is_not_silent(task: Task, container: Container, proxy: Proxy) -> None:
    """The limit is for bytes that do not move, not for the time that a request takes."""
    content = os.urandom(MIB)
    task.file("a", content)
    task.settings = TransferSettings(transfer_tries=1, transfer_idle_seconds=1)
    taken: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            while sum(map(len, taken)) < len(content):
                taken.append(await reader.read(16384))
                await asyncio.sleep(0.04)  # 64 of them: 2.5 s
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()

    # Small buffers of the kernel: what is sent is what was taken, nearly.
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(serve, sock=listening, limit=4096)
        async with server:
            port = listening.getsockname()[1]
            task.rules = [rule("a", f"http://127.0.0.1:{port}/account/c")]
            failure = await task.upload()
    assert failure is None
    assert b"".join(taken) == content


async def test_a_refusal_before_all_was_sent_is_heard(task: Task) -> None:
    """A storage need not take megabytes from who may not write: it answers, and reads no further."""
    task.file("a", os.urandom(8 * MIB))
    task.settings = TransferSettings(transfers=1, transfer_tries=3, transfer_idle_seconds=5)
    connections = 0
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nx-ms-error-code: AuthorizationFailure\r\n\r\n")
            await writer.drain()
            await served.wait()
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, limit=4096) as server:
        port = server.sockets[0].getsockname()[1]
        task.rules = [rule("a", f"http://127.0.0.1:{port}/account/c")]
        failure = await task.upload()
        served.set()
    assert failure is not None
    assert failure.code == "FileUploadAccessDenied"
    assert details(failure)["StorageErrorCode"] == "AuthorizationFailure"
    assert connections == 1
    assert task.meter.progress().bytes_done == 0
