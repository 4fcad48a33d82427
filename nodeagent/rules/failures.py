"""The failure codes of Batch and their texts, in one table (spec/node.md §9, §13; docs/failure-codes.md)."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.model.enums import ErrorCategory
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import StopReason
from nodeagent.model.values import NameValuePair

EXIT_CODE = "FailureExitCode"
TASK_ENDED = "TaskEnded"
PROGRAM_NOT_FOUND = "CommandProgramNotFound"
LAUNCH_FAILED = "CommandLaunchFailed"
DISK_FULL = "DiskFull"
DIRECTORY_CREATE_FAILED = "ResourceDirectoryCreateFailed"

RECOVERIES_USED_UP = "MaxInternalRetryCountReached"
UNKNOWN = "Unknown"

STDERR_TAIL_BYTES = 4096
ERROR_FILE_BYTES = 2048
"""How much of the file named by NODEAGENT_ERROR_FILE is told."""


@dataclass(frozen=True, slots=True)
class Code:
    """What never varies of a failure."""

    category: ErrorCategory
    message: str


CODES: Mapping[str, Code] = {
    EXIT_CODE: Code(ErrorCategory.USER_ERROR, "The task exited with an exit code representing a failure"),
    TASK_ENDED: Code(ErrorCategory.USER_ERROR, "The task was ended by user request"),
    PROGRAM_NOT_FOUND: Code(ErrorCategory.USER_ERROR, "The specified command program is not found"),
    LAUNCH_FAILED: Code(ErrorCategory.USER_ERROR, "The command could not be launched"),
    DISK_FULL: Code(
        ErrorCategory.SERVER_ERROR,
        "There is not enough disk space on the node that was selected to run the task",
    ),
    DIRECTORY_CREATE_FAILED: Code(
        ErrorCategory.SERVER_ERROR, "Failure encountered creating resource directory for the task"
    ),
    RECOVERIES_USED_UP: Code(ErrorCategory.USER_ERROR, "The task was lost and begun anew as often as is allowed"),
    "BlobNotFound": Code(
        ErrorCategory.USER_ERROR,
        "One of the specified Azure Blob(s) is not found",
    ),
    "BlobAccessDenied": Code(
        ErrorCategory.USER_ERROR,
        "Access for one of the specified Azure Blob(s) is denied",
    ),
    "BlobDownloadTimedOut": Code(
        ErrorCategory.SERVER_ERROR,
        "Timeout encountered while downloading one of the specified Azure Blob(s)",
    ),
    "BlobDownloadMiscError": Code(
        ErrorCategory.SERVER_ERROR,
        "Miscellaneous error encountered while downloading one of the specified Azure Blob(s)",
    ),
    "ResourceContainerAccessDenied": Code(
        ErrorCategory.USER_ERROR,
        "Access for one of the specified Azure Blob container(s) is denied",
    ),
    "ResourceContainerNotFound": Code(
        ErrorCategory.USER_ERROR,
        "One of the specified Azure Blob container(s) is not found",
    ),
    "ResourceContainerListTimedOut": Code(
        ErrorCategory.SERVER_ERROR,
        "Timeout encountered while listing one of the specified Azure Blob container(s)",
    ),
    "ResourceContainerListMiscError": Code(
        ErrorCategory.SERVER_ERROR,
        "Miscellaneous error encountered while listing one of the specified Azure Blob container(s)",
    ),
    "ResourceFileCreateFailed": Code(
        ErrorCategory.SERVER_ERROR,
        "Failure encountered creating resource file",
    ),
    "ResourceFileWriteFailed": Code(
        ErrorCategory.SERVER_ERROR,
        "Failure encountered writing resource file",
    ),
    "ApplicationPackageError": Code(
        ErrorCategory.USER_ERROR,
        "One or more application packages specified for the task are invalid",
    ),
    "FileUploadAccessDenied": Code(
        ErrorCategory.USER_ERROR,
        "Access was denied to one of the specified Azure container(s) while attempting to upload an output file",
    ),
    "FileUploadContainerNotFound": Code(
        ErrorCategory.USER_ERROR,
        "One of the specified Azure container(s) was not found while attempting to upload an output file",
    ),
    "FileUploadConflict": Code(
        ErrorCategory.USER_ERROR,
        "A conflict was encountered while attempting to upload an output file",
    ),
    "FileUploadTimedOut": Code(
        ErrorCategory.SERVER_ERROR,
        "Timeout encountered while uploading an output file",
    ),
    "ContainerMiscError": Code(ErrorCategory.SERVER_ERROR, "Miscellaneous error encountered with the task container"),
    "FileUploadMiscError": Code(
        ErrorCategory.SERVER_ERROR, "Miscellaneous error encountered while uploading one of the output files"
    ),
    UNKNOWN: Code(ErrorCategory.SERVER_ERROR, "What became of the task is not known"),
}
"""Every code that this version gives, with its category and message. Nobody else makes a failure."""

Detail = tuple[str, str | None]

_STOP_TEXTS: dict[StopReason, tuple[str, str]] = {
    StopReason.USER_TERMINATE: ("TaskTerminated", "The task was terminated by a user request"),
    StopReason.JOB_TERMINATE: ("JobTerminated", "The job that the task belongs to was terminated"),
    StopReason.JOB_DISABLE_REQUEUE: ("JobDisabled", "The job that the task belongs to was disabled"),
    StopReason.JOB_DISABLE_TERMINATE: ("JobDisabled", "The job that the task belongs to was disabled"),
    StopReason.TASK_DELETE: ("TaskDeleted", "The task was deleted"),
    StopReason.WALL_CLOCK: (
        "MaxWallClockTimeExpired",
        "The maximum execution time configured on the task was exceeded",
    ),
    StopReason.DRAIN_REQUEUE: ("NodeDrain", "The compute node was being drained"),
    StopReason.DRAIN_TERMINATE: ("NodeDrain", "The compute node was rebooted, reimaged or disabled"),
    StopReason.NODE_REMOVED: ("NodeRemoved", "The compute node was removed from the pool"),
    StopReason.PREEMPTED: ("NodePreempted", "The compute node was preempted"),
    StopReason.DISK_PRESSURE: ("DiskPressure", "The compute node was running out of disk space"),
    StopReason.DISK_BUDGET: (
        "DiskBudgetExceeded",
        "The task's directory grew beyond the space that a task may take",
    ),
    StopReason.SUPERSEDED: ("Superseded", "Another execution of the task has taken its place"),
}


_FOR_SPACE = frozenset({StopReason.DISK_PRESSURE, StopReason.DISK_BUDGET})
_BY_NODE = _FOR_SPACE | {StopReason.WALL_CLOCK}
"""Stops that nobody asked for: the node enforces a limit."""


def failure_of(code: str, *details: Detail) -> FailureInfo:
    """Return the failure of a code of the table; details without a value are left out."""
    fixed = CODES[code]
    shown = tuple(NameValuePair(name=name, value=value) for name, value in details if value)
    return FailureInfo(category=fixed.category, code=code, message=fixed.message, details=shown)


def with_details(failure: FailureInfo, *details: Detail) -> FailureInfo:
    """Return the failure with more evidence."""
    more = tuple(NameValuePair(name=name, value=value) for name, value in details if value)
    return failure.model_copy(update={"details": (*failure.details, *more)})


def exit_code_failure(exit_code: int, stderr_tail: str | None = None, task_message: str | None = None) -> FailureInfo:
    """A process ended with a code other than 0; a negative code is the signal that ended it.

    `task_message` is what the task itself wrote to the file named by NODEAGENT_ERROR_FILE.
    """
    return failure_of(
        EXIT_CODE,
        ("Message", "The task process exited with an unexpected exit code"),
        ("AdditionalErrorCode", EXIT_CODE),
        ("ExitCode", str(exit_code)),
        ("Signal", f"The task process was ended by signal {-exit_code}" if exit_code < 0 else None),
        ("ErrorFile", task_message),
        ("StandardError", stderr_tail),
    )


def task_ended(
    reason: StopReason,
    stderr_tail: str | None = None,
    *,
    task_message: str | None = None,
    limit: str | None = None,
) -> FailureInfo:
    """An execution was ended on request or by a limit (`limit`: which, with its value); for space it is `DiskFull`."""
    additional_code, text = _STOP_TEXTS[reason]
    return failure_of(
        DISK_FULL if reason in _FOR_SPACE else TASK_ENDED,
        ("Message", text),
        ("AdditionalErrorCode", additional_code),
        ("StoppedBy", "node" if reason in _BY_NODE else "service"),
        ("Limit", limit),
        ("ErrorFile", task_message),
        ("StandardError", stderr_tail),
    )


def launch_failure(number: int, *, path: str, cwd: str, user: str, hint: str | None = None) -> FailureInfo:
    """The kernel refused to execute the command: `number` is the errno that it gave.

    A missing program is `CommandProgramNotFound`, a full disk `DiskFull`, all else `CommandLaunchFailed`
    (spec/node.md §3).
    """
    evidence = _launch_evidence(number, path, cwd, user, hint)
    if number == errno.ENOSPC:
        return disk_full(*evidence)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return failure_of(PROGRAM_NOT_FOUND, *evidence)
    return failure_of(LAUNCH_FAILED, *evidence)


def preparation_failure(
    number: int, *, step: str, path: str, cwd: str, user: str, hint: str | None = None
) -> FailureInfo:
    """What comes before the execution of the command failed: `step` says what (working directory, output file...)."""
    evidence = (("Step", step), *_launch_evidence(number, path, cwd, user, hint))
    if number == errno.ENOSPC:
        return disk_full(*evidence)
    return failure_of(LAUNCH_FAILED, *evidence)


def _launch_evidence(number: int, path: str, cwd: str, user: str, hint: str | None) -> tuple[Detail, ...]:
    return (
        ("Message", f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"),
        ("Path", path),
        ("WorkingDirectory", cwd),
        ("User", user),
        ("Hint", hint),
    )


def command_refused(reason: str, *evidence: Detail) -> FailureInfo:
    """The command was not launched at all: it cannot be split, its environment is circular, it was refused."""
    return failure_of(LAUNCH_FAILED, ("Message", reason), *evidence)


def disk_full(*evidence: Detail) -> FailureInfo:
    """There was no space for the task's directory or files."""
    return failure_of(DISK_FULL, *evidence)


def directory_failure(number: int, path: str) -> FailureInfo:
    """The task's directory could not be made: `number` is the errno."""
    evidence = (("Message", f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"), ("Path", path))
    return failure_of(DISK_FULL if number == errno.ENOSPC else DIRECTORY_CREATE_FAILED, *evidence)


def recoveries_used_up(times: int, detail: str | None) -> FailureInfo:
    """An execution was lost again and again; `detail` is what is known of the last time."""
    return failure_of(RECOVERIES_USED_UP, ("Message", detail), ("Recoveries", str(times)))


def not_handled(code: str, what: str) -> FailureInfo:
    """The service asks for what this agent is too old to do; `code` is that of the step."""
    return failure_of(code, ("Message", f"This version of the node's agent does not handle {what}"))
