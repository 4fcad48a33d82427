"""Where cgroups are mounted and which one is ours, from the texts of machines of all three kinds; and names."""

from pathlib import Path

import pytest

from nodeagent.boundary.base import BoundaryError, below
from nodeagent.boundary.cgroups import Hierarchy, hierarchies
from nodeagent.boundary.process_group import ProcessGroup

PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def test_pure_version_2() -> None:
    """One hierarchy, and the unit's cgroup in it."""
    assert hierarchies(PURE, "0::/system.slice/nodeagent.service\n") == [
        Hierarchy(2, Path("/sys/fs/cgroup"), frozenset(), Path("/sys/fs/cgroup/system.slice/nodeagent.service"))
    ]


def test_hybrid() -> None:
    """Every hierarchy with its controllers, named ones too, each with the cgroup that this process has there."""
    found = hierarchies(HYBRID, "5:cpu,cpuacct:/a\n4:freezer:/\n1:name=systemd:/init.scope\n0::/b\n")
    assert [(one.version, set(one.controllers), str(one.own)) for one in found] == [
        (1, {"cpu", "cpuacct"}, "/sys/fs/cgroup/cpu,cpuacct/a"),
        (1, {"freezer"}, "/sys/fs/cgroup/freezer"),
        (1, {"name=systemd"}, "/sys/fs/cgroup/systemd/init.scope"),
        (2, set(), "/sys/fs/cgroup/unified/b"),
    ]


def test_container_sees_its_part_of_the_tree() -> None:
    """A bind-mounted part is entered where it begins; a cgroup outside of it is taken to be the mount itself."""
    part = "40 1 0:26 /docker/c1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    assert [one.own for one in hierarchies(part, "0::/docker/c1/x\n")] == [Path("/sys/fs/cgroup/x")]
    assert [one.own for one in hierarchies(part, "0::/docker/c2\n")] == [Path("/sys/fs/cgroup")]


def test_mount_point_with_a_blank() -> None:
    """The kernel's octal escapes in a mount point are undone."""
    (found,) = hierarchies("40 1 0:26 / /my\\040cgroups rw - cgroup2 none rw\n", "0::/\n")
    assert found.mount == Path("/my cgroups")


def test_no_cgroups_at_all() -> None:
    """A machine without them has none, and that is no error."""
    assert hierarchies("1 1 0:1 / / rw - ext4 /dev/vda rw\n", "") == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "a\n", "x" * 201, "-rf"])
def test_name_must_be_one_plain_component(name: str) -> None:
    """A name that could leave its parent, or hide, is refused."""
    with pytest.raises(BoundaryError, match="name"):
        below("root", name, None)


def test_markers_nest_like_boundaries() -> None:
    """The marker of an attempt begins with its session's, that one with the node's."""
    provider = ProcessGroup("node")
    session = provider.create("job-1")
    assert session == {"kind": "process_group", "marker": "/node/job-1"}
    assert provider.create("attempt", session)["marker"] == "/node/job-1/attempt"
