"""A cache over a scripted web: each URL has content and a version, and opens for whom it is told to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import uuid4

from nodeagent.model.protocol import TransferPhase
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules.cache_key import content_url
from nodeagent.rules.failures import failure_of
from nodeagent.transfer.base import Download, Meter, Place, TransferFailedError
from nodeagent.transfer.cache import CachingFetcher
from nodeagent.transfer.http_download import Fetched, NotModified, Validator

SECONDS = 20.0


def sas(url: str, signature: str = "s1") -> str:
    """Return the URL with a SAS."""
    return f"{url}?sv=2022-11-02&sp=r&sig={signature}"


@dataclass
class Web:
    """Stands for `Downloads`; what it is asked is remembered."""

    staging: Path
    files: dict[str, tuple[bytes, str | None]] = field(default_factory=dict)
    """URL without a SAS -> content and ETag."""
    denied: set[str] = field(default_factory=set)
    """Whole URLs that open nothing."""
    failures: list[str] = field(default_factory=list)
    """Codes with which the next downloads fail."""
    fetched: list[str] = field(default_factory=list)
    authorized: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """A download holds at its middle until this is set."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def fetch(
        self,
        url: str,
        *,
        path: str,
        meter: Meter,
        identity: NodeIdentityReference | None = None,
        known: Validator | None = None,
    ) -> Fetched | NotModified:
        """Download in two halves, as `Downloads.fetch` does: the meter follows, and nothing is left behind."""
        self.fetched.append(url)
        content, etag = self._opened(url)
        file = self.staging / uuid4().hex
        middle = len(content) // 2
        file.write_bytes(content[:middle])
        meter.moved(middle)
        self.begun.set()
        try:
            await self.gate.wait()
            self._fail()
        except BaseException:
            file.unlink()
            meter.moved(-middle)
            raise
        file.write_bytes(content)
        meter.moved(len(content) - middle)
        return Fetched(file, len(content), None if etag is None else Validator(etag, None))

    async def authorize(
        self, url: str, *, path: str, known: Validator, identity: NodeIdentityReference | None = None
    ) -> bool:
        """Answer after a turn of the loop."""
        self.authorized.append(url)
        await asyncio.sleep(0)
        return self._opened(url)[1] == known.etag

    def _fail(self) -> None:
        if self.failures:
            raise TransferFailedError(failure_of(self.failures.pop(0), ("Message", "scripted")))

    def _opened(self, url: str) -> tuple[bytes, str | None]:
        if url in self.denied:
            raise TransferFailedError(failure_of("BlobAccessDenied", ("Message", "scripted")))
        return self.files[content_url(url)]


@dataclass
class World:
    """A web, a cache over it, and tasks with directories of their own."""

    folder: Path
    web: Web
    cache: CachingFetcher
    meters: list[Meter] = field(default_factory=list)

    def begin(self, url: str, name: str, *, size: int | None = None) -> "asyncio.Task[bytes]":
        """A task that wants a file; the result is what it got."""
        return asyncio.create_task(self.bring(url, name, size=size))

    async def bring(self, url: str, name: str, *, size: int | None = None) -> bytes:
        """Bring a file to a task; what it got."""
        directory = self.folder / "tasks" / name
        directory.mkdir(parents=True)
        meter = Meter(name, TransferPhase.DOWNLOADING)
        self.meters.append(meter)
        async with asyncio.timeout(SECONDS):
            await self.cache.bring(Download(url, "in/f", 0o750, size=size), Place(directory), meter)
        return (directory / "in/f").read_bytes()

    async def wave(self, urls: Sequence[str], prefix: str = "w") -> list[bytes]:
        """Tasks that all come at once."""
        return await asyncio.gather(*(self.bring(url, f"{prefix}{number}") for number, url in enumerate(urls)))

    def moved(self) -> list[int]:
        """Bytes that the meters know of, in the order in which their tasks began."""
        return [meter.progress().bytes_done for meter in self.meters]

    @property
    def entries(self) -> list[Path]:
        """The cached files."""
        return sorted((self.folder / "cache/entries").iterdir())

    def assert_tidy(self) -> None:
        """No file is under way anywhere, and the cache counts what it has."""
        assert list(self.web.staging.iterdir()) == []
        assert list((self.folder / "cache/copies").iterdir()) == []
        assert self.cache.bytes == sum(file.stat().st_size for file in self.entries)


@asynccontextmanager
async def world(
    folder: Path, *, max_bytes: int = 1 << 20, verify: Literal["stat", "content"] = "stat", web: Web | None = None
) -> AsyncIterator[World]:
    """Open a cache in `folder`, which may have been used before."""
    staging = folder / "staging"
    staging.mkdir(exist_ok=True)
    web = web or Web(staging)
    cache = CachingFetcher(web, folder / "cache", max_bytes, verify)
    await cache.open()
    try:
        yield World(folder, web, cache)
    finally:
        await cache.close()
