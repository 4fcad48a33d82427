"""What a failed task says of itself: the end of its stderr, and the file that NODEAGENT_ERROR_FILE names.

The files are the task's own: it may have put anything in their place, so links are not followed, pipes not waited
for, and a file that has a second name (it may be somebody else's) is not read.
"""

import os
import stat
from pathlib import Path

from nodeagent.rules.failures import ERROR_FILE_BYTES, STDERR_TAIL_BYTES

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def stderr_tail(path: Path) -> str | None:
    """Return the last 4 KiB of stderr as text; None if there is no such file, or nothing in it."""
    return _text(path, STDERR_TAIL_BYTES, from_end=True)


def error_message(path: Path) -> str | None:
    """Return the first 2 KiB of the task's own failure message as text; None if it wrote none."""
    return _text(path, ERROR_FILE_BYTES, from_end=False)


def _text(path: Path, size: int, *, from_end: bool) -> str | None:
    try:
        file = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return None
        data = os.pread(file, size, max(0, found.st_size - size) if from_end else 0)
    finally:
        os.close(file)
    return data.decode(errors="replace").replace("\0", "\ufffd").strip() or None
