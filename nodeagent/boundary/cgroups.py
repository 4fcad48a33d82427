"""What both versions of cgroups share: where a hierarchy is mounted, and a directory per boundary."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from nodeagent.boundary.base import Boundary, BoundaryError, SweepResult, below, sweep
from nodeagent.shim import kernel

HOME = "shims"
"""The cgroup beside the boundaries in which shims sit."""


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy: `version` 1 or 2, where it is, its `controllers`, and this process's cgroup in it."""

    version: int
    mount: Path
    controllers: frozenset[str]
    own: Path


def hierarchies(mountinfo: str, memberships: str) -> list[Hierarchy]:
    """All hierarchies of this machine that this process can see.

    `mountinfo` and `memberships` are the texts of /proc/self/mountinfo and /proc/self/cgroup. A cgroup outside of
    what is mounted (a container without its own cgroup namespace) is taken to be the mount's root.
    """
    member: dict[frozenset[str], str] = {}
    for line in memberships.splitlines():
        _, listed, path = line.split(":", 2)
        member[frozenset(filter(None, listed.split(",")))] = path
    found: list[Hierarchy] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount = (_unescape(field) for field in left.split()[3:5])
        kind, _, options = right.split()[:3]
        if kind == "cgroup2":
            names: frozenset[str] = frozenset()
        elif kind == "cgroup":
            names = _v1_names(options, member)
        else:
            continue
        if names in member:
            own = _beneath(root, member[names])
            found.append(Hierarchy(2 if kind == "cgroup2" else 1, Path(mount), names, Path(mount) / own))
    return found


def _v1_names(options: str, member: dict[frozenset[str], str]) -> frozenset[str]:
    of_mount = set(options.split(","))
    return next((names for names in member if names and names <= of_mount), frozenset({options}))


def _beneath(root: str, path: str) -> str:
    relative = os.path.relpath(path, root)
    return "." if relative.startswith("..") else relative


def _unescape(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


class CgroupDirectories:
    """Boundaries as directories below one cgroup, `<parent>/<root>`; the two versions differ only in `kind`."""

    kind = ""

    def __init__(self, parent: Path, root: str) -> None:
        """Use or make the cgroup `root` below `parent`. Raises BoundaryError if that is refused."""
        below(root, root, None)
        self._root = root
        self.base = parent / root
        self._home = self.base / HOME
        self._make(self._home)

    def create(self, name: str, parent: Boundary | None = None) -> Boundary:
        """See BoundaryProvider."""
        marker = below(self._root, name, parent)
        if parent is None and name == HOME:
            raise BoundaryError(f"name: {HOME!r} is where the shims sit")
        path = Path(parent["path"] if parent else self.base) / name
        self._make(path)
        return {"kind": self.kind, "marker": marker, "path": str(path), "home": str(self._home)}

    async def sweep(self, boundary: Boundary) -> SweepResult:
        """See BoundaryProvider."""
        return await sweep(boundary)

    def remove(self, boundary: Boundary) -> None:
        """See BoundaryProvider."""
        _remove(boundary["path"])

    async def close(self, seconds: float = 5.0) -> None:
        """See BoundaryProvider."""
        whole = {"kind": self.kind, "path": str(self.base)}
        if not await asyncio.to_thread(kernel.await_empty, whole, seconds):
            raise BoundaryError(f"{self.base}: processes {sorted(kernel.members(whole))} still live in it")
        _remove(str(self.base))

    @staticmethod
    def _make(path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BoundaryError(f"cannot make the cgroup {path}: {error.strerror}") from error


def _remove(path: str) -> None:
    try:
        Path(path).rmdir()  # nearly always a leaf
    except FileNotFoundError:
        return
    except OSError:
        _remove_tree(path)


def _remove_tree(path: str) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        try:
            Path(directory).rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BoundaryError(f"cannot remove the cgroup {directory}: {error.strerror}") from error
