"""Names from the network become open files below one directory, and never anything else (invariant I9).

Each component is opened by itself, relative to the handle of the one before, without following symbolic links: no
`..`, no link and no race with a task that swaps directories for links leads out of the root. Only regular files are
opened; pipes and devices are not there at all.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotThereError(Exception):
    """There is no such file or directory, as far as the network is concerned."""


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
        if not stat.S_ISREG(_entry(parent, parts[-1], path).found.st_mode):
            raise NotThereError(path)
        handle = _open(parts[-1], _FILE, parent, path)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):  # swapped since it was looked at
        os.close(handle)
        raise NotThereError(path)
    return handle, found


def listing(root: Path, path: str, *, recursive: bool) -> list[Entry]:
    """Return what is in a directory, and with `recursive` below it, sorted by name. Raises NotThereError."""
    found: list[Entry] = []
    todo = [""]
    while todo:
        prefix = todo.pop()
        try:
            with directory(root, f"{path}/{prefix}") as handle:
                below = _entries(handle, prefix)
        except NotThereError:
            if not prefix:
                raise
            continue  # went away while we looked
        found += below
        if recursive:
            todo += [f"{child.name}/" for child in below if child.is_directory]
    return sorted(found, key=lambda item: item.name)


def _entries(handle: int, prefix: str) -> list[Entry]:
    below = []
    with os.scandir(handle) as scanned:
        for item in scanned:
            try:
                found = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
                below.append(Entry(prefix + item.name, found))
    return below


def _entry(parent: int, name: str, path: str) -> Entry:
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError, OSError) as error:
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
