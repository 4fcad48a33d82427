"""Boundaries in one version 1 hierarchy: frozen (freezer) or kept from forking (pids), killed, and looked at again."""

from nodeagent.boundary.cgroups import CgroupDirectories


class Cgroup1(CgroupDirectories):
    """Any hierarchy will do to hold processes together; `PREFERRED` ones also stop a storm of forks."""

    kind = "cgroup1"
    PREFERRED = ("freezer", "pids")
