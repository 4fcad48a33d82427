"""Looking at files with a task user's own permissions, in a thread of its own (invariant I9).

The kernel keeps credentials per thread; glibc's functions change those of all, so the system calls are made directly.
The thread gets the user's fsuid, fsgid and groups, and gives up every capability: what the user may not open, it may
not open either, links and races included. It is used for nothing else and never gets its rights back. While one is
there, nobody may call os.setuid and the like: glibc ends a process in which they succeed in some threads only.
"""

import asyncio
import ctypes
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Calls:
    """Numbers of system calls."""

    setgroups: int
    setfsuid: int
    setfsgid: int
    capset: int


_MACHINES = {"x86_64": _Calls(116, 122, 123, 126), "aarch64": _Calls(159, 151, 152, 91)}
_OPENAT2 = 437  # everywhere
_AT_FDCWD = -100
_NO_MAGIC_LINKS = 0x02
_CAPABILITY_VERSION_3 = 0x20080522


class RunAsError(Exception):
    """The thread could not become that user: nothing may be opened in its name."""


@dataclass(frozen=True, slots=True)
class RunAs:
    """Whose permissions count."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups."""


class UserThread:
    """A thread that has a user's permissions; without one (None) those of the agent."""

    def __init__(self, run_as: RunAs | None) -> None:
        self._run_as = run_as
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="task-user")

    async def __aenter__(self) -> Self:
        """Start it. Raises RunAsError."""
        try:
            if self._run_as is not None:
                await self.call(partial(_become, self._run_as))
        except BaseException:
            self._executor.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, when what it does now is done."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread, raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def open(self, work: Callable[[], T], close: Callable[[T], None]) -> T:
        """As `call`, for what must be closed also if nobody waits for it any more."""
        opened = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(opened)
        except asyncio.CancelledError:
            opened.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else close(done.result())
            )
            raise


def _become(run_as: RunAs) -> None:
    """Give the calling thread the user's permissions for good. Raises RunAsError."""
    calls = _MACHINES.get(platform.machine())
    if calls is None:
        raise RunAsError(f"threads can't take another user's permissions on {platform.machine()}")
    groups = (ctypes.c_uint32 * len(run_as.groups))(*run_as.groups)
    _checked("setgroups", _system_call(calls.setgroups, ctypes.c_long(len(run_as.groups)), groups))
    # These two tell nothing but the value before: asked again, with a value that can't be, they tell whether it worked.
    for name, number, value in (("setfsgid", calls.setfsgid, run_as.gid), ("setfsuid", calls.setfsuid, run_as.uid)):
        _system_call(number, ctypes.c_long(value))
        if _system_call(number, ctypes.c_long(-1)) != value:
            raise RunAsError(f"{name} {value} is not allowed here")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _checked("capset", _system_call(calls.capset, header, nothing))


def _checked(name: str, result: int) -> None:
    if result < 0:
        raise RunAsError(f"{name}: {os.strerror(ctypes.get_errno())}")


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _system_call(number: int, *arguments: "ctypes._SimpleCData[int] | ctypes.Array[ctypes.c_uint32]") -> int:
    return int(_libc().syscall(ctypes.c_long(number), *arguments))


@cache
def _has_openat2() -> bool:
    handle = _openat2("/", os.O_PATH | os.O_CLOEXEC)
    with suppress(OSError):
        os.close(handle)
    return handle >= 0


def _openat2(path: str, flags: int, directory: int = _AT_FDCWD) -> int:
    how = (ctypes.c_uint64 * 3)(flags, 0, _NO_MAGIC_LINKS)
    name = ctypes.create_string_buffer(os.fsencode(path))
    return int(_libc().syscall(ctypes.c_long(_OPENAT2), ctypes.c_int(directory), name, how, ctypes.c_size_t(24)))


def open_here(path: str, flags: int, directory: int | None = None) -> int:
    """As os.open with `dir_fd`, but no link of /proc is followed: there, `self` would be the agent. Raises OSError."""
    if "\0" in path:
        raise ValueError("embedded null byte")
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    if not _has_openat2():  # a kernel before 5.6
        return os.open(path, flags, dir_fd=directory)
    handle = _openat2(path, flags, _AT_FDCWD if directory is None else directory)
    if handle < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return handle
