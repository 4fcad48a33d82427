"""Who this agent is: the state directory, its lock, and node.json with the node's id and epoch (design.md §5)."""

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nodeagent.agent.errors import (
    DamagedStateError,
    NewerStateError,
    StateInUseError,
    UnwritableError,
    WrongNodeError,
)

VERSION = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """The node's id, and the number of this life of its agent: raised and stored before the service hears of it."""

    node_id: str
    epoch: int


class StateDirectory:
    """The agent's own folder, held by a lock for as long as this context is open.

    The lock is a `flock` on `agent.lock`: the kernel drops it when the agent dies, however it dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def database(self) -> Path:
        """agent.db."""
        return self.path / "agent.db"

    @property
    def boot(self) -> Path:
        """boot.json."""
        return self.path / "boot.json"

    @property
    def attempts(self) -> Path:
        """The records of all executions, one directory each (docs/on-disk-layout.md)."""
        return self.path / "attempts"

    @property
    def quarantine(self) -> Path:
        """Records that no attempt is known for: swept, and kept for people to look at."""
        return self.path / "quarantine"

    def __enter__(self) -> Self:
        """Make and lock the directory. Raises UnwritableError, StateInUseError."""
        for directory in (self.path, self.attempts):
            make_directory(directory, 0o700)
        path = self.path / "agent.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnwritableError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            os.close(lock)
            raise StateInUseError(f"{self.path} is in use by another agent (pid {holder or 'unknown'})") from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the lock go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def begin_life(self, node_id: str) -> Identity:
        """Read node.json, raise the epoch, store it, and return who we are now.

        Raises WrongNodeError if the directory belongs to another node, NewerStateError, DamagedStateError.
        """
        path = self.path / "node.json"
        last = 0
        if path.exists():
            last = _read_epoch(path, node_id)
        identity = Identity(node_id, last + 1)
        _replace(path, {"version": VERSION, "nodeId": node_id, "epoch": identity.epoch})
        return identity


def make_directory(path: Path, mode: int) -> None:
    """Make a directory (and its parents) that we can write. Raises UnwritableError, in one line that names it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UnwritableError(f"{path} cannot be written by user {os.geteuid()}")


def _read_epoch(path: Path, node_id: str) -> int:
    try:
        stored = json.loads(path.read_text())
        version, stored_id, epoch = int(stored["version"]), str(stored["nodeId"]), int(stored["epoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedStateError(f"{path} is damaged: {error}") from error
    if version > VERSION:
        raise NewerStateError(f"{path} has layout {version}, this version of nodeagent knows {VERSION}")
    if stored_id != node_id:
        raise WrongNodeError(f"{path.parent} belongs to node '{stored_id}', not to '{node_id}'")
    return epoch


def _replace(path: Path, content: dict[str, object]) -> None:
    """Write the file whole or not at all, and on the disk: an epoch that is used twice could not be fenced."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        full = "no space left" if error.errno == errno.ENOSPC else error.strerror
        raise UnwritableError(f"{path} cannot be written: {full}") from error
