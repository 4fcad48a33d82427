"""How much disk space a directory takes, and taking away what a task wrote. Links are never followed."""

import os
import stat
import uuid
from pathlib import Path

from nodeagent.rules.disk import Free

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the file system."""
_DEEPEST = 200
"""Levels that are looked into: each costs an open handle. What lies deeper counts for the node's free space only."""

KEPT_OUTPUT_BYTES = 1 << 20
"""How much of stdout.txt and stderr.txt stays when a task's files are taken away for space."""
_OUTPUTS = ("stdout.txt", "stderr.txt")
_WORKING_DIRECTORY = "wd"


def free_bytes(*paths: Path) -> int:
    """Return the free bytes of the fullest of the file systems on which these paths lie. Raises OSError."""
    found = [os.statvfs(path) for path in paths]
    return min(each.f_bavail * each.f_frsize for each in found)


def free_of(path: Path) -> Free:
    """Return what the file system of a path has left. Raises OSError."""
    found = os.statvfs(path)
    return Free(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def used_bytes(directory: Path) -> int:
    """Return the bytes on disk below a directory, each file once; 0 if it is gone. Blocks."""
    try:
        handle = os.open(directory, _DIRECTORY)
    except OSError:
        return 0
    try:
        return _used(handle, set(), 0)
    finally:
        os.close(handle)


def _used(handle: int, seen: set[tuple[int, int]], depth: int) -> int:
    total = 0
    with os.scandir(handle) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * _BLOCK_BYTES
                if entry.is_dir(follow_symlinks=False) and depth < _DEEPEST:
                    child = os.open(entry.name, _DIRECTORY, dir_fd=handle)
                    try:
                        total += _used(child, seen, depth + 1)
                    finally:
                        os.close(child)
            except OSError:
                continue  # gone while we looked, or forbidden to us: then its owner's tasks cannot be measured better
    return total


def take_away(task: Path, bin_: Path) -> None:
    """Move everything out of a task's directory into `bin_`, and cut its output files; `wd` stays, empty.

    The directory is the task's own: nothing in it is trusted to be what its name says. Raises OSError. Blocks.
    """
    root = os.open(task, _DIRECTORY)
    target = os.open(bin_, _DIRECTORY)
    try:
        for name in os.listdir(root):  # noqa: PTH208 - of a handle
            if name in _OUTPUTS:
                _cut(root, name)
            elif name == _WORKING_DIRECTORY and stat.S_ISDIR(os.lstat(name, dir_fd=root).st_mode):
                working = os.open(name, _DIRECTORY, dir_fd=root)
                try:
                    for child in os.listdir(working):  # noqa: PTH208 - of a handle
                        os.rename(child, uuid.uuid4().hex, src_dir_fd=working, dst_dir_fd=target)
                finally:
                    os.close(working)
            else:
                os.rename(name, uuid.uuid4().hex, src_dir_fd=root, dst_dir_fd=target)
    finally:
        os.close(root)
        os.close(target)


def _cut(root: int, name: str) -> None:
    """Cut a regular file that has no other name."""
    try:
        file = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    except OSError:
        return  # a link, a pipe, a directory: nothing that the shim made
    try:
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size > KEPT_OUTPUT_BYTES:
            os.ftruncate(file, KEPT_OUTPUT_BYTES)
    finally:
        os.close(file)
