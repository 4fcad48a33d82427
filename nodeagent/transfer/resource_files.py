"""The resource files of a task: single files and whole containers, brought side by side (spec/node.md §4)."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing

from nodeagent.model.files import ResourceFile
from nodeagent.model.values import NodeIdentityReference
from nodeagent.rules.failures import failure_of
from nodeagent.rules.resource_files import ContainerSource, FileSource, blob_url, destination, source_of
from nodeagent.rules.urls import shown
from nodeagent.transfer.base import (
    Download,
    IdentityError,
    Meter,
    Place,
    Tokens,
    TransferFailedError,
    TransferSettings,
)
from nodeagent.transfer.blob_listing import BlobListings, ListedBlob
from nodeagent.transfer.fetch import Fetcher

LISTED_AHEAD = 4
"""Containers that are listed at a time; each has two pages of blobs in memory at most."""
FILES_PER_TRANSFER = 2
"""Files of a task under way for each transfer in flight: while some are put in place, others are downloaded."""

Source = FileSource | ContainerSource
_Stock = asyncio.Queue[tuple[ListedBlob, ...] | None]


class ResourceFiles:
    """Brings all resource files of a task, or fails with the first that cannot be brought."""

    def __init__(self, fetcher: Fetcher, tokens: Tokens, settings: TransferSettings) -> None:
        self._fetcher = fetcher
        self._tokens = tokens
        self._settings = settings

    async def bring(self, files: Sequence[ResourceFile], place: Place, meter: Meter) -> None:
        """Bring the files; where two go to the same path, the later one of the list is there at the end.

        Paths are checked before anything is brought. Raises TransferFailedError for the first failure; what was under
        way then has been cancelled and has ended.
        """
        sources = [_checked_source(file) for file in files]
        if not sources:
            return
        containers = sum(isinstance(source, ContainerSource) for source in sources)
        if containers < len(sources):
            meter.expect(len(sources) - containers, None)
        workers = self._settings.transfers * FILES_PER_TRANSFER
        listings = BlobListings(self._tokens, self._settings)
        async with AsyncExitStack() as stack:
            if containers:
                await stack.enter_async_context(listings.connected())
            else:
                workers = min(workers, len(sources))
            fetch = _InOrder(self._fetcher, self._tokens, place, meter)
            await _Bringing(sources, listings, fetch, meter, workers).run()


def _checked_source(file: ResourceFile) -> Source:
    if file.auto_storage_container_name is not None:
        raise TransferFailedError(
            failure_of(
                "ResourceContainerListMiscError",
                ("Message", "the service has not told the URL of a container of the linked storage"),
                ("Container", file.auto_storage_container_name),
            )
        )
    try:
        return source_of(file)
    except ValueError as error:
        raise _cannot_be(str(error), file.file_path or "", file.http_url or file.storage_container_url or "") from None


def _cannot_be(why: str, path: str, url: str) -> TransferFailedError:
    return TransferFailedError(
        failure_of(
            "ResourceFileCreateFailed",
            ("Message", why),
            ("FilePath", path.replace("\0", "\\0")),
            ("BlobSource", shown(url)),
        )
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what failed first; the others failed before they heard of it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Bringing:
    """One call of `bring`: a feeder puts files into a short queue, workers take them out, in the list's order."""

    def __init__(
        self, sources: Sequence[Source], listings: BlobListings, fetch: "_InOrder", meter: Meter, workers: int
    ) -> None:
        self._sources = sources
        self._listings = listings
        self._fetch = fetch
        self._meter = meter
        self._workers = workers
        self._waiting: asyncio.Queue[Download | None] = asyncio.Queue(workers)
        # Sizes add up to something only where all of them are known before the download.
        self._sizes_known = all(isinstance(source, ContainerSource) for source in sources)

    async def run(self) -> None:
        """Bring all; raises what failed first, when all else has ended."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(group))
                for _ in range(self._workers):
                    group.create_task(self._work())
        except BaseExceptionGroup as failed:
            # `from None`: the group is only how the first failure came here.
            raise _first(failed) from None

    async def _feed(self, group: asyncio.TaskGroup) -> None:
        containers = (source for source in self._sources if isinstance(source, ContainerSource))
        ahead: deque[_Stock] = deque()
        for source in self._sources:
            if isinstance(source, FileSource):
                await self._waiting.put(Download(source.url, source.path, source.mode, source.identity))
                continue
            while len(ahead) < LISTED_AHEAD and (following := next(containers, None)) is not None:
                stock: _Stock = asyncio.Queue(1)
                group.create_task(self._list(following, stock))
                ahead.append(stock)
            await self._feed_pages(source, ahead.popleft())
        for _ in range(self._workers):
            await self._waiting.put(None)

    async def _list(self, source: ContainerSource, stock: _Stock) -> None:
        async with aclosing(self._listings.pages(source)) as pages:
            async for page in pages:
                await stock.put(page)
        await stock.put(None)

    async def _feed_pages(self, source: ContainerSource, stock: _Stock) -> None:
        while (page := await stock.get()) is not None:
            downloads = [_of_blob(source, blob) for blob in page]
            known = sum(blob.size or 0 for blob in page) if self._sizes_known else None
            self._meter.expect(len(downloads), known)
            for download in downloads:
                await self._waiting.put(download)

    async def _work(self) -> None:
        while (download := await self._waiting.get()) is not None:
            await self._fetch.one(download)


def _of_blob(source: ContainerSource, blob: ListedBlob) -> Download:
    url = blob_url(source.url, blob.name)
    try:
        path = destination(source.directory, blob.name)
    except ValueError as error:
        where = f"{source.directory}/{blob.name}" if source.directory else blob.name
        raise _cannot_be(str(error), where, url) from None
    return Download(url, path, source.mode, source.identity, blob.size)


class _InOrder:
    """Fetches one file at a time for each path: what was asked for later is what stays."""

    def __init__(self, fetcher: Fetcher, tokens: Tokens, place: Place, meter: Meter) -> None:
        self._fetcher = fetcher
        self._tokens = tokens
        self._place = place
        self._meter = meter
        self._under_way: dict[str, asyncio.Event] = {}

    async def one(self, download: Download) -> None:
        """Bring one file, after those of the same path that were begun before. Raises TransferFailedError."""
        earlier, ended = self._under_way.get(download.path), asyncio.Event()
        self._under_way[download.path] = ended
        try:
            if earlier is not None:
                await earlier.wait()
            await self._bring(download)
        finally:
            ended.set()
            if self._under_way.get(download.path) is ended:
                del self._under_way[download.path]
        self._meter.finished()

    async def _bring(self, download: Download) -> None:
        try:
            if download.identity is not None:
                await self._know_token(download.url, download.identity)
            await self._fetcher.bring(download, self._place, self._meter)
        except IdentityError as error:
            raise _no_token(error, download) from None

    async def _know_token(self, url: str, identity: NodeIdentityReference) -> None:
        """Have a token before the first request: what the endpoint says of an identity is no answer of storage."""
        if not url.lower().startswith("https:"):
            raise IdentityError("A managed identity can only be used with an https:// URL")
        await self._tokens(identity)


def _no_token(error: IdentityError, download: Download) -> TransferFailedError:
    return TransferFailedError(
        failure_of(
            # 400: the node does not have the identity.
            "BlobAccessDenied" if error.status == 400 else "BlobDownloadMiscError",
            ("Message", str(error)),
            ("FilePath", download.path),
            ("BlobSource", shown(download.url)),
            ("HttpStatus", None if error.status is None else str(error.status)),
        )
    )
