"""Who makes way for a job of higher priority: by the rules alone, and over the store."""

from collections.abc import Sequence

import pytest

from nodeagent.model.enums import TaskState
from nodeagent.model.job import JobManagerTask, JobPatch
from nodeagent.model.protocol import StopReason
from nodeagent.model.task import TaskCreate
from nodeagent.model.values import AffinityInfo
from nodeagent.service.explain.tasks import explain_task
from nodeagent.service.lifecycle import jobs
from nodeagent.service.lifecycle.tasks import add_task
from nodeagent.service.preemption import Holder, Preemption, preempt
from nodeagent.service.scheduler import JobView, NodeView, TaskView, schedule
from tests.unit.service_world import World, ignore

pytest_plugins = ["tests.unit.service_fixtures"]

URGENT = JobView(1, priority=10)


def decided(
    nodes: Sequence[NodeView], tasks: Sequence[TaskView], holders: Sequence[Holder], *job_views: JobView
) -> Preemption:
    """Decide on a snapshot; the urgent job alone if no other is given."""

    def ready(job_num: int, after: int, max_slots: int, limit: int) -> list[TaskView]:
        line = [task for task in tasks if task.job_num == job_num and task.num > after]
        return [task for task in line if task.required_slots <= max_slots][:limit]

    ordered = sorted(job_views or (URGENT,), key=lambda job: (-job.priority, job.num))
    return preempt(schedule(nodes, ordered, ready), ordered, ready, holders)


def low(attempt_num: int, node_num: int = 1, slots: int = 1, priority: int = 0, *, ending: bool = False) -> Holder:
    """Return a preemptible holder of slots."""
    return Holder(attempt_num, node_num, slots, priority, preemptible=True, ending=ending)


def firm(attempt_num: int, node_num: int = 1, slots: int = 1, *, ending: bool = False) -> Holder:
    """Return a holder of slots whose job does not allow preemption."""
    return Holder(attempt_num, node_num, slots, 0, preemptible=False, ending=ending)


FULL = (NodeView(1, 4, 0),)
ONE = (TaskView(100, 1, 1),)


@pytest.mark.parametrize(
    ("nodes", "tasks", "holders", "stops"),
    [
        (FULL, ONE, [low(1), low(2), low(3), low(4)], [4]),
        (FULL, ONE, [low(1, priority=-5), low(2), low(3, priority=-5), low(4)], [3]),
        (FULL, ONE, [low(1, slots=3), firm(2)], [1]),
        (FULL, ONE, [low(1, priority=10, slots=4)], []),
        (FULL, ONE, [firm(1, slots=4)], []),
        (FULL, ONE, [low(1, ending=True), low(2), low(3), low(4)], []),
        (FULL, ONE, [firm(1, ending=True), low(2), low(3), low(4)], []),
        (FULL, (TaskView(100, 1, 3),), [low(1, slots=3), low(2)], [1]),
        (FULL, (TaskView(100, 1, 3),), [low(1), low(2), firm(3, slots=2)], []),
        (FULL, (TaskView(100, 1, 5),), [low(1, slots=4)], []),
        (FULL, (TaskView(100, 1, 1, exclusive=True),), [low(1, slots=2), low(2, slots=2)], [2, 1]),
        (FULL, (TaskView(100, 1, 1, exclusive=True),), [low(1, slots=2), firm(2, slots=2)], []),
        ((NodeView(1, 4, 2),), (TaskView(100, 1, 3),), [low(1), low(2)], [2]),
        ((NodeView(1, 4, 1),), ONE, [low(1, slots=3)], []),
        ((NodeView(1, 2, 0), NodeView(2, 2, 0)), ONE, [low(1, 1, 2), low(2, 2), low(3, 2)], [3]),
        ((NodeView(1, 2, 0), NodeView(2, 2, 0)), (TaskView(100, 1, 2),), [low(9, 1), low(2, 2), low(3, 2)], [3, 2]),
        (FULL, (*ONE, TaskView(101, 1, 1)), [low(1), low(2), low(3), low(4)], [4, 3]),
        (FULL, tuple(TaskView(num, 1, 4) for num in range(100, 200)), [low(1, slots=4)], [1]),
    ],
    ids=[
        "the youngest", "the lowest priority first", "a whole task at least", "not the same priority", "not allowed",
        "one is on its way out", "so is one of another job", "the one that is enough", "not enough for it",
        "it fits nowhere", "an exclusive one wants the node", "which others do not leave", "what is free counts",
        "it starts anyway", "the node that loses least", "where it can be done", "two for two", "no more than there is",
    ],
)  # fmt: skip
def test_who_makes_way(
    nodes: Sequence[NodeView], tasks: Sequence[TaskView], holders: Sequence[Holder], stops: list[int]
) -> None:
    """The lowest priority, then the youngest, and no more than needed; nobody where that would not help."""
    decision = decided(nodes, tasks, holders)
    assert decision.stops == stops
    assert bool(decision.awaited) == bool(stops or any(holder.ending for holder in holders))


def test_limits_of_the_waiting_job_hold_for_what_makes_way() -> None:
    """MaxParallelTasks and nodes where the preparation failed are asked before anybody is stopped."""
    tasks = (TaskView(100, 1, 1), TaskView(101, 1, 1))
    holders = [low(number) for number in range(1, 5)]
    assert decided(FULL, tasks, holders, JobView(1, headroom=1, priority=10)).stops == [4]
    assert decided(FULL, tasks, holders, JobView(1, headroom=0, priority=10)).stops == []
    assert decided(FULL, tasks, holders, JobView(1, ineligible_nodes=frozenset({1}), priority=10)).stops == []


def test_a_node_that_is_kept_for_a_larger_task_is_not_cleared_for_a_smaller_one() -> None:
    """The large task comes first and nothing can make way for it: the small one looks elsewhere."""
    nodes = (NodeView(1, 4, 1), NodeView(2, 2, 0))
    tasks = (TaskView(100, 1, 4), TaskView(101, 1, 2))
    holders = [firm(1, 1), low(2, 1, 2), low(3, 2, 2)]
    decision = decided(nodes, tasks, holders)
    assert decision.stops == [3]
    assert decision.awaited == {101: 2}


def test_a_long_line_that_nothing_can_be_done_for_is_not_read_to_its_end() -> None:
    """The tasks behind a kept node's taker are only read as far as slots can be made free for them."""
    tasks = tuple(TaskView(num, 1, 4) for num in range(100, 5000))
    reads: list[int] = []

    def ready(job_num: int, after: int, max_slots: int, limit: int) -> list[TaskView]:
        reads.append(limit)
        return [task for task in tasks if task.num > after and task.required_slots <= max_slots][:limit]

    nodes, holders = (NodeView(1, 4, 1), NodeView(2, 2, 0)), [firm(1, 1, 3), low(3, 2, 2)]
    assert preempt(schedule(nodes, [URGENT], ready), [URGENT], ready, holders).stops == []
    assert sum(reads) < 100


def _fill(world: World, count: int, *, allowed: bool = True, priority: int = 0) -> None:
    world.create_job("low", allow_task_preemption=allowed, priority=priority)
    for number in range(count):
        world.add_task(f"t{number}", "low")
    node = world.nodes[0]
    node.fetch()
    for attempt in list(node.live.values()):
        node.run(attempt)


def _stops(world: World) -> dict[str, StopReason]:
    """Return which tasks the node was asked to end."""
    world.nodes[0].fetch()
    live = world.nodes[0].live.values()
    return {attempt.assignment.task_id: attempt.stop for attempt in live if attempt.stop is not None}


def test_a_preempted_task_runs_again_and_no_counter_shows_it(world: World) -> None:
    """It goes back to the queue when its process has ended; then the urgent task starts, and it after that."""
    _fill(world, 2)
    world.create_job("high", priority=1)
    world.add_task("now", "high")
    assert _stops(world) == {"t1": StopReason.PREEMPTED}
    told = {item.code: item for item in world.store.do(lambda tx: explain_task(tx, "high", "now")).reasons}
    assert "low/t1 (1)" in told["WaitingForPreempted"].message
    world.store.do(lambda tx: tx.signal("schedule"))
    assert _stops(world) == {"t1": StopReason.PREEMPTED}
    node = world.nodes[0]
    (victim,) = [attempt for attempt in node.live.values() if attempt.stop is not None]
    node.finish(victim)
    preempted = world.task("t1", "low")
    assert (preempted.state, preempted.attempt_num, preempted.execution.exit_code) == (TaskState.ACTIVE, None, None)
    assert (preempted.execution.requeue_count, preempted.execution.retry_count) == (0, 0)
    assert preempted.system_task_version == 1
    assert world.task("now", "high").attempt_num is not None
    world.drain()
    assert world.task("t1", "low").execution.exit_code == 0


def test_a_job_that_does_not_allow_it_keeps_its_slots_until_it_does(world: World) -> None:
    """The property is updatable, and a patch of it, or of the priority, is obeyed at once."""
    _fill(world, 2, allowed=False)
    world.create_job("high", priority=0)
    world.add_task("now", "high")

    def patch(job_id: str, change: JobPatch) -> None:
        world.store.do(lambda tx: ignore(jobs.patch_job(tx, job_id, change, world.store.now)))

    patch("low", JobPatch(allow_task_preemption=True))
    assert _stops(world) == {}
    patch("high", JobPatch(priority=5))
    assert _stops(world) == {"t1": StopReason.PREEMPTED}


def test_what_comes_free_first_is_kept_for_the_task_that_it_came_free_for(world: World) -> None:
    """A task needs both slots of a node: the first that is given back is not taken again by whoever gave it back."""
    world.create_job("firm")
    world.add_task("f", "firm")
    world.create_job("low", allow_task_preemption=True)
    node = world.add_node(2)
    for name in ("t0", "t1"):
        info = AffinityInfo(affinity_id=f"TVM:{node.id}")
        spec = TaskCreate(id=name, command_line="true", affinity_info=info)
        world.verb(lambda tx, now, spec=spec: add_task(tx, "low", spec, now))
    node.fetch()
    for attempt in node.live.values():
        node.run(attempt)
    world.create_job("high", priority=3)
    world.add_task("large", "high", slots=2)
    node.fetch()
    first, second = (attempt for attempt in node.live.values() if attempt.stop is StopReason.PREEMPTED)
    node.finish(second)
    assert [world.task(name, "low").attempt_num is None for name in ("t0", "t1")] == [False, False]
    again = world.task("t1", "low").node
    assert again is not None
    assert again.id == world.nodes[0].id
    node.finish(first)
    large = world.task("large", "high").node
    assert large is not None
    assert large.id == node.id
    world.drain()
    assert [world.task(name, "low").execution.exit_code for name in ("t0", "t1")] == [0, 0]


def test_a_job_manager_makes_way_as_other_tasks_do(world: World) -> None:
    """Across jobs only the job's priority counts (SDK, BatchJobManagerTask)."""
    manager = JobManagerTask(id="m", command_line="m")
    world.create_job("low", allow_task_preemption=True, job_manager_task=manager)
    world.create_job("high", priority=1)
    world.add_task("now", "high")
    assert _stops(world) == {"m": StopReason.PREEMPTED}
    world.nodes[0].finish(next(iter(world.nodes[0].live.values())))
    assert world.task("now", "high").attempt_num is not None
    assert world.job("low").state.value == "active"
