"""What the kernel says about processes and what it can be made to do to them: identity, boundaries, sweeping.

A boundary is a dict that is recorded before anything runs in it, so that whoever comes later can sweep it:

    kind    cgroup2 | cgroup1 | process_group
    marker  /root/session/attempt: each process of the attempt carries it as NODEAGENT_BOUNDARY
    path    the cgroup's directory (cgroup kinds)
    home    the cgroup in which shims sit, a sibling: a shim's memory is never charged to a task (cgroup kinds)
    memory, cpu, pids   the cgroup that limits it by this controller, `path` or one of another hierarchy (if limited)

A process is never known by its pid alone, but by pid and start ticks, or by a pidfd that was checked against them.
"""

# ruff: noqa: PTH208
# plain strings: a shim is kept small and fast, and pathlib is neither

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple

from nodeagent.shim.records import Sweep

ATTEMPT_VARIABLE = "NODEAGENT_ATTEMPT"
BOUNDARY_VARIABLE = "NODEAGENT_BOUNDARY"
KINDS = ("cgroup2", "cgroup1", "process_group")
LIMITING = ("memory", "cpu", "pids")

# gone while we looked (a process: ESRCH; a cgroup: ENODEV), or of a user whom we may not look at
_NOT_OURS = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EACCES, errno.EPERM}

Boundary = Mapping[str, str]
Found = dict[int, int]
"""Processes: pid to start ticks."""


class Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that tell processes apart and who their kin is."""

    state: str
    parent: int
    session: int
    threads: int
    start_ticks: int
    virtual_bytes: int

    @property
    def lives(self) -> bool:
        """Whether code may still run: a zombie whose other threads go on is alive."""
        return self.state not in "ZX" or self.threads > 1


@cache
def boot_id() -> str:
    """The id of this boot: nothing of another boot runs any more."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def stat(pid: int) -> Stat | None:
    """What /proc says of a process, or None if there is none; zombies are processes too."""
    data = _read(f"/proc/{pid}/stat", whole=False)
    if not data:
        return None
    fields = data.rpartition(b")")[2].split()
    return Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
        virtual_bytes=int(fields[20]),
    )


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot. Raises ProcessLookupError if there is none."""
    found = stat(pid)
    if found is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return found.start_ticks


def open_process(pid: int, ticks: int) -> int | None:
    """A pidfd of exactly that process, or None if it is gone; the caller closes it."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    found = stat(pid)
    if found is None or found.start_ticks != ticks:
        os.close(handle)
        return None
    return handle


def send(pid: int, ticks: int, number: signal.Signals) -> bool:
    """Signal exactly that process; False if it is gone or is not ours to signal."""
    handle = open_process(pid, ticks)
    if handle is None:
        return False
    try:
        signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(handle)
    return True


def enter(path: str) -> None:
    """Move this process into the cgroup at `path`. Raises OSError."""
    file = os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"0")
    finally:
        os.close(file)


def is_limited(boundary: Boundary) -> bool:
    """Whether a cgroup limits the boundary."""
    return any(name in boundary for name in LIMITING)


def limiting_cgroups(boundary: Boundary) -> list[str]:
    """The cgroups beside `path` that a process of the boundary has to be in."""
    found = {boundary[name] for name in LIMITING if name in boundary}
    return sorted(found - {boundary.get("path", "")})


def members(boundary: Boundary) -> Found:
    """Living processes in the cgroup of the boundary and below it; a process group has none to ask."""
    found: Found = {}
    if "path" in boundary:
        for directory, _, _ in os.walk(boundary["path"]):
            for line in _read(f"{directory}/cgroup.procs").split():
                seen = stat(int(line))
                if seen and seen.lives:
                    found[int(line)] = seen.start_ticks
    return found


def is_empty(boundary: Boundary) -> bool:
    """Whether no process lives in the cgroup of the boundary; a process group has none to ask."""
    if boundary["kind"] == "cgroup2":
        events = _read(f"{boundary['path']}/cgroup.events")
        return not events or b"populated 0" in events
    return not members(boundary)


def descendants(roots: Iterable[int]) -> Found:
    """Living processes below `roots` by parentage. Complete below a child subreaper, since orphans come to it."""
    kin: dict[int, list[int]] = {}
    living: Found = {}
    for pid in _pids():
        seen = stat(pid)
        if seen is not None:
            kin.setdefault(seen.parent, []).append(pid)
            if seen.lives:
                living[pid] = seen.start_ticks
    below, todo = set[int](), list(roots)
    while todo:
        children = kin.get(todo.pop(), [])
        below.update(children)
        todo += children
    return {pid: ticks for pid, ticks in living.items() if pid in below}


def marked(marker: str) -> Found:
    """Living processes that carry the marker, or one below it, in the environment they were started with."""
    entry = f"{BOUNDARY_VARIABLE}={marker}".encode()
    found: Found = {}
    for pid in _pids():
        environment = _environment(pid)
        if entry in environment and any(
            variable == entry or variable.startswith(entry + b"/") for variable in environment.split(b"\0")
        ):
            seen = stat(pid)
            if seen is not None and seen.lives:
                found[pid] = seen.start_ticks
    return found


class Strangers:
    """Finds the processes of a boundary whose shim is dead: by marker, by session, and by parentage below those.

    `leader` is the pid and start ticks of the task's first process. Its session is believed only if that very
    process was seen alive: a session id alone may have been reused.
    """

    def __init__(self, marker: str, leader: tuple[int, int] | None) -> None:
        self._marker = marker
        self._session = None
        if leader is not None:
            seen = stat(leader[0])
            if seen is not None and seen.start_ticks == leader[1]:
                self._session = leader[0]

    def __call__(self) -> Found:
        """Who is there now, this process excepted."""
        found = marked(self._marker)
        if self._session is not None:
            for pid in _pids():
                seen = stat(pid)
                if seen is not None and seen.session == self._session and seen.lives:
                    found[pid] = seen.start_ticks
        found |= descendants(found)
        found.pop(os.getpid(), None)
        return found


def sweep(boundary: Boundary, others: Callable[[], Found], proof: str, seconds: float = 10.0) -> Sweep:
    """Kill whatever lives in the boundary, and the `others`, until a look finds nothing; give up after `seconds`.

    Everything is stopped before anything is killed, so that a storm of forks cannot outrun the look. Blocks.
    """
    end = time.monotonic() + seconds
    killed: set[tuple[int, int]] = set()

    def find() -> Found:
        return members(boundary) | others()

    while (found := find()) or not is_empty(boundary):
        if time.monotonic() >= end:
            break
        _hold(boundary)
        round_ = set(found.items()) | _stop_all(find, end)
        for pid, ticks in round_:
            send(pid, ticks, signal.SIGKILL)
        _release(boundary)
        _await_deaths(boundary, round_, end)
        killed |= round_
    return Sweep(killed=len(killed), remaining=len(found), how=f"{boundary['kind']}+{proof}")


def pause(boundary: Boundary, seconds: float) -> int:
    """SIGSTOP whatever lives in the boundary until a look finds nobody new; how many. Blocks."""
    others = Strangers(boundary["marker"], None)
    return len(_stop_all(lambda: members(boundary) | others(), time.monotonic() + seconds))


def resume(boundary: Boundary) -> None:
    """SIGCONT whatever lives in the boundary. Blocks."""
    for pid, ticks in (members(boundary) | Strangers(boundary["marker"], None)()).items():
        send(pid, ticks, signal.SIGCONT)


def sweep_strangers(boundary: Boundary, leader: tuple[int, int] | None = None, seconds: float = 10.0) -> Sweep:
    """Sweep a boundary from outside, when no shim can do it: by cgroup and by marker. Blocks."""
    return sweep(boundary, Strangers(boundary["marker"], leader), "marker", seconds)


def await_empty(boundary: Boundary, seconds: float) -> bool:
    """Wait, without killing, until nothing lives in the cgroup of the boundary; whether it is so. Blocks."""
    end = time.monotonic() + seconds
    while not is_empty(boundary) and time.monotonic() < end:
        _await_deaths(boundary, set(members(boundary).items()), end)
    return is_empty(boundary)


def _hold(boundary: Boundary) -> None:
    """Keep the members of a cgroup from forking any more: version 2 kills them at once, version 1 freezes them."""
    if boundary["kind"] == "cgroup2":
        _write(f"{boundary['path']}/cgroup.kill", b"1")
    elif boundary["kind"] == "cgroup1":
        _write(f"{boundary['path']}/freezer.state", b"FROZEN")
        _write(f"{boundary['path']}/pids.max", b"0")


def _release(boundary: Boundary) -> None:
    if boundary["kind"] == "cgroup1":
        _write(f"{boundary['path']}/freezer.state", b"THAWED")


def _stop_all(find: Callable[[], Found], end: float) -> set[tuple[int, int]]:
    """SIGSTOP whoever is found until nobody new is found."""
    stopped: set[tuple[int, int]] = set()
    while (new := set(find().items()) - stopped) and time.monotonic() < end:
        for pid, ticks in new:
            send(pid, ticks, signal.SIGSTOP)
        stopped |= new
    return stopped


def _await_deaths(boundary: Boundary, victims: set[tuple[int, int]], end: float) -> None:
    for pid, ticks in victims:
        handle = open_process(pid, ticks)
        if handle is not None:
            _poll(handle, select.POLLIN, end)
            os.close(handle)
    if boundary["kind"] == "cgroup2" and not is_empty(boundary):
        # threads may outlive their leader for a moment, and the kernel tells when `populated` changes
        events = os.open(f"{boundary['path']}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        if b"populated 1" in os.read(events, 4096):
            _poll(events, select.POLLPRI, min(end, time.monotonic() + 0.1))
        os.close(events)


def _poll(handle: int, event: int, end: float) -> None:
    poller = select.poll()
    poller.register(handle, event)
    poller.poll(max(0.0, end - time.monotonic()) * 1000)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> bytes:
    """The environment of a process as it was started, or nothing.

    In the middle of an exec a process shows neither environment nor arguments. One that is there is looked at again
    until the exec is through, else it would be missed by the one look that matters.
    """
    end = time.monotonic() + 0.2
    while True:
        environment = _read(f"/proc/{pid}/environ")
        if environment or time.monotonic() >= end:
            return environment
        seen = stat(pid)
        kernel_thread_or_dead = seen is None or seen.virtual_bytes == 0 or not seen.lives
        if kernel_thread_or_dead or _read(f"/proc/{pid}/cmdline"):
            return b""


def _read(path: str, *, whole: bool = True) -> bytes:
    """A file of /proc or of a cgroup, or its first page; nothing if it is gone or is not ours to read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return b""
        raise
    try:
        data = os.read(file, 65536)
        while whole and (chunk := os.read(file, 65536)):
            data += chunk
    except OSError as error:
        if error.errno in _NOT_OURS:
            return b""
        raise
    finally:
        os.close(file)
    return data


def _write(path: str, data: bytes) -> None:
    """Write to a control file of a cgroup, if there is one."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.write(file, data)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
    finally:
        os.close(file)
