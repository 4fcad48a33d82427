"""How a whole file gets to its name below a directory into which its task may write at the same time (invariant I9).

Each directory on the way is opened or made by itself, relative to the handle of the one before, without following
links: no name, no link and no race with a task that swaps directories for links leads out of the place. The file has
its owner and mode before one rename shows it: nobody ever sees a part of it, or opens it with other permissions.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event

from nodeagent.rules.failures import failure_of
from nodeagent.rules.resource_paths import checked
from nodeagent.transfer.base import Owner, Place, TransferFailedError
from nodeagent.transfer.copying import copy
from nodeagent.transfer.uninterrupted import in_thread

DIRECTORY_MODE = 0o770
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFINISHED = 0o700
"""Mode of a directory between its making and its handing over."""
_PERMISSIONS = 0o777
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_DISK_FULL = "DiskFull"
_NO_DIRECTORY = "ResourceDirectoryCreateFailed"
_NO_FILE = "ResourceFileCreateFailed"
_NOT_WRITTEN = "ResourceFileWriteFailed"


async def put_in_place(file: Path, place: Place, path: str, mode: int) -> None:
    """Give a staged file its owner, its mode (masked to 0777) and its name `path` below the place.

    The staged file is consumed, whatever comes of it. Directories on the way are made with mode 0770 and the place's
    owner; a file that has the name is replaced, a directory is not. A cancellation is obeyed when nothing is left half
    done. Raises TransferFailedError with DiskFull, ResourceDirectoryCreateFailed, ResourceFileCreateFailed or
    ResourceFileWriteFailed (spec/node.md §4).
    """
    await in_thread(partial(_put, file, place, path, mode))


def _put(file: Path, place: Place, path: str, mode: int, abandoned: Event) -> None:
    try:
        *directories, name = _components(place, path)
        parent = _parent(place, path, directories)
        try:
            _show(file, parent, name, place, path, mode & _PERMISSIONS, abandoned)
        finally:
            os.close(parent)
    finally:
        file.unlink(missing_ok=True)


def _components(place: Place, path: str) -> tuple[bytes, ...]:
    """Of a path that names a file: whoever checked it before, nothing here rests on that."""
    try:
        if path.endswith("/"):
            raise ValueError("the path must name a file: it must not end with '/'")  # noqa: TRY301 - one way out
        return tuple(part.encode() for part in checked(path))
    except ValueError as error:
        raise _failed(_NO_FILE, place, path, str(error)) from error


def _parent(place: Place, path: str, directories: list[bytes]) -> int:
    """Open the directory that the file goes to; the caller closes it."""
    with _failing(_NO_DIRECTORY, place, path):
        handle = os.open(place.directory, _DIRECTORY)
        for name in directories:
            try:
                deeper = _descend(handle, name, place.owner)
            finally:
                os.close(handle)
            handle = deeper
    return handle


def _descend(parent: int, name: bytes, owner: Owner | None) -> int:
    """Open a directory, made if it is not there. Raises OSError, also if anything else has the name."""
    with suppress(FileExistsError):
        os.mkdir(name, _UNFINISHED, dir_fd=parent)
    handle = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        _hand_over(handle, owner)
    except OSError:
        os.close(handle)
        raise
    return handle


def _hand_over(handle: int, owner: Owner | None) -> None:
    """Finish a directory that we made, now or in a life that ended in between; one of anybody else stays as it is."""
    found = os.fstat(handle)
    if found.st_uid != os.geteuid() or found.st_mode & _PERMISSIONS != _UNFINISHED:
        return
    if owner is not None:
        os.fchown(handle, owner.uid, owner.gid)
    os.fchmod(handle, DIRECTORY_MODE)


def _show(file: Path, parent: int, name: bytes, place: Place, path: str, mode: int, abandoned: Event) -> None:
    with _failing(_NO_FILE, place, path), _opened(file) as source:
        _refuse_directory(parent, name, place, path)
        _dress(source, place.owner, mode)
        try:
            os.rename(file, name, dst_dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_over(source, parent, name, place, path, mode, abandoned)


def _copy_over(source: int, parent: int, name: bytes, place: Place, path: str, mode: int, abandoned: Event) -> None:
    """Copy to a hidden name beside the target: the staged file is on another file system."""
    hidden = f".{secrets.token_hex(8)}.part".encode()
    target = os.open(hidden, _NEW_FILE, 0o600, dir_fd=parent)
    try:
        with _failing(_NOT_WRITTEN, place, path):
            copy(source, target, abandoned)
        _dress(target, place.owner, mode)
        os.rename(hidden, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        _forget(hidden, parent)
        raise
    finally:
        os.close(target)


def _forget(name: bytes, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        return  # its directory is the task's, who may have moved it: it holds nothing that the task may not have


def _dress(handle: int, owner: Owner | None, mode: int) -> None:
    """Owner first: giving a file away takes bits from its mode."""
    if owner is not None:
        os.fchown(handle, owner.uid, owner.gid)
    os.fchmod(handle, mode)


def _refuse_directory(parent: int, name: bytes, place: Place, path: str) -> None:
    """Say what is wrong before the kernel says it in its own words; the rename itself replaces no directory either."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise _failed(_NO_FILE, place, path, "A directory has the name of the file")


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    handle = os.open(file, _FILE)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _failing(code: str, place: Place, path: str) -> Iterator[None]:
    """An error of the kernel is the transfer's failure: `code`, or DiskFull."""
    try:
        yield
    except OSError as error:
        raise _failure(code, place, path, error) from error


def _failure(code: str, place: Place, path: str, error: OSError) -> TransferFailedError:
    number = error.errno or errno.EIO
    reason = f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"
    if code == _NO_DIRECTORY and number in (errno.ENOTDIR, errno.ELOOP):
        reason = f"What should be a directory on the way is a file or a link: {reason}"
    return _failed(_DISK_FULL if number in _NO_SPACE else code, place, path, reason)


def _failed(code: str, place: Place, path: str, message: str) -> TransferFailedError:
    where = f"{place.directory}/{path}"
    return TransferFailedError(failure_of(code, ("Message", message), ("FilePath", path), ("Path", where)))
