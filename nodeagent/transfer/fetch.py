"""One file of a URL becomes one file of a task: what both ways, with and without the cache, are to their callers."""

from typing import Protocol

from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules.failures import failure_of
from nodeagent.rules.urls import shown
from nodeagent.transfer.base import Download, Meter, Place, TransferFailedError
from nodeagent.transfer.http_download import Fetched, NotModified, Validator
from nodeagent.transfer.placement import put_in_place


class Fetcher(Protocol):
    """Brings files."""

    async def bring(self, download: Download, place: Place, meter: Meter) -> None:
        """Bring one file to its place. The meter is told of bytes only. Raises TransferFailedError."""


class Downloader(Protocol):
    """What is asked of `http_download.Downloads`."""

    async def fetch(
        self,
        url: str,
        *,
        path: str,
        meter: Meter,
        identity: NodeIdentityReference | None = None,
        known: Validator | None = None,
    ) -> Fetched | NotModified:
        """Download a file to the staging folder. Raises TransferFailedError."""

    async def authorize(
        self, url: str, *, path: str, known: Validator, identity: NodeIdentityReference | None = None
    ) -> bool:
        """Whether the URL opens a file that is still the version `known`. Raises TransferFailedError."""


class DirectFetcher:
    """Downloads every file for itself: the fetcher of a node without a cache."""

    def __init__(self, downloads: Downloader) -> None:
        self._downloads = downloads

    async def bring(self, download: Download, place: Place, meter: Meter) -> None:
        """Download the file and put it in place. Raises TransferFailedError."""
        fetched = await fetch(self._downloads, download, meter)
        await put_in_place(fetched.path, place, download.path, download.mode)


async def fetch(downloads: Downloader, download: Download, meter: Meter) -> Fetched:
    """Download a file whatever version it is; whoever asked moves or removes it. Raises TransferFailedError."""
    answer = await downloads.fetch(download.url, path=download.path, meter=meter, identity=download.identity)
    if isinstance(answer, NotModified):
        raise TransferFailedError(
            failure_of(
                "BlobDownloadMiscError",
                ("Message", "The server said 304 Not Modified, which nobody had asked for"),
                ("FilePath", download.path),
                ("BlobSource", shown(download.url)),
            )
        )
    return answer
