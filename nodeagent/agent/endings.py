"""From the records of the shim to the event of the attempt's state machine: what the kernel said, nothing invented."""

from datetime import UTC, datetime

from nodeagent.agent import task_words
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import Statistics, StopReason, Sweep
from nodeagent.rules.attempt_events import Ended, Lost
from nodeagent.rules.failures import launch_failure, preparation_failure
from nodeagent.rules.layout import TaskPaths
from nodeagent.runtime import base as runtime
from nodeagent.shim.records import ExecError, ExitRecord

_BLOCK_BYTES = 512
"""The unit in which the kernel counts blocks of rusage, whatever the file system."""


def event_of(
    seen: runtime.Ended | runtime.Lost, paths: TaskPaths, user: str, *, stderr_tail: bool = True
) -> Ended | Lost:
    """Return what happened. What the task says of it is read only if the execution failed.

    `stderr_tail`: whether the end of its stderr is told.
    """
    if isinstance(seen, runtime.Lost):
        return Lost(seen.detail)
    record = seen.exit
    if record.never_started and record.stop_reason is None:
        return Lost("no shim took the attempt: nothing was executed")
    exit_code = -record.signal if record.signal is not None else record.exit_code
    failed = record.stop_reason is not None or exit_code not in (0, None)
    return Ended(
        at=datetime.fromtimestamp(record.ended_at, UTC),
        exit_code=exit_code,
        failure=None if record.exec_error is None else _exec_failure(record.exec_error, user),
        stop_reason=None if record.stop_reason is None else StopReason(record.stop_reason),
        statistics=_statistics(record),
        sweep=_sweep(seen),
        stderr_tail=task_words.stderr_tail(paths.stderr) if failed and stderr_tail else None,
        task_message=task_words.error_message(paths.error_file) if failed else None,
    )


def _sweep(seen: runtime.Ended) -> Sweep | None:
    if seen.exit.never_started:
        return Sweep()
    return None if seen.swept is None else Sweep(killed=seen.swept.killed, remaining=seen.swept.remaining)


def _exec_failure(error: ExecError, user: str) -> FailureInfo:
    hint = error.hint or None
    if error.step == "exec":
        return launch_failure(error.errno, path=error.path, cwd=error.cwd, user=user, hint=hint)
    # ENOENT of the working directory is no missing program
    return preparation_failure(error.errno, step=error.step, path=error.path, cwd=error.cwd, user=user, hint=hint)


def _statistics(record: ExitRecord) -> Statistics | None:
    if record.usage is None or record.started_at is None:
        return None
    return Statistics(
        wall_clock_seconds=max(0.0, record.ended_at - record.started_at),
        user_cpu_seconds=record.usage.user_seconds,
        kernel_cpu_seconds=record.usage.system_seconds,
        peak_memory_bytes=record.usage.max_rss_kib * 1024,
        read_bytes=record.usage.read_blocks * _BLOCK_BYTES,
        write_bytes=record.usage.written_blocks * _BLOCK_BYTES,
    )
