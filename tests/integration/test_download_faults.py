"""Downloads from servers and networks that do not do what they should."""

# ruff: noqa: ASYNC240
# Nothing else runs on the loop of a test: its files are looked at as they are.

import asyncio
import base64
import gzip
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from nodeagent.model.values import NodeIdentityReference
from nodeagent.transfer.base import IdentityError, TransferFailedError, TransferSettings
from nodeagent.transfer.http_download import Downloads, Fetched, NotModified, Validator
from tests.integration.azurite import free_port
from tests.integration.downloading import IDENTITY, TOKEN, Connect, CountedMeter, details
from tests.integration.faulty_server import Asked, FaultyServer, Reply, faulty_server

pytest_plugins = ["tests.integration.download_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")

KIB = 1 << 10
MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 77)
RANGES = TransferSettings(range_bytes=MIB, transfer_tries=3, transfer_idle_seconds=20)
ETAG = '"one"'
MD5 = base64.b64encode(hashlib.md5(CONTENT, usedforsecurity=False).digest()).decode()


async def _fetched(downloads: Downloads, server: FaultyServer, meter: CountedMeter) -> bytes:
    fetched = await downloads.fetch(server.url(), path="data/file", meter=meter)
    assert isinstance(fetched, Fetched)
    assert meter.held == fetched.size
    return fetched.path.read_bytes()


async def _failed(downloads: Downloads, url: str, meter: CountedMeter, code: str) -> dict[str, str]:
    """Return the details of a failure; nothing of the file may be left."""
    with pytest.raises(TransferFailedError) as raised:
        await downloads.fetch(url, path="data/file", meter=meter)
    found = details(raised.value)
    assert raised.value.failure.code == code, found
    assert list(downloads._staging.iterdir()) == []
    assert meter.held == 0
    assert found["FilePath"] == "data/file"
    return found


@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_range_goes_on_at_the_byte_reached(connect: Connect, meter: CountedMeter, *, reset: bool) -> None:
    """Each range is cut once in its middle; only what is missing is asked for, and only of the same version."""

    async def answer(asked: Asked, reply: Reply) -> None:
        start, _ = asked.range(len(CONTENT))
        if start % MIB == 0:
            await reply.cut_part(asked, CONTENT, 60 * KIB, ETag=ETAG)
            if reset:
                reply.reset()
        else:
            await reply.part(asked, CONTENT, ETag=ETAG)

    # What a reset leaves unread is lost, as TCP has it: then that range begins anew, as often as that happens.
    settings = TransferSettings(range_bytes=MIB, transfer_tries=1000 if reset else 1)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        download = asyncio.create_task(_fetched(downloads, server, meter))
        assert await asyncio.wait_for(download, 30) == CONTENT
    assert meter.thrown_away == 0
    further = [asked for asked in server.asked if asked.range(len(CONTENT))[0] % MIB]
    assert further
    assert all(asked.headers["if-match"] == ETAG for asked in server.asked[1:])
    if not reset:
        assert sorted(asked.range(len(CONTENT))[0] for asked in further) == [n * MIB + 60 * KIB for n in range(3)]


async def test_progress_lets_tries_begin_anew(connect: Connect, meter: CountedMeter) -> None:
    """A server that cuts every answer after 100 KiB gives the file in the end, with three tries."""

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.cut_part(asked, CONTENT, 100 * KIB, ETag=ETAG)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == CONTENT
    assert len(server.asked) > 30
    assert meter.thrown_away == 0


async def test_without_progress_it_is_given_up(connect: Connect, meter: CountedMeter) -> None:
    """The second range never comes: the tries of it count, and the first range goes again."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if asked.range(len(CONTENT))[0] == MIB:
            await reply.cut_part(asked, CONTENT, 0, ETag=ETAG)
        else:
            await reply.part(asked, CONTENT, ETag=ETAG)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert found["Message"] == "the content ended too early"
    assert found["Attempts"] == "3"
    assert sum(asked.range(len(CONTENT))[0] == MIB for asked in server.asked) == 3


async def test_a_server_without_ranges_is_asked_anew_after_a_cut(connect: Connect, meter: CountedMeter) -> None:
    """What was there is thrown away, and the meter knows."""

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.head(200, Content_Length=str(len(CONTENT)), Content_MD5=MD5)
        await reply.body(CONTENT if asked.number else CONTENT[: 2 * MIB])

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == CONTENT
    assert len(server.asked) == 2
    assert 0 < meter.thrown_away <= 2 * MIB


async def test_a_server_that_always_cuts_and_knows_no_ranges(connect: Connect, meter: CountedMeter) -> None:
    """Bytes that are thrown away are no progress: it ends."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.head(200, Content_Length=str(len(CONTENT)))
        await reply.body(CONTENT[:MIB])

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert (found["Message"], found["Attempts"]) == ("the content ended too early", "3")
    assert len(server.asked) == 3


@pytest.mark.parametrize("whole", [True, False])
async def test_content_of_unknown_length(connect: Connect, meter: CountedMeter, *, whole: bool) -> None:
    """Chunks say where they end; if the last one is missing, so is a part of the file."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.head(200, Transfer_Encoding="chunked")
        await reply.body(b"%x\r\n%s\r\n" % (len(CONTENT), CONTENT) + (b"0\r\n\r\n" if whole else b""))

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        if whole:
            assert await _fetched(downloads, server, meter) == CONTENT
        else:
            await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")


async def test_content_is_kept_as_it_was_stored(connect: Connect, meter: CountedMeter) -> None:
    """No encoding is asked for; a blob that was stored with one is the file that was stored."""
    packed = gzip.compress(b"content")

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.part(asked, packed, ETag=ETAG, Content_Encoding="gzip")

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == packed
    assert server.asked[0].headers["accept-encoding"] == "identity"


async def test_a_wrong_checksum_is_a_failed_try(connect: Connect, meter: CountedMeter) -> None:
    """The content is thrown away and asked for again; the last time it is the failure."""
    good_from = 1

    async def answer(asked: Asked, reply: Reply) -> None:
        content = CONTENT if asked.number >= good_from else bytes(len(CONTENT))
        await reply.all(200, content, Content_MD5=MD5)

    async with connect(RANGES) as downloads:
        async with faulty_server(answer) as server:
            assert await _fetched(downloads, server, meter) == CONTENT
        assert len(server.asked) == 2
        for left in downloads._staging.iterdir():
            left.unlink()
        meter = CountedMeter()
        good_from = 99
        async with faulty_server(answer) as server:
            found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert (found["Checksum"], found["Attempts"]) == ("Content-MD5", "3")


async def test_a_range_that_is_longer_than_announced(connect: Connect, meter: CountedMeter) -> None:
    """No byte is written beyond the end that the server itself told."""

    async def answer(asked: Asked, reply: Reply) -> None:
        start, _ = asked.range(len(CONTENT))
        if start:
            await reply.part(asked, CONTENT, ETag=ETAG)
        else:
            await reply.all(206, CONTENT[: 200 * KIB], Content_Range=f"bytes 0-9/{len(CONTENT)}", ETag=ETAG)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert found["Message"] == "the server sends more than it announced"
    assert 200 * KIB not in meter.steps


async def test_ranges_shorter_than_asked_for(connect: Connect, meter: CountedMeter) -> None:
    """A server may give less; the rest is asked for."""

    async def answer(asked: Asked, reply: Reply) -> None:
        start, end = asked.range(len(CONTENT))
        end = min(end, start + 300 * KIB)
        span = f"bytes {start}-{end - 1}/{len(CONTENT)}"
        await reply.all(206, CONTENT[start:end], Content_Range=span, ETag=ETAG)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == CONTENT
    assert meter.thrown_away == 0


@pytest.mark.parametrize("span", ["bytes 5-9/100", "bytes 0-9/*", "nonsense", ""])
async def test_a_range_that_cannot_be_placed_is_not_used(connect: Connect, meter: CountedMeter, span: str) -> None:
    """The file is asked for as a whole then."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if "range" in asked.headers:
            await reply.all(206, b"0123456789", Content_Range=span, ETag=ETAG)
        else:
            await reply.all(200, CONTENT, ETag=ETAG)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("etag", [{"ETag": 'W/"one"'}, {}])
async def test_parts_that_could_be_of_two_versions_are_not_joined(
    connect: Connect, meter: CountedMeter, etag: dict[str, str]
) -> None:
    """Without a strong ETag a large file is one request."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if "range" in asked.headers:
            await reply.part(asked, CONTENT, **etag)
        else:
            await reply.all(200, CONTENT, **etag)

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == CONTENT
    assert ["range" in asked.headers for asked in server.asked] == [True, False]


@pytest.mark.parametrize("told", ["etag", "412", "200", "416", "length"])
async def test_a_file_that_changes_is_downloaded_anew(connect: Connect, meter: CountedMeter, told: str) -> None:
    """However the server tells it: no file is made of two versions."""
    other = os.urandom(2 * MIB + 3)

    async def answer(asked: Asked, reply: Reply) -> None:
        begins = "if-match" not in asked.headers
        if begins and asked.number == 0:
            await reply.part(asked, CONTENT, ETag=ETAG)
        elif begins or asked.headers["if-match"] == '"two"':
            await reply.part(asked, other, ETag='"two"')
        elif told == "etag":
            start, end = asked.range(len(CONTENT))
            span = f"bytes {start}-{end - 1}/{len(CONTENT)}"
            await reply.all(206, bytes(end - start), Content_Range=span, ETag='"two"')
        elif told == "length":
            start, end = asked.range(len(CONTENT))
            await reply.all(206, bytes(end - start), Content_Range=f"bytes {start}-{end - 1}/99999999", ETag=ETAG)
        else:
            await reply.all(int(told), other if told == "200" else b"")

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == other


async def test_a_file_that_never_stays_the_same(connect: Connect, meter: CountedMeter) -> None:
    """Its ranges never fit together; a single answer does. It may be a log, or two servers that do not agree."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if "if-match" in asked.headers:
            await reply.all(412)
        elif "range" in asked.headers:
            await reply.part(asked, CONTENT, ETag=f'"{asked.number}"')
        else:
            await reply.all(200, CONTENT, ETag=f'"{asked.number}"')

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await _fetched(downloads, server, meter) == CONTENT
    assert sum("if-match" not in asked.headers for asked in server.asked) == 3


async def test_a_file_that_is_another_one_too_often(connect: Connect, meter: CountedMeter) -> None:
    """It is begun anew as often as tries are allowed, and then it is a failure."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if "if-match" in asked.headers:
            await reply.all(412)
        else:
            await reply.part(asked, CONTENT, ETag=f'"{asked.number}"')

    settings = TransferSettings(range_bytes=MIB, transfer_tries=2)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert (found["Message"], found["Attempts"]) == ("the file changed while it was downloaded", "2")


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
        assert await _fetched(downloads, server, meter) == CONTENT
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
        found = await _failed(downloads, server.url(), meter, code)
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
        assert await _fetched(downloads, server, meter) == CONTENT
    assert came[1] - came[0] >= 1.0


async def test_retry_after_the_deadline(connect: Connect, meter: CountedMeter) -> None:
    """No slot is held for an hour for a try that comes too late in any case."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(503, Retry_After="7200")

    async with connect() as downloads, faulty_server(answer) as server:
        found = await asyncio.wait_for(_failed(downloads, server.url(), meter, "BlobDownloadMiscError"), 20)
    assert (found["HttpStatus"], found["Attempts"]) == ("503", "1")


@pytest.mark.parametrize("begun", [False, True])
async def test_silence_is_cut(connect: Connect, meter: CountedMeter, *, begun: bool) -> None:
    """Before the answer or in the middle of it: no byte for too long is a failed try."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if begun:
            await reply.cut_part(asked, CONTENT, 1000 if asked.number == 0 else 0, ETag=ETAG)
        await asyncio.Event().wait()

    settings = TransferSettings(range_bytes=8 * MIB, transfer_tries=2, transfer_idle_seconds=0.2)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadTimedOut")
    assert found["Message"] == "no byte within the time that a transfer may be silent"
    assert len(server.asked) == (3 if begun else 2)


async def test_the_deadline_ends_what_never_ends(connect: Connect, meter: CountedMeter) -> None:
    """A byte now and then is no silence, but it has an end."""

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.cut_part(asked, CONTENT, 10, ETag=ETAG)
        while True:
            await reply.body(b"x")
            await asyncio.sleep(0.02)

    settings = TransferSettings(transfer_seconds=0.5)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadTimedOut")
    assert "0.5 seconds" in found["Message"]
    assert len(server.asked) == 1


async def test_the_deadline_tells_what_went_wrong_before(connect: Connect, meter: CountedMeter) -> None:
    """It is not only late: it is late because of something."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if asked.number:
            await asyncio.Event().wait()
        await reply.all(503)

    settings = TransferSettings(transfer_seconds=0.5)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadTimedOut")
    assert found["LastTrouble"] == "the server answered with status 503"


async def test_waiting_for_a_turn_is_not_part_of_the_deadline(connect: Connect) -> None:
    """Twelve files of a fifth of a second each, one at a time, each with a deadline of two seconds."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await asyncio.sleep(0.2)
        await reply.all(200, b"content")

    settings = TransferSettings(transfers=1, transfer_seconds=2)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        fetches = [downloads.fetch(server.url(), path="p", meter=CountedMeter()) for _ in range(12)]
        assert len(await asyncio.gather(*fetches)) == 12


async def test_not_more_than_allowed_are_in_flight(connect: Connect) -> None:
    """Over all files and ranges: the fourth request waits until one of three is over."""
    active = peak = 0
    three = asyncio.Event()

    async def answer(asked: Asked, reply: Reply) -> None:
        nonlocal active, peak
        active += 1
        peak = max(peak, active)
        if active == 3:
            three.set()
        await three.wait()
        active -= 1
        await reply.part(asked, CONTENT, ETag=ETAG)

    settings = TransferSettings(transfers=3, range_bytes=MIB)
    meters = [CountedMeter() for _ in range(6)]
    async with connect(settings) as downloads, faulty_server(answer) as server:
        contents = await asyncio.gather(*(_fetched(downloads, server, meter) for meter in meters))
    assert all(content == CONTENT for content in contents)
    assert peak == 3
    assert len(server.asked) == 24


async def test_a_cancelled_download_leaves_nothing(connect: Connect, meter: CountedMeter) -> None:
    """In the middle of several ranges; the next download is not disturbed."""
    hanging = asyncio.Event()

    async def answer(asked: Asked, reply: Reply) -> None:
        if hanging.is_set():
            await reply.all(200, CONTENT)
        elif asked.number < 2:
            await reply.part(asked, CONTENT, ETag=ETAG)
        else:
            await reply.cut_part(asked, CONTENT, 100 * KIB, ETag=ETAG)
            await asyncio.Event().wait()

    async with connect(TransferSettings(range_bytes=MIB, transfers=2)) as downloads, faulty_server(answer) as server:
        download = asyncio.create_task(_fetched(downloads, server, meter))
        while meter.held < 2 * MIB:
            await asyncio.wait([download], timeout=0.01)
            assert not download.done()
        assert len(list(downloads._staging.iterdir())) == 1
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        assert list(downloads._staging.iterdir()) == []
        hanging.set()
        assert await _fetched(downloads, server, CountedMeter()) == CONTENT


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
        await _fetched(downloads, server, CountedMeter())
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
        found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
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
        found = await _failed(downloads, url, meter, "BlobDownloadMiscError")
    assert found["Message"] in ("this is not an http or https URL", "the URL cannot be asked for")
    assert found["Attempts"] == "1"


async def test_a_host_that_nobody_knows(connect: Connect, meter: CountedMeter) -> None:
    """It is not BlobNotFound: nobody has been asked for the blob."""
    async with connect(TransferSettings(transfer_tries=2)) as downloads:
        found = await _failed(downloads, "http://nobody.invalid/b?sig=SECRET", meter, "BlobDownloadMiscError")
    assert found["Message"] == "the name nobody.invalid could not be resolved"
    assert found["Attempts"] == "2"


async def test_a_host_that_does_not_listen(connect: Connect, meter: CountedMeter) -> None:
    """The kernel's word for it is in the message."""
    port = free_port()
    async with connect(TransferSettings(transfer_tries=2)) as downloads:
        found = await _failed(downloads, f"http://127.0.0.1:{port}/b?sig=SECRET", meter, "BlobDownloadMiscError")
    assert found["Message"].startswith(f"no connection to 127.0.0.1:{port}: ")
    assert found["Attempts"] == "2"


async def test_what_is_not_http(connect: Connect, meter: CountedMeter) -> None:
    """Something else listens there."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.body(b"SSH-2.0-OpenSSH_9.2 sig=SECRET\r\n\r\n")

    async with connect(TransferSettings(transfer_tries=2)) as downloads, faulty_server(answer) as server:
        found = await _failed(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert found["Message"] == "the answer is not HTTP"


async def test_a_server_that_ignores_conditions(connect: Connect, meter: CountedMeter) -> None:
    """The same version again is not downloaded again, though the server sends it."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if asked.target.startswith("/ranges"):
            await reply.part(asked, CONTENT, ETag=ETAG)
        else:
            await reply.all(200, CONTENT, ETag=ETAG)

    known, other = Validator(ETAG, None), Validator('"other"', None)
    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        for target in ("/ranges", "/none"):
            url = server.url(target)
            assert await downloads.fetch(url, path="p", meter=meter, known=known) == NotModified()
            assert await downloads.authorize(url, path="p", known=known)
            assert not await downloads.authorize(url, path="p", known=other)
    assert meter.steps == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
class TestFullDisk:
    """The staging folder is on a file system of 1 MiB."""

    @pytest.fixture
    def staging(self, tmp_path: Path) -> Iterator[Path]:
        """Mount it."""
        folder = tmp_path / "small"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "nodeagent-test", folder], check=True)
        yield folder / "staging"
        subprocess.run(["umount", "-l", folder], check=True)

    async def test_no_space(self, connect: Connect, meter: CountedMeter) -> None:
        """It is the disk that is full, and afterwards it is not."""

        async def answer(asked: Asked, reply: Reply) -> None:
            await reply.part(asked, CONTENT, ETag=ETAG)

        async with connect(RANGES) as downloads, faulty_server(answer) as server:
            found = await _failed(downloads, server.url(), meter, "DiskFull")
        assert "ENOSPC" in found["Message"]


async def test_a_folder_that_is_gone(connect: Connect, meter: CountedMeter, staging: Path) -> None:
    """Not the server's fault."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(200, CONTENT)

    async with connect() as downloads, faulty_server(answer) as server:
        staging.rmdir()
        with pytest.raises(TransferFailedError) as raised:
            await downloads.fetch(server.url(), path="data/file", meter=meter)
    assert raised.value.failure.code == "ResourceFileCreateFailed"
    assert "ENOENT" in details(raised.value)["Message"]
