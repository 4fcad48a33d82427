"""The failure codes of Batch and their texts, in one table (spec/node.md §9, §13)."""

import errno
import os

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
INTERNAL_RETRIES_REACHED = "MaxInternalRetryCountReached"

STDERR_TAIL_BYTES = 4096

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
    StopReason.NODE_REMOVED: ("NodeRemoved", "The compute node was removed from the pool"),
    StopReason.PREEMPTED: ("NodePreempted", "The compute node was preempted"),
    StopReason.DISK_PRESSURE: ("DiskPressure", "The compute node was running out of disk space"),
    StopReason.SUPERSEDED: ("Superseded", "Another execution of the task has taken its place"),
}


def _details(*pairs: tuple[str, str | None]) -> tuple[NameValuePair, ...]:
    return tuple(NameValuePair(name=name, value=value) for name, value in pairs if value)


def exit_code_failure(exit_code: int, stderr_tail: str | None = None) -> FailureInfo:
    """A process ended with a code other than 0; a negative code is the signal that ended it."""
    signal_text = f"The task process was ended by signal {-exit_code}" if exit_code < 0 else None
    return FailureInfo(
        category=ErrorCategory.USER_ERROR,
        code=EXIT_CODE,
        message="The task exited with an exit code representing a failure",
        details=_details(
            ("Message", "The task process exited with an unexpected exit code"),
            ("AdditionalErrorCode", EXIT_CODE),
            ("ExitCode", str(exit_code)),
            ("Signal", signal_text),
            ("StandardError", stderr_tail),
        ),
    )


def task_ended(reason: StopReason, stderr_tail: str | None = None) -> FailureInfo:
    """An execution was ended on request or by a limit."""
    additional_code, text = _STOP_TEXTS[reason]
    return FailureInfo(
        category=ErrorCategory.USER_ERROR,
        code=TASK_ENDED,
        message="The task was ended by user request",
        details=_details(("Message", text), ("AdditionalErrorCode", additional_code), ("StandardError", stderr_tail)),
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
        return FailureInfo(
            category=ErrorCategory.USER_ERROR,
            code=PROGRAM_NOT_FOUND,
            message="The specified command program is not found",
            details=_details(*evidence),
        )
    return command_refused("The command could not be launched", *evidence)


def preparation_failure(
    number: int, *, step: str, path: str, cwd: str, user: str, hint: str | None = None
) -> FailureInfo:
    """What comes before the execution of the command failed: `step` says what (working directory, output file...)."""
    evidence = (("Step", step), *_launch_evidence(number, path, cwd, user, hint))
    if number == errno.ENOSPC:
        return disk_full(*evidence)
    return command_refused("The command could not be launched", *evidence)


def _launch_evidence(
    number: int, path: str, cwd: str, user: str, hint: str | None
) -> tuple[tuple[str, str | None], ...]:
    return (
        ("Message", f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"),
        ("Path", path),
        ("WorkingDirectory", cwd),
        ("User", user),
        ("Hint", hint),
    )


def command_refused(message: str, *evidence: tuple[str, str | None]) -> FailureInfo:
    """The command was not launched at all: it cannot be split, its environment is circular, it was refused."""
    return FailureInfo(
        category=ErrorCategory.USER_ERROR, code=LAUNCH_FAILED, message=message, details=_details(*evidence)
    )


def disk_full(*evidence: tuple[str, str | None]) -> FailureInfo:
    """There was no space for the task's directory or files."""
    return FailureInfo(
        category=ErrorCategory.SERVER_ERROR,
        code=DISK_FULL,
        message="There is not enough disk space on the node that was selected to run the task",
        details=_details(*evidence),
    )


def directory_failure(number: int, path: str) -> FailureInfo:
    """The task's directory could not be made: `number` is the errno."""
    evidence = (("Message", f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"), ("Path", path))
    if number == errno.ENOSPC:
        return disk_full(*evidence)
    return FailureInfo(
        category=ErrorCategory.SERVER_ERROR,
        code=DIRECTORY_CREATE_FAILED,
        message="Failure encountered creating resource directory for the task",
        details=_details(*evidence),
    )


def internal_retries_reached(detail: str | None) -> FailureInfo:
    """The task was recovered again and again, and its outcome was never known. `detail` is the last reason."""
    return FailureInfo(
        category=ErrorCategory.USER_ERROR,
        code=INTERNAL_RETRIES_REACHED,
        message="The maximum number of internal retries of the task has been reached",
        details=_details(("Message", detail)),
    )
