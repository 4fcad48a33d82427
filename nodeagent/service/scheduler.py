"""Which task goes to which node: pure functions of a snapshot (design.md §7).

Tasks are offered in order: priority of the job, then its age (or jobs of one priority in turn, where the pool's
`jobDefaultOrder` is `none`), then the order of the tasks. A task that fits nowhere now, but
could once its node has emptied, reserves the eligible node that has most free slots (what preempted tasks are giving
back counts): later tasks do not take it, so that a large task is never starved by small ones.

What waits is read a few tasks at a time and only as far as it can matter (docs/adr/0026), so that neither a long
queue costs much, nor a job that may start little hides the jobs behind it. What hinders a task on a node is asked of
the same plan that decides: `nodeagent explain` has no second opinion.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from nodeagent.model.enums import NodeFillType


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that takes tasks; `key` is its id in lower case.

    `returning` is how many of its slots are held by tasks that were preempted and have not ended yet.
    """

    num: int
    slots: int
    free_slots: int
    key: str = ""
    dedicated: bool = True
    returning: int = 0


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task that waits; an `exclusive` one takes a whole node (job manager with runExclusive).

    `preferred` is the lower-case id of the node that it goes to if there is room now. `dedicated_only`: it must not
    run on a node that may be taken away (job manager with allowLowPriorityNode false).
    """

    num: int
    job_num: int
    required_slots: int
    exclusive: bool = False
    preferred: str | None = None
    dedicated_only: bool = False


@dataclass(frozen=True, slots=True)
class JobView:
    """An active job of the pool: how many more of its tasks may run (None: no limit), and where they may not."""

    num: int
    headroom: int | None = None
    ineligible_nodes: frozenset[int] = frozenset()
    priority: int = 0


Ready = Callable[[int, int, int, int], Sequence[TaskView]]
"""Reads what waits: (job, after this task, most slots that help, how many) gives tasks in the order of their numbers;
fewer than asked for if there are no more."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision: this task takes that many slots of this node."""

    task_num: int
    node_num: int
    slots: int


class Hindrance(StrEnum):
    """Why a node that takes tasks does not take this one."""

    INELIGIBLE = "ineligible"
    """The job's preparation failed there."""
    NOT_DEDICATED = "notDedicated"
    """It may be taken away, and the task must not run on such a node."""
    TOO_SMALL = "tooSmall"
    """It has fewer slots than the task needs, even when it is empty."""
    RESERVED = "reserved"
    """It is kept for a task that comes before this one and needs more slots than are free."""
    NO_ROOM = "noRoom"
    """Too few of its slots are free, or it is not empty and the task wants it alone."""


class Plan:
    """The state of one decision: what is free, what is reserved, what has been placed so far."""

    def __init__(self, nodes: Iterable[NodeView], fill: NodeFillType = NodeFillType.SPREAD) -> None:
        views = sorted(nodes, key=lambda node: node.num)
        self._fill = fill
        self._total = {node.num: node.slots for node in views}
        self._free = {node.num: node.free_slots for node in views}
        self._key = {node.num: node.key for node in views}
        self._dedicated = frozenset(node.num for node in views if node.dedicated)
        self._returning = {node.num: node.returning for node in views}
        self._open = [node.num for node in views if node.free_slots > 0]
        self._started: dict[int, int] = {}
        self.placements: list[Placement] = []
        self.reserved: dict[int, int] = {}
        """Which task each reserved node is kept for, by the node's number."""
        self.reserver_jobs: dict[int, int] = {}
        """The job of that task."""

    @property
    def full(self) -> bool:
        """Whether no node has room for anything else."""
        return not self._open

    @property
    def nodes(self) -> tuple[int, ...]:
        """The numbers of the nodes of the snapshot."""
        return tuple(self._total)

    def room(self, node_num: int) -> int:
        """Return how many slots of a node are free now."""
        return self._free[node_num]

    def needs(self, node_num: int, task: TaskView) -> int:
        """Return how many slots a task takes of a node."""
        return self._total[node_num] if task.exclusive else task.required_slots

    def headroom(self, job: JobView) -> int | None:
        """Return how many more tasks of a job may start (`maxParallelTasks`); None is no limit."""
        return None if job.headroom is None else job.headroom - self._started.get(job.num, 0)

    def hindrance(self, node_num: int, job: JobView, task: TaskView) -> Hindrance | None:
        """Return why a node of the snapshot does not take a task now; None if it could."""
        if node_num in job.ineligible_nodes:
            return Hindrance.INELIGIBLE
        if task.dedicated_only and node_num not in self._dedicated:
            return Hindrance.NOT_DEDICATED
        if self._total[node_num] < task.required_slots:
            return Hindrance.TOO_SMALL
        if node_num in self.reserved:
            return Hindrance.RESERVED
        if self._free[node_num] < self.needs(node_num, task):
            return Hindrance.NO_ROOM
        return None

    def useful(self, job: JobView) -> tuple[int, int]:
        """Return what of a job is worth reading: the most slots that a task may need, and how many tasks."""
        able = [num for num in self._open if num not in job.ineligible_nodes]
        headroom = self.headroom(job)
        if not able or (headroom is not None and headroom <= 0):
            return 0, 0
        free = sum(self._free[num] for num in able)
        return max(self._total[num] for num in able), min(free, free if headroom is None else headroom) + len(able)

    def offer(self, job: JobView, task: TaskView) -> None:
        """Place a task, or reserve a node for it, or pass it over. Never more slots than are free (invariant I8)."""
        headroom = self.headroom(job)
        if headroom is not None and headroom <= 0:
            return
        chosen, best = None, (True, 0)
        kept, most = None, -1
        for num in self._open:
            hindrance = self.hindrance(num, job, task)
            free = self._free[num]
            if hindrance is None:
                preference = self._preference(num, task)
                if chosen is None or preference < best:
                    chosen, best = num, preference
            elif hindrance is Hindrance.NO_ROOM and free + self._returning[num] > most:
                kept, most = num, free + self._returning[num]
        if chosen is not None:
            self._place(chosen, task)
        elif kept is not None:
            self.reserved[kept] = task.num
            self.reserver_jobs[kept] = task.job_num
            self._open.remove(kept)

    def _preference(self, num: int, task: TaskView) -> tuple[bool, int]:
        """Return what sorts the wanted node first, then the emptiest, or the fullest where the pool packs."""
        free = self._free[num]
        return self._key[num] != task.preferred, free if self._fill is NodeFillType.PACK else -free

    def _place(self, num: int, task: TaskView) -> None:
        slots = self.needs(num, task)
        self._free[num] -= slots
        if self._free[num] == 0:
            self._open.remove(num)
        self._started[task.job_num] = self._started.get(task.job_num, 0) + 1
        self.placements.append(Placement(task.num, num, slots))


class _Line:
    """What waits of one job, read as it is needed."""

    def __init__(self, job: JobView, ready: Ready) -> None:
        self.job = job
        self._ready = ready
        self._read: deque[TaskView] = deque()
        self._last = 0
        self._ended = False

    def take(self, plan: Plan) -> TaskView | None:
        """Return the next task that may matter; None if there is none.

        What is read next always begins with a task that is placed or reserves a node, so reading ends.
        """
        if not self._read and not self._ended:
            most_slots, count = plan.useful(self.job)
            if count == 0:
                return None
            found = self._ready(self.job.num, self._last, most_slots, count)
            self._ended = len(found) < count
            self._read.extend(found)
            if found:
                self._last = found[-1].num
        return self._read.popleft() if self._read else None


def schedule(
    nodes: Iterable[NodeView],
    jobs: Iterable[JobView],
    ready: Ready,
    *,
    fill: NodeFillType = NodeFillType.SPREAD,
    in_turn: bool = False,
    before: int | None = None,
) -> Plan:
    """Decide what starts now; `jobs` come in their order, and are read only as far as there is room.

    `in_turn`: jobs of the same priority take turns, one task each. `before` ends the decision when the turn of this
    task has come: what the plan says then is what the task was told.
    """
    plan = Plan(nodes, fill)
    for group in _groups(jobs, in_turn=in_turn):
        lines = deque(_Line(job, ready) for job in group)
        while lines and not plan.full:
            line = lines.popleft()
            task = line.take(plan)
            if task is None:
                continue
            if task.num == before:
                return plan
            plan.offer(line.job, task)
            if in_turn:
                lines.append(line)
            else:
                lines.appendleft(line)
        if plan.full:
            break
    return plan


def _groups(jobs: Iterable[JobView], *, in_turn: bool) -> Iterator[list[JobView]]:
    if in_turn:
        for _, group in groupby(jobs, key=lambda job: job.priority):
            yield list(group)
    else:
        for job in jobs:
            yield [job]
