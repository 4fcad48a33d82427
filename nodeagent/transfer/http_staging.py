"""A file on its way in: written by many requests, in threads, in a folder of the agent's own."""

import asyncio
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from nodeagent.model.failure import FailureInfo
from nodeagent.rules.failures import DISK_FULL, failure_of

Given = ParamSpec("Given")
Result = TypeVar("Result")

CHECK_BYTES = 64 << 20
"""So much is read in one go for a checksum: whoever cancels waits no longer than for that."""
_READ_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class StagingError(Exception):
    """The file could not be made, written or read back."""

    def __init__(self, code: str, error: OSError) -> None:
        super().__init__(f"{code}: {error.strerror}")
        self._code = DISK_FULL if error.errno in _FULL else code
        self._error = error

    def failure(self, path: str) -> FailureInfo:
        """Return it as the failure of the file that was to go to `path`."""
        number = self._error.errno or 0
        text = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
        return failure_of(self._code, ("Message", text), ("FilePath", path))


async def in_thread(
    threads: Executor, work: Callable[Given, Result], *arguments: Given.args, **named: Given.kwargs
) -> Result:
    """Run the work in a thread and wait for its end also when cancelled: nothing touches a file that is given up."""
    future = asyncio.get_running_loop().run_in_executor(threads, lambda: work(*arguments, **named))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue  # the first one is raised in any case
        if not future.cancelled():
            future.exception()  # who cancels does not want to know
        raise


class StagedFile:
    """One file in the staging folder, mode 0600; it is there from the first write on."""

    def __init__(self, path: Path, threads: Executor) -> None:
        self.path = path
        self.held = 0
        """Bytes written so far; those that were thrown away do not count."""
        self._threads = threads
        self._descriptor: int | None = None
        self._opening = threading.Lock()

    async def write(self, pieces: Sequence[bytes], offset: int) -> None:
        """Write the pieces one after the other from `offset` on. Raises StagingError."""
        await in_thread(self._threads, self._write, pieces, offset)
        self.held += sum(map(len, pieces))

    async def emptied(self) -> int:
        """Throw away what has been written; returns how many bytes those were. Raises StagingError."""
        await in_thread(self._threads, self._empty)
        thrown, self.held = self.held, 0
        return thrown

    async def md5(self) -> bytes:
        """Return the MD5 of the file. Raises StagingError."""
        digest, offset, size = hashlib.md5(usedforsecurity=False), 0, self.held
        while offset < size:
            await in_thread(self._threads, self._digest, digest.update, offset)
            offset += CHECK_BYTES
        return digest.digest()

    async def close(self) -> None:
        """The file is whole: from now on it belongs to whoever asked for it. Raises StagingError."""
        await in_thread(self._threads, self._close)

    async def discard(self) -> None:
        """Remove the file, if it is there."""
        await in_thread(self._threads, self._discard)

    def _open(self) -> int:
        with self._opening:
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    self._descriptor = os.open(self.path, flags, 0o600)
                except OSError as error:
                    raise StagingError("ResourceFileCreateFailed", error) from error
            return self._descriptor

    def _write(self, pieces: Sequence[bytes], offset: int) -> None:
        descriptor = self._open()
        try:
            written = os.pwritev(descriptor, pieces, offset)
            if written < sum(map(len, pieces)):
                # Short: the disk is nearly full, or a signal came. The rest is written or fails with the reason.
                rest = memoryview(b"".join(pieces))[written:]
                while rest:
                    count = os.pwrite(descriptor, rest, offset + written)
                    rest, written = rest[count:], written + count
        except OSError as error:
            raise StagingError("ResourceFileWriteFailed", error) from error

    def _empty(self) -> None:
        if self._descriptor is not None:
            try:
                os.ftruncate(self._descriptor, 0)
            except OSError as error:
                raise StagingError("ResourceFileWriteFailed", error) from error

    def _digest(self, update: Callable[[bytes], None], offset: int) -> None:
        descriptor, end = self._open(), offset + CHECK_BYTES
        try:
            while offset < end and (piece := os.pread(descriptor, _READ_BYTES, offset)):
                update(piece)
                offset += len(piece)
        except OSError as error:
            raise StagingError("ResourceFileWriteFailed", error) from error

    def _close(self) -> None:
        descriptor, self._descriptor = self._open(), None  # an empty file has not been opened yet
        try:
            os.close(descriptor)
        except OSError as error:
            # Network file systems tell only now that the disk is full.
            raise StagingError("ResourceFileWriteFailed", error) from error

    def _discard(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # what could not be written is of no interest any more
                os.close(descriptor)
        self.path.unlink(missing_ok=True)
