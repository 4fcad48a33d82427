"""One download that several tasks wait for: it goes on when the one who began it is gone, and ends with the last."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nodeagent.model.protocol import TransferPhase
from nodeagent.rules.failures import DISK_FULL
from nodeagent.transfer.base import Download, Meter, TransferFailedError
from nodeagent.transfer.cache_store import CacheStore, Entry
from nodeagent.transfer.fetch import Downloader, fetch
from nodeagent.transfer.http_download import Fetched
from nodeagent.transfer.uninterrupted import in_thread, settled

_REMEMBERED_SECONDS = 600.0
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Landing:
    """What a flight brought."""

    entry: Entry | None = None
    """The file, in the cache."""
    loose: Fetched | None = None
    """The file, if it cannot be cached: it is for who began the flight, whose URL has opened it."""


@dataclass(frozen=True, slots=True)
class Waited:
    """What waiting for a flight has come to."""

    credited: int
    """Bytes that the waiting meter was told of."""
    landing: Landing | None = None
    """None if the flight failed, or was ended because nobody waited."""
    failed: BaseException | None = None


class _SharedMeter(Meter):
    """Tells all who wait how far the one download is."""

    def __init__(self, at_most: int, too_large: Callable[[], None]) -> None:
        super().__init__("", TransferPhase.DOWNLOADING)
        self._at_most = at_most
        self._too_large = too_large
        self._done = 0
        self._meters: list[Meter] = []

    def moved(self, size: int) -> None:
        """So many more bytes for everybody."""
        self._done += size
        for meter in self._meters:
            meter.moved(size)
        if self._done > self._at_most:
            self._too_large()

    def join(self, meter: Meter) -> None:
        """Tell one more, and what was moved so far."""
        self._meters.append(meter)
        meter.moved(self._done)

    def leave(self, meter: Meter) -> int:
        """Tell one less; returns the bytes that it was told of."""
        self._meters.remove(meter)
        return self._done


class Flight:
    """One download of one key, in a task of its own."""

    def __init__(self, at_most: int, download: Callable[[Meter], Coroutine[Any, Any, Landing]]) -> None:
        """Begin; whoever wants it waits for it at once. A file of more than `at_most` bytes will not be cached."""
        self._too_large: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._meter = _SharedMeter(at_most, self._note_too_large)
        self._waiting = 0
        self._taken = False
        self.task = asyncio.create_task(download(self._meter))

    async def wait(self, meter: Meter, *, leads: bool) -> Waited:
        """Wait until it has landed, failed, or turned out to be of no use for all but who leads.

        Who leads takes a loose file over. When nobody waits any more, the download is cancelled.
        """
        self._waiting += 1
        self._meter.join(meter)
        try:
            futures: set[asyncio.Future[Any]] = {self.task} if leads else {self.task, self._too_large}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if leads:
                self._taken = True
        finally:
            credited = self._meter.leave(meter)
            self._waiting -= 1
            if not self._waiting:
                await self._end()
        return self._seen(credited)

    def _seen(self, credited: int) -> Waited:
        if not self.task.done():
            return Waited(credited, Landing())  # too large, and still on its way to who leads
        if self.task.cancelled():
            return Waited(credited)
        failed = self.task.exception()
        return Waited(credited, None if failed else self.task.result(), failed)

    async def _end(self) -> None:
        """Leave nothing behind that nobody wants."""
        self.task.cancel()
        await settled(self.task)
        if self._taken or self.task.cancelled() or self.task.exception() is not None:
            return
        if loose := self.task.result().loose:
            await in_thread(lambda _: loose.path.unlink(missing_ok=True))

    def _note_too_large(self) -> None:
        if not self._too_large.done():
            self._too_large.set_result(None)


class Flights:
    """The downloads of a cache: at most one of each key."""

    def __init__(self, downloads: Downloader, store: CacheStore) -> None:
        self._downloads = downloads
        self._store = store
        self._flights: dict[str, Flight] = {}
        self._useless: dict[str, float] = {}
        """Keys of what turned out not to be cacheable, until when: nobody waits for a download that is not for him."""

    def worth_waiting(self, key: str, size: int | None) -> bool:
        """Whether a file is likely to be cached; `size` if it is known."""
        if size is not None and size > self._store.largest:
            return False
        return self._useless.get(key, 0.0) <= time.monotonic()

    def under_way(self, key: str) -> Flight | None:
        """Return the download of a key."""
        return self._flights.get(key)

    def begin(self, key: str, download: Download) -> Flight:
        """Begin the one download of a key."""

        async def land(meter: Meter) -> Landing:
            fetched = await self.fetch(download, meter)
            entry = await self._admit(key, fetched)
            if entry is not None:
                return Landing(entry)
            self._note_useless(key)
            return Landing(loose=fetched)

        flight = self._flights[key] = Flight(self._store.largest, land)
        flight.task.add_done_callback(lambda _: self._flights.pop(key))
        return flight

    async def fetch(self, download: Download, meter: Meter) -> Fetched:
        """Download a file; where there is no space, the cache makes some. Raises TransferFailedError."""
        try:
            return await fetch(self._downloads, download, meter)
        except TransferFailedError as error:
            if error.failure.code != DISK_FULL or not await self._store.shrink(download.size or self._store.bytes):
                raise
        return await fetch(self._downloads, download, meter)

    async def _admit(self, key: str, fetched: Fetched) -> Entry | None:
        try:
            return await self._store.admit(key, fetched)
        except asyncio.CancelledError:
            await in_thread(lambda _: fetched.path.unlink(missing_ok=True))  # in the cache by now, or nobody's
            raise

    def _note_useless(self, key: str) -> None:
        self._useless.pop(key, None)
        while len(self._useless) >= _REMEMBERED:
            del self._useless[next(iter(self._useless))]
        self._useless[key] = time.monotonic() + _REMEMBERED_SECONDS
