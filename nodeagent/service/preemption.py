"""Which tasks are asked to make way for tasks of jobs with a higher priority (`allowTaskPreemption`): pure.

It follows a decision of the scheduler: what could start has been placed. A task that still waits, and that a node
could take once tasks of jobs with a lower priority have gone back to the queue, has them stopped: those of the lowest
priority first, the youngest first, and no more than it needs. What is ending already counts as free, so nothing is
stopped twice for the same waiting task (docs/adr/0028).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nodeagent.service.scheduler import Hindrance, JobView, Plan, Ready, TaskView

_AT_ONCE = 20
"""So many tasks of a line are read at a time."""


@dataclass(frozen=True, slots=True)
class Holder:
    """An attempt that holds slots, and has been asked to end (`ending`), or may be (`preemptible`)."""

    attempt_num: int
    node_num: int
    slots: int
    priority: int
    preemptible: bool
    ending: bool = False


class Preemption:
    """A decision: which attempts are to be stopped, and which node each waiting task gets once they have ended."""

    def __init__(self, plan: Plan, holders: Iterable[Holder]) -> None:
        self._plan = plan
        self._soon = {num: plan.room(num) for num in plan.nodes}
        self._victims: dict[int, list[Holder]] = {num: [] for num in plan.nodes}
        self._kept = dict(plan.reserved)
        self._placed = frozenset(placement.task_num for placement in plan.placements)
        self.lowest: int | None = None
        """The lowest priority that something makes way from; None if nothing does."""
        self.stops: list[int] = []
        """Attempts that are to be stopped."""
        self.awaited: dict[int, int] = {}
        """Which node each task waits for, by the task's number: enough of what holds its slots is ending."""
        for holder in sorted(holders, key=lambda item: (item.priority, -item.attempt_num)):
            self._add(holder)

    def _add(self, holder: Holder) -> None:
        if holder.node_num not in self._soon:
            return
        if holder.preemptible and self.lowest is None:
            self.lowest = holder.priority
        if holder.ending:
            self._soon[holder.node_num] += holder.slots
        elif holder.preemptible:
            self._victims[holder.node_num].append(holder)

    def serve(self, job: JobView, ready: Ready) -> None:
        """Make way for the tasks of a job that still wait. Jobs come in their order."""
        headroom, after, ended = self._plan.headroom(job), 0, False
        while not ended and (headroom is None or headroom > 0):
            most = self._most(job, after)
            if most == 0:
                return
            found = ready(job.num, after, most, _AT_ONCE)
            ended = len(found) < _AT_ONCE
            for task in found:
                after = task.num
                if task.num not in self._placed and (headroom is None or headroom > 0) and self._claim(job, task):
                    headroom = None if headroom is None else headroom - 1

    def _most(self, job: JobView, after: int) -> int:
        """Return how many slots a task behind `after` may need at most, so that it is worth reading.

        The first that needs no more is served by some node, or has one kept for itself, so reading ends.
        """
        able = (num for num in self._soon if num not in job.ineligible_nodes and self._counts(num, job, after))
        return max((self._reach(num, job) for num in able), default=0)

    def _counts(self, num: int, job: JobView, after: int) -> bool:
        kept = self._kept.get(num)
        return kept is None or (kept > after and self._plan.reserver_jobs[num] == job.num)

    def _reach(self, num: int, job: JobView) -> int:
        return self._soon[num] + sum(holder.slots for holder in self._victims[num] if holder.priority < job.priority)

    def _claim(self, job: JobView, task: TaskView) -> bool:
        """Promise a task the slots of a node that are ending, or make some end; tell whether that is possible."""
        able = {num: self._plan.needs(num, task) for num in self._soon if self._is_able(num, job, task)}
        waits = [num for num, need in able.items() if self._soon[num] >= need]
        if waits:
            self._promise(min(waits, key=lambda num: (self._soon[num] - able[num], num)), task)
            return True
        options = [(num, self._fewest(num, need, job)) for num, need in able.items()]
        possible = [(num, victims) for num, victims in options if victims]
        if not possible:
            return False
        num, victims = min(possible, key=_cost)
        for holder in victims:
            self._victims[num].remove(holder)
            self._soon[num] += holder.slots
            self.stops.append(holder.attempt_num)
        self._promise(num, task)
        return True

    def _is_able(self, num: int, job: JobView, task: TaskView) -> bool:
        """Tell whether a node would take the task if it were empty, and is kept for no other."""
        hindrance = self._plan.hindrance(num, job, task)
        if hindrance is Hindrance.RESERVED:
            return self._kept.get(num, task.num) == task.num
        return hindrance is None or hindrance is Hindrance.NO_ROOM

    def _fewest(self, num: int, need: int, job: JobView) -> list[Holder]:
        """Return who has to leave a node so that a task has room there; nothing if that is not enough."""
        missing, chosen = need - self._soon[num], list[Holder]()
        for holder in self._victims[num]:
            if missing > 0 and holder.priority < job.priority:
                chosen.append(holder)
                missing -= holder.slots
        if missing > 0:
            return []
        for holder in reversed(list(chosen)):
            if missing + holder.slots <= 0:
                chosen.remove(holder)
                missing += holder.slots
        return chosen

    def _promise(self, num: int, task: TaskView) -> None:
        self._soon[num] -= self._plan.needs(num, task)
        self.awaited[task.num] = num
        self._kept = {node: kept for node, kept in self._kept.items() if kept != task.num}


def _cost(option: tuple[int, list[Holder]]) -> tuple[int, int, int, int, int]:
    """Return what sorts first whoever harms the least: low priority, few slots, few tasks, young ones."""
    num, victims = option
    return (
        max(holder.priority for holder in victims),
        sum(holder.slots for holder in victims),
        len(victims),
        -min(holder.attempt_num for holder in victims),
        num,
    )


def preempt(plan: Plan, jobs: Iterable[JobView], ready: Ready, holders: Iterable[Holder]) -> Preemption:
    """Decide who makes way; `jobs` come in their order, highest priority first."""
    decision = Preemption(plan, holders)
    for job in jobs:
        if decision.lowest is None or job.priority <= decision.lowest:
            break
        decision.serve(job, ready)
    return decision
