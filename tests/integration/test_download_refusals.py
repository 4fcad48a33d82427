"""Downloads that are refused, put off or sent elsewhere, and who gets to see the token."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer.base import IdentityError, TransferFailedError, TransferSettings
from nodeagent.transfer.http_download import Fetched, Validator
from tests.integration.azurite import free_port
from tests.integration.downloading import (
    CONTENT,
    ETAG,
    IDENTITY,
    MIB,
    RANGES,
    TOKEN,
    Connect,
    CountedMeter,
    details,
    failed_download,
    fetched_bytes,
)
from tests.integration.faulty_server import Asked, FaultyServer, Reply, faulty_server

pytest_plugins = ["tests.integration.download_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_statuses_that_pass(connect: Connect, meter: CountedMeter, status: int) -> None:
    """Twice not, then well: on the first request, and on one of a later range."""
    refusals = {0: 2, 2 * MIB: 2}

    async def answer(asked: Asked, reply: Reply) -> None:
        start, _ = asked.range(len(CONTENT))
        if refusals.get(start):
            refusals[start] -= 1
            await reply.all(status, b"busy")
        else:
            await reply.part(asked, CONTENT, ETag=ETAG)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await fetched_bytes(downloads, server, meter) == CONTENT
    assert len(server.asked) == 4 + 4


@pytest.mark.parametrize(
    ("status", "code", "tries"),
    [
        (400, "BlobDownloadMiscError", 1),
        (401, "BlobAccessDenied", 1),
        (403, "BlobAccessDenied", 1),
        (404, "BlobNotFound", 1),
        (409, "BlobDownloadMiscError", 1),
        (410, "BlobDownloadMiscError", 1),
        (204, "BlobDownloadMiscError", 1),
        (304, "BlobDownloadMiscError", 1),
        (429, "BlobDownloadMiscError", 3),
        (500, "BlobDownloadMiscError", 3),
    ],
)
async def test_statuses_that_stay(connect: Connect, meter: CountedMeter, status: int, code: str, tries: int) -> None:
    """The failure tells the status, the storage's own code, the request's id and how often it was tried."""
    body = b'<?xml version="1.0"?><Error><Code>ItsCode</Code><Message>sig=SECRET</Message></Error>'

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(status, b"" if status in (204, 304) else body, x_ms_request_id="r-1")

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        found = await failed_download(downloads, server.url(), meter, code)
    assert found["HttpStatus"] == str(status)
    assert found.get("StorageErrorCode") == (None if status in (204, 304) else "ItsCode")
    assert found["RequestId"] == "r-1"
    assert found["Attempts"] == str(tries)
    assert found["BlobSource"] == server.url("/file")
    assert len(server.asked) == tries


@pytest.mark.parametrize("date", [False, True])
async def test_retry_after(connect: Connect, meter: CountedMeter, *, date: bool) -> None:
    """The server is not asked before the time that it named."""
    came: list[float] = []

    async def answer(asked: Asked, reply: Reply) -> None:
        came.append(time.time())
        if asked.number == 0:
            value = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True) if date else "1"
            await reply.all(503, Retry_After=value)
        else:
            await reply.all(200, CONTENT)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await fetched_bytes(downloads, server, meter) == CONTENT
    assert came[1] - came[0] >= 1.0


async def test_retry_after_the_deadline(connect: Connect, meter: CountedMeter) -> None:
    """No slot is held for an hour for a try that comes too late in any case."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(503, Retry_After="7200")

    async with connect() as downloads, faulty_server(answer) as server:
        found = await asyncio.wait_for(failed_download(downloads, server.url(), meter, "BlobDownloadMiscError"), 20)
    assert (found["HttpStatus"], found["Attempts"]) == ("503", "1")


async def test_a_token_is_asked_for_and_sent_with_each_request(connect: Connect, meter: CountedMeter) -> None:
    """With the version of the storage that knows tokens; without an identity there is neither."""
    asked_for: list[NodeIdentityReference] = []

    async def tokens(identity: NodeIdentityReference) -> str:
        asked_for.append(identity)
        return TOKEN

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.part(asked, CONTENT, ETag=ETAG)

    async with connect(RANGES, tokens) as downloads, faulty_server(answer) as server:
        await downloads.fetch(server.url(), path="p", meter=meter, identity=IDENTITY)
        known = Validator(ETAG, None)
        assert await downloads.authorize(server.url(), path="p", identity=IDENTITY, known=known)
        assert asked_for == [IDENTITY] * 5
        assert all(asked.headers["authorization"] == f"Bearer {TOKEN}" for asked in server.asked)
        assert all(asked.headers["x-ms-version"] == "2023-11-03" for asked in server.asked)
        await fetched_bytes(downloads, server, CountedMeter())
    assert not any({"authorization", "x-ms-version"} & set(asked.headers) for asked in server.asked[5:])


async def test_no_token(connect: Connect, meter: CountedMeter) -> None:
    """The server is not even asked."""

    async def tokens(_identity: NodeIdentityReference) -> str:
        raise IdentityError("No token for the identity i: it is not on this node")

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(200)

    async with connect(RANGES, tokens) as downloads, faulty_server(answer) as server:
        with pytest.raises(TransferFailedError) as raised:
            await downloads.fetch(server.url(), path="data/file", meter=meter, identity=IDENTITY)
    assert raised.value.failure.code == "BlobDownloadMiscError"
    assert details(raised.value)["Message"] == "No token for the identity i: it is not on this node"
    assert server.asked == []


async def test_the_token_stays_where_it_belongs(connect: Connect, meter: CountedMeter) -> None:
    """It goes along on a redirect within its server, to no other, and from there not back to the first."""
    first: FaultyServer
    other: FaultyServer

    async def answer(asked: Asked, reply: Reply) -> None:
        if asked.target.startswith("/file"):
            await reply.all(302, b"here", Location="/inside?sig=SECRET")
        elif asked.target.startswith("/inside"):
            await reply.all(307, b"there", Location=other.url("/outside?sig=SECRET"))
        else:
            await reply.part(asked, b"content", ETag=ETAG)

    async def answer_elsewhere(_asked: Asked, reply: Reply) -> None:
        await reply.all(301, Location=first.url("/back"))

    async with connect() as downloads, faulty_server(answer) as first, faulty_server(answer_elsewhere) as other:
        fetched = await downloads.fetch(first.url(), path="p", meter=meter, identity=IDENTITY)
    assert isinstance(fetched, Fetched)
    assert fetched.path.read_bytes() == b"content"
    sent = {asked.target.partition("?")[0]: asked.headers for asked in first.asked + other.asked}
    assert [name for name in sent if "authorization" in sent[name]] == ["/file", "/inside"]
    assert [name for name in sent if "x-ms-version" in sent[name]] == ["/file", "/inside"]
    assert all(headers["range"] == "bytes=0-8388607" for headers in sent.values())


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("/file?sig=SECRET", "more than 5 redirects"),
        ("file:///etc/passwd", "a redirect to no http or https URL"),
        ("http://[::1?sig=SECRET", "a redirect to no http or https URL"),
        ("", "a redirect to no http or https URL"),
    ],
)
async def test_redirects_that_are_not_followed(connect: Connect, meter: CountedMeter, location: str, why: str) -> None:
    """One try is enough for them."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(302, Location=location)

    async with connect() as downloads, faulty_server(answer) as server:
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert (found["Message"], found["HttpStatus"], found["Attempts"]) == (why, "302", "1")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/file?sig=SECRET",
        "file?sig=SECRET",
        "http:///file?sig=SECRET",
        "http://[::1/file?sig=SECRET",
        "http://host:99999/file?sig=SECRET",
        "",
    ],
)
async def test_what_is_no_url(connect: Connect, meter: CountedMeter, url: str) -> None:
    """It is told in words of our own: others would show all of it."""
    async with connect() as downloads:
        found = await failed_download(downloads, url, meter, "BlobDownloadMiscError")
    assert found["Message"] in ("this is not an http or https URL", "the URL cannot be asked for")
    assert found["Attempts"] == "1"


async def test_a_host_that_nobody_knows(connect: Connect, meter: CountedMeter) -> None:
    """It is not BlobNotFound: nobody has been asked for the blob."""
    async with connect(TransferSettings(transfer_tries=2)) as downloads:
        found = await failed_download(downloads, "http://nobody.invalid/b?sig=SECRET", meter, "BlobDownloadMiscError")
    assert found["Message"] == "the name nobody.invalid could not be resolved"
    assert found["Attempts"] == "2"


async def test_a_host_that_does_not_listen(connect: Connect, meter: CountedMeter) -> None:
    """The kernel's word for it is in the message."""
    port = free_port()
    async with connect(TransferSettings(transfer_tries=2)) as downloads:
        found = await failed_download(
            downloads, f"http://127.0.0.1:{port}/b?sig=SECRET", meter, "BlobDownloadMiscError"
        )
    assert found["Message"].startswith(f"no connection to 127.0.0.1:{port}: ")
    assert found["Attempts"] == "2"


async def test_what_is_not_http(connect: Connect, meter: CountedMeter) -> None:
    """Something else listens there."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.body(b"SSH-2.0-OpenSSH_9.2 sig=SECRET\r\n\r\n")

    async with connect(TransferSettings(transfer_tries=2)) as downloads, faulty_server(answer) as server:
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert found["Message"] == "the answer is not HTTP"
