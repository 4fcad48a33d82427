"""Boundaries in the unified cgroup hierarchy, pure or beside version 1: `cgroup.kill` ends them, at once and whole."""

from nodeagent.boundary.cgroups import CgroupDirectories


class Cgroup2(CgroupDirectories):
    """Needs a writable (delegated) cgroup and a kernel with cgroup.kill (5.14)."""

    kind = "cgroup2"
