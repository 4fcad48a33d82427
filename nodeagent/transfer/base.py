"""What all transfers share: where files go and whose they are, how far a transfer is, and how it fails."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import TransferPhase, TransferProgress
from nodeagent.model.values import NodeIdentityReference

Tokens = Callable[[NodeIdentityReference], Awaitable[str]]
"""Gives a bearer token for storage, of one of the node's managed identities; raises IdentityError."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose the files are that a transfer makes."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that files are brought into, and nothing is ever written outside of it."""

    directory: Path
    """Opened without following a link in its last component; it exists already."""
    owner: Owner | None = None
    """None where all belongs to the agent's own user."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Limits of every transfer; the fields are those of `AgentSettings` (seconds, bytes)."""

    transfers: int = 8
    range_bytes: int = 8 << 20
    transfer_tries: int = 5
    transfer_idle_seconds: float = 60
    transfer_seconds: float = 3600


class TransferFailedError(Exception):
    """A transfer is given up; `failure` is what the task's failureInfo shows. Its text holds no secret."""

    def __init__(self, failure: FailureInfo) -> None:
        details = {item.name: item.value for item in failure.details}
        super().__init__(f"{failure.code}: {details.get('Message', failure.message)}")
        self.failure = failure


class IdentityError(Exception):
    """There is no token for a managed identity; its text holds no secret.

    `status` is the HTTP status of the endpoint's answer, None if there was none; 400 says that the node does not have
    the identity.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Meter:
    """Counts what the transfers of one attempt have moved; `told` is called after every change."""

    def __init__(self, attempt_id: str, phase: TransferPhase, told: Callable[[], None] = lambda: None) -> None:
        self._attempt_id = attempt_id
        self._phase = phase
        self._told = told
        self._files_done = 0
        self._files_total: int | None = None
        self._bytes_done = 0
        self._bytes_total: int | None = None

    def expect(self, files: int, size: int | None) -> None:
        """So many more files, and bytes if that is known, are to be moved."""
        self._files_total = (self._files_total or 0) + files
        if size is not None:
            self._bytes_total = (self._bytes_total or 0) + size
        self._told()

    def moved(self, size: int) -> None:
        """So many more bytes have been moved; less than 0 for those that are moved again."""
        self._bytes_done += size
        self._told()

    def finished(self) -> None:
        """One more file is done."""
        self._files_done += 1
        self._told()

    def progress(self) -> TransferProgress:
        """Return how far it is."""
        return TransferProgress(
            attempt_id=self._attempt_id,
            phase=self._phase,
            files_done=self._files_done,
            files_total=self._files_total,
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
        )


@dataclass(frozen=True, slots=True)
class Download:
    """One file to bring."""

    url: str = field(repr=False)
    """With its SAS, if it has one: never shown, see `rules.urls.shown`."""
    path: str
    """Where it goes, relative to the place's directory; `rules.resource_paths.checked` has seen it."""
    mode: int
    """Permission bits of the file."""
    identity: NodeIdentityReference | None = None
    """Whose bearer token opens the URL."""
    size: int | None = None
    """If a listing has told it."""
