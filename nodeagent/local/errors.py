"""Why local mode cannot start or go on; each is one clear line for a person."""


class LocalError(Exception):
    """The local stack cannot start or go on."""


class FolderError(LocalError):
    """A folder cannot be made or written."""


class AgentEndedError(LocalError):
    """An agent ended for a reason that starting it again would not remove; `status` is its exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotReadyError(LocalError):
    """The nodes did not become ready in time."""


class FolderUsedError(LocalError):
    """The folder holds a run of this job already."""
