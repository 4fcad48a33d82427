"""What the disk and the kernel say about an attempt, and settling one that nobody holds.

An attempt is a directory of records (shim/records.py) and a lock. The lock says whether a shim holds it; it is
released by the kernel, whatever the shim died of, and is inherited by a child until its exec: once it is free, every
process of the attempt sits in its boundary and carries its marker.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent.runtime.base import Ended, Lost, LostCandidate, NeverStarted, Running, RuntimeFailure, Seen
from nodeagent.shim import kernel, records
from nodeagent.shim.records import ExitRecord, ShimRecord, Spec, StartedRecord, StopRecord, SweptRecord

_LOCK_SECONDS = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SECONDS = 0.5
_FULL_TRIES = 120
"""How often, and how long apart, a record is tried again on a full disk, until the attempt counts as not settled."""


def look(directory: str) -> Seen:
    """See Runtime.look. Raises RecordError only for a damaged shim.json or started.json."""
    shim = records.read(directory, ShimRecord)
    if shim is not None and _is_locked(directory):
        return Running(shim.pid, records.read(directory, StartedRecord))
    try:
        outcome = recorded(directory)
    except records.RecordError as error:
        return LostCandidate(str(error))
    if outcome is not None:
        return outcome
    if shim is None:
        return NeverStarted(f"no shim took {Path(directory).name}")
    if records.exists(directory, ExitRecord.FILE):
        return LostCandidate(f"shim {shim.pid} recorded the exit, but not that it swept")
    return LostCandidate(f"shim {shim.pid} is gone and left no exit record")


def recorded(directory: str) -> Ended | Lost | None:
    """The outcome as far as it is on disk for good. Raises RecordError if a record is damaged."""
    swept = records.read(directory, SweptRecord)
    if swept is not None and swept.lost:
        return _lost(directory, swept)
    exited = records.read(directory, ExitRecord)
    if exited is None or (swept is None and not exited.never_started and _must_sweep(directory)):
        return None
    return Ended(exited, swept)


def settle(directory: str, attempt_id: str) -> Ended | Lost:
    """See Runtime.resolve_lost. Blocks while processes die. Raises RuntimeFailure if a shim holds the attempt."""
    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    with _held(directory):
        try:
            outcome = recorded(directory)
        except records.RecordError:
            outcome = None  # what is damaged is no evidence; the lost attempt's detail names it
        if outcome is not None:
            return outcome
        shim = records.read(directory, ShimRecord)
        if shim is None:
            return _give_up(directory, attempt_id)
        return _sweep(directory, shim)


def request_stop(directory: str, reason: str, grace: float) -> None:
    """Write stop.json, or shorten the grace of the one that is there."""
    Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    before = records.read(directory, StopRecord)
    if before is not None and before.grace_seconds <= grace:
        return
    spec = records.read(directory, Spec)
    record = StopRecord(before.reason if before else reason, grace, time.time())
    records.write(directory, record, durable=spec is not None and spec.durability == "power")


def holder(directory: str) -> tuple[int, int] | None:
    """Pid and start ticks of the shim that took the attempt, if it took it in this life of the machine."""
    shim = records.read(directory, ShimRecord)
    if shim is None or shim.boot_id != kernel.boot_id():
        return None
    return shim.pid, shim.start_ticks


def _give_up(directory: str, attempt_id: str) -> Ended:
    """Leave a tombstone, under the lock: a shim that still had the request waiting for it will see it and refuse."""
    stop = records.read(directory, StopRecord)
    exited = ExitRecord(attempt_id, ended_at=time.time(), never_started=True, stop_reason=stop.reason if stop else None)
    _write(directory, exited, durable=True)
    return Ended(exited, None)


def _sweep(directory: str, shim: ShimRecord) -> Ended | Lost:
    spec = records.read(directory, Spec)
    if spec is None:
        raise RuntimeFailure(f"{directory}: spec.json is gone, so its boundary is not known")
    same_boot = shim.boot_id == kernel.boot_id()
    started = records.read(directory, StartedRecord)
    leader = (started.pid, started.start_ticks) if started and same_boot else None
    swept = kernel.sweep_strangers(spec.boundary, leader)
    try:
        exited = records.read(directory, ExitRecord)
    except records.RecordError:
        exited = None
    record = SweptRecord(
        shim.attempt_id,
        swept.killed,
        swept.remaining,
        swept.how if same_boot else "reboot",
        lost=exited is None,
    )
    if swept.remaining == 0:
        _write(directory, record, durable=spec.durability == "power")
    if exited is not None:
        return Ended(exited, record)
    return _lost(directory, record)


def _write(directory: str, record: ExitRecord | SweptRecord, *, durable: bool) -> None:
    """Write a record; on a full disk wait until there is room. Blocks. Raises RuntimeFailure if there is none."""
    for _ in range(_FULL_TRIES):
        try:
            return records.write(directory, record, durable=durable)
        except OSError as error:
            if error.errno not in _FULL:
                raise
        time.sleep(_FULL_SECONDS)  # this thread has nothing else to do
    raise RuntimeFailure(f"{directory}/{record.FILE}.json: no space left on the device")


def _lost(directory: str, swept: SweptRecord) -> Lost:
    if records.exists(directory, ExitRecord.FILE):
        why = f"{directory}/exit.json is damaged"
    else:
        why = f"{directory}: the shim died before it could record an exit"
    return Lost(
        f"{why}; {swept.killed} processes killed, {swept.remaining} remain ({swept.how})",
        swept.killed,
        swept.remaining,
    )


def _must_sweep(directory: str) -> bool:
    spec = records.read(directory, Spec)
    return spec is not None and spec.sweep


def _is_locked(directory: str) -> bool:
    try:
        lock = os.open(f"{directory}/{records.LOCK}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def _held(directory: str) -> Iterator[None]:
    """Hold the lock. A shim that has just died lets go of it within moments, one that lives does not."""
    lock = os.open(f"{directory}/{records.LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise RuntimeFailure(f"{directory}: a shim holds the attempt") from None
            time.sleep(0.002)  # flock has no timeout; this thread has nothing else to do
        yield
    finally:
        os.close(lock)
