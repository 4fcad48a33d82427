"""The zip files of application packages: `packages/<sha256>.zip` in the service's folder, whole or not there.

A file comes before its row and goes after it, so a row always has its file; what a killed service left without a
row is removed at the next start.
"""

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import structlog
from aiohttp import web

from nodeagent.rules.package_zip import PackageZipError, package_zip
from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.store import applications
from nodeagent.service.store.database import Database, Transaction

FOLDER_NAME = "packages"
_PARTIAL = ".part"
_WRITE_BYTES = 1 << 20
_IDLE_SECONDS = 60.0
"""An upload that sends nothing for so long is given up."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Received:
    """A whole zip file that waits to be kept under its digest; `size` in bytes."""

    path: Path
    sha256: str
    size: int


class PackageFiles:
    """The folder with the zip files, used by one service at a time."""

    def __init__(self, state_dir: Path, largest: int) -> None:
        self._folder = state_dir / FOLDER_NAME
        self._largest = largest
        self._changing = asyncio.Lock()
        """Held while a row and its file come or go together."""

    async def open(self, database: Database) -> None:
        """Make the folder, and remove what no row knows. Raises OSError."""
        kept = await database.read(applications.contents)
        removed = await asyncio.to_thread(self._clear, frozenset(f"{sha256}.zip" for sha256 in kept))
        if removed:
            _log.info("package_files_removed", count=removed)

    def _clear(self, kept: frozenset[str]) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        orphans = [path for path in self._folder.iterdir() if path.name not in kept]
        for path in orphans:
            path.unlink()
        return len(orphans)

    def path(self, sha256: str) -> Path:
        """Return where the zip file of a digest is."""
        return self._folder / f"{sha256}.zip"

    @asynccontextmanager
    async def received(self, content: AsyncIterator[bytes]) -> AsyncIterator[Received]:
        """Write an uploaded zip file, and look at what is in it; it is gone afterwards unless it was kept.

        Raises BatchError: InvalidRequestBody, RequestBodyTooLarge, OperationTimedOut.
        """
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, _PARTIAL, dir=self._folder)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "w+b", buffering=0) as file, _disk_full_told():
                sha256, size = await self._write(file, content)
                await _in_thread(partial(_check, file))
            yield Received(path, sha256, size)
        finally:
            await _in_thread(partial(path.unlink, missing_ok=True))

    async def _write(self, file: BinaryIO, content: AsyncIterator[bytes]) -> tuple[str, int]:
        digest, size, waiting = hashlib.sha256(), 0, bytearray()
        async for chunk in content:
            size += len(chunk)
            if size > self._largest:
                raise refusal("RequestBodyTooLarge", ("MaxLimit", str(self._largest)))
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await _in_thread(partial(_append, file, digest.update, bytes(waiting)))
                waiting.clear()
        await _in_thread(partial(_append, file, digest.update, bytes(waiting)))
        await _in_thread(partial(os.fsync, file.fileno()))
        return digest.hexdigest(), size

    async def keep(self, received: Received, database: Database, add: Callable[[Transaction], T]) -> T:
        """Put a received file where it belongs and run `add`, which inserts its row. Raises what `add` raises."""
        async with self._changing:
            await _in_thread(partial(self._place, received))
            try:
                return await database.write(add)
            finally:
                await self._drop_unused(received.sha256, database)

    def _place(self, received: Received) -> None:
        received.path.replace(self.path(received.sha256))
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def drop(self, sha256: str, database: Database, remove: Callable[[Transaction], T]) -> T:
        """Run `remove`, which deletes a row, and delete the file unless another row has it."""
        async with self._changing:
            removed = await database.write(remove)
            await self._drop_unused(sha256, database)
            return removed

    async def _drop_unused(self, sha256: str, database: Database) -> None:
        if not await database.read(partial(applications.has_content, sha256=sha256)):
            await _in_thread(partial(self.path(sha256).unlink, missing_ok=True))


async def body_of(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body of a request as it comes. Raises BatchError: OperationTimedOut, InvalidRequestBody."""
    while True:
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                chunk = await request.content.readany()
        except TimeoutError as error:
            text = f"The request body did not go on for {_IDLE_SECONDS:g} seconds."
            raise BatchError(408, "OperationTimedOut", text) from error
        except web.RequestPayloadError as error:
            raise refusal("InvalidRequestBody", ("Reason", "The body cannot be decoded.")) from error
        if not chunk:
            return
        yield chunk


def _append(file: BinaryIO, digest: Callable[[bytes], None], data: bytes) -> None:
    digest(data)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _check(file: BinaryIO) -> None:
    try:
        file.seek(0)
        with package_zip(file):
            return
    except PackageZipError as error:
        raise refusal("InvalidRequestBody", ("Reason", str(error))) from error


@contextmanager
def _disk_full_told() -> Iterator[None]:
    """Turn a full disk into a refusal that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        text = "There is not enough disk space on the service to keep the package."
        raise BatchError(507, "InsufficientStorage", text) from error


async def _in_thread(function: Callable[[], T]) -> T:
    """Run in a thread, and wait for its end even when cancelled: files must not be closed below its hands."""
    working = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        raise
