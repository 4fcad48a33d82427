"""What every boundary provider offers, and what all of them share: names, markers, sweeping."""

import asyncio
import re
from typing import Protocol

from nodeagent.shim import kernel
from nodeagent.shim.records import Sweep as SweepResult

__all__ = ["Boundary", "BoundaryError", "BoundaryProvider", "SweepResult", "below", "sweep"]

Boundary = dict[str, str]
"""What is written into spec.json; see `shim.kernel` for its members."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class BoundaryError(Exception):
    """A boundary could not be made or removed; the text says which and why."""


class BoundaryProvider(Protocol):
    """Makes, sweeps and removes boundaries of one kind."""

    kind: str

    def create(self, name: str, parent: Boundary | None = None) -> Boundary:
        """Make a boundary, below `parent` (an attempt in its job session) or below the node. Repeating is harmless.

        Raises BoundaryError for a name that is no single path component, or if the kernel refuses.
        """

    async def sweep(self, boundary: Boundary) -> SweepResult:
        """Kill all that lives in the boundary and below it, and prove that it is empty (or say what remains)."""

    def remove(self, boundary: Boundary) -> None:
        """Take away the boundary and those below it; harmless if it is gone. Raises BoundaryError if it is in use."""

    async def close(self, seconds: float = 5.0) -> None:
        """Take away what the provider itself made, once the last shim is gone.

        Raises BoundaryError if after `seconds` something still lives in it.
        """


def below(root: str, name: str, parent: Boundary | None) -> str:
    """The marker of a new boundary. Raises BoundaryError."""
    if not _NAME.fullmatch(name):
        raise BoundaryError(f"name: {name!r} must be letters, digits, '.', '_' and '-', at most 200, no leading '.'")
    return f"{parent['marker'] if parent else '/' + root}/{name}"


async def sweep(boundary: Boundary) -> SweepResult:
    """Sweep from outside, by cgroup and by marker, in a thread: it takes as long as processes take to die."""
    return await asyncio.to_thread(kernel.sweep_strangers, boundary)
