"""The service's folder: one service at a time, private, temporary if asked."""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.service.settings import ServiceSettings

DATABASE_NAME = "service.db"
_LOCK_NAME = "service.lock"
_NODE_KEY_NAME = "node.key"


class StateInUseError(RuntimeError):
    """Another service uses the state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"the state folder {folder} is in use by another service: stop it, or name another folder")


@contextmanager
def open_state_dir(settings: ServiceSettings) -> Iterator[Path]:
    """Make the folder if it is missing, lock it, and give its path; an ephemeral one is removed afterwards.

    Raises StateInUseError, OSError.
    """
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.ephemeral:
        with tempfile.TemporaryDirectory(prefix="ephemeral-", dir=settings.state_dir) as folder:
            yield Path(folder)
        return
    with _locked(settings.state_dir):
        yield settings.state_dir


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateInUseError(folder) from error
        yield
    finally:
        os.close(descriptor)


def read_node_key(settings: ServiceSettings, folder: Path) -> str:
    """Return the key that agents show; a missing file is made with a fresh key, readable by its owner only.

    Raises OSError, ValueError if the file is empty.
    """
    path = settings.node_key_file or folder / _NODE_KEY_NAME
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        key = path.read_text(encoding="ascii").strip()
        if not key:
            raise ValueError(f"the node key file {path} is empty") from None
        return key
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        key = secrets.token_urlsafe(32)
        file.write(f"{key}\n")
        file.flush()
        os.fsync(file.fileno())
    return key
