"""Which task goes to which node: a pure function of a snapshot (design.md §7).

Tasks are taken in the order of the snapshot (job priority, then age of the job, then order of the tasks). A task
that fits nowhere now, but could once its node has emptied, reserves the eligible node that has most free slots:
later tasks do not take it, so that a large task is never starved by small ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nodeagent.model.enums import NodeFillType


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that takes tasks."""

    num: int
    slots: int
    free_slots: int


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task that waits; an `exclusive` one takes a whole node (job manager with runExclusive)."""

    num: int
    job_num: int
    required_slots: int
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class JobView:
    """An active job of the pool: how many more of its tasks may run (None: no limit), and where they may not."""

    num: int
    headroom: int | None = None
    ineligible_nodes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One pool at one moment; `tasks` in the order in which they want to run."""

    nodes: tuple[NodeView, ...]
    jobs: tuple[JobView, ...]
    tasks: tuple[TaskView, ...]
    fill: NodeFillType = NodeFillType.SPREAD


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision: this task takes that many slots of this node."""

    task_num: int
    node_num: int
    slots: int


def schedule(snapshot: Snapshot) -> list[Placement]:
    """Return what to start now, in order. Never more slots than a node has free (invariant I8)."""
    free = {node.num: node.free_slots for node in snapshot.nodes}
    total = {node.num: node.slots for node in snapshot.nodes}
    jobs = {job.num: job for job in snapshot.jobs}
    headroom = {job.num: job.headroom for job in snapshot.jobs if job.headroom is not None}
    reserved: set[int] = set()
    placements: list[Placement] = []
    for task in snapshot.tasks:
        if len(reserved) == len(free):
            break
        job = jobs[task.job_num]
        if headroom.get(job.num, 1) <= 0:
            continue
        able = [num for num in free if num not in reserved and num not in job.ineligible_nodes]
        node = _choose(task, able, free, total, snapshot.fill)
        if node is None:
            waiting = [num for num in able if total[num] >= task.required_slots]
            if waiting:
                reserved.add(max(waiting, key=lambda num: (free[num], -num)))
            continue
        slots = total[node] if task.exclusive else task.required_slots
        free[node] -= slots
        if job.num in headroom:
            headroom[job.num] = (headroom[job.num] or 0) - 1
        placements.append(Placement(task.num, node, slots))
    return placements


def _choose(
    task: TaskView, able: Iterable[int], free: dict[int, int], total: dict[int, int], fill: NodeFillType
) -> int | None:
    fitting = [
        num
        for num in able
        if free[num] >= (max(total[num], task.required_slots) if task.exclusive else task.required_slots)
    ]
    if not fitting:
        return None
    if fill is NodeFillType.PACK:
        return min(fitting, key=lambda num: (free[num], num))
    return min(fitting, key=lambda num: (-free[num], num))
