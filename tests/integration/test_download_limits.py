"""Limits of downloads: silence, deadlines, requests in flight, space on the disk; and their end by cancellation."""

# ruff: noqa: ASYNC240
# Nothing else runs on the loop of a test: its files are looked at as they are.

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.transfer.base import TransferFailedError, TransferSettings
from tests.integration.downloading import (
    CONTENT,
    ETAG,
    KIB,
    MIB,
    RANGES,
    Connect,
    CountedMeter,
    details,
    failed_download,
    fetched_bytes,
)
from tests.integration.faulty_server import Asked, Reply, faulty_server

pytest_plugins = ["tests.integration.download_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.parametrize("begun", [False, True])
async def test_silence_is_cut(connect: Connect, meter: CountedMeter, *, begun: bool) -> None:
    """Before the answer or in the middle of it: no byte for too long is a failed try."""

    async def answer(asked: Asked, reply: Reply) -> None:
        if begun:
            await reply.cut_part(asked, CONTENT, 1000 if asked.number == 0 else 0, ETag=ETAG)
        await asyncio.Event().wait()

    settings = TransferSettings(range_bytes=8 * MIB, transfer_tries=2, transfer_idle_seconds=0.2)
    async with connect(settings) as downloads, faulty_server(answer) as server:
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadTimedOut")
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
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadTimedOut")
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
        found = await failed_download(downloads, server.url(), meter, "BlobDownloadTimedOut")
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
        contents = await asyncio.gather(*(fetched_bytes(downloads, server, meter) for meter in meters))
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
        download = asyncio.create_task(fetched_bytes(downloads, server, meter))
        while meter.held < 2 * MIB:
            await asyncio.wait([download], timeout=0.01)
            assert not download.done()
        assert len(list(downloads._staging.iterdir())) == 1
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        assert list(downloads._staging.iterdir()) == []
        hanging.set()
        assert await fetched_bytes(downloads, server, CountedMeter()) == CONTENT


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
            found = await failed_download(downloads, server.url(), meter, "DiskFull")
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


async def test_a_file_that_the_node_cannot_write(connect: Connect, meter: CountedMeter, staging: Path) -> None:
    """The kernel refuses to make the file larger than the process may; nothing of it stays."""

    async def answer(_asked: Asked, reply: Reply) -> None:
        await reply.all(200, CONTENT)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with connect() as downloads, faulty_server(answer) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, before[1]))  # Python ignores SIGXFSZ
        try:
            with pytest.raises(TransferFailedError) as raised:
                await downloads.fetch(server.url(), path="data/file", meter=meter)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(staging.iterdir()) == []
    assert raised.value.failure.code == "ResourceFileWriteFailed"
    assert "EFBIG" in details(raised.value)["Message"]
