"""Boundaries without a kernel object: the shim is subreaper of the attempt, and a marker is in its environment.

While the shim lives this is complete: whoever the task left behind becomes a child of the shim. When the shim has
been killed, or for a whole job session, processes are found by marker and session; one that cleared its environment
and left its session is then not found. That is why a cgroup is chosen wherever one can be had.
"""

from nodeagent.boundary.base import Boundary, SweepResult, below, sweep


class ProcessGroup:
    """Needs nothing but /proc."""

    kind = "process_group"

    def __init__(self, root: str) -> None:
        """`root` makes markers of this node different from another's on the same machine."""
        below(root, root, None)
        self._root = root

    def create(self, name: str, parent: Boundary | None = None) -> Boundary:
        """See BoundaryProvider."""
        return {"kind": self.kind, "marker": below(self._root, name, parent)}

    async def sweep(self, boundary: Boundary) -> SweepResult:
        """See BoundaryProvider."""
        return await sweep(boundary)

    def remove(self, boundary: Boundary) -> None:
        """Nothing was made, so nothing is taken away."""

    async def close(self, seconds: float = 5.0) -> None:
        """Nothing was made, so nothing is taken away."""
