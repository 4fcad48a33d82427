"""Limits in the unified hierarchy, written into a folder that has its files: which are written, where, with what."""

from pathlib import Path

import pytest

from nodeagent.boundary.base import BoundaryError
from nodeagent.boundary.cgroup2 import Cgroup2
from nodeagent.boundary.cgroups import Hierarchy
from nodeagent.boundary.limits import CONTROLLERS, LimitedBoundaries, Limits, counted
from nodeagent.shim import kernel


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """A folder with the files of a delegated cgroup in version 2."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    return tmp_path


def unified(mount: Path, monkeypatch: pytest.MonkeyPatch) -> LimitedBoundaries:
    """Boundaries in it; the kernel's files appear with each directory that is made."""
    made = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        made(path, mode, parents, exist_ok)
        for name in ("cgroup.subtree_control", "memory.max", "memory.swap.max", "cpu.max", "pids.max"):
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    (mount / "cgroup.subtree_control").touch()
    found = [Hierarchy(2, mount, frozenset(), mount)]
    return LimitedBoundaries(Cgroup2(mount, "node"), "node", CONTROLLERS, found)


def test_version_2_limits_the_boundary_itself(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each controller is handed on from the top to the boundary's parent, and the boundary's own files are written."""
    boundaries = unified(mount, monkeypatch)
    session = boundaries.create("session")
    boundary = boundaries.create("a", session)
    boundaries.limit(boundary, Limits(memory_bytes=1 << 26, cpu_cores=1.5, pids=9))
    path = mount / "node" / "session" / "a"
    assert {boundary[name] for name in CONTROLLERS} == {str(path)} == {boundary["path"]}
    assert kernel.limiting_cgroups(boundary) == []
    assert kernel.is_limited(boundary)
    written = {name: (path / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max", "pids.max")}
    assert written == {"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "9"}
    for parent in (mount, mount / "node", mount / "node" / "session"):
        assert (parent / "cgroup.subtree_control").read_text().startswith("+")


def test_version_2_counts(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills come from memory.events, `oom_kill` and not `oom`; a cgroup that is gone has counted nothing."""
    boundary = unified(mount, monkeypatch).create("a")
    path = Path(boundary["path"])
    assert counted(boundary).oom_kills is None
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 31\noom 4\noom_kill 2\noom_group_kill 0\n")
    (path / "memory.peak").write_text("1234\n")
    (path / "pids.events").write_text("max 7\n")
    assert (counted(boundary).oom_kills, counted(boundary).peak_memory_bytes, counted(boundary).forks_refused) == (
        2,
        1234,
        7,
    )


def test_a_controller_that_cannot_be_had_is_named(mount: Path) -> None:
    """Not offered here, or not to be handed on because the cgroup has processes of its own."""
    (mount / "cgroup.controllers").write_text("cpu\n")
    found = [Hierarchy(2, mount, frozenset(), mount)]
    with pytest.raises(BoundaryError, match="memory: no cgroup hierarchy of this machine offers"):
        LimitedBoundaries(Cgroup2(mount, "node"), "node", ["memory"], found)
    (mount / "cgroup.subtree_control").mkdir()
    with pytest.raises(BoundaryError, match="cpu: cannot be handed on"):
        LimitedBoundaries(Cgroup2(mount, "node"), "node", ["cpu"], found)
