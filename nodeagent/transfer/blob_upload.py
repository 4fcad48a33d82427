"""One open file becomes one block blob: small ones in one request, larger ones in blocks, some at a time."""

import asyncio
import os
from collections.abc import Callable
from hashlib import md5

from nodeagent.rules.transfer_retry import Trouble
from nodeagent.rules.upload_failures import UploadProblem
from nodeagent.transfer.base import Meter, TransferSettings
from nodeagent.transfer.block_blob import BlobSession, Block, BlockBlob, Tally, Target, block_of
from nodeagent.transfer.http_trouble import GivenUpError

WHOLE_BYTES = 1 << 20
"""Files up to this size are one request."""
BLOCK_BYTES = 4 << 20
"""Largest block, but for files of more than MOST_BLOCKS of them."""
MOST_BLOCKS = 50_000
"""Blocks of a blob (Azure Storage)."""
_WORKERS = 4
"""Blocks of one file in flight."""
_LOST_BLOCKS = "InvalidBlockList"

Hit = Callable[[str], None]
"""Called at each named step that a fault test may end the process at."""


class UploadFailedError(Exception):
    """A file was not uploaded."""

    def __init__(self, problem: UploadProblem) -> None:
        super().__init__(problem.text())
        self.problem = problem


def problem_of(error: GivenUpError, tally: Tally) -> UploadProblem:
    """Return what a request that was given up means for its file."""
    trouble = error.trouble
    evidence = dict(trouble.evidence)
    return UploadProblem(
        message=str(trouble),
        status=trouble.status,
        error_code=evidence.get("StorageErrorCode") or None,
        request_id=evidence.get("RequestId") or None,
        timed_out=trouble.kind is Trouble.SILENCE,
        denied=trouble.kind is Trouble.IDENTITY,
        attempts=tally.attempts,
    )


class FileUpload:
    """Uploads one file. The size that it had when it was opened counts: what is written behind it later is not sent."""

    def __init__(self, session: BlobSession, target: Target, handle: int, size: int, meter: Meter, hit: Hit) -> None:
        self._session = session
        self._handle = handle
        self._size = size
        self._hit = hit
        self._tally = Tally()
        self._blob = BlockBlob(session, target, self._tally, meter)
        self._meter = meter

    async def run(self, *, resumed: bool) -> int:
        """Upload it, and return the number of attempts; a `resumed` one does not send again what is there.

        Raises UploadFailedError.
        """
        limit = self._session.settings.transfer_seconds
        try:
            async with asyncio.timeout(limit):
                await self._upload(resumed=resumed)
        except TimeoutError as error:
            text = f"not uploaded within the {limit:g} seconds that a transfer may take"
            raise UploadFailedError(
                UploadProblem(message=text, timed_out=True, attempts=self._tally.attempts)
            ) from error
        except GivenUpError as error:
            raise UploadFailedError(problem_of(error, self._tally)) from error
        return self._tally.attempts

    async def _upload(self, *, resumed: bool) -> None:
        if self._size <= WHOLE_BYTES:
            await self._blob.put(await asyncio.to_thread(self._read, 0, self._size))
            return
        there = await self._blob.staged() if resumed else frozenset()
        try:
            await self._in_blocks(there)
        except GivenUpError as error:
            # Somebody else has committed or dropped the same blob meanwhile, and with it our blocks.
            if dict(error.trouble.evidence).get("StorageErrorCode") != _LOST_BLOCKS:
                raise
            self._tally.retries += 1
            self._meter.moved(-self._size)
            await self._in_blocks(frozenset())

    async def _in_blocks(self, there: frozenset[tuple[str, int]]) -> None:
        pieces = _Pieces(self._read, self._size, block_bytes(self._session.settings, self._size))
        staged: dict[int, Block] = {}

        async def work() -> None:
            while pieces.are_left:
                async with self._session.buffers:
                    piece = await pieces.next()
                    if piece is None:
                        return
                    block, data = piece
                    if (block.name, block.size) in there:
                        self._meter.moved(block.size)
                    else:
                        await self._blob.stage(block, data)
                        self._hit("after_upload_block")
                    staged[block.number] = block

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_WORKERS, self._session.settings.transfers)):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others say the same, or were cut off by it
        self._hit("before_upload_commit")
        await self._blob.commit([staged[number] for number in sorted(staged)], pieces.digest)

    def _read(self, begins: int, size: int) -> bytes:
        """Read so many bytes. Raises UploadFailedError if they are not there any more.

        Who is cancelled does not wait for it: what it reads then, from whatever its handle is by now, is dropped.
        """
        pieces: list[bytes] = []
        missing = size
        try:
            while missing and (piece := os.pread(self._handle, missing, begins + size - missing)):
                pieces.append(piece)
                missing -= len(piece)
        except OSError as error:
            text = f"it cannot be read: {error.strerror}"
            raise UploadFailedError(UploadProblem(message=text)) from error
        if missing:
            text = f"it became shorter while it was read: {begins + size - missing} of {self._size} bytes"
            raise UploadFailedError(UploadProblem(message=text))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def block_bytes(settings: TransferSettings, size: int) -> int:
    """Return the size of the blocks of a file: so large that MOST_BLOCKS are enough."""
    return max(min(settings.range_bytes, BLOCK_BYTES), -(-size // MOST_BLOCKS))


class _Pieces:
    """A file, block by block, in order, whoever asks; its checksum grows with it."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, each: int) -> None:
        self._read = read
        self._size = size
        self._each = each
        self._at = 0
        self._hash = md5(usedforsecurity=False)
        self._turn = asyncio.Lock()

    @property
    def are_left(self) -> bool:
        """Whether there is a further one."""
        return self._at < self._size

    @property
    def digest(self) -> bytes:
        """MD5 of all that was read."""
        return self._hash.digest()

    async def next(self) -> tuple[Block, bytes] | None:
        """Return the next block, or None at the end. Raises UploadFailedError."""
        async with self._turn:
            if not self.are_left:
                return None
            begins = self._at
            found = await asyncio.to_thread(self._load, begins, min(self._each, self._size - begins))
            self._at = begins + found[0].size
            return found

    def _load(self, begins: int, size: int) -> tuple[Block, bytes]:
        data = self._read(begins, size)
        self._hash.update(data)
        return block_of(begins // self._each, data), data
