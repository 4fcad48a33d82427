"""Unpacks the zip of an application package into an empty directory (spec/node.md §6).

What may be in it has been decided before (rules/package_zip.py). Here each directory is opened by itself, relative to
the handle of the one above, and never through a link; links are made last. So nothing is written outside of the
directory, whatever the zip says and whatever happens to the directory meanwhile.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO, Self

from nodeagent.rules.package_zip import Entry, Kind, PackageZip, PackageZipError, damage_told, package_zip
from nodeagent.transfer.uninterrupted import AbandonedError

RESERVE_BYTES = 64 << 20
"""Free space that a package leaves to the node: running tasks need some to end well."""

_CHUNK_BYTES = 256 << 10
_TOLD_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NoRoomError(Exception):
    """The package is larger than the free space, less the reserve; its text says by how much."""


def unzip(
    zip_file: Path,
    directory: Path,
    *,
    max_bytes: int,
    abandoned: Event,
    expect: Callable[[int], None],
    moved: Callable[[int], None],
) -> None:
    """Unpack into an existing, empty directory. Blocks: meant for a thread.

    `expect` is told once how many bytes will be written, `moved` of bytes that have been. Files get the mode 0644, or
    0755 where the zip says that somebody may execute them, directories 0755; all belong to the agent's user.
    Raises PackageZipError, NoRoomError, AbandonedError (when `abandoned` is set), OSError.
    """
    with zip_file.open("rb") as file, package_zip(file) as package:
        _check_room(package.size, directory, max_bytes)
        expect(package.size)
        with _Unpacking(package, directory, moved) as unpacking:
            for entry in package.entries:
                unpacking.unpack(entry, abandoned)


def _check_room(size: int, directory: Path, max_bytes: int) -> None:
    if size > max_bytes:
        raise PackageZipError(f"the package unpacks to {size} bytes, more than this node allows ({max_bytes})")
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize - RESERVE_BYTES
    if size > free:
        raise NoRoomError(f"the package unpacks to {size} bytes, and only {max(0, free)} are free for it")


class _Unpacking:
    """One package on its way into one directory. It keeps the handle of the directory that was used last."""

    def __init__(self, package: PackageZip, directory: Path, moved: Callable[[int], None]) -> None:
        self._package = package
        self._moved = moved
        self._untold = 0
        self._left = package.size
        """What the table of contents promised and has not been written: not a byte more is."""
        self._root = os.open(directory, _DIRECTORY)
        self._last: tuple[tuple[str, ...], int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_last()
        os.close(self._root)
        self._moved(self._untold)

    def unpack(self, entry: Entry, abandoned: Event) -> None:
        """Make what an entry becomes."""
        if abandoned.is_set():
            raise AbandonedError
        if entry.kind is Kind.DIRECTORY:
            self._directory(entry.path)
            return
        parent = self._directory(entry.path[:-1])
        if entry.kind is Kind.LINK:
            os.symlink(entry.target, entry.path[-1], dir_fd=parent)
            self._count(entry.info.file_size)
            return
        handle = os.open(entry.path[-1], _NEW_FILE, 0o600, dir_fd=parent)
        with os.fdopen(handle, "wb", buffering=0) as file:
            self._write(entry, file, abandoned)
            os.fchmod(handle, entry.mode)

    def _write(self, entry: Entry, file: IO[bytes], abandoned: Event) -> None:
        written = 0
        with self._content(entry) as content:
            while chunk := self._read(entry, content):
                if abandoned.is_set():
                    raise AbandonedError
                written += len(chunk)
                self._count(len(chunk))
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
        if written != entry.info.file_size:
            raise PackageZipError(f"'{entry.info.filename}' is shorter than the package says")

    @contextmanager
    def _content(self, entry: Entry) -> Iterator[IO[bytes]]:
        with damage_told(entry.info.filename):
            content = self._package.opened.open(entry.info)
        with content:
            yield content

    def _read(self, entry: Entry, content: IO[bytes]) -> bytes:
        with damage_told(entry.info.filename):
            return content.read(_CHUNK_BYTES)

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise PackageZipError("the package unpacks to more than it says")
        self._untold += size
        if self._untold >= _TOLD_BYTES:
            self._moved(self._untold)
            self._untold = 0

    def _directory(self, path: tuple[str, ...]) -> int:
        """Return the handle of a directory, made if it is missing; it holds until the next call."""
        if not path:
            return self._root
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        handle = self._root
        for part in path:
            above, handle = handle, -1
            try:
                handle = _enter(part, above)
            finally:
                if above != self._root:
                    os.close(above)
        self._forget_last()
        self._last = (path, handle)
        return handle

    def _forget_last(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None


def _enter(name: str, parent: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    handle = os.open(name, _DIRECTORY, dir_fd=parent)
    os.fchmod(handle, 0o755)
    return handle
