"""The files that a pattern finds, and how they are opened: with the permissions of the thread this runs in.

Nothing here decides by names alone: what was looked at is a file only if the open handle says so.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nodeagent.rules.file_patterns import FilePattern, States
from nodeagent.transfer.run_as import open_here

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link that leads nowhere",
}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file that matches; `relative` to the pattern's base directory."""

    path: str
    """Absolute; as Python has it: bytes that are no UTF-8 are surrogates."""
    relative: str
    size: int
    identity: str
    """See `identity_of`."""


@dataclass(slots=True)
class Findings:
    """What a pattern has found."""

    files: list[FoundFile] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and what it is: matches that can't be uploaded by their nature."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Path and error: what could not be looked at."""


class NotAFileError(OSError):
    """It is no regular file (any more); `strerror` says what it is."""


def identity_of(found: os.stat_result) -> str:
    """Return what tells one content of a file from another: `inode:size:mtime in ns`."""
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def size_in(identity: str) -> int:
    """Return the size that an identity tells, in bytes."""
    return int(identity.split(":")[1])


def find(pattern: FilePattern, wd: str) -> Findings:
    """Return what a pattern finds, sorted by path, each file once. Relative patterns begin in `wd`."""
    base = os.path.join(wd, pattern.base)  # noqa: PTH118 - the kernel is to resolve `..`, not pathlib
    walk = _Walk(pattern, base)
    if pattern.has_wildcard:
        walk.run()
    else:
        walk.look_at_one(pattern.parts[0].literal or "")
    walk.findings.files.sort(key=lambda file: file.path)
    return walk.findings


class _Walk:
    """One look below the base directory of a pattern."""

    def __init__(self, pattern: FilePattern, base: str) -> None:
        self._pattern = pattern
        self._base = base
        self.findings = Findings()

    def run(self) -> None:
        """Look at all directories in which something may match; one handle is open at a time, beside the base."""
        try:
            base = open_here(self._base, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            self._refused(self._base, error)
            return
        try:
            todo: list[tuple[str, States]] = [("", self._pattern.start())]
            while todo:
                relative, states = todo.pop()
                try:
                    todo += self._look(base, relative, states)
                except OSError as error:
                    self._refused(self._path(relative), error)
        finally:
            os.close(base)

    def look_at_one(self, name: str) -> None:
        """Look at the one file that a pattern without wildcard names."""
        path = f"{self._base.rstrip('/')}/{name}"
        try:
            found = os.stat(path)  # noqa: PTH116 - text, see FoundFile.path
        except OSError as error:
            if os.path.islink(path) and error.errno in _NOT_THERE:  # noqa: PTH114
                self.findings.skipped.append((path, _KINDS[stat.S_IFLNK]))
            else:
                self._refused(path, error)
            return
        if stat.S_ISREG(found.st_mode):
            self.findings.files.append(FoundFile(path, name, found.st_size, identity_of(found)))
        else:
            self.findings.skipped.append((path, _kind(found)))

    def _look(self, base: int, relative: str, states: States) -> list[tuple[str, States]]:
        """Note the files of one directory, return the directories below it that come next."""
        deeper: list[tuple[str, States]] = []
        with _directory(base, relative) as handle, os.scandir(handle) as entries:
            for entry in entries:
                path = f"{relative}/{entry.name}" if relative else entry.name
                if self._is_directory(entry):
                    after = self._pattern.step(states, entry.name, through_link=entry.is_symlink())
                    if self._pattern.goes_deeper(after):
                        deeper.append((path, after))
                elif self._pattern.is_match(self._pattern.step(states, entry.name)):
                    self._matched(entry, path)
        return deeper

    def _is_directory(self, entry: "os.DirEntry[str]") -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link that leads where this user may not look, or in a circle
            return False

    def _matched(self, entry: "os.DirEntry[str]", relative: str) -> None:
        path = self._path(relative)
        try:
            found = entry.stat()
        except OSError as error:
            if entry.is_symlink() and error.errno in (*_NOT_THERE, errno.ELOOP):
                self.findings.skipped.append((path, _KINDS[stat.S_IFLNK]))
            else:
                self._refused(path, error)
            return
        if stat.S_ISREG(found.st_mode):
            self.findings.files.append(FoundFile(path, relative, found.st_size, identity_of(found)))
        else:
            self.findings.skipped.append((path, _kind(found)))

    def _path(self, relative: str) -> str:
        return f"{self._base.rstrip('/')}/{relative}" if relative else self._base

    def _refused(self, path: str, error: OSError) -> None:
        if error.errno not in _NOT_THERE:  # what is not there, or has gone while we looked, matches nothing
            self.findings.refused.append((path, _words(error)))


@contextmanager
def _directory(base: int, relative: str) -> Iterator[int]:
    # The last component was a directory, or a link that the pattern names: what it is by now, the handle tells.
    handle = open_here(relative or ".", os.O_RDONLY | os.O_DIRECTORY, base)
    try:
        yield handle
    finally:
        os.close(handle)


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; the caller closes the handle. Never waits, whatever it turns out to be.

    Raises NotAFileError or another OSError.
    """
    _check_regular(path, os.stat(path))  # noqa: PTH116 - a device may act when it is opened
    handle = open_here(path, os.O_RDONLY)
    try:
        found = os.fstat(handle)
        _check_regular(path, found)
    except BaseException:
        os.close(handle)
        raise
    return handle, found


def _check_regular(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotAFileError(errno.EINVAL, f"it is {_kind(found)}", path)


def _kind(found: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__
