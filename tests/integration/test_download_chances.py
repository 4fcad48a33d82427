"""Downloads while everything goes wrong at random: what comes out is a whole file of one version, or nothing."""

# ruff: noqa: S311
# Chance is not for secrets here.

import asyncio
import random

import pytest

from nodeagent.transfer.base import TransferFailedError, TransferSettings
from nodeagent.transfer.http_download import Fetched
from tests.integration.downloading import Connect, CountedMeter, details
from tests.integration.faulty_server import Asked, Reply, faulty_server

pytest_plugins = ["tests.integration.download_fixtures"]
pytestmark = pytest.mark.usefixtures("short_pauses")

KIB = 1 << 10
SETTINGS = TransferSettings(range_bytes=64 * KIB, transfer_tries=6, transfer_idle_seconds=0.3, transfers=4)


class Capricious:
    """A server of two versions of a file that honours `If-Match`, and else does what comes to its mind."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.versions = [self._chance.randbytes(self._chance.randrange(1, 600 * KIB)) for _ in range(2)]
        self._now = 0

    async def answer(self, asked: Asked, reply: Reply) -> None:
        """Answer one request."""
        if self._chance.random() < 0.02:
            self._now = 1 - self._now
        content, etag = self.versions[self._now], f'"{self._now}"'
        if asked.headers.get("if-match", etag) != etag:
            await reply.all(412)
        elif "range" not in asked.headers:
            await reply.all(200, content, ETag=etag)
        elif asked.range(len(content))[0] >= len(content):
            await reply.all(416)
        else:
            await self._range(asked, reply, content, etag)

    async def _range(self, asked: Asked, reply: Reply, content: bytes, etag: str) -> None:
        start, end = asked.range(len(content))
        mood = self._chance.random()
        if mood < 0.1:
            await reply.cut_part(asked, content, self._chance.randrange(end - start), ETag=etag)
        elif mood < 0.15:
            await reply.cut_part(asked, content, self._chance.randrange(end - start), ETag=etag)
            reply.reset()
        elif mood < 0.2:
            await reply.all(self._chance.choice([408, 429, 500, 503]), b"busy")
        elif mood < 0.25:
            reply.reset()
        elif mood < 0.35:
            end = self._chance.randrange(start, end) + 1
            span = f"bytes {start}-{end - 1}/{len(content)}"
            await reply.all(206, content[start:end], Content_Range=span, ETag=etag)
        elif mood < 0.37:
            await reply.all(200, content, ETag=etag)
        elif mood < 0.38:
            await asyncio.Event().wait()
        else:
            await reply.part(asked, content, ETag=etag)


@pytest.mark.parametrize("seed", range(25))
async def test_a_file_is_one_version_or_none(connect: Connect, seed: int) -> None:
    """Five downloads side by side from a server that cannot be relied on."""
    server_of_two = Capricious(seed)
    meters = [CountedMeter() for _ in range(5)]
    async with connect(SETTINGS) as downloads, faulty_server(server_of_two.answer) as server:
        found = await asyncio.gather(
            *(downloads.fetch(server.url(), path="p", meter=meter) for meter in meters), return_exceptions=True
        )
        kept = set(downloads._staging.iterdir())
    for one, meter in zip(found, meters, strict=True):
        if isinstance(one, Fetched):
            assert one.validator is not None
            assert one.validator.etag is not None
            assert one.path.read_bytes() == server_of_two.versions[int(one.validator.etag.strip('"'))]
            assert meter.held == one.size
            kept.remove(one.path)
        else:
            assert isinstance(one, TransferFailedError), repr(one)
            assert details(one)["FilePath"] == "p"
            assert meter.held == 0
    assert not kept


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_at_any_moment_nothing_is_left(connect: Connect, times: int) -> None:
    """After so many turns of the loop, once and, while that is being seen to, once more."""
    content = random.Random(1).randbytes(300 * KIB)

    async def answer(asked: Asked, reply: Reply) -> None:
        await reply.part(asked, content, ETag='"one"')

    cancelled = 0
    async with connect(SETTINGS) as downloads, faulty_server(answer) as server:
        for turns in range(0, 200, 3):
            meter = CountedMeter()
            download = asyncio.create_task(downloads.fetch(server.url(), path="p", meter=meter))
            for _ in range(turns):
                await asyncio.sleep(0)
            for _ in range(times):
                download.cancel()
                await asyncio.sleep(0)
            await asyncio.wait([download])
            if download.cancelled():
                cancelled += 1
                assert list(downloads._staging.iterdir()) == []
                assert meter.held == 0
            else:
                fetched = download.result()
                assert isinstance(fetched, Fetched)
                fetched.path.unlink()
        assert cancelled > 10
        whole = await downloads.fetch(server.url(), path="p", meter=CountedMeter())
        assert isinstance(whole, Fetched)
        assert whole.path.read_bytes() == content
