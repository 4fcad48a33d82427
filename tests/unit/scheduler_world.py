"""A simulated service around the scheduler: virtual time, nodes that fail, preparations that fail, retries.

It knows of the service only what the scheduler is told, and checks after every decision what must hold of it
(design.md §8). Nothing here is random but by the seed.
"""

import heapq
import random
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from nodeagent.model.enums import NodeFillType
from nodeagent.service.preemption import Holder, Preemption, preempt
from nodeagent.service.scheduler import Hindrance, JobView, NodeView, Placement, Plan, TaskView, schedule


@dataclass
class SimNode:
    """A node; `life` counts how often it came up."""

    num: int
    slots: int
    up: bool = True
    life: int = 1
    held: dict[int, int] = field(default_factory=dict)
    """Slots by attempt."""

    @property
    def free(self) -> int:
        """Slots that no attempt holds."""
        return self.slots - sum(self.held.values())


@dataclass
class SimJob:
    """A job; its preparation fails on the nodes of `bad_nodes`, once it has been tried there."""

    num: int
    priority: int = 0
    max_parallel: int | None = None
    preemptible: bool = False
    bad_nodes: frozenset[int] = frozenset()
    ineligible: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    last_served: int = 0


@dataclass
class SimTask:
    """A task; `failures` is how often its command fails before it succeeds."""

    num: int
    job: SimJob
    slots: int
    duration: int
    exclusive: bool = False
    failures: int = 0
    retries_allowed: int = 0
    retries: int = 0
    ended: str | None = None
    attempt: int | None = None
    waiting_since: int = 0
    started: int | None = None


class SchedulerWorld:
    """Runs the scheduler until nothing is left to happen."""

    def __init__(self, seed: int, *, fill: NodeFillType = NodeFillType.SPREAD, in_turn: bool = False) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        self.fill = fill
        self.in_turn = in_turn
        self.now = 0
        self.nodes: dict[int, SimNode] = {}
        self.jobs: dict[int, SimJob] = {}
        self.tasks: dict[int, SimTask] = {}
        self.seen: Counter[str] = Counter()
        """What happened how often."""
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._numbers = iter(range(1, 10**9))
        self._where: dict[int, tuple[SimTask, SimNode]] = {}
        self._preempted: set[int] = set()
        """Attempts that have been asked to make way, and have not ended."""

    def add_node(self, num: int, slots: int) -> SimNode:
        """Add a node."""
        self.nodes[num] = SimNode(num, slots)
        return self.nodes[num]

    def add_job(self, job: SimJob) -> SimJob:
        """Add a job."""
        self.jobs[job.num] = job
        return job

    def add_task(self, task: SimTask) -> SimTask:
        """Add a task to its job's line; numbers rise."""
        task.waiting_since = self.now
        self.tasks[task.num] = task
        insort(task.job.waiting, task.num)
        return task

    def at(self, time: int, what: Callable[[], object]) -> None:
        """Let something happen at a time."""
        heapq.heappush(self._events, (time, next(self._numbers), what))

    def run(self, until: int = 10**9) -> None:
        """Let everything happen that is going to, and decide after every moment, as the service does in its commits."""
        self.decide()
        while self._events and self._events[0][0] <= until:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] == self.now:
                heapq.heappop(self._events)[2]()
            self.decide()

    def lose_node(self, node: SimNode, *, back_after: int) -> None:
        """A node falls silent: its tasks run elsewhere, and what it reports of them later counts no more."""
        if not node.up:
            return
        node.up = False
        self.seen["node lost"] += 1
        for attempt in list(node.held):
            task = self._close(attempt)
            self._wait_again(task)
            self.seen["recovered"] += 1
        self.at(self.now + back_after, lambda: self._return(node))

    def _return(self, node: SimNode) -> None:
        node.up, node.life = True, node.life + 1
        for job in self.jobs.values():
            job.ineligible.discard(node.num)  # it was reimaged
        self.seen["node back"] += 1

    # --- the scheduler's snapshot ---

    def offered(self) -> tuple[NodeView, ...]:
        """Return the nodes that take tasks and have a free slot."""
        return tuple(
            NodeView(node.num, node.slots, node.free, f"n{node.num}", returning=self._returning(node))
            for node in self.nodes.values()
            if node.up and (node.free > 0 or self.contested)
        )

    @property
    def contested(self) -> bool:
        """Whether a task may have to make way for another, as the store says it."""
        return any(job.preemptible for job in self.jobs.values())

    def _returning(self, node: SimNode) -> int:
        return sum(slots for attempt, slots in node.held.items() if attempt in self._preempted)

    def holders(self) -> list[Holder]:
        """Return who holds slots, as the store does."""
        return [
            Holder(
                attempt,
                node.num,
                node.held[attempt],
                task.job.priority,
                preemptible=task.job.preemptible,
                ending=attempt in self._preempted,
            )
            for attempt, (task, node) in self._where.items()
        ]

    def job_view(self, job: SimJob) -> JobView:
        """Return what the scheduler knows of a job."""
        headroom = None if job.max_parallel is None else job.max_parallel - len(job.running)
        return JobView(job.num, headroom, frozenset(job.ineligible), job.priority)

    def view(self, task: SimTask) -> TaskView:
        """Return what the scheduler knows of a task."""
        return TaskView(task.num, task.job.num, task.slots, task.exclusive)

    def job_order(self) -> list[SimJob]:
        """Return the jobs in the order that the store gives them in."""
        return sorted(
            (job for job in self.jobs.values() if job.waiting),
            key=lambda job: (-job.priority, job.last_served if self.in_turn else 0, job.num),
        )

    def ready(self, job_num: int, after: int, max_slots: int, limit: int) -> Sequence[TaskView]:
        """Read a job's line, as the store does."""
        line = self.jobs[job_num].waiting
        found: list[TaskView] = []
        for position in range(bisect_right(line, after), len(line)):
            task = self.tasks[line[position]]
            if task.slots <= max_slots:
                found.append(self.view(task))
                if len(found) == limit:
                    break
        self.seen["tasks read"] += len(found)
        return found

    def plan(self, before: int | None = None) -> Plan:
        """Ask the scheduler."""
        views = (self.job_view(job) for job in self.job_order())
        return schedule(self.offered(), views, self.ready, fill=self.fill, in_turn=self.in_turn, before=before)

    # --- what follows from a decision, and what must hold of it ---

    def decide(self) -> None:
        """Ask the scheduler, check its decision, and carry it out."""
        self.seen["worth reading"] += sum(node.free_slots + 1 for node in self.offered())
        plan = self.plan()
        preemption = preempt(plan, (self.job_view(job) for job in self.job_order()), self.ready, self.holders())
        self._check_order(plan)
        for placement in plan.placements:
            self._start(placement)
        self._check_rest(plan)
        self._make_way(preemption)

    def _make_way(self, preemption: Preemption) -> None:
        """Check who makes way and for whom, and let it happen in a while."""
        promised: Counter[int] = Counter()
        for task_num, node_num in preemption.awaited.items():
            task = self.tasks[task_num]
            assert task.attempt is None, "a task that runs waits for others to make way"
            assert node_num not in task.job.ineligible
            promised[node_num] += self.nodes[node_num].slots if task.exclusive else task.slots
        waiting = {node: [self.tasks[num] for num, at in preemption.awaited.items() if at == node] for node in promised}
        for attempt in preemption.stops:
            victim, node = self._where[attempt]
            assert victim.job.preemptible, "a task made way whose job does not allow that"
            assert attempt not in self._preempted, "a task was asked twice to make way"
            assert any(task.job.priority > victim.job.priority for task in waiting[node.num]), "it made way for nobody"
            self._preempted.add(attempt)
            self.at(self.now + self.random.randint(1, 3), partial(self._made_way, attempt))
        for num, slots in promised.items():
            node = self.nodes[num]
            assert node.free + self._returning(node) >= slots, "what makes way is not enough"
        for attempt in preemption.stops:
            victim, node = self._where[attempt]
            left = node.free + self._returning(node) - node.held[attempt]
            assert left < promised[node.num], "more makes way than is needed"

    def _made_way(self, attempt: int) -> None:
        self._preempted.discard(attempt)
        if attempt in self._where:
            self._wait_again(self._close(attempt))
            self.seen["preempted"] += 1

    def _start(self, placement: Placement) -> None:
        task, node = self.tasks[placement.task_num], self.nodes[placement.node_num]
        job, attempt = task.job, next(self._numbers)
        assert task.attempt is None, "a task was given to a second attempt"
        assert task.ended is None, "a task that has ended was started"
        assert node.up, "a task was given to a node that is not there"
        assert node.num not in job.ineligible, "a task was given to a node where the preparation failed"
        assert placement.slots == (node.slots if task.exclusive else task.slots)
        assert not (task.exclusive and node.held), "an exclusive task shares its node"
        job.waiting.remove(task.num)
        job.running.add(task.num)
        job.last_served = attempt
        node.held[attempt] = placement.slots
        assert node.free >= 0, "a node was oversubscribed (I8)"
        assert job.max_parallel is None or len(job.running) <= job.max_parallel, "maxParallelTasks was exceeded"
        task.attempt, task.started = attempt, self.now
        self._where[attempt] = (task, node)
        self.seen["attempts"] += 1
        if node.num in job.bad_nodes:
            self.at(self.now + 1, lambda: self._preparation_failed(attempt))
        else:
            self.at(self.now + task.duration, lambda: self._finish(attempt))

    def _close(self, attempt: int) -> SimTask:
        task, node = self._where.pop(attempt)
        del node.held[attempt]
        task.job.running.discard(task.num)
        task.attempt = None
        return task

    def _wait_again(self, task: SimTask) -> None:
        insort(task.job.waiting, task.num)

    def _preparation_failed(self, attempt: int) -> None:
        if attempt not in self._where:
            return
        task, node = self._where[attempt]
        self._close(attempt)
        task.job.ineligible.add(node.num)
        self._wait_again(task)
        self.seen["returned"] += 1

    def _finish(self, attempt: int) -> None:
        if attempt not in self._where:
            self.seen["fenced"] += 1
            return
        task = self._close(attempt)
        if task.failures <= task.retries:
            task.ended = "success"
        elif task.retries < task.retries_allowed:
            task.retries += 1
            self._wait_again(task)
            self.seen["retried"] += 1
            return
        else:
            task.ended = "failure"
        self.seen[task.ended] += 1

    def _check_order(self, plan: Plan) -> None:
        """No task takes slots that one before it in line could have taken as they are."""
        placed = {placement.task_num for placement in plan.placements}
        first: dict[int, dict[int, int]] = {}
        for job in self.jobs.values() if plan.placements else ():
            headroom = plan.headroom(self.job_view(job))
            if headroom is None or headroom > 0:
                first[job.num] = self._first_by_size(job, placed)
        for placement in plan.placements:
            taker = self.tasks[placement.task_num]
            for job_num, sizes in first.items():
                job = self.jobs[job_num]
                if placement.node_num in job.ineligible or not self._comes_before(job, taker.job):
                    continue
                for slots, num in sizes.items():
                    waits = slots <= placement.slots and (job is not taker.job or num < taker.num)
                    assert not waits, f"task {taker.num} took the slots that task {num} waits for"

    def _first_by_size(self, job: SimJob, placed: set[int]) -> dict[int, int]:
        sizes: dict[int, int] = {}
        for num in job.waiting:
            task = self.tasks[num]
            if num not in placed and not task.exclusive:
                sizes.setdefault(task.slots, num)
            if len(sizes) == 4:
                break
        return sizes

    def _comes_before(self, one: SimJob, other: SimJob) -> bool:
        if one.priority != other.priority:
            return one.priority > other.priority
        return one is other or (not self.in_turn and one.num < other.num)

    def _check_rest(self, plan: Plan) -> None:
        """What still waits could not have been started: no node that is not reserved has room for it."""
        offered = [node.num for node in self.offered() if node.num not in plan.reserved and node.free_slots > 0]
        for job in self.jobs.values():
            headroom = job.max_parallel is None or len(job.running) < job.max_parallel
            able = [self.nodes[num].free for num in offered if num not in job.ineligible]
            if not headroom or not able:
                continue
            smallest = min((self.tasks[num].slots for num in job.waiting if not self.tasks[num].exclusive), default=99)
            assert smallest > max(able), f"a task of job {job.num} could run and was left waiting"

    def hindrances(self, task: SimTask) -> dict[int, Hindrance | None]:
        """Return why each node that takes tasks does not take this one, as `nodeagent explain` asks it."""
        plan = self.plan(before=task.num)
        job = self.job_view(task.job)
        return {node.num: plan.hindrance(node.num, job, self.view(task)) for node in self.offered()}

    def left(self) -> Iterator[SimTask]:
        """Return the tasks that have not ended."""
        return (task for task in self.tasks.values() if task.ended is None)
