"""The listing of containers: of a real storage, and of servers that fail as no real one can be made to."""

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web

from nodeagent.model.failure import FailureInfo
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules.resource_files import ContainerSource
from nodeagent.transfer import blob_listing
from nodeagent.transfer.base import IdentityError, TransferFailedError, TransferSettings
from nodeagent.transfer.blob_listing import BlobListings, ListedBlob
from tests.integration.azurite import Azurite, Container, free_port
from tests.integration.identity_endpoint import write_certificate
from tests.integration.listing_server import Handler, answering, page_of, serving

pytest_plugins = ["tests.integration.storage_fixtures"]

IDENTITY = NodeIdentityReference(resource_id="/subscriptions/s/identities/mine")
SETTINGS = TransferSettings(transfer_tries=3, transfer_idle_seconds=10)


async def no_tokens(_identity: NodeIdentityReference) -> str:
    """Be the tokens of a node without identities."""
    raise IdentityError("No token for the identity: it answered 400 (Identity not found)", 400)


async def listed(
    url: str,
    prefix: str = "",
    settings: TransferSettings = SETTINGS,
    identity: NodeIdentityReference | None = None,
) -> list[ListedBlob]:
    """Return all blobs that are files."""
    source = ContainerSource(url, prefix, "", 0o770, identity)
    async with BlobListings(no_tokens, settings).connected() as listings:
        return [blob async for page in listings.pages(source) for blob in page]


async def names(url: str, prefix: str = "") -> list[str]:
    """Return the names of all blobs that are files."""
    return [blob.name for blob in await listed(url, prefix)]


async def failure(
    url: str, settings: TransferSettings = SETTINGS, identity: NodeIdentityReference | None = None
) -> FailureInfo:
    """Return how a listing fails."""
    with pytest.raises(TransferFailedError) as failed:
        await listed(url, settings=settings, identity=identity)
    return failed.value.failure


def detail(failed: FailureInfo, name: str) -> str | None:
    """Return the value of a detail."""
    return {item.name: item.value for item in failed.details}.get(name)


async def test_blobs_are_listed_with_their_sizes(container: Container) -> None:
    """With a SAS that opens the container, as in most tasks."""
    container.put("a.txt", b"12345")
    container.put("dir/b.txt", b"")
    assert await listed(container.url_with_sas()) == [ListedBlob("a.txt", 5), ListedBlob("dir/b.txt", 0)]


NASTY = [
    "UPPER/lower",
    "a b/c d",
    "ä/ü/日本語.txt",
    "per%20cent",
    "quote'\"",
    "plus+and&=?#",
    "tab\tin name",
    "semi;colon",
    "-rf",
    "...",
    "x//y",
]


async def test_names_are_told_as_they_are(container: Container) -> None:
    """Whatever they have in them: what can be a file is decided elsewhere."""
    for name in NASTY:
        container.put(name, b"x")
    assert sorted(await names(container.url_with_sas())) == container.names()


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("in/", ["in/a", "in/b"]),
        ("in", ["in/a", "in/b", "inner"]),
        ("in/a", ["in/a"]),
        ("out", []),
        ("ä &+", ["ä &+%"]),
    ],
)
async def test_a_prefix_may_be_a_part_of_a_name(container: Container, prefix: str, expected: list[str]) -> None:
    """One that nothing matches is no error."""
    for name in ("in/a", "in/b", "inner", "other", "ä &+%"):
        container.put(name, b"x")
    assert await names(container.url_with_sas(), prefix) == expected


async def test_an_empty_container_is_no_files(container: Container) -> None:
    """And no failure."""
    assert await listed(container.url_with_sas()) == []


async def test_a_long_listing_comes_page_by_page(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or told twice between pages."""
    monkeypatch.setattr(blob_listing, "PAGE_BLOBS", 3)
    expected = [f"blob-{number:02}" for number in range(10)]
    for name in expected:
        container.put(name, b"x")
    source = ContainerSource(container.url_with_sas(), "", "", 0o770, None)
    async with BlobListings(no_tokens, SETTINGS).connected() as listings:
        pages = [[blob.name for blob in page] async for page in listings.pages(source)]
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert [name for page in pages for name in page] == expected


async def test_what_stands_for_a_directory_is_left_out(container: Container) -> None:
    """Of both kinds: a name that ends with a slash, and the mark of tools that know directories."""
    container.put("marked/", b"")
    container.client.upload_blob("folder", b"", metadata={"hdi_isfolder": "true"})
    container.put("folder/file", b"x")
    assert await names(container.url_with_sas()) == ["folder/file"]


async def test_snapshots_are_left_out(container: Container) -> None:
    """A file is what its blob is now."""
    container.put("a", b"old")
    container.client.get_blob_client("a").create_snapshot()
    container.put("a", b"newer")
    assert await listed(container.url_with_sas()) == [ListedBlob("a", 5)]


async def test_a_public_container_needs_no_sas(container: Container) -> None:
    """Anyone may list it."""
    container.put("a", b"x")
    container.client.set_container_access_policy({}, public_access="container")
    assert await names(container.url) == ["a"]


async def test_a_container_that_is_gone_is_told(azurite: Azurite, container: Container) -> None:
    """With what the storage says, so that its owner can ask the storage's operator."""
    url = container.url_with_sas()
    container.client.delete_container()
    failed = await failure(url)
    assert failed.code == "ResourceContainerNotFound"
    assert detail(failed, "ContainerUrl") == container.url
    assert detail(failed, "HttpStatus") == "404"
    assert detail(failed, "StorageErrorCode") == "ContainerNotFound"
    assert detail(failed, "RequestId")
    assert detail(failed, "Attempts") == "1"


async def test_access_is_denied_to_whoever_has_no_right(container: Container) -> None:
    """A SAS that is wrong, expired, for reading only, or not there: all are the user's, and asked once."""
    urls = {
        "wrong": container.url_with_sas().replace("sig=", "sig=AAAA"),
        "expired": container.url_with_sas(expires=timedelta(hours=-1)),
        "no list": container.url_with_sas("r"),
        "none": container.url,
    }
    for why, url in urls.items():
        failed = await failure(url)
        assert (failed.code, detail(failed, "Attempts")) == ("ResourceContainerAccessDenied", "1"), why
        assert detail(failed, "ContainerUrl") == container.url


@pytest.mark.parametrize("url", ["http://127.0.0.1/?sig=abcdef", "nonsense", "http://[::1/c?sig=abcdef"])
async def test_a_url_without_a_container_is_told(url: str) -> None:
    """Without the SAS in it."""
    failed = await failure(url, TransferSettings(transfer_tries=1))
    assert failed.code == "ResourceContainerListMiscError"
    assert "abcdef" not in failed.to_json()


async def test_an_identity_that_the_node_does_not_have_is_told(container: Container) -> None:
    """With the words of the endpoint; over plain HTTP no token is asked for at all."""
    failed = await failure("https://127.0.0.1/c", identity=IDENTITY)
    assert (failed.code, detail(failed, "HttpStatus")) == ("ResourceContainerListMiscError", "400")
    assert "Identity not found" in (detail(failed, "Message") or "")
    failed = await failure(container.url, identity=IDENTITY)
    assert failed.code == "ResourceContainerListMiscError"
    assert "https" in (detail(failed, "Message") or "")


async def good(_request: web.Request) -> web.StreamResponse:
    """Answer with one blob."""
    return web.Response(body=page_of("a"), content_type="application/xml")


async def hang(_request: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def cut(request: web.Request) -> web.StreamResponse:
    """Send a part of the listing."""
    response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/xml"})
    await response.prepare(request)
    await response.write(page_of("a")[:100])
    if request.transport is not None:
        request.transport.abort()
    return response


async def no_type(_request: web.Request) -> web.StreamResponse:
    """Answer with a listing that lacks what every listing has."""
    content = page_of("a").replace(b"<BlobType>BlockBlob</BlobType>", b"")
    return web.Response(body=content, content_type="application/xml")


async def other_xml(_request: web.Request) -> web.StreamResponse:
    """Answer with XML that is no listing."""
    return web.Response(body=b"<other/>", content_type="application/xml")


async def no_xml(_request: web.Request) -> web.StreamResponse:
    """Answer with something else."""
    return web.Response(text="<html>a proxy's page", content_type="application/xml")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Make tries follow each other at once; return what the servers asked to wait for."""
    asked: list[float | None] = []

    def pause(_failed: int, _chance: float, retry_after: float | None = None) -> float:
        asked.append(retry_after)
        return 0

    monkeypatch.setattr("nodeagent.transfer.blob_listing.transfer_retry.pause", pause)
    return asked


@pytest.mark.parametrize("trouble", [answering(503, "ServerBusy"), answering(500), answering(429), cut])
async def test_a_storage_that_is_busy_is_asked_again(at_once: list[float | None], trouble: Handler) -> None:
    """The same page, as often as transfers may be tried."""
    async with serving(trouble, trouble, good) as (url, asked):
        assert await names(url) == ["a"]
    assert len(asked) == 3


async def test_a_page_in_the_middle_is_asked_again(at_once: list[float | None]) -> None:
    """Not the whole listing: pages that have been told are not told twice."""

    async def first(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=page_of("a", marker="m1"), content_type="application/xml")

    async def last(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=page_of("b"), content_type="application/xml")

    async with serving(first, answering(503), last) as (url, asked):
        assert await names(url) == ["a", "b"]
    assert [request.query.get("marker") for request in asked] == [None, "m1", "m1"]


async def test_a_page_may_be_empty_and_not_the_last(at_once: list[float | None]) -> None:
    """Storage gives such pages when it looks for long."""

    async def nothing(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=page_of(marker="m1"), content_type="application/xml")

    async with serving(nothing, good) as (url, _):
        assert await names(url) == ["a"]


async def test_what_the_storage_asks_to_wait_is_heard(at_once: list[float | None]) -> None:
    """Retry-After, in seconds."""
    async with serving(answering(503, "ServerBusy", Retry_After="7"), good) as (url, _):
        assert await names(url) == ["a"]
    assert at_once == [7]


@pytest.mark.parametrize(
    ("trouble", "code", "tries"),
    [
        (answering(503, "ServerBusy"), "ResourceContainerListMiscError", 3),
        (answering(500, "OperationTimedOut"), "ResourceContainerListTimedOut", 3),
        (answering(504), "ResourceContainerListTimedOut", 3),
        (answering(401, "NoAuthenticationInformation"), "ResourceContainerAccessDenied", 1),
        (answering(409, "PublicAccessNotPermitted"), "ResourceContainerAccessDenied", 1),
        (answering(404, "ResourceNotFound"), "ResourceContainerNotFound", 1),
        (answering(400, "InvalidUri"), "ResourceContainerListMiscError", 1),
        (answering(302, Location="http://127.0.0.1:1/elsewhere"), "ResourceContainerListMiscError", 1),
        (no_xml, "ResourceContainerListMiscError", 3),
        (no_type, "ResourceContainerListMiscError", 3),
        (other_xml, "ResourceContainerListMiscError", 3),
        (cut, "ResourceContainerListMiscError", 3),
    ],
)
async def test_what_does_not_pass_is_given_up(
    at_once: list[float | None], trouble: Handler, code: str, tries: int
) -> None:
    """With the code of its cause, and at once where asking again is of no use."""
    async with serving(trouble) as (url, asked):
        failed = await failure(url)
    assert (failed.code, len(asked), detail(failed, "Attempts")) == (code, tries, str(tries))
    assert "abcdef" not in failed.to_json()


async def test_a_storage_that_hangs_is_given_up(at_once: list[float | None]) -> None:
    """By the silence of each try, or by the deadline of all."""
    async with serving(hang) as (url, asked):
        silent = TransferSettings(transfer_tries=2, transfer_idle_seconds=0.2)
        failed = await failure(url, silent)
        assert (failed.code, len(asked)) == ("ResourceContainerListTimedOut", 2)
        late = TransferSettings(transfer_idle_seconds=30, transfer_seconds=0.3)
        failed = await failure(url, late)
        assert (failed.code, len(asked)) == ("ResourceContainerListTimedOut", 3)
        assert "0.3 s" in (detail(failed, "Message") or "")


async def test_a_storage_that_is_not_there_is_told(at_once: list[float | None]) -> None:
    """A port that nobody listens on, and a name that does not exist."""
    for url, why in (
        (f"http://127.0.0.1:{free_port()}/account/c?sig=abcdef", "connection"),
        ("http://no-such-account.invalid/c?sig=abcdef", "no-such-account.invalid"),
    ):
        failed = await failure(url)
        assert failed.code == "ResourceContainerListMiscError"
        assert why in (detail(failed, "Message") or "")
        assert "abcdef" not in failed.to_json()


async def test_a_certificate_must_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not is told at once; SSL_CERT_FILE says whom to trust."""
    certificate, key = write_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with serving(good, tls=tls) as (url, asked):
        failed = await failure(url)
        assert (failed.code, asked) == ("ResourceContainerListMiscError", [])
        assert "not trusted" in (detail(failed, "Message") or "")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert await names(url) == ["a"]
