"""End everything of a node that any life of its agent has begun: shims, tasks, and what tasks have left running.

What is killed with its shim has no record of its end: the next life finds it lost, and invents nothing.
"""

import asyncio
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from nodeagent.boundary.base import BoundaryProvider
from nodeagent.boundary.cgroup1 import Cgroup1
from nodeagent.boundary.cgroup2 import Cgroup2
from nodeagent.boundary.process_group import ProcessGroup
from nodeagent.runtime import evidence
from nodeagent.runtime.base import RuntimeFailure
from nodeagent.shim import kernel, records

SWEEPS = 5
"""How often a boundary is swept whose processes hang in the kernel, before that is told."""


async def end_everything(attempts: Path) -> None:
    """Kill all that runs below `state_dir/attempts`, shims first. Raises RuntimeFailure for what would not die."""
    names = await asyncio.to_thread(_with_spec, attempts)
    await asyncio.to_thread(_kill_shims, attempts, names)
    await sweep_nodes(attempts, names)


def _with_spec(attempts: Path) -> list[str]:
    return sorted(entry.name for entry in attempts.iterdir() if records.exists(str(entry), records.Spec.FILE))


def _kill_shims(attempts: Path, names: Iterable[str]) -> None:
    """A shim that saw its task being killed would record that as the task's end."""
    for name in names:
        shim = evidence.holder(str(attempts / name))
        if shim is not None:
            kernel.send(*shim, signal.SIGKILL)


async def sweep_nodes(attempts: Path, names: Iterable[str]) -> None:
    """Sweep the node's own boundary, in which all others lie: what tasks have left, and idle shims.

    `names` are executions whose specs tell what boundaries there are. Raises RuntimeFailure.
    """
    swept: set[str] = set()
    for name in names:
        spec = records.read(str(attempts / name), records.Spec)
        if spec is None:
            continue
        root = spec.boundary["marker"].split("/")[1]
        place = spec.boundary.get("home", root)
        if place not in swept:
            swept.add(place)
            await _sweep_node(spec.boundary, root)


async def _sweep_node(boundary: Mapping[str, str], root: str) -> None:
    whole = {"kind": boundary["kind"], "marker": f"/{root}"}
    if "home" in boundary:
        whole["path"] = str(Path(boundary["home"]).parent)
    provider = _provider(whole, root)
    for _ in range(SWEEPS):
        left = await provider.sweep(whole)
        if not left.remaining:
            return await provider.close()
    raise RuntimeFailure(f"{left.remaining} processes of {root} will not die")


def _provider(whole: Mapping[str, str], root: str) -> BoundaryProvider:
    if whole["kind"] == ProcessGroup.kind:
        return ProcessGroup(root)
    adapters = {Cgroup1.kind: Cgroup1, Cgroup2.kind: Cgroup2}
    return adapters[whole["kind"]](Path(whole["path"]).parent, root)
