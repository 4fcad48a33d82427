"""Downloads whose content is cut, wrong, or another one than before."""

import asyncio
import base64
import gzip
import hashlib
import os

import pytest

from nodeagent.transfer.base import TransferSettings
from nodeagent.transfer.http_download import NotModified, Validator
from tests.integration.downloading import (
    CONTENT,
    ETAG,
    KIB,
    MIB,
    RANGES,
    Connect,
    CountedMeter,
    failed_download,
    fetched_bytes,
)
from tests.integration.faulty_server import Asked, Reply, faulty_server

pytest_plugins = ["tests.integration.download_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")

MD5 = base64.b64encode(hashlib.md5(CONTENT, usedforsecurity=False).digest()).decode()


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
        download = asyncio.create_task(fetched_bytes(downloads, server, meter))
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
        assert await fetched_bytes(downloads, server, meter) == CONTENT
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
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert found["Message"] == "the content ended too early"
    assert found["Attempts"] == "3"
    assert sum(asked.range(len(CONTENT))[0] == MIB for asked in server.asked) == 3


async def test_a_server_without_ranges_is_asked_anew_after_a_cut(connect: Connect, meter: CountedMeter) -> None:
    """What was there is thrown away, and the meter knows."""

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.head(200, Content_Length=str(len(CONTENT)), Content_MD5=MD5)
        await reply.body(CONTENT if asked.number else CONTENT[: 2 * MIB])

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await fetched_bytes(downloads, server, meter) == CONTENT
    assert len(server.asked) == 2
    assert 0 < meter.thrown_away <= 2 * MIB


async def test_a_server_that_always_cuts_and_knows_no_ranges(connect: Connect, meter: CountedMeter) -> None:
    """Bytes that are thrown away are no progress: it ends."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.head(200, Content_Length=str(len(CONTENT)))
        await reply.body(CONTENT[:MIB])

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
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
            assert await fetched_bytes(downloads, server, meter) == CONTENT
        else:
            await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")


async def test_content_is_kept_as_it_was_stored(connect: Connect, meter: CountedMeter) -> None:
    """No encoding is asked for; a blob that was stored with one is the file that was stored."""
    packed = gzip.compress(b"content")

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.part(asked, packed, ETag=ETAG, Content_Encoding="gzip")

    async with connect(RANGES) as downloads, faulty_server(answer) as server:
        assert await fetched_bytes(downloads, server, meter) == packed
    assert server.asked[0].headers["accept-encoding"] == "identity"


async def test_a_wrong_checksum_is_a_failed_try(connect: Connect, meter: CountedMeter) -> None:
    """The content is thrown away and asked for again; the last time it is the failure."""
    good_from = 1

    async def answer(asked: Asked, reply: Reply) -> None:
        content = CONTENT if asked.number >= good_from else bytes(len(CONTENT))
        await reply.all(200, content, Content_MD5=MD5)

    async with connect(RANGES) as downloads:
        async with faulty_server(answer) as server:
            assert await fetched_bytes(downloads, server, meter) == CONTENT
        assert len(server.asked) == 2
        for left in downloads._staging.iterdir():
            left.unlink()
        meter = CountedMeter()
        good_from = 99
        async with faulty_server(answer) as server:
            found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
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
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
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
        assert await fetched_bytes(downloads, server, meter) == CONTENT
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
        assert await fetched_bytes(downloads, server, meter) == CONTENT
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
        assert await fetched_bytes(downloads, server, meter) == CONTENT
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
        assert await fetched_bytes(downloads, server, meter) == other


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
        assert await fetched_bytes(downloads, server, meter) == CONTENT
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
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadMiscError")
    assert (found["Message"], found["Attempts"]) == ("the file changed while it was downloaded", "2")


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
