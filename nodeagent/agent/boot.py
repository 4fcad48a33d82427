"""boot.json: which boot of the node this is, and the command that is being obeyed (docs/on-disk-layout.md).

A boot is the kernel's, or one that this agent made by ending everything of the node (a simulated reboot). The file is
written whole or not at all and is on the disk before anything is done about it, so that a command which was begun is
finished by whatever life of the agent comes next, and none is obeyed twice.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from nodeagent.agent.errors import DamagedStateError, NewerStateError, UnwritableError
from nodeagent.model.base import BatchModel
from nodeagent.model.protocol import NodeCommand
from nodeagent.model.times import UtcTime
from nodeagent.shim import kernel

VERSION = 1


class _File(BatchModel):
    version: int
    kernel: str
    number: int = 0
    began: UtcTime
    reimaged: bool = False
    command_id: str | None = None
    pending: NodeCommand | None = None


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of the node."""

    id: str
    began: datetime
    reimaged: bool
    """Nothing of the node's former life is left, and the service does not know that yet."""
    command_id: str | None
    """The last command that was obeyed."""
    pending: NodeCommand | None
    """The command that is to be obeyed before anything else is done."""


class BootFile:
    """The one file; `path` is `state_dir/boot.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Boot:
        """Return the present boot. A reboot of the machine is noticed here, and is what a pending command wanted.

        Raises DamagedStateError, NewerStateError, UnwritableError.
        """
        found = self._load()
        if found is None:
            found = self._write(_File(version=VERSION, kernel=kernel.boot_id(), began=_machine_began()))
        elif found.kernel != kernel.boot_id():
            found = self._write(_rebooted(found))
        return _boot(found)

    def begin(self, command: NodeCommand) -> None:
        """Record that a command is to be obeyed. Raises as `read`."""
        self._write(self._present().model_copy(update={"pending": command}))

    def done(self, command: NodeCommand) -> None:
        """Record that everything of the former boot has been ended: another one begins. Raises as `read`."""
        found = self._present()
        self._write(
            found.model_copy(
                update={
                    "number": found.number + 1,
                    "began": datetime.now(UTC),
                    "reimaged": found.reimaged or command.command == "reimage",
                    "command_id": command.command_id,
                    "pending": None,
                }
            )
        )

    def told(self) -> None:
        """Record that the service knows that the node was reimaged. Raises as `read`."""
        found = self._present()
        if found.reimaged:
            self._write(found.model_copy(update={"reimaged": False}))

    def _present(self) -> _File:
        self.read()
        found = self._load()
        if found is None:
            raise DamagedStateError(f"{self._path} has gone")
        return found

    def _load(self) -> _File | None:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnwritableError(f"{self._path} cannot be read: {error.strerror}") from error
        try:
            found = _File.from_json(text)
        except ValidationError as error:
            raise DamagedStateError(f"{self._path} is damaged: {error.errors()[0]['msg']}") from error
        if found.version > VERSION:
            raise NewerStateError(f"{self._path} has layout {found.version}, this version of nodeagent knows {VERSION}")
        return found

    def _write(self, content: _File) -> _File:
        temporary = self._path.with_suffix(".tmp")
        try:
            with temporary.open("w") as file:
                file.write(content.to_json())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise UnwritableError(f"{self._path} cannot be written: {error.strerror}") from error
        return content


def _rebooted(found: _File) -> _File:
    """The machine itself was rebooted: whoever ordered that, a pending command wanted nothing else."""
    fresh = _File(
        version=VERSION,
        kernel=kernel.boot_id(),
        began=_machine_began(),
        reimaged=found.reimaged,
        command_id=found.command_id,
    )
    pending = found.pending
    if pending is None:
        return fresh
    return fresh.model_copy(
        update={"command_id": pending.command_id, "reimaged": found.reimaged or pending.command == "reimage"}
    )


def _machine_began() -> datetime:
    return datetime.fromtimestamp(psutil.boot_time(), UTC)


def _boot(found: _File) -> Boot:
    name = f"{found.kernel}+{found.number}" if found.number else found.kernel
    return Boot(name, found.began, found.reimaged, found.command_id, found.pending)
