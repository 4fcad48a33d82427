"""What the settings allow a task to use, and what the kernel counted when that did not suffice (docs/limits.md)."""

from dataclasses import dataclass, field
from typing import Self

from nodeagent.agent.settings import AgentSettings
from nodeagent.boundary.base import Boundary
from nodeagent.boundary.limits import Counted, Limits
from nodeagent.rules.failures import Detail
from nodeagent.shim.records import OutputCap

NO_CORE = 1
"""Soft RLIMIT_CORE in bytes: less than the kernel writes to a file, and its sign not to start a dump handler, which 0
would not keep it from (core(5))."""


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """The limits of one node; None is without limit."""

    memory_bytes_per_slot: int | None = None
    cpu_cores_per_slot: float | None = None
    pids: int | None = None
    open_files: int | None = None
    output_cap: OutputCap | None = None
    disk_bytes: int | None = None
    resources: dict[str, int] = field(init=False)
    """Soft resource limits, as `Spec.limits` has them."""

    def __post_init__(self) -> None:
        """Work out what is the same for each task."""
        files = {} if self.open_files is None else {"nofile": self.open_files}
        object.__setattr__(self, "resources", {"core": NO_CORE, **files})

    @classmethod
    def of(cls, settings: AgentSettings) -> Self:
        """Return what the settings ask for."""
        cap = None
        if settings.output_head_bytes is not None or settings.output_tail_bytes is not None:
            cap = OutputCap(settings.output_head_bytes or 0, settings.output_tail_bytes or 0)
        return cls(
            memory_bytes_per_slot=settings.memory_bytes_per_slot,
            cpu_cores_per_slot=settings.cpu_cores_per_slot,
            pids=settings.pids_per_task,
            open_files=settings.open_files_per_task,
            output_cap=cap,
            disk_bytes=settings.disk_bytes_per_task,
        )

    def of_boundary(self, slots: int) -> Limits:
        """Return what the kernel is to keep for an execution that takes so many slots."""
        memory, cores = self.memory_bytes_per_slot, self.cpu_cores_per_slot
        return Limits(
            memory_bytes=None if memory is None else memory * slots,
            cpu_cores=None if cores is None else cores * slots,
            pids=self.pids,
        )


def evidence(counted: Counted, limits: Limits) -> tuple[Detail, ...]:
    """Return what the kernel counted, as details of a failure; nothing where it counted nothing.

    Only its own count of out-of-memory kills makes an end one for want of memory: anybody may send a SIGKILL.
    """
    told: list[Detail] = []
    if counted.oom_kills:
        told += [
            ("OutOfMemory", f"{counted.oom_kills} processes of the task were ended by the kernel for want of memory"),
            ("MemoryLimit", None if limits.memory_bytes is None else f"{limits.memory_bytes} bytes"),
            ("PeakMemory", None if counted.peak_memory_bytes is None else f"{counted.peak_memory_bytes} bytes"),
        ]
    if counted.forks_refused:
        told += [
            ("ProcessLimit", f"a new process was refused {counted.forks_refused} times; {limits.pids} are allowed"),
        ]
    return tuple(told)


def limited(boundary: Boundary) -> bool:
    """Whether the kernel counts anything for the boundary."""
    return "memory" in boundary or "pids" in boundary
