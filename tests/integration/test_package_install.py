"""Packages on a node: the real service sends them, a real installer brings them; faults come from a small server."""

import asyncio
import hashlib
import os
import re
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from azure.batch import BatchClient as SdkClient
from azure.core.credentials import AzureNamedKeyCredential
from pydantic import SecretStr

from nodeagent.agent.database import Database
from nodeagent.agent.packages import Packages
from nodeagent.agent.service_client import ServiceClient
from nodeagent.local.client import BatchClient
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import (
    ApplicationPackage,
    FileServer,
    Heartbeat,
    HeartbeatAnswer,
    Messages,
    Poll,
    Register,
    Registered,
    TransferPhase,
)
from nodeagent.model.times import utc_now
from nodeagent.model.values import ApplicationPackageReference
from nodeagent.rules import transfer_retry
from nodeagent.service.app import Service
from nodeagent.service.settings import ServiceSettings
from nodeagent.shim import kernel
from nodeagent.transfer import packages as packages_module
from nodeagent.transfer.base import Meter, TransferFailedError, TransferSettings
from nodeagent.transfer.packages import PackageInstaller
from tests.integration.batch_endpoint import ACCOUNT, KEY, Sdk
from tests.unit.package_zips import Made, zipped

TOOL = zipped(
    [Made("bin/tool", b"#!/bin/sh\necho one\n", mode=stat.S_IFREG | 0o755), Made("data", os.urandom(3 << 20))]
)
OTHER = zipped([Made("bin/tool", b"#!/bin/sh\necho other\n", mode=stat.S_IFREG | 0o755)])
QUICK = TransferSettings(transfer_tries=3, transfer_idle_seconds=5, transfer_seconds=30)
POINTS = ("after_package_download", "after_package_unpack", "after_package_rename", "after_package_commit")


def package(content: bytes = TOOL, version: str = "1", **more: object) -> ApplicationPackage:
    """Return what the service says of a package."""
    return ApplicationPackage.model_validate(
        {
            "application_id": "app",
            "version": version,
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            **more,
        }
    )


def meter() -> Meter:
    """Return a meter of nobody."""
    return Meter("attempt", TransferPhase.INSTALLING)


@dataclass
class Node:
    """The packages of a node whose folder is `folder`."""

    folder: Path
    packages: Packages
    installer: PackageInstaller

    async def ensure(self, *wanted: ApplicationPackage, counting: Meter | None = None) -> Path:
        """Install packages; return the directory of `app`."""
        return Path((await self.packages.ensure(wanted, counting or meter()))["AZ_BATCH_APP_PACKAGE_app"])

    @property
    def names(self) -> list[str]:
        """What is in the directory of applications, visible or not."""
        return sorted(path.name for path in (self.folder / "applications").iterdir() if path.name != ".staging")

    @property
    def staged(self) -> list[Path]:
        """What is left of installations."""
        staging = self.folder / "applications" / ".staging"
        return list(staging.iterdir()) if staging.exists() else []


@asynccontextmanager
async def node(folder: Path, url: str, key: str, max_bytes: int = 1 << 30) -> AsyncIterator[Node]:
    """Run the packages of a node, from the start of its agent to its end."""
    database = Database(folder / "agent.db")
    await database.open()
    try:
        async with PackageInstaller(QUICK, folder / "applications", url, key, max_bytes).connected() as installer:
            packages = Packages(database, installer)
            await packages.open()
            yield Node(folder, packages, installer)
    finally:
        await database.close()


@asynccontextmanager
async def running_service(folder: Path, *contents: tuple[str, bytes]) -> AsyncIterator[Service]:
    """Run a service that has versions of `app`."""
    settings = ServiceSettings(port=0, account=ACCOUNT, key=SecretStr(KEY), state_dir=folder)
    async with Service(settings) as service:
        for version, content in contents:
            await add(service, version, content, folder)
        yield service


async def add(service: Service, version: str, content: bytes, folder: Path) -> None:
    """Add a version of `app`."""
    (folder / "package.zip").write_bytes(content)
    async with BatchClient(service.url, ACCOUNT, KEY) as client:
        with (folder / "package.zip").open("rb") as file:
            await client.add_package("app", version, file)


async def test_a_package_is_installed_once_for_all_tasks(tmp_path: Path) -> None:
    """Many tasks at once, two versions: two directories, no zip left, and everybody counts the same bytes."""
    async with (
        running_service(tmp_path, ("1", TOOL), ("2.0-b", OTHER)) as service,
        node(tmp_path, service.url, service.node_key) as made,
    ):
        meters = [meter() for _ in range(30)]
        wanted = [package(), package(OTHER, "2.0-b", is_default=True)]
        found = await asyncio.gather(*(made.packages.ensure(wanted, each) for each in meters))
        assert all(each == found[0] for each in found)
        first, second = (Path(found[0][f"AZ_BATCH_APP_PACKAGE_app_{name}"]) for name in ("1", "2_0_b"))
        assert found[0]["AZ_BATCH_APP_PACKAGE_APP"] == str(second)
        assert re.fullmatch(r"app1\d{4}-\d\d-\d\d-\d\d-\d\d", first.name)
        assert re.fullmatch(r"app2\.0-b\d{4}-\d\d-\d\d-\d\d-\d\d", second.name)
        assert made.names == sorted([first.name, second.name])
        assert made.staged == []
        assert os.access(first / "bin" / "tool", os.X_OK)
        assert stat.S_IMODE(first.stat().st_mode) == 0o755
        unpacked = len(b"#!/bin/sh\necho one\n") + (3 << 20) + len(b"#!/bin/sh\necho other\n")
        for each in meters:
            progress = each.progress()
            assert (progress.files_done, progress.files_total) == (2, 2)
            assert progress.bytes_done == progress.bytes_total == len(TOOL) + len(OTHER) + unpacked


async def test_installed_packages_are_known_after_a_restart(tmp_path: Path) -> None:
    """Nothing is fetched again: the service is gone by then."""
    async with (
        running_service(tmp_path, ("1", TOOL)) as service,
        node(tmp_path, service.url, service.node_key) as made,
    ):
        before = await made.ensure(package())
    async with node(tmp_path, service.url, "key") as made:
        assert await made.ensure(package()) == before


async def test_after_a_reboot_packages_are_installed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Batch deploys them then; what a power cut may have emptied is not trusted."""
    async with running_service(tmp_path, ("1", TOOL)) as service:
        async with node(tmp_path, service.url, service.node_key) as made:
            before = await made.ensure(package())
            (before / "data").write_bytes(b"")
        monkeypatch.setattr(kernel, "boot_id", lambda: "another boot")
        async with node(tmp_path, service.url, service.node_key) as made:
            assert made.names == []
            assert ((await made.ensure(package())) / "data").stat().st_size == 3 << 20


async def test_a_version_with_other_content_has_a_directory_of_its_own(tmp_path: Path) -> None:
    """Removed and added anew: running tasks keep the old one, new ones get the new one, in the same minute too."""
    async with (
        running_service(tmp_path, ("1", TOOL)) as service,
        node(tmp_path, service.url, service.node_key) as made,
    ):
        before = await made.ensure(package())
        async with BatchClient(service.url, ACCOUNT, KEY) as client:
            await client.remove_package("app", "1")
        await add(service, "1", OTHER, tmp_path)
        after = await made.ensure(package(OTHER))
        assert (after / "bin" / "tool").read_bytes() == b"#!/bin/sh\necho other\n"
        assert (before / "bin" / "tool").read_bytes() == b"#!/bin/sh\necho one\n"
        assert len(made.names) == 2


async def test_a_directory_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    """A row alone is no package."""
    async with (
        running_service(tmp_path, ("1", OTHER)) as service,
        node(tmp_path, service.url, service.node_key) as made,
    ):
        before = await made.ensure(package(OTHER))
        before.rename(tmp_path / "taken away")
        assert ((await made.ensure(package(OTHER))) / "bin" / "tool").exists()


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_any_step_leaves_a_whole_package_or_none(tmp_path: Path, point: str) -> None:
    """The next life of the agent removes what is half done and installs the package; after the commit it is there."""
    async with running_service(tmp_path, ("1", TOOL)) as service:
        script = Path(__file__).with_name("package_killed.py")
        killed = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            service.url,
            service.node_key,
            str(tmp_path),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "NODEAGENT_FAILPOINT": point, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        async with asyncio.timeout(60):
            await killed.communicate(package().to_json().encode())
        assert killed.returncode == -signal.SIGKILL
        async with node(tmp_path, service.url, service.node_key) as made:
            assert len(made.names) == (1 if point == "after_package_commit" else 0)
            assert made.staged == []
            found = await made.ensure(package())
            assert (found / "data").stat().st_size == 3 << 20
            assert made.names == [found.name]


async def test_the_pools_packages_are_installed_at_the_join_or_told(tmp_path: Path) -> None:
    """A failure is an error of the node, in Batch's words; the next try clears it. The others are there."""
    async with (
        running_service(tmp_path, ("1", TOOL)) as service,
        node(tmp_path, service.url, service.node_key) as made,
    ):
        await made.packages.install_pool([package(), package(OTHER, "2")])
        (error,) = made.packages.errors
        assert (error.code, error.message) == (
            "ApplicationPackageError",
            "One or more application packages specified for the pool are invalid",
        )
        details = {item.name: item.value for item in error.error_details}
        assert details == {
            "ApplicationPackageReference": "app:2",
            "Message": "Resource download failed",
            "Reason": "the service has no such package any more",
        }
        assert made.packages.pool_variables().keys() == {
            f"AZ_BATCH_APP_PACKAGE_{name}" for name in ("app", "APP", "app_1", "APP_1")
        }
        await add(service, "2", OTHER, tmp_path)
        await made.packages.install_pool([package(), package(OTHER, "2")])
        assert made.packages.errors == ()
        assert "AZ_BATCH_APP_PACKAGE_app_2" in made.packages.pool_variables()


async def test_a_reference_that_means_nothing_fails_before_anything_is_installed(tmp_path: Path) -> None:
    """With the service's reason."""
    async with node(tmp_path, "http://127.0.0.1:9", "key") as made:
        problem = ApplicationPackage(application_id="app", version="", problem="There is no application of this id")
        with pytest.raises(TransferFailedError) as caught:
            await made.ensure(package(), problem)
        assert detail(caught.value) == {
            "ApplicationPackageReference": "app",
            "Message": "There is no application of this id",
        }
        assert made.names == []


def detail(error: TransferFailedError) -> dict[str, str]:
    """Return the details of a failure of a package."""
    assert error.failure.code == "ApplicationPackageError"
    return {item.name: item.value for item in error.failure.details}


async def test_a_package_that_cannot_be_unpacked_leaves_nothing(tmp_path: Path) -> None:
    """Larger than the node allows: the failure says so."""
    async with (
        running_service(tmp_path, ("1", TOOL)) as service,
        node(tmp_path, service.url, service.node_key, max_bytes=1 << 20) as made,
    ):
        with pytest.raises(TransferFailedError) as caught:
            await made.ensure(package())
        assert detail(caught.value)["Message"] == "The package cannot be unpacked"
        assert "more than this node allows" in detail(caught.value)["Reason"]
        assert (made.names, made.staged) == ([], [])


async def test_no_space_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a fault of the package."""
    monkeypatch.setattr(packages_module, "RESERVE_BYTES", 1 << 62)
    async with node(tmp_path, "http://127.0.0.1:9", "key") as made:
        with pytest.raises(TransferFailedError) as caught:
            await made.ensure(package())
        assert caught.value.failure.code == "DiskFull"
        assert made.staged == []


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Faults:
    """A server that answers each request as the test says, the last answer for ever."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        self.ranges.append(request.headers.get("Range"))
        self.keys.add(request.headers.get("Authorization"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@pytest.fixture
async def faults() -> AsyncIterator[Faults]:
    """The server with faults."""
    made = Faults()
    app = web.Application()
    app.router.add_get("/{path:.*}", made.serve)
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(transfer_retry, "FIRST_PAUSE", 0.0)


async def whole(request: web.Request) -> web.StreamResponse:
    """Send what is asked for."""
    begin = int((request.headers.get("Range") or "bytes=0-")[6:-1])
    if not begin:
        return web.Response(body=TOOL)
    headers = {"Content-Range": f"bytes {begin}-{len(TOOL) - 1}/{len(TOOL)}"}
    return web.Response(status=206, body=TOOL[begin:], headers=headers)


async def cut(request: web.Request, arrived: asyncio.Event | None = None) -> web.StreamResponse:
    """Send the first half, and cut the connection; with an event not before that is set, so that the half counts."""
    response = web.StreamResponse(headers={"Content-Length": str(len(TOOL))})
    await response.prepare(request)
    await response.write(TOOL[: len(TOOL) // 2])
    if arrived is not None:
        await asyncio.wait_for(arrived.wait(), 30)
    assert request.transport is not None
    request.transport.close()
    return response


def saying(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    """Return an answer of a status."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


async def test_a_cut_download_goes_on_where_it_was_cut(tmp_path: Path, faults: Faults) -> None:
    """Only what is missing is asked for again."""
    arrived = asyncio.Event()

    def told() -> None:
        if counting.progress().bytes_done:
            arrived.set()

    counting = Meter("a", TransferPhase.INSTALLING, told)

    async def cut_when_arrived(request: web.Request) -> web.StreamResponse:
        return await cut(request, arrived)

    faults.answers = [cut_when_arrived, whole]
    async with node(tmp_path, faults.url, "key") as made:
        assert ((await made.ensure(package(), counting=counting)) / "data").exists()
    first, second = faults.ranges
    assert first is None
    assert second is not None
    assert re.fullmatch(r"bytes=[1-9]\d+-", second)


async def test_who_knows_no_ranges_begins_anew(tmp_path: Path, faults: Faults) -> None:
    """An answer 200 to a range is the whole package."""
    faults.answers = [cut, saying(200, TOOL)]
    async with node(tmp_path, faults.url, "key") as made:
        assert ((await made.ensure(package())) / "data").exists()


@pytest.mark.parametrize(
    ("answers", "reason", "asked"),
    [
        ([saying(404)], "the service has no such package any more", 1),
        ([saying(403)], "the service answered 403", 1),
        ([saying(302, headers={"Location": "http://127.0.0.1:9/"})], "the service answered 302", 1),
        ([saying(503, headers={"Retry-After": "0"})], "the service answered 503", 3),
        ([saying(200, TOOL[:-1] + b"x")], "the content is not what its checksum says", 3),
        ([saying(200, TOOL + b"x")], "the service sends more than the package has", 4),
        ([saying(200, TOOL[:-1])], "the content ended too early", 4),
    ],
)
async def test_what_cannot_be_fetched_is_told(
    tmp_path: Path, faults: Faults, answers: list[Answer], reason: str, asked: int
) -> None:
    """Tried again where that may help, never over a redirect, and the key is in no text.

    A try that brought something is not counted: one more request where the first one did.
    """
    faults.answers = answers
    async with node(tmp_path, faults.url, "secretkey") as made:
        with pytest.raises(TransferFailedError) as caught:
            await made.ensure(package())
        assert (made.names, made.staged) == ([], [])
    assert detail(caught.value) == {
        "ApplicationPackageReference": "app:1",
        "Message": "Resource download failed",
        "Reason": reason,
    }
    assert len(faults.ranges) == asked
    assert faults.keys == {"Bearer secretkey"}
    assert "secretkey" not in f"{caught.value}{caught.value.failure.to_json()}"


async def test_a_cancelled_task_takes_nothing_from_the_others(tmp_path: Path, faults: Faults) -> None:
    """The installation ends with the last that waits for it; who comes later begins another."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return await whole(request)

    faults.answers = [slow]
    async with node(tmp_path, faults.url, "key") as made:
        first = asyncio.create_task(made.ensure(package()))
        await asked.wait()
        second = asyncio.create_task(made.ensure(package()))
        first.cancel()
        await asyncio.wait([first])
        go_on.set()
        found = await second
        assert made.names == [found.name]
        assert len(faults.ranges) == 1

        asked.clear()
        go_on.clear()
        alone = asyncio.create_task(made.ensure(package(version="2")))
        await asked.wait()
        alone.cancel()
        await asyncio.wait([alone])
        assert (made.names, made.staged) == ([found.name], [])
        go_on.set()
        await made.ensure(package(version="2"))
        assert len(made.names) == 2


async def test_a_node_that_cannot_install_its_pools_packages_is_unusable(tmp_path: Path) -> None:
    """Over HTTP, from the registration to what the SDK shows."""
    async with running_service(tmp_path, ("1", TOOL)) as service:
        reference = ApplicationPackageReference(application_id="app", version="1")
        await service.ensure_pool(PoolCreate(id="pool", vm_size="v", application_package_references=(reference,)))
        client = ServiceClient(service.url, service.node_key, call_seconds=10, retry_seconds=1)
        async with client.connected(), node(tmp_path, service.url, service.node_key) as made:
            registered = await client.call("register", registration().to_json(), Registered)
            assert registered.pool_packages == (package(),)
            assert (await shown(service))["state"] == "starting"
            (service.folder / "packages" / f"{package().sha256}.zip").unlink()
            await made.packages.install_pool(registered.pool_packages)
            await client.call("heartbeat", heartbeat(made).to_json(), HeartbeatAnswer)
            await client.call("assignments", Poll(node_id="n", epoch=1, cursor=0, wait_seconds=0).to_json(), Messages)
            found = await shown(service)
            assert found["state"] == "unusable"
            (error,) = found["errors"]
            assert error["code"] == "ApplicationPackageError"
            assert {"name": "ApplicationPackageReference", "value": "app:1"} in error["errorDetails"]
            assert await asyncio.to_thread(unusable_nodes, service) == ["n"]
            made.packages.errors = ()
            await client.call("heartbeat", heartbeat(made).to_json(), HeartbeatAnswer)
            found = await shown(service)
            assert (found["state"], "errors" in found) == ("idle", False)


async def test_a_node_works_when_its_packages_are_installed(tmp_path: Path) -> None:
    """It says so by asking for work."""
    async with running_service(tmp_path, ("1", TOOL)) as service:
        reference = ApplicationPackageReference(application_id="app", version="1")
        await service.ensure_pool(PoolCreate(id="pool", vm_size="v", application_package_references=(reference,)))
        client = ServiceClient(service.url, service.node_key, call_seconds=10, retry_seconds=1)
        async with client.connected(), node(tmp_path, service.url, service.node_key) as made:
            registered = await client.call("register", registration().to_json(), Registered)
            await made.packages.install_pool(registered.pool_packages)
            await client.call("heartbeat", heartbeat(made).to_json(), HeartbeatAnswer)
            assert (await shown(service))["state"] == "starting"
            await client.call("assignments", Poll(node_id="n", epoch=1, cursor=0, wait_seconds=0).to_json(), Messages)
            assert (await shown(service))["state"] == "idle"


def registration() -> Register:
    """Return the first call of a node."""
    return Register(
        node_id="n",
        epoch=1,
        pool_id="pool",
        instance_id="i",
        boot_id="b",
        boot_time=utc_now(),
        slots=1,
        cores=1,
        agent_version="0",
        hostname="h",
        ip_address="127.0.0.1",
        root_directory="/r",
        file_server=FileServer(url="http://127.0.0.1:9", token="t"),
        cursor=0,
    )


def heartbeat(made: Node) -> Heartbeat:
    """Return a heartbeat with the errors of the node's packages."""
    return Heartbeat(node_id="n", epoch=1, cursor=0, errors=made.packages.errors)


async def shown(service: Service) -> dict[str, Any]:
    """Return the node as the Batch API shows it."""
    async with BatchClient(service.url, ACCOUNT, KEY) as client:
        (found,) = await client.list_nodes("pool")
    return found


def unusable_nodes(service: Service) -> list[str]:
    """Return what the SDK lists by state."""
    sdk: Sdk
    with SdkClient(service.url, AzureNamedKeyCredential(ACCOUNT, KEY)) as sdk:
        return [item.id for item in sdk.list_nodes("pool", filter="state eq 'unusable'")]
