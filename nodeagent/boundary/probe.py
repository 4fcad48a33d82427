"""Which kind of boundary works here: found out by making one, putting a process in, killing it and removing it."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nodeagent.boundary.base import BoundaryError, BoundaryProvider
from nodeagent.boundary.cgroup1 import Cgroup1
from nodeagent.boundary.cgroup2 import Cgroup2
from nodeagent.boundary.cgroups import CgroupDirectories, Hierarchy, hierarchies
from nodeagent.boundary.process_group import ProcessGroup
from nodeagent.shim import kernel

KINDS = ("auto", "cgroup2", "cgroup1", "process_group")


@dataclass(frozen=True)
class Choice:
    """The provider that works, and why stronger ones were passed over (for `doctor` and the log)."""

    provider: BoundaryProvider
    passed_over: tuple[str, ...]


def choose(root: str, kind: str = "auto", parent: Path | None = None) -> Choice:
    """Pick the strongest boundary that works, or exactly `kind`. Blocks for some milliseconds.

    `root` names this node's cgroup and markers: one path component, different for each agent of the machine.
    `parent` is an absolute path of a cgroup to work below; by default the one in which this process is.
    Raises BoundaryError if `kind` was asked for by name and does not work.
    """
    if kind not in KINDS:
        raise BoundaryError(f"boundary: must be one of {', '.join(KINDS)}, not {kind!r}")
    passed_over: list[str] = []
    for name, below in _candidates(parent):
        if kind in ("auto", name):
            try:
                return Choice(_tried(_ADAPTERS[name](below, root)), tuple(passed_over))
            except BoundaryError as error:
                passed_over.append(f"{name}: {error}")
    if kind in ("auto", "process_group"):
        return Choice(ProcessGroup(root), tuple(passed_over))
    raise BoundaryError("; ".join(passed_over) or f"{kind}: no such hierarchy is mounted")


_ADAPTERS = {Cgroup2.kind: Cgroup2, Cgroup1.kind: Cgroup1}


def _candidates(parent: Path | None) -> Iterator[tuple[str, Path]]:
    """Kinds and the cgroup to work below, strongest first."""
    found = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    if parent is not None:
        found = [hierarchy for hierarchy in found if parent.is_relative_to(hierarchy.mount)]
    found.sort(key=_strength, reverse=True)
    for hierarchy in found:
        yield (Cgroup2.kind if hierarchy.version == 2 else Cgroup1.kind), parent or hierarchy.own


def _strength(hierarchy: Hierarchy) -> tuple[int, ...]:
    preference = [name in hierarchy.controllers for name in Cgroup1.PREFERRED]
    return hierarchy.version, *preference


def _tried(provider: CgroupDirectories) -> CgroupDirectories:
    """Put a process into a boundary and kill it there: permissions and old kernels show only then."""
    boundary = provider.create("probe")
    if provider.kind == Cgroup2.kind and not Path(boundary["path"], "cgroup.kill").exists():
        provider.remove(boundary)
        raise BoundaryError("this kernel has no cgroup.kill (Linux 5.14)")
    process = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"})
    try:
        Path(boundary["path"], "cgroup.procs").write_text(str(process.pid))
        swept = kernel.sweep_strangers(boundary, seconds=5.0)
    except OSError as error:
        raise BoundaryError(f"cannot move a process into {boundary['path']}: {error.strerror}") from error
    finally:
        process.kill()
        process.wait()
    provider.remove(boundary)
    if (swept.killed, swept.remaining) != (1, 0):
        raise BoundaryError(f"one process in {boundary['path']}, but the sweep says {swept}")
    return provider
