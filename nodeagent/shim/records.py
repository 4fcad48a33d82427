"""The files of an attempt: one frozen dataclass each, written whole or not at all (docs/on-disk-layout.md).

A record is one JSON object. Its first member is the version of the layout, its last one a CRC-32 of everything
before it, so that a torn or edited file is told from a good one. Records are written to a temporary name and renamed.
"""

# ruff: noqa: PTH104
# plain strings: a shim is kept small and fast, and pathlib is neither

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from nodeagent.shim import failpoints

VERSION = 1
LOCK = "lock"
_TAIL = len(',"crc32":"00000000"}')


class RecordError(Exception):
    """A record is there but damaged, or written by a newer version. The text names the file."""


@dataclass(frozen=True, slots=True)
class User:
    """Who the task runs as; numbers, because names may change while an attempt runs."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the shim stops the task by itself, in seconds of CLOCK_BOOTTIME, and the stop reason it then records."""

    boottime_seconds: float
    reason: str = "wall_clock"


@dataclass(frozen=True, slots=True)
class OutputCap:
    """How much of each output file is kept: the first `head_bytes` and the last `tail_bytes`."""

    head_bytes: int
    tail_bytes: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did: processes killed, processes that would not die, and by which proof it knows."""

    killed: int
    remaining: int
    how: str


@dataclass(frozen=True, slots=True)
class Spec:
    """spec.json: everything that a shim needs to run one attempt. The agent writes it before it asks for a launch.

    `boundary` is what a boundary provider's `create` returned. `sweep` is false when leftovers belong to somebody
    else than the attempt (a preparation task's processes live until its job session is swept). `limits` are soft
    resource limits by the lower-case name of their RLIMIT_ constant. `grace_seconds` holds for the deadline.
    """

    FILE: ClassVar[str] = "spec"
    attempt_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdout: str
    stderr: str
    boundary: Mapping[str, str]
    user: User | None = None
    limits: Mapping[str, int] = field(default_factory=lambda: {"core": 0})
    sweep: bool = True
    grace_seconds: float = 10.0
    deadline: Deadline | None = None
    output_cap: OutputCap | None = None
    durability: str = "process"

    def __post_init__(self) -> None:
        """Raise ValueError, naming the property, for what no kernel would take."""
        if not self.argv:
            raise ValueError("argv: needs at least the program")
        for name in ("cwd", "stdout", "stderr"):
            if not getattr(self, name).startswith("/"):
                raise ValueError(f"{name}: must be an absolute path, not {getattr(self, name)!r}")
        if "\0" in "".join((*self.argv, *self.env, *self.env.values(), self.cwd)):
            raise ValueError("argv, env, cwd: must not contain a NUL character")
        if "" in self.env or "=" in "".join(self.env):
            raise ValueError("env: a name must not be empty nor contain '='")
        if self.durability not in ("process", "power"):
            raise ValueError(f"durability: must be 'process' or 'power', not {self.durability!r}")
        if self.output_cap and not self.sweep:
            raise ValueError("output_cap: needs sweep, a pipe must not end before its last writer")


@dataclass(frozen=True, slots=True)
class ShimRecord:
    """shim.json: which process took the attempt. From here on the command may have run."""

    FILE: ClassVar[str] = "shim"
    attempt_id: str
    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class StartedRecord:
    """started.json: the task's first process; `started_at` in seconds since the epoch."""

    FILE: ClassVar[str] = "started"
    attempt_id: str
    pid: int
    start_ticks: int
    started_at: float


@dataclass(frozen=True, slots=True)
class ExecError:
    """Why the command could not be started. `step` is chdir, user, limits, stdout, stderr, boundary or exec."""

    errno: int
    strerror: str
    step: str
    path: str
    cwd: str
    user: int | None
    hint: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What the task's first process and the children it waited for used, as wait4 gave it."""

    user_seconds: float
    system_seconds: float
    max_rss_kib: int
    read_blocks: int
    written_blocks: int


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """exit.json: how the attempt ended.

    One of `exit_code` and `signal` is set when a process ran; `exec_error` when none could be started;
    `never_started` when the attempt was given up before that. Times in seconds since the epoch. `runtime` says who
    vouches for it.
    """

    FILE: ClassVar[str] = "exit"
    attempt_id: str
    ended_at: float
    exit_code: int | None = None
    signal: int | None = None
    core: bool = False
    exec_error: ExecError | None = None
    never_started: bool = False
    started_at: float | None = None
    usage: Usage | None = None
    stop_reason: str | None = None
    runtime: str = "process"


@dataclass(frozen=True, slots=True)
class SweptRecord:
    """swept.json: the proof that nothing of the attempt runs any more; `lost` if the shim died and the agent swept."""

    FILE: ClassVar[str] = "swept"
    attempt_id: str
    killed: int
    remaining: int
    how: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class StopRecord:
    """stop.json: the agent wants the task stopped: SIGTERM, `grace_seconds`, then the boundary is killed."""

    FILE: ClassVar[str] = "stop"
    reason: str
    grace_seconds: float
    requested_at: float


Record = Spec | ShimRecord | StartedRecord | ExitRecord | SweptRecord | StopRecord
R = TypeVar("R", Spec, ShimRecord, StartedRecord, ExitRecord, SweptRecord, StopRecord)
_NESTED: dict[str, type] = {
    "user": User,
    "deadline": Deadline,
    "output_cap": OutputCap,
    "exec_error": ExecError,
    "usage": Usage,
}


def _members(value: Any) -> dict[str, Any]:  # noqa: ANN401 - json's hook takes whatever it cannot write itself
    return {name: getattr(value, name) for name in value.__slots__}


_to_json = json.JSONEncoder(default=_members, separators=(",", ":")).encode


def encode(record: Record) -> bytes:
    """The bytes of a record, checksum included."""
    body = _to_json({"version": VERSION, **_members(record)})[:-1].encode()
    return b'%s,"crc32":"%08x"}' % (body, zlib.crc32(body))


def decode(kind: type[R], data: bytes, where: str) -> R:
    """The record in `data`. Raises RecordError, naming `where`, if it is damaged or of a newer version."""
    body = data[:-_TAIL]
    if data[-_TAIL:] != b',"crc32":"%08x"}' % zlib.crc32(body):
        raise RecordError(f"{where}: checksum does not match, the record is damaged")
    members: dict[str, Any] = json.loads(body + b"}")
    version = members.pop("version", None)
    if version != VERSION:
        raise RecordError(f"{where}: version {version!r}, this program knows {VERSION}")
    try:
        return kind(**{name: _thaw(name, value) for name, value in members.items()})
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: {error}") from error


def _thaw(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value in, the matching Python value out
    if name == "argv":
        return tuple(value)
    if name in _NESTED and value is not None:
        if name == "user":
            value["groups"] = tuple(value["groups"])
        return _NESTED[name](**value)
    return value


def write(directory: str, record: Record, *, durable: bool = False) -> None:
    """Put the record into `directory`, whole or not at all; with `durable` it also survives a power cut.

    Only the holder of the lock, or the agent for spec and stop, writes: that makes records write-once in effect.
    Raises OSError.
    """
    final = f"{directory}/{record.FILE}.json"
    temporary = f"{directory}/.{record.FILE}.json.tmp"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(encode(record))
        while rest:
            rest = rest[os.write(file, rest) :]
        if durable:
            os.fsync(file)
    finally:
        os.close(file)
    failpoints.hit(f"before_{record.FILE}_rename")
    os.rename(temporary, final)
    if durable:
        _sync_directory(directory)


def _sync_directory(directory: str) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(directory: str, kind: type[R]) -> R | None:
    """The record of that kind in `directory`, or None if there is none. Raises RecordError if it is damaged."""
    path = f"{directory}/{kind.FILE}.json"
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = os.read(file, os.fstat(file).st_size + 1)
    finally:
        os.close(file)
    return decode(kind, data, path)


def exists(directory: str, name: str) -> bool:
    """Whether the record of that name (`ExitRecord.FILE`) is in `directory`, damaged or not."""
    return os.access(f"{directory}/{name}.json", os.F_OK)
