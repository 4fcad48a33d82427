"""Names from the network become open files below one directory, and never anything else (invariant I9).

Each component is opened by itself, relative to the handle of the one before, without following symbolic links: no
`..`, no link and no race with a task that swaps directories for links leads out of the root. Only regular files are
opened; pipes, sockets and devices are not there at all, and are never opened.

Names are text as `os.fsdecode` makes it: a name may be any bytes but NUL and the slash.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

LONGEST_PATH = 4096
"""A directory whose path, from where a listing began, is longer than this is listed, but not looked into."""
MOST_ENTRIES = 500_000
"""Of one listing, which is held in memory."""


class NotThereError(Exception):
    """There is no such file or directory, as far as the network is concerned."""


class TooManyError(Exception):
    """A listing would have more entries than MOST_ENTRIES."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory or regular file; `name` relative to where the listing began."""

    name: str
    found: os.stat_result

    @property
    def is_directory(self) -> bool:
        """It is a directory, not a file."""
        return stat.S_ISDIR(self.found.st_mode)


def components(path: str) -> tuple[str, ...]:
    """Split a relative path; empty for the root. Raises NotThereError for what could lead anywhere else."""
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise NotThereError(path)
    return parts


@contextmanager
def directory(root: Path, path: str) -> Iterator[int]:
    """Open a directory below `root`, for the `with` block. Raises NotThereError."""
    handle = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)  # the root itself is the administrator's, link or not
    try:
        for part in components(path):
            deeper = _open(part, _DIRECTORY, handle, path)
            os.close(handle)
            handle = deeper
        yield handle
    finally:
        os.close(handle)


def entry(root: Path, path: str) -> Entry:
    """Return what a path names. Raises NotThereError, also for links and special files."""
    parts = components(path)
    if not parts:
        return Entry("", root.stat())
    with directory(root, "/".join(parts[:-1])) as parent:
        return _entry(parent, parts[-1], path)


def open_file(root: Path, path: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; the caller closes the handle. Raises NotThereError."""
    parts = components(path)
    if not parts:
        raise NotThereError(path)
    with directory(root, "/".join(parts[:-1])) as parent:
        named = _open(parts[-1], _NAMED, parent, path)
    try:
        # what was looked at is what is opened, whatever has that name by now: to open a device may do something
        if not stat.S_ISREG(os.fstat(named).st_mode):
            raise NotThereError(path)
        handle = _open(f"/proc/self/fd/{named}", _FILE, named, path)
    finally:
        os.close(named)
    return handle, os.fstat(handle)


def listing(root: Path, path: str, *, recursive: bool) -> list[Entry]:
    """Return what is in a directory, and with `recursive` below it, sorted by name.

    Raises NotThereError, TooManyError.
    """
    with directory(root, path) as handle:
        found = _Walk(root, path, handle).entries(recursive=recursive)
    return sorted(found, key=lambda item: item.name)


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory of a walk."""

    prefix: str
    identity: tuple[int, int]
    below: list[str]
    """Names of directories in it that are still to be looked into."""


class _Walk:
    """Goes through a tree with one open handle, however deep it is: up again by `..`, if that is where it came from."""

    def __init__(self, root: Path, path: str, top: int) -> None:
        self._root = root
        self._path = path
        self._handle = os.dup(top)
        self._levels: list[_Level] = []
        self._found: list[Entry] = []

    def entries(self, *, recursive: bool) -> list[Entry]:
        """Return what is in the directory, and with `recursive` below it. Once only. Raises TooManyError."""
        try:
            self._levels.append(self._level(self._handle, ""))
            while recursive and self._levels:
                if self._levels[-1].below:
                    self._down(self._levels[-1])
                else:
                    self._up()
        finally:
            os.close(self._handle)
        return self._found

    def _down(self, level: _Level) -> None:
        name = level.below.pop()
        try:
            deeper = os.open(name, _DIRECTORY, dir_fd=self._handle)
        except OSError:  # went away while we looked, or is not for us
            return
        self._stand_in(deeper)
        self._levels.append(self._level(deeper, f"{level.prefix}{name}/"))

    def _up(self) -> None:
        self._levels.pop()
        while self._levels:
            try:
                return self._stand_in(self._again(self._levels[-1]))
            except (OSError, NotThereError):
                self._levels.pop()  # somebody has taken it away, with all that was still to be looked at
        return None

    def _stand_in(self, handle: int) -> None:
        os.close(self._handle)
        self._handle = handle

    def _again(self, level: _Level) -> int:
        """Open the directory of the level above. Raises OSError, NotThereError."""
        above = os.open("..", _DIRECTORY, dir_fd=self._handle)
        if _identity(above) == level.identity:
            return above
        os.close(above)  # the directory was moved while we were in it
        with directory(self._root, f"{self._path}/{level.prefix}") as again:
            return os.dup(again)

    def _level(self, handle: int, prefix: str) -> _Level:
        below = []
        with os.scandir(handle) as scanned:
            for item in scanned:
                try:
                    found = item.stat(follow_symlinks=False)
                except OSError:  # gone, or on a file system that does not let us
                    continue
                if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
                    continue
                if len(self._found) >= MOST_ENTRIES:
                    raise TooManyError(self._path)
                self._found.append(Entry(prefix + item.name, found))
                if stat.S_ISDIR(found.st_mode) and len(prefix) + len(item.name) < LONGEST_PATH:
                    below.append(item.name)
        return _Level(prefix, _identity(handle), below)


def _identity(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


def _entry(parent: int, name: str, path: str) -> Entry:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        raise NotThereError(path) from error
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise NotThereError(path)
    return Entry(name, found)


def _open(name: str, flags: int, parent: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=parent)
    except (
        OSError
    ) as error:  # gone, a link (ELOOP), not a directory, not ours, name too long: not there for the network
        raise NotThereError(path) from error
