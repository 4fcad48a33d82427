"""The node's cache of downloaded files (docs/adr/0023): what many tasks ask for is downloaded once, and copied.

Nobody is given content that his own URL does not open now: before each use the server is asked, with the credential
of the task, whether it is still this version. Copies are the task's own: reflinks where the file system has them,
else real copies, never hard links.
"""

from pathlib import Path

from nodeagent.transfer.base import Download, Meter, Place
from nodeagent.transfer.cache_bring import Bringing
from nodeagent.transfer.cache_flight import Flights
from nodeagent.transfer.cache_store import CacheStore, Verify
from nodeagent.transfer.fetch import Downloader


class CachingFetcher:
    """Brings files through the cache; a `fetch.Fetcher`."""

    def __init__(self, downloads: Downloader, folder: Path, max_bytes: int, verify: Verify) -> None:
        """`folder`: the agent's own (0700), on the file system of the staging folder and of the tasks."""
        self._downloads = downloads
        self._store = CacheStore(folder, max_bytes, verify)
        self._flights = Flights(downloads, self._store)

    async def open(self) -> None:
        """Make the cache ready; what a killed agent left half done is dropped. Raises OSError, sqlite3.Error."""
        await self._store.open()

    async def close(self) -> None:
        """Close the cache, when nobody brings anything any more; its files stay."""
        await self._store.close()

    @property
    def bytes(self) -> int:
        """Bytes of the cached files."""
        return self._store.bytes

    @property
    def reflinks(self) -> bool:
        """Whether copies share the bytes of the cached file until they are changed."""
        return self._store.clones

    async def bring(self, download: Download, place: Place, meter: Meter) -> None:
        """Bring one file to its place. The meter is told of bytes only. Raises TransferFailedError."""
        await Bringing(self._downloads, self._store, self._flights, download, place, meter).run()

    async def shrink(self, wanted_bytes: int) -> int:
        """Free so many bytes if possible, least recently used first; returns how many have been freed."""
        return await self._store.shrink(wanted_bytes)
