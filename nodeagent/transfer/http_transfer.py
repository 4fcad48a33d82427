"""One file over HTTP, from the first request to its checksum: in ranges side by side, resumed where it was cut.

The first request asks for the first range. Its answer decides: all of a small file, or a part of a large one, whose
rest comes in further ranges, each only if the file is still the same version (`If-Match`); or everything, where the
server knows no ranges. Where parts cannot be told to be of one version, there are no parts: one request, and anew after
a cut.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp

from nodeagent.rules.transfer_retry import Trouble
from nodeagent.transfer import http_answers, http_trouble
from nodeagent.transfer.base import Meter, TransferSettings
from nodeagent.transfer.http_answers import Validator
from nodeagent.transfer.http_session import READ_BYTES, Source
from nodeagent.transfer.http_staging import StagedFile
from nodeagent.transfer.http_trouble import HttpTroubleError

_MOST_CHANGES = 2
"""A file that changed so often while its ranges came is asked for as a whole."""
_MOST_PIECES = 512
"""One call of the kernel takes 1024."""


@dataclass(frozen=True, slots=True)
class NotModified:
    """The file is still the version that is known."""


@dataclass(slots=True)
class _Segment:
    """Bytes that one request after the other brings: `offset` is how far it is."""

    offset: int
    end: int | None
    """None where the server does not say how long the file is."""

    @property
    def whole(self) -> bool:
        return self.offset == self.end

    def check_room(self, size: int) -> None:
        """Raise HttpTroubleError if so many more bytes are too many."""
        if self.end is not None and self.offset + size > self.end:
            raise HttpTroubleError(Trouble.ANSWER, "the server sends more than it announced")


@dataclass(frozen=True, slots=True)
class _Version:
    """What all parts must agree in."""

    etag: str
    total: int


class FileTransfer:
    """Brings one file into a staged file."""

    def __init__(self, source: Source, staged: StagedFile, meter: Meter, settings: TransferSettings) -> None:
        self._source = source
        self._staged = staged
        self._meter = meter
        self._settings = settings
        self._ranges = True
        """Whether it is worth asking for a range."""
        self._changes = 0

    async def run(self, known: Validator | None) -> Validator | NotModified | None:
        """Return the version that has been brought, None where the server names none.

        Starting anew makes no progress, however much each start brings: so it ends.
        Raises GivenUpError, StagingError.
        """
        tries = self._source.tries()
        while True:
            try:
                return await self._from_start(known)
            except HttpTroubleError as trouble:
                await self._source.pause(tries, trouble)
                if trouble.kind is Trouble.CHANGED:
                    # It may change all the time, or each of several servers has an ETag of its own: one answer is one
                    # version in any case.
                    self._changes += 1
                    self._ranges = self._changes < _MOST_CHANGES
                self._meter.moved(-await self._staged.emptied())

    async def _from_start(self, known: Validator | None) -> Validator | NotModified | None:
        headers = {} if known is None else known.conditions()
        if self._ranges:
            headers["Range"] = f"bytes=0-{self._settings.range_bytes - 1}"
        async with AsyncExitStack() as first:
            response = await first.enter_async_context(self._source.asked(headers))
            version = http_answers.validator(response.headers)
            if known is not None and (
                response.status == 304 or (response.status in (200, 206) and known.same(version))
            ):
                return NotModified()
            if not self._refuses_ranges(response, version):
                await self._content(response, first, version)
                return version
        self._ranges = False
        return await self._from_start(known)

    def _refuses_ranges(self, response: aiohttp.ClientResponse, version: Validator | None) -> bool:
        """Tell whether the file has to be asked for as a whole: it may be empty, or its parts could not be matched."""
        if not self._ranges or response.status not in (206, 416):
            return False
        part = http_answers.content_range(response.headers)
        if response.status == 416 or part is None or part.start != 0:
            return True
        return part.end < part.total and (version is None or version.strong is None)

    async def _content(
        self, response: aiohttp.ClientResponse, first: AsyncExitStack, version: Validator | None
    ) -> None:
        part = http_answers.content_range(response.headers) if response.status == 206 else None
        if part is not None and self._ranges:
            if part.end > self._settings.range_bytes:
                raise HttpTroubleError(Trouble.ANSWER, "the server sends more than the range that it was asked for")
            checksum = http_answers.checksum(response.headers, whole=part.end == part.total)
            etag = None if version is None else version.strong
            segment, total = _Segment(0, part.end), part.total
            if etag is None:
                await self._body(response, segment)
            else:
                await self._all_ranges(response, first, segment, _Version(etag, total))
        elif response.status == 200:
            checksum = http_answers.checksum(response.headers, whole=True)
            await self._body(response, _Segment(0, http_answers.whole_length(response.headers)))
        else:
            raise await http_trouble.of_answer(response)
        # The request is over: what it held, others may take while the checksum is made.
        await first.aclose()
        if checksum is not None and await self._staged.md5() != checksum.md5:
            text = f"the content is not what its checksum ({checksum.header}) says"
            raise HttpTroubleError(Trouble.CHECKSUM, text, evidence=(("Checksum", checksum.header),))

    async def _all_ranges(
        self, response: aiohttp.ClientResponse, first: AsyncExitStack, segment: _Segment, version: _Version
    ) -> None:
        size = self._settings.range_bytes
        begun = segment.end or 0
        rest = (_Segment(start, min(start + size, version.total)) for start in range(begun, version.total, size))
        workers = min(self._settings.transfers, -(-(version.total - begun) // size))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._some_ranges(rest, version))
                await self._range(segment, version, (response, first))
        except BaseExceptionGroup as failed:
            raise _first_of(failed) from None

    async def _some_ranges(self, rest: Iterator[_Segment], version: _Version) -> None:
        for segment in rest:
            await self._range(segment, version)

    async def _range(
        self,
        segment: _Segment,
        version: _Version,
        begun: tuple[aiohttp.ClientResponse, AsyncExitStack] | None = None,
    ) -> None:
        """Bring a segment, by the answer that has `begun` if there is one, and then by as many as it takes."""
        tries = self._source.tries()
        while not segment.whole:
            before = segment.offset
            try:
                if begun is not None:
                    (response, stack), begun = begun, None
                    async with stack:  # its turn is over with the content, not with the whole file
                        await self._body(response, segment)
                else:
                    await self._further(segment, version)
            except HttpTroubleError as trouble:
                if trouble.kind is Trouble.CHANGED:
                    raise
                await self._source.pause(tries, trouble, progress=segment.offset > before)

    async def _further(self, segment: _Segment, version: _Version) -> None:
        if segment.end is None:
            raise RuntimeError("a range without an end")
        headers = {"Range": f"bytes={segment.offset}-{segment.end - 1}", "If-Match": version.etag}
        async with self._source.asked(headers) as response:
            if response.status in (200, 412, 416):
                raise HttpTroubleError(
                    Trouble.CHANGED, "the file changed while it was downloaded", status=response.status
                )
            if response.status != 206:
                raise await http_trouble.of_answer(response)
            part = http_answers.content_range(response.headers)
            if part is None or part.start != segment.offset or part.end > segment.end:
                raise HttpTroubleError(Trouble.ANSWER, "the server sends another range than it was asked for")
            if part.total != version.total or response.headers.get("ETag", version.etag) != version.etag:
                raise HttpTroubleError(Trouble.CHANGED, "the file changed while it was downloaded")
            # A server may send less than it was asked for: the next request brings the rest.
            partial = _Segment(segment.offset, part.end)
            try:
                await self._body(response, partial)
            finally:
                segment.offset = partial.offset

    async def _body(self, response: aiohttp.ClientResponse, segment: _Segment) -> None:
        """Write the content of an answer, piece by piece. What came before a cut is kept."""
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await _next_piece(response):
                pieces.append(piece)
                size += len(piece)
                segment.check_room(size)
                if size >= READ_BYTES or len(pieces) >= _MOST_PIECES:
                    written, pieces, size = pieces, [], 0
                    await self._write(written, segment)
        except HttpTroubleError as trouble:
            if pieces and trouble.kind is not Trouble.ANSWER:
                await self._write(pieces, segment)
            raise
        if pieces:
            await self._write(pieces, segment)
        if segment.end is not None and not segment.whole:
            raise HttpTroubleError(Trouble.INCOMPLETE, "the content ended too early")

    async def _write(self, pieces: list[bytes], segment: _Segment) -> None:
        await self._staged.write(pieces, segment.offset)
        size = sum(map(len, pieces))
        segment.offset += size
        self._meter.moved(size)


async def _next_piece(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise http_trouble.of_exception(error) from error


def _first_of(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failed.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
