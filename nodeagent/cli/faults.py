"""From what was raised to the one line a person reads and the exit status (docs/cli.md)."""

import errno
import os
import re

from nodeagent.cli.exits import CommandError, Exit
from nodeagent.cli.settings import SettingsError

_ADDRESS = re.compile(r"\('([^']+)', (\d+)")
_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def told(error: BaseException) -> tuple[str | None, int]:
    """Return the line and the status of an error; the line is None for a fault of nodeagent itself.

    A group of errors is told by its first member that has a line of its own.
    """
    if isinstance(error, BaseExceptionGroup):
        return next(
            (found for inner in error.exceptions if (found := told(inner))[0] is not None), (None, Exit.INTERNAL)
        )
    if isinstance(error, CommandError):
        return str(error), error.status
    if isinstance(error, SettingsError):
        return str(error), Exit.USAGE
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return _system(error)
    return _ours(error)


def _system(error: OSError) -> tuple[str | None, int]:
    if error.errno in _TAKEN:
        found = _ADDRESS.search(str(error))
        address = f"{found[1]}:{found[2]}: " if found else ""
        return f"{address}{os.strerror(error.errno).lower()}; choose another with --port", Exit.PORT_IN_USE
    if error.errno in _UNWRITABLE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", Exit.UNWRITABLE
    return None, Exit.INTERNAL


def _ours(error: BaseException) -> tuple[str | None, int]:
    # imported here: a command that never starts a service need not load one
    from nodeagent.local.client import CaFileError, ServiceError, ServiceUnreachableError  # noqa: PLC0415
    from nodeagent.local.errors import AgentEndedError, FolderError, FolderUsedError, NotReadyError  # noqa: PLC0415
    from nodeagent.service.state_dir import StateInUseError  # noqa: PLC0415
    from nodeagent.service.store.migrations import NewerDatabaseError  # noqa: PLC0415
    from nodeagent.service.tls import CertificateError  # noqa: PLC0415

    if isinstance(error, AgentEndedError):
        return str(error), error.status
    statuses: dict[type[BaseException], Exit] = {
        FolderError: Exit.UNWRITABLE,
        FolderUsedError: Exit.USAGE,
        CaFileError: Exit.USAGE,
        CertificateError: Exit.USAGE,
        NotReadyError: Exit.INTERNAL,
        StateInUseError: Exit.STATE_IN_USE,
        NewerDatabaseError: Exit.NEWER_STATE,
        ServiceUnreachableError: Exit.UNREACHABLE,
        ServiceError: Exit.UNREACHABLE,
    }
    status = next((status for kind, status in statuses.items() if isinstance(error, kind)), None)
    return (None, Exit.INTERNAL) if status is None else (str(error), status)
