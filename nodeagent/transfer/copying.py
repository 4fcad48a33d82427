"""A copy of a file's bytes by the cheapest way that the file systems allow: shared extents, the kernel, ourselves."""

import errno
import fcntl
import os
from hashlib import blake2b
from pathlib import Path
from threading import Event

from nodeagent.transfer.uninterrupted import AbandonedError

CHUNK = 8 << 20
"""Bytes between two looks at whether the copy is still wanted."""
_READ = 1 << 20
_FICLONE = 0x40049409
"""linux/fs.h: share the extents of another file, copy on write."""
_KERNEL_WILL_NOT = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
DIGEST_BYTES = 32


def clone(source: int, target: int) -> bool:
    """Make the target share the source's bytes until one of them is changed; False where that cannot be done."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def can_clone(folder: Path) -> bool:
    """Whether the file system of a folder of our own has reflinks: tried with two small files. Raises OSError."""
    names = (folder / "probe-source", folder / "probe-target")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    handles: list[int] = []
    try:
        handles += [os.open(name, flags, 0o600) for name in names]
        os.write(handles[0], b"\0" * 4096)
        return clone(*handles)
    finally:
        for handle in handles:
            os.close(handle)
        for name in names:
            name.unlink(missing_ok=True)


def copy(source: int, target: int, abandoned: Event) -> None:
    """Copy all bytes of an open file to an empty one. Raises OSError, and AbandonedError if `abandoned` is set."""
    size = os.fstat(source).st_size
    done = 0
    while done < size:
        if abandoned.is_set():
            raise AbandonedError
        moved = _by_kernel(source, target, done, min(CHUNK, size - done))
        if not moved:
            _by_hand(source, target, done, abandoned)
            return
        done += moved


def digest(handle: int, abandoned: Event) -> bytes:
    """Return the BLAKE2b of an open file's bytes. Raises OSError, and AbandonedError if `abandoned` is set."""
    summed = blake2b(digest_size=DIGEST_BYTES)
    buffer = bytearray(_READ)
    view = memoryview(buffer)
    done = 0
    while size := os.preadv(handle, [buffer], done):
        if abandoned.is_set():
            raise AbandonedError
        summed.update(view[:size])
        done += size
    return summed.digest()


def _by_kernel(source: int, target: int, offset: int, size: int) -> int:
    """Bytes that the kernel copied; 0 if it will not."""
    try:
        return os.copy_file_range(source, target, size, offset, offset)
    except OSError as error:
        if error.errno in _KERNEL_WILL_NOT:
            return 0
        raise


def _by_hand(source: int, target: int, offset: int, abandoned: Event) -> None:
    while chunk := os.pread(source, _READ, offset):
        if abandoned.is_set():
            raise AbandonedError
        rest = memoryview(chunk)
        while rest:
            written = os.pwrite(target, rest, offset)
            rest = rest[written:]
            offset += written
