"""Deleting directory trees that a task wrote: by directory handles, never through a symbolic link."""

import os
import stat
import uuid

_LISTABLE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty_bin(bin_: int) -> None:
    """Delete everything in the open directory `bin_`, which only we use.

    Directories are moved up into the bin before they are emptied, so that neither the depth of a tree nor the length
    of its paths matters. Those whose mode forbids looking into them are opened up first. Raises OSError for what
    cannot be deleted all the same. Blocks; meant for a worker thread.
    """
    while names := os.listdir(bin_):
        for name in names:
            _delete(bin_, name)


def _delete(bin_: int, name: str) -> None:
    found = os.stat(name, dir_fd=bin_, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=bin_)
        return
    handle = _open(bin_, name)
    try:
        with os.scandir(handle) as entries:
            below = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for child, is_directory in below:
            if is_directory:
                _move(handle, child, bin_)
            else:
                os.unlink(child, dir_fd=handle)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=bin_)


def _move(directory: int, child: str, bin_: int) -> None:
    aside = uuid.uuid4().hex
    try:
        os.rename(child, aside, src_dir_fd=directory, dst_dir_fd=bin_)
    except PermissionError:  # moving a directory changes its `..`: its own mode counts
        _open_up(directory, child)
        os.rename(child, aside, src_dir_fd=directory, dst_dir_fd=bin_)


def _open(parent: int, name: str) -> int:
    try:
        handle = os.open(name, _LISTABLE, dir_fd=parent)
    except PermissionError:
        _open_up(parent, name)
        return os.open(name, _LISTABLE, dir_fd=parent)
    if os.fstat(handle).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(handle, stat.S_IRWXU)
    return handle


def _open_up(parent: int, name: str) -> None:
    """Give a directory the mode 0700, through a handle of exactly that directory."""
    handle = os.open(name, _NAMED, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # noqa: PTH101 - a handle, not a path
    finally:
        os.close(handle)
