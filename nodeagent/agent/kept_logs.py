"""The ends of a task's stdout.txt and stderr.txt, which the service keeps for when the node is gone.

The task may have put anything in their place: links are not followed, pipes not waited for, and a file that has a
second name (it may be somebody else's) is not read.
"""

import os
import stat
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from nodeagent.model.protocol import KeptLog
from nodeagent.rules.layout import TaskPaths

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def kept_logs(paths: TaskPaths, size: int) -> tuple[KeptLog, ...]:
    """Return the last `size` bytes of each log that is there and not empty. A few short reads, done in place."""
    if not size:
        return ()
    found = (_kept("stdout.txt", paths.stdout, size), _kept("stderr.txt", paths.stderr, size))
    return tuple(log for log in found if log is not None)


def _kept(name: Literal["stdout.txt", "stderr.txt"], path: Path, size: int) -> KeptLog | None:
    try:
        file = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or not found.st_size:
            return None
        data = os.pread(file, size, max(0, found.st_size - size))
    except OSError:  # the disk fails: that costs the log, not the end of the task
        return None
    finally:
        os.close(file)
    # the model takes bytes as they are on the wire
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return KeptLog(name=name, size=found.st_size, modified=modified, tail=b64encode(data))
