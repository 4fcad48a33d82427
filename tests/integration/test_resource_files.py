"""Resource files of every source, from a real storage into a task's directory."""

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from azure.storage.blob import ContainerClient

from nodeagent.model.failure import FailureInfo
from nodeagent.model.files import ResourceFile
from nodeagent.model.protocol import TransferPhase
from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer import resource_files
from nodeagent.transfer.base import Download, IdentityError, Meter, Place, Tokens, TransferFailedError, TransferSettings
from nodeagent.transfer.fetch import DirectFetcher
from nodeagent.transfer.http_download import Downloads
from nodeagent.transfer.identity import Identities
from nodeagent.transfer.resource_files import ResourceFiles
from tests.integration.azurite import KEY, Container, running_azurite
from tests.integration.identity_endpoint import running_endpoint, write_certificate
from tests.integration.listing_server import page_of, serving

pytest_plugins = ["tests.integration.storage_fixtures"]

SETTINGS = TransferSettings(transfer_tries=2, transfer_idle_seconds=10)
IDENTITY = NodeIdentityReference(resource_id="/subscriptions/s/resourceGroups/g/userAssignedIdentities/mine")


async def no_tokens(_identity: NodeIdentityReference) -> str:
    """Be the tokens of a node without identities."""
    raise IdentityError("No token", 400)


@asynccontextmanager
async def bringing(folder: Path, tokens: Tokens = no_tokens) -> AsyncIterator[ResourceFiles]:
    """Give what brings resource files by real downloads."""
    async with Downloads(SETTINGS, folder / "staging", tokens).connected() as downloads:
        yield ResourceFiles(DirectFetcher(downloads), tokens, SETTINGS)


async def brought(folder: Path, *files: ResourceFile, tokens: Tokens = no_tokens) -> tuple[Path, Meter]:
    """Bring the files; return the directory that they are in, and what was measured."""
    wd, meter = folder / "wd", Meter("a1", TransferPhase.DOWNLOADING)
    wd.mkdir(exist_ok=True)
    async with bringing(folder, tokens) as resources:
        await resources.bring(files, Place(wd), meter)
    assert list((folder / "staging").iterdir()) == []
    return wd, meter


async def failure(folder: Path, *files: ResourceFile, tokens: Tokens = no_tokens) -> FailureInfo:
    """Return how bringing the files fails."""
    with pytest.raises(TransferFailedError) as failed:
        await brought(folder, *files, tokens=tokens)
    assert list((folder / "staging").iterdir()) == []
    return failed.value.failure


def detail(failed: FailureInfo, name: str) -> str | None:
    """Return the value of a detail."""
    return {item.name: item.value for item in failed.details}.get(name)


def tree(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder with their contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if not path.is_dir()}


async def test_files_of_every_source_come_with_their_modes(container: Container, tmp_path: Path) -> None:
    """Single files by their path, containers below their directory with the whole names of their blobs."""
    for name, content in {"tool": b"#!", "in/a": b"A", "in/deep/b": b"BB", "index": b"I", "other": b"O"}.items():
        container.put(name, content)
    wd, meter = await brought(
        tmp_path,
        ResourceFile(http_url=container.blob_url("tool"), file_path="bin/tool", file_mode="0755"),
        ResourceFile(storage_container_url=container.url_with_sas(), blob_prefix="in", file_path="data"),
        ResourceFile(storage_container_url=container.url_with_sas(), blob_prefix="other", file_mode="0640"),
    )
    assert tree(wd) == {
        "bin/tool": b"#!",
        "data/in/a": b"A",
        "data/in/deep/b": b"BB",
        "data/index": b"I",
        "other": b"O",
    }
    modes = {name: stat.S_IMODE((wd / name).stat().st_mode) for name in ("bin/tool", "data/in/a", "other", "data/in")}
    assert modes == {"bin/tool": 0o755, "data/in/a": 0o770, "other": 0o640, "data/in": 0o770}
    progress = meter.progress()
    assert (progress.files_done, progress.files_total, progress.bytes_done) == (5, 5, 7)


async def test_the_size_of_containers_is_known_before_their_content(container: Container, tmp_path: Path) -> None:
    """Progress has a total where listings told it."""
    container.put("a", b"x" * 1000)
    container.put("b", b"y" * 24)
    _, meter = await brought(tmp_path, ResourceFile(storage_container_url=container.url_with_sas()))
    assert (meter.progress().bytes_done, meter.progress().bytes_total) == (1024, 1024)


NASTY = [
    "a b/c d",
    "ä/ü/日本語.txt",
    "per%20cent",
    "100%",
    "quote'\"",
    "plus+and&=?#",
    "tab\tname",
    "-rf",
    "...",
    "x" * 255,
]


async def test_blobs_keep_their_names_whatever_they_are(container: Container, tmp_path: Path) -> None:
    """Every name that a file can have is that of its blob, byte for byte."""
    for name in NASTY:
        container.put(name, name.encode())
    wd, _ = await brought(tmp_path, ResourceFile(storage_container_url=container.url_with_sas(), file_path="d"))
    assert tree(wd) == {f"d/{name}": name.encode() for name in NASTY}


async def test_nothing_to_bring_is_no_failure(container: Container, tmp_path: Path) -> None:
    """An empty container, a prefix that nothing matches, a mark of a directory."""
    url = container.url_with_sas()
    wd, meter = await brought(tmp_path, ResourceFile(storage_container_url=url))
    container.put("directory/", b"")
    await brought(
        tmp_path, ResourceFile(storage_container_url=url), ResourceFile(storage_container_url=url, blob_prefix="x")
    )
    assert tree(wd) == {}
    assert meter.progress().files_total is None


async def test_the_later_of_two_sources_wins(azurite_containers: list[Container], tmp_path: Path) -> None:
    """A file over a container's, a container's over a file, one container's over the other's: by the list's order."""
    one, two = azurite_containers
    for container, content in ((one, b"one"), (two, b"two")):
        for name in ("x", "y", "z"):
            container.put(name, content)
    one.put("file", b"file")
    wd, _ = await brought(
        tmp_path,
        ResourceFile(http_url=one.blob_url("file"), file_path="x"),
        ResourceFile(storage_container_url=one.url_with_sas()),
        ResourceFile(storage_container_url=two.url_with_sas(), blob_prefix="y"),
        ResourceFile(http_url=one.blob_url("file"), file_path="z"),
    )
    assert tree(wd) == {"x": b"one", "y": b"two", "z": b"file", "file": b"file"}


@pytest.fixture
def azurite_containers(container: Container, request: pytest.FixtureRequest) -> list[Container]:
    """Return two containers."""
    azurite = request.getfixturevalue("azurite")
    return [container, azurite.container()]


async def test_many_containers_are_all_brought(container: Container, tmp_path: Path) -> None:
    """More than are listed at a time."""
    number = resource_files.LISTED_AHEAD * 3 + 1
    for index in range(number):
        container.put(f"part-{index:03}/x", str(index).encode())
    files = [
        ResourceFile(storage_container_url=container.url_with_sas(), blob_prefix=f"part-{index:03}/")
        for index in range(number)
    ]
    wd, _ = await brought(tmp_path, *files)
    assert tree(wd) == {f"part-{index:03}/x": str(index).encode() for index in range(number)}


async def test_what_fails_first_is_told(container: Container, tmp_path: Path) -> None:
    """A blob that is not there, one that may not be read, a container that may not be listed."""
    container.put("a", b"A")
    good = ResourceFile(http_url=container.blob_url("a"), file_path="a")
    missing = ResourceFile(http_url=container.blob_url("nothing"), file_path="n")
    expired = ResourceFile(http_url=container.blob_url("a", expires=timedelta(hours=-1)), file_path="e")
    unlisted = ResourceFile(storage_container_url=container.url_with_sas("r"))
    codes = [(await failure(tmp_path, good, bad)).code for bad in (missing, expired, unlisted)]
    assert codes == ["BlobNotFound", "BlobAccessDenied", "ResourceContainerAccessDenied"]


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/outside", "a//b", "..", "n" * 256])
async def test_a_blob_that_no_file_can_be_named_after_is_refused(tmp_path: Path, name: str) -> None:
    """By its name, and nothing is written where it leads."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.query.get("comp") == "list":
            return web.Response(body=page_of(name), content_type="application/xml")
        return web.Response(body=b"x")

    async with serving(answer) as (url, _):
        failed = await failure(tmp_path, ResourceFile(storage_container_url=url, file_path="d"))
    assert failed.code == "ResourceFileCreateFailed"
    assert repr(name) in (detail(failed, "Message") or "")
    assert detail(failed, "FilePath") == f"d/{name}"
    assert "sig" not in failed.to_json()
    assert tree(tmp_path) == {}


class Counting:
    """A fetcher that brings nothing and counts."""

    def __init__(self) -> None:
        self.brought = 0
        self.tasks = 0
        self.first = asyncio.Event()

    async def bring(self, download: Download, place: Place, meter: Meter) -> None:
        """Be a fetcher."""
        self.first.set()
        await asyncio.sleep(0)
        self.brought += 1
        self.tasks = max(self.tasks, len(asyncio.all_tasks()))


PAGES = 10
PAGE = 1000


async def listing(request: web.Request) -> web.StreamResponse:
    """Answer with a page of a container with ten thousand blobs."""
    page = int(request.query.get("marker") or 0)
    names = [f"dir-{page}/blob-{number}" for number in range(PAGE)]
    marker = str(page + 1) if page + 1 < PAGES else ""
    return web.Response(body=page_of(*names, marker=marker), content_type="application/xml")


async def test_ten_thousand_blobs_are_brought(tmp_path: Path) -> None:
    """By as few tasks of the loop as ten blobs."""
    fetcher, meter = Counting(), Meter("a1", TransferPhase.DOWNLOADING)
    async with serving(listing) as (url, asked):
        await ResourceFiles(fetcher, no_tokens, SETTINGS).bring(
            [ResourceFile(storage_container_url=url)], Place(tmp_path), meter
        )
    assert (fetcher.brought, meter.progress().files_total, len(asked)) == (PAGES * PAGE, PAGES * PAGE, PAGES)
    assert fetcher.tasks < 40


async def test_downloads_begin_while_the_listing_goes_on_and_it_does_not_run_away(tmp_path: Path) -> None:
    """Blobs of the first page are brought before the second is there; a page is asked for when there is room for it."""
    fetcher = Counting()
    brought_at_page: list[int] = []

    async def one_after_the_other(request: web.Request) -> web.StreamResponse:
        brought_at_page.append(fetcher.brought)
        if request.query.get("marker"):
            await fetcher.first.wait()
        return await listing(request)

    async with serving(one_after_the_other) as (url, _):
        async with asyncio.timeout(60):
            await ResourceFiles(fetcher, no_tokens, SETTINGS).bring(
                [ResourceFile(storage_container_url=url)], Place(tmp_path), Meter("a1", TransferPhase.DOWNLOADING)
            )
    assert fetcher.brought == PAGES * PAGE
    # One page is fed to the workers, one is in stock: the next but one is asked for when the first is all but done.
    waiting = SETTINGS.transfers * resource_files.FILES_PER_TRANSFER * 2
    assert all(brought >= (page - 2) * PAGE - waiting for page, brought in enumerate(brought_at_page))


async def test_an_identity_opens_what_a_sas_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing and downloads carry the identity's token, over TLS; one that is not assigned is told."""
    certificate, key = write_certificate(tmp_path)
    options = ("--oauth", "basic", "--cert", str(certificate), "--key", str(key))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    (tmp_path / "azurite").mkdir()
    with running_azurite(tmp_path / "azurite", *options, scheme="https") as azurite:
        url = f"{azurite.endpoint}/private"
        with ContainerClient.from_container_url(url, KEY, connection_verify=str(certificate)) as client:
            client.create_container()
            client.upload_blob("in/a", b"A")
            client.upload_blob("b", b"B")
        async with running_endpoint() as endpoint, Identities(endpoint.url, SETTINGS).connected() as identities:
            listed = ResourceFile(storage_container_url=url, blob_prefix="in/", identity_reference=IDENTITY)
            single = ResourceFile(http_url=f"{url}/b", file_path="bb", identity_reference=IDENTITY)
            assert (await failure(tmp_path, listed, tokens=identities.token)).code == "ResourceContainerListMiscError"
            assert (await failure(tmp_path, single, tokens=identities.token)).code == "BlobAccessDenied"
            endpoint.known.add(IDENTITY.resource_id)
            wd, _ = await brought(tmp_path, listed, single, tokens=identities.token)
            assert tree(wd) == {"in/a": b"A", "bb": b"B"}
            assert len(endpoint.given) == 1
            anonymous = ResourceFile(storage_container_url=url)
            assert (await failure(tmp_path, anonymous)).code == "ResourceContainerAccessDenied"
