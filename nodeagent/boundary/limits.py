"""Limits that the kernel keeps for a boundary: memory, processor, number of processes; and what it counted.

Each controller lives in one hierarchy: the one of the containment, if that has it, else another one, in which each
boundary then has a directory of its own. The boundary names it by the controller (`memory`, `cpu`, `pids`: a cgroup's
directory), so that whoever reads spec.json knows where to look. Containment alone decides who is swept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeagent.boundary.base import Boundary, BoundaryError, BoundaryProvider, SweepResult
from nodeagent.boundary.cgroups import Hierarchy, hierarchies
from nodeagent.shim import kernel

CONTROLLERS = ("memory", "cpu", "pids")
PERIOD_MICROSECONDS = 100_000
"""Over which the kernel counts processor time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the processes of one boundary may use together; None is without limit."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    pids: int | None = None

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers that it takes to keep these."""
        values = zip(CONTROLLERS, (self.memory_bytes, self.cpu_cores, self.pids), strict=True)
        return frozenset(name for name, value in values if value is not None)


@dataclass(frozen=True, slots=True)
class Counted:
    """What the kernel counted in a boundary; None where it was not asked to count, or the cgroup is gone."""

    oom_kills: int | None = None
    """Processes of the boundary that the kernel's out-of-memory killer ended."""
    peak_memory_bytes: int | None = None
    """Highest charge, page cache included."""
    forks_refused: int | None = None
    """Times that the limit of processes refused a new one."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one controller is: the version of its hierarchy, and the cgroup of this node in it."""

    version: int
    base: Path


class LimitedBoundaries:
    """Boundaries of another provider that can be limited. See BoundaryProvider."""

    def __init__(
        self,
        containment: BoundaryProvider,
        root: str,
        controllers: Iterable[str],
        found: Sequence[Hierarchy] | None = None,
    ) -> None:
        """Find a place for each of the controllers and make it usable. Raises BoundaryError, naming the controller.

        `root` is that of `probe.choose`; `found` the hierarchies of the machine, looked up if not given.
        """
        if found is None:
            found = hierarchies(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        self.kind = containment.kind
        self._containment = containment
        base = getattr(containment, "base", None)
        self._places = {name: _place(name, root, base, found) for name in sorted(controllers)}
        self._others = {place.base for place in self._places.values()} - {base}
        for name, place in self._places.items():
            _make(place.base, name)
            if place.version == 2:
                _delegate(place.base.parent, name)
                _delegate(place.base, name)

    def create(self, name: str, parent: Boundary | None = None) -> Boundary:
        """See BoundaryProvider."""
        boundary = self._containment.create(name, parent)
        for controller, place in self._places.items():
            if place.base not in self._others:
                path = Path(boundary["path"])
            else:
                path = Path(parent[controller] if parent else place.base) / name
                _make(path, controller)
            if place.version == 2 and path.parent != place.base:
                _delegate(path.parent, controller)
            boundary[controller] = str(path)
        return boundary

    def limit(self, boundary: Boundary, limits: Limits) -> None:
        """Set the limits of a boundary, before anything runs in it. Raises BoundaryError."""
        for controller in sorted(limits.controllers):
            for file, value in _settings(controller, limits, self._places[controller].version):
                path = Path(boundary[controller], file)
                try:
                    path.write_text(value)
                except FileNotFoundError:
                    if file not in _OPTIONAL:
                        raise BoundaryError(f"the kernel has no {path}") from None
                except OSError as error:
                    raise BoundaryError(f"cannot write {value} to {path}: {error.strerror}") from error

    async def sweep(self, boundary: Boundary) -> SweepResult:
        """See BoundaryProvider."""
        return await self._containment.sweep(boundary)

    def remove(self, boundary: Boundary) -> None:
        """See BoundaryProvider."""
        self._containment.remove(boundary)
        for path in kernel.limiting_cgroups(boundary):
            _remove_tree(Path(path))

    async def close(self, seconds: float = 5.0) -> None:
        """See BoundaryProvider."""
        await self._containment.close(seconds)
        for base in self._others:
            _remove_tree(base)


def counted(boundary: Mapping[str, str]) -> Counted:
    """Return what the kernel has counted in a boundary so far; its cgroups are read, nothing is concluded."""
    memory, pids = boundary.get("memory"), boundary.get("pids")
    return Counted(
        oom_kills=None if memory is None else _first(memory, ("memory.events", "memory.oom_control"), "oom_kill"),
        peak_memory_bytes=None if memory is None else _first(memory, ("memory.peak", "memory.max_usage_in_bytes")),
        forks_refused=None if pids is None else _first(pids, ("pids.events",), "max"),
    )


def _first(directory: str, files: Iterable[str], key: str | None = None) -> int | None:
    """The number in the first of these files that is there: the whole file, or after `key`."""
    for file in files:
        try:
            words = Path(directory, file).read_text().split()
        except OSError:
            continue  # the other version's file, or an older kernel's cgroup
        if key is None:
            return int(words[0])
        pairs = dict(zip(words[::2], words[1::2], strict=False))
        if key in pairs:
            return int(pairs[key])
    return None


_OPTIONAL = frozenset({"memory.memsw.limit_in_bytes", "memory.swap.max"})
"""Absent where the kernel does not count swap."""


def _settings(controller: str, limits: Limits, version: int) -> list[tuple[str, str]]:
    """The control files of a limit and what is written into them, in this order."""
    if controller == "pids":
        return [("pids.max", str(limits.pids))]
    if controller == "memory":
        # swap would make the limit one of speed
        if version == 1:
            value = str(limits.memory_bytes)
            return [("memory.limit_in_bytes", value), ("memory.memsw.limit_in_bytes", value)]
        return [("memory.max", str(limits.memory_bytes)), ("memory.swap.max", "0")]
    quota = round((limits.cpu_cores or 0) * PERIOD_MICROSECONDS)
    if version == 1:
        return [("cpu.cfs_period_us", str(PERIOD_MICROSECONDS)), ("cpu.cfs_quota_us", str(quota))]
    return [("cpu.max", f"{quota} {PERIOD_MICROSECONDS}")]


def _place(controller: str, root: str, contained: Path | None, found: Sequence[Hierarchy]) -> _Place:
    for hierarchy in found:
        base = hierarchy.own / root
        if contained is not None and contained.is_relative_to(hierarchy.mount):
            base = contained
        if controller in _controllers(hierarchy, base.parent):
            return _Place(hierarchy.version, base)
    raise BoundaryError(f"{controller}: no cgroup hierarchy of this machine offers that controller here")


def _controllers(hierarchy: Hierarchy, parent: Path) -> frozenset[str]:
    if hierarchy.version == 1:
        return hierarchy.controllers
    try:
        return frozenset((parent / "cgroup.controllers").read_text().split())
    except OSError:
        return frozenset()


def _delegate(cgroup: Path, controller: str) -> None:
    """Let a version 2 cgroup hand the controller on to those below it; only one without processes of its own can."""
    file = cgroup / "cgroup.subtree_control"
    try:
        if controller not in file.read_text().split():
            file.write_text(f"+{controller}")
    except OSError as error:
        raise BoundaryError(f"{controller}: cannot be handed on in {file}: {error.strerror}") from error


def _make(path: Path, controller: str) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BoundaryError(f"{controller}: cannot make the cgroup {path}: {error.strerror}") from error


def _remove_tree(path: Path) -> None:
    if not path.is_dir():
        return
    for child in path.iterdir():
        if child.is_dir():
            _remove_tree(child)
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BoundaryError(f"cannot remove the cgroup {path}: {error.strerror}") from error
