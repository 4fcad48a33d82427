"""One attempt, from taking its lock to letting it go: the order of the steps is what makes exit codes unlosable.

    lock → shim.json → (stop.json?) → start → started.json → wait → exit.json → sweep → swept.json → unlock

Nothing is told before it is recorded. Whatever step this process is killed at, the files and the lock tell the next
agent what is known: no shim.json, nothing ran; exit.json, that is how it ended; in between, lost.
"""

import errno
import fcntl
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from nodeagent.shim import kernel, records
from nodeagent.shim.failpoints import hit
from nodeagent.shim.output import Pump
from nodeagent.shim.records import ExitRecord, ShimRecord, Spec, StartedRecord, StopRecord, SweptRecord, Usage
from nodeagent.shim.spawn import ExecFailed, open_output, spawn

WAKE = (signal.SIGCHLD, signal.SIGUSR1)
"""Blocked in a shim, and waited for: a child changed, or the agent wrote stop.json."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONGEST_WAIT = 60.0  # seconds; sigtimedwait does not count the time a machine is suspended, a deadline does


class Refused(Exception):  # noqa: N818 - the answer to a request, with its reason
    """The attempt cannot be taken; nothing has run because of this request."""


class Taken(Refused):
    """The attempt was taken or given up before."""


def run(directory: str, attempt_id: str, tell: Callable[[str], None]) -> bool:
    """Run the attempt whose spec.json lies in `directory`; `tell("held")` once it is ours for good.

    True if this process may take another attempt: nothing of this one is left below it. Raises Refused.
    """
    spec = _spec(directory, attempt_id)
    lock = _take(directory)
    try:
        hit("after_lock")
        try:
            records.write(directory, _my_record(attempt_id, os.getpid()), durable=spec.durability == "power")
        except OSError as error:
            raise Refused(f"shim.json: {error}") from error
        hit("after_shim_record")
        tell("held")
        return _Attempt(directory, spec).run()
    finally:
        os.close(lock)


def _my_record(attempt_id: str, me: int) -> ShimRecord:
    return ShimRecord(attempt_id, me, _my_ticks(me), kernel.boot_id())


_my_ticks = cache(kernel.start_ticks)  # by pid, because a fork inherits the cache


def _spec(directory: str, attempt_id: str) -> Spec:
    try:
        spec = records.read(directory, Spec)
    except (OSError, records.RecordError) as error:
        raise Refused(str(error)) from error
    if spec is None:
        raise Refused("there is no spec.json")
    if spec.attempt_id != attempt_id:
        raise Refused(f"spec.json is of attempt {spec.attempt_id}")
    return spec


def _take(directory: str) -> int:
    """Lock the attempt for good. Raises Taken if it was ever taken before, or given up."""
    _refuse_if_taken(directory)
    try:
        lock = os.open(f"{directory}/{records.LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Refused(f"lock: {error}") from error
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        _refuse_if_taken(directory)
    except Refused:
        os.close(lock)
        raise
    return lock


def _refuse_if_taken(directory: str) -> None:
    for name in (ShimRecord.FILE, ExitRecord.FILE):
        if records.exists(directory, name):
            raise Taken(f"{name}.json is there already: an attempt runs at most once")


@dataclass
class _Stop:
    """A stop in progress: when the grace is over, in seconds of CLOCK_BOOTTIME."""

    reason: str
    kill_at: float


class _Attempt:
    """What happens while the lock is held. Owns the task's process, its pumps and the stop in progress."""

    def __init__(self, directory: str, spec: Spec) -> None:
        self._directory = directory
        self._spec = spec
        self._durable = spec.durability == "power"
        self._stop: _Stop | None = None
        self._pumps: list[Pump] = []
        self._task = 0
        self._started_at: float | None = None
        self._ended: tuple[int, Any] | None = None
        self._killed = 0

    def run(self) -> bool:
        """From here to the last record. True if nothing is left below this process."""
        if self._stop_wanted():
            self._record(ExitRecord(**self._ending(), never_started=True))
            return self._finish()
        try:
            self._start()
        except ExecFailed as failed:
            self._record(ExitRecord(**self._ending(), exec_error=failed.error))
            return self._finish()
        hit("after_fork")
        self._record_started()
        hit("after_started")
        status, usage = self._wait()
        hit("after_wait")
        self._record(ExitRecord(**self._ending(), **_how(status), usage=usage))
        hit("after_exit")
        return self._finish()

    def _start(self) -> None:
        spec = self._spec
        output = self._open("stdout", spec.stdout)
        try:
            errors = output if spec.stderr == spec.stdout else self._open("stderr", spec.stderr)
            try:
                now = time.time()
                self._task = spawn(spec, output, errors)
                self._started_at = now
            finally:
                if errors != output and not self._pumps:
                    os.close(errors)
        finally:
            if not self._pumps:
                os.close(output)
            for pump in self._pumps:
                pump.start()

    def _open(self, name: str, path: str) -> int:
        file = open_output(path, name, self._spec)
        if self._spec.output_cap is None:
            return file
        pump = Pump(file, self._spec.output_cap)
        self._pumps.append(pump)
        return pump.sink

    def _record_started(self) -> None:
        task = kernel.start_ticks(self._task)  # it is our child: it has an entry until we reap it
        record = StartedRecord(self._spec.attempt_id, self._task, task, self._started_at or 0.0)
        try:
            records.write(self._directory, record, durable=self._durable)
        except OSError as error:
            # a full disk must not keep us from waiting for the task; exit.json repeats what matters
            if error.errno not in _FULL:
                raise

    def _wait(self) -> tuple[int, Usage]:
        """Until the task's first process has ended; meanwhile stop it if the agent, or its deadline, wants that."""
        while not self._reap():
            stop = self._stop
            if self._stop_wanted() and stop is None:
                self._terminate()
            if self._stop is not None and self._stop.kill_at <= _now():
                self._kill()
                continue
            signal.sigtimedwait(WAKE, self._patience())
        assert self._ended is not None  # noqa: S101 - _reap() says so
        return self._ended

    def _reap(self) -> bool:
        """Take in whoever has ended; orphans of the task come to us because we are its subreaper."""
        while self._ended is None:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return False
            if pid == self._task:
                self._ended = (
                    status,
                    Usage(
                        round(used.ru_utime, 6),
                        round(used.ru_stime, 6),
                        used.ru_maxrss,
                        used.ru_inblock,
                        used.ru_oublock,
                    ),
                )
        return True

    def _stop_wanted(self) -> bool:
        """Look at stop.json and at the deadline. The first reason stands; a later stop may only shorten the grace."""
        now = _now()
        asked = records.read(self._directory, StopRecord)
        if asked is not None:
            self._note_stop(asked.reason, now + asked.grace_seconds)
        deadline = self._spec.deadline
        if deadline is not None and deadline.boottime_seconds <= now:
            self._note_stop(deadline.reason, now + self._spec.grace_seconds)
        return self._stop is not None

    def _note_stop(self, reason: str, kill_at: float) -> None:
        if self._stop is None:
            self._stop = _Stop(reason, kill_at)
        else:
            self._stop.kill_at = min(self._stop.kill_at, kill_at)

    def _patience(self) -> float:
        """Seconds until something has to be done without being woken."""
        times = [self._stop.kill_at] if self._stop else []
        if self._spec.deadline is not None and self._stop is None:
            times.append(self._spec.deadline.boottime_seconds)
        return max(0.0, min(min(times, default=math.inf) - _now(), _LONGEST_WAIT))

    def _below(self) -> kernel.Found:
        return kernel.descendants([os.getpid()])

    def _terminate(self) -> None:
        for pid, ticks in (kernel.members(self._spec.boundary) | self._below()).items():
            kernel.send(pid, ticks, signal.SIGTERM)

    def _kill(self) -> None:
        self._killed += kernel.sweep(self._spec.boundary, self._below, "children").killed

    def _ending(self) -> dict[str, Any]:
        return {
            "attempt_id": self._spec.attempt_id,
            "started_at": self._started_at,
            "ended_at": time.time(),
            "stop_reason": self._stop.reason if self._stop else None,
        }

    def _finish(self) -> bool:
        """Sweep if what is left is ours to sweep, and let the output end. True if no child is left."""
        childless = self._childless()
        if self._spec.sweep:
            hit("before_sweep")
            if childless and kernel.is_empty(self._spec.boundary):
                swept = records.Sweep(0, 0, f"{self._spec.boundary['kind']}+children")
            else:
                swept = kernel.sweep(self._spec.boundary, self._below, "children")
                childless = self._childless()
            self._record(SweptRecord(self._spec.attempt_id, self._killed + swept.killed, swept.remaining, swept.how))
            hit("after_sweep")
        drained = [pump.finish(seconds=5.0) for pump in self._pumps]
        return childless and all(drained)

    @staticmethod
    def _childless() -> bool:
        """Reap what is dead; true if nothing is left below this process, which as subreaper it knows for sure."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        return False

    def _record(self, record: ExitRecord | SweptRecord) -> None:
        """Write a record that must not get lost: on a full disk, wait until there is room again."""
        while True:
            try:
                return records.write(self._directory, record, durable=self._durable)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            signal.sigtimedwait(WAKE, 1.0)


def _how(status: int) -> dict[str, Any]:
    if os.WIFSIGNALED(status):
        return {"signal": os.WTERMSIG(status), "core": os.WCOREDUMP(status)}
    return {"exit_code": os.WEXITSTATUS(status)}


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
