"""One file on its way through the cache to one task."""

import errno
from pathlib import Path

import structlog

from nodeagent.rules.cache_key import content_key
from nodeagent.rules.urls import shown
from nodeagent.transfer.base import Download, Meter, Place
from nodeagent.transfer.cache_flight import Flight, Flights
from nodeagent.transfer.cache_store import CacheStore, Entry, NotWholeError
from nodeagent.transfer.fetch import Downloader
from nodeagent.transfer.placement import put_in_place

MOST_FLIGHTS = 2
"""Who was in so many flights in vain, be it that they failed or brought something else, downloads for itself."""
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
log = structlog.get_logger(__name__)


class Bringing:
    """Finds the file in the cache, waits for it, downloads it into the cache, or at last downloads it without."""

    def __init__(
        self,
        downloads: Downloader,
        store: CacheStore,
        flights: Flights,
        download: Download,
        place: Place,
        meter: Meter,
    ) -> None:
        self._downloads = downloads
        self._store = store
        self._flights = flights
        self._download = download
        self._place = place
        self._meter = meter
        self._told = 0
        """Bytes that the meter was told of in flights."""
        self._proven: Entry | None = None
        """What this task's own URL has just brought."""

    async def run(self) -> None:
        """Bring it. Raises TransferFailedError."""
        try:
            if await self._through_cache():
                return
        except BaseException:
            self._tell(0)
            raise
        self._tell(0)
        await self._show((await self._flights.fetch(self._download, self._meter)).path)

    async def _through_cache(self) -> bool:
        """Whether the file is in place; if not, the cache is of no use for it."""
        try:
            key = content_key(self._download.url)
        except ValueError:
            return False  # not a URL: the download says so
        flown = 0
        while self._flights.worth_waiting(key, self._download.size):
            flight = self._flights.under_way(key)
            entry = self._store.find(key)
            if flight is None and entry is not None:
                if await self._use(entry):
                    return True
            elif flown == MOST_FLIGHTS:
                return False
            elif flight is not None:
                await self._join(flight)
                flown += 1
            else:
                if await self._lead(key):
                    return True
                flown += 1
        return False

    async def _use(self, entry: Entry) -> bool:
        """Place a copy of a cached file, if it is what the task's URL opens now."""
        async with self._store.using(entry):
            if entry is not self._proven and not await self._opens(entry):
                await self._store.drop(entry)
                return False
            copy = await self._copy_of(entry)
            if copy is None:
                await self._store.drop(entry)
                return False
            await self._show(copy)
        self._tell(entry.size)
        return True

    async def _opens(self, entry: Entry) -> bool:
        return await self._downloads.authorize(
            self._download.url, path=self._download.path, known=entry.validator, identity=self._download.identity
        )

    async def _join(self, flight: Flight) -> None:
        """Wait for somebody else's download; what it brought is found in the cache."""
        self._told += (await flight.wait(self._meter, leads=False)).credited

    async def _lead(self, key: str) -> bool:
        """Download it for all; whether it is in place already, because it cannot be cached."""
        waited = await self._flights.begin(key, self._download).wait(self._meter, leads=True)
        self._told += waited.credited
        if waited.failed is not None:
            raise waited.failed
        if waited.landing is None:
            return False
        self._proven = waited.landing.entry
        loose = waited.landing.loose
        if loose is None:
            return False
        await self._show(loose.path)
        self._tell(loose.size)
        return True

    async def _copy_of(self, entry: Entry) -> Path | None:
        """Return a copy of the task's own; None if the cached file is of no use."""
        try:
            return await self._copy_or_itself(entry)
        except NotWholeError:
            log.warning("a cached file is not what it was", url=shown(self._download.url))
        except OSError as error:
            log.warning("a cached file cannot be copied", url=shown(self._download.url), reason=error.strerror)
        return None

    async def _copy_or_itself(self, entry: Entry) -> Path | None:
        """Without space for a copy others go first, and then the file itself leaves the cache for its only user.

        If there are more users, it goes too: each downloads for itself then, as far as there is space.
        """
        for _ in range(2):
            try:
                return await self._store.copy_of(entry)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
            await self._store.shrink(entry.size)
        return await self._store.take(entry)

    async def _show(self, file: Path) -> None:
        await put_in_place(file, self._place, self._download.path, self._download.mode)

    def _tell(self, size: int) -> None:
        """Make the meter know of `size` bytes, whatever flights told it before."""
        if size != self._told:
            self._meter.moved(size - self._told)
        self._told = 0
