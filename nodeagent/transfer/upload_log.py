"""fileuploadout.txt and fileuploaderr.txt of a task's directory, written by the agent where the task may write, too.

Each is a fresh file that is moved into place: a link or a pipe that the task has put there is replaced and never
opened for writing. A second life goes on with the file only if it is a plain one with no other name.
"""

import asyncio
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

import structlog

from nodeagent.model.times import format_time
from nodeagent.transfer.base import Owner
from nodeagent.transfer.uninterrupted import uninterrupted

log = structlog.get_logger(__name__)

OUT = "fileuploadout.txt"
ERR = "fileuploaderr.txt"
_MODE = 0o660
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class UploadLog:
    """The two files, open. What can't be written is lost, and the agent's own log says so, once."""

    def __init__(self, root: Path, owner: Owner | None, *, anew: bool) -> None:
        self._root = root
        self._owner = owner
        self._anew = anew
        self._files: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        """Make the files, or open those of a former life."""
        try:
            await uninterrupted(asyncio.to_thread(self._open))
        except OSError as error:
            log.warning("upload logs can't be written", directory=str(self._root), why=error.strerror)
        except asyncio.CancelledError:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self._close()

    def _close(self) -> None:
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    async def told(self, *lines: str) -> None:
        """Write lines into fileuploadout.txt."""
        await self._write(OUT, lines)

    async def complained(self, *lines: str) -> None:
        """Write lines into fileuploaderr.txt."""
        await self._write(ERR, lines)

    async def _write(self, name: str, lines: tuple[str, ...]) -> None:
        handle = self._files.get(name)
        if handle is None or not lines:
            return
        now = format_time(datetime.now(UTC))
        text = "".join(f"{now} {line}\n" for line in lines).encode("utf-8", "backslashreplace")
        try:
            # Not to be left alone: its handle may be closed and another file's by the time that it writes.
            await uninterrupted(asyncio.to_thread(os.write, handle, text))
        except OSError as error:
            log.warning("upload log not written", file=str(self._root / name), why=error.strerror)
            os.close(self._files.pop(name))

    def _open(self) -> None:
        directory = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for name in (OUT, ERR):
                former = None if self._anew else self._former(directory, name)
                self._files[name] = self._fresh(directory, name) if former is None else former
        finally:
            os.close(directory)

    def _former(self, directory: int, name: str) -> int | None:
        try:
            handle = os.open(name, _APPEND, dir_fd=directory)
        except OSError:
            return None  # not there, a link (ELOOP), a pipe that nobody reads (ENXIO)
        found = os.fstat(handle)
        owner = os.geteuid() if self._owner is None else self._owner.uid
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == owner:
            return handle
        os.close(handle)
        return None

    def _fresh(self, directory: int, name: str) -> int:
        passing = f".{name}.{token_hex(8)}"
        handle = os.open(passing, _APPEND | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=directory)
        try:
            os.fchmod(handle, _MODE)
            if self._owner is not None:
                os.fchown(handle, self._owner.uid, self._owner.gid)
            os.rename(passing, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.close(handle)
            os.unlink(passing, dir_fd=directory)
            raise
        return handle
