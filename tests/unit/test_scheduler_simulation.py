"""The scheduler in a simulated pool: 10,000 tasks, 100 nodes, and everything that can go wrong with them."""

from collections import Counter
from functools import partial
from time import perf_counter

import pytest

from nodeagent.model.enums import NodeFillType
from nodeagent.service.scheduler import Hindrance
from tests.unit.scheduler_world import SchedulerWorld, SimJob, SimTask

TASKS, NODES, JOBS = 10_000, 100, 8
TOO_LARGE = 9
MAX_SECONDS = 20


def _crowded(seed: int, *, fill: NodeFillType, in_turn: bool, preemptible: bool) -> SchedulerWorld:
    """Make a world with jobs of all kinds, and nodes that come and go."""
    world = SchedulerWorld(seed, fill=fill, in_turn=in_turn)
    draw = world.random
    for num in range(1, NODES + 1):
        world.add_node(num, draw.choice((2, 4, 4, 8)))
    for num in range(1, JOBS + 1):
        bad = frozenset(draw.sample(range(1, NODES + 1), 20)) if num % 3 == 0 else frozenset()
        world.add_job(SimJob(num, (num % 4) * 10, draw.choice((None, 5, 40)), preemptible and num % 2 == 0, bad))
    for num in range(1, TASKS + 1):
        if preemptible and num % 2 == 0:
            world.at(num // 30, partial(_add, world, num))
        else:
            _add(world, num)
    for time in range(5, 300, 3):
        node, back = world.nodes[draw.randint(1, NODES)], draw.randint(1, 40)
        world.at(time, partial(world.lose_node, node, back_after=back))
    return world


def _add(world: SchedulerWorld, num: int) -> None:
    """Add a task; the first of two jobs is an exclusive manager, and one task fits no node."""
    draw, job = world.random, world.jobs[1 + num % JOBS]
    slots = TOO_LARGE if num == TASKS // 2 else draw.choice((1, 1, 1, 2, 3, 4))
    failures = draw.choice((0,) * 8 + (1, 3))
    exclusive = num in (1, 2)
    world.add_task(
        SimTask(num, job, 1 if exclusive else slots, draw.randint(1, 30), exclusive, failures, retries_allowed=2)
    )


@pytest.mark.parametrize(
    ("fill", "in_turn", "preemptible"),
    [(NodeFillType.SPREAD, False, False), (NodeFillType.PACK, True, False), (NodeFillType.SPREAD, False, True)],
)
def test_ten_thousand_tasks_on_a_hundred_failing_nodes_all_end_or_are_explained(
    fill: NodeFillType, *, in_turn: bool, preemptible: bool
) -> None:
    """Every decision is checked by the world; at the end only the task that fits nowhere is left, and it says why."""
    began = perf_counter()
    world = _crowded(7, fill=fill, in_turn=in_turn, preemptible=preemptible)
    world.run()
    took = perf_counter() - began
    left = list(world.left())
    assert [task.num for task in left] == [TASKS // 2]
    hindrances = world.hindrances(left[0])
    assert len(hindrances) == NODES
    assert set(hindrances.values()) <= {Hindrance.TOO_SMALL, Hindrance.INELIGIBLE}
    assert world.seen["success"] + world.seen["failure"] == TASKS - 1
    assert (world.seen["preempted"] > 100) == preemptible
    for happened in ("node lost", "recovered", "fenced", "node back", "returned", "retried", "failure"):
        assert world.seen[happened] > 10, f"the simulation shows too little: {happened}"
    assert world.seen["tasks read"] < 2 * world.seen["worth reading"], "the scheduler reads more than could matter"
    assert took < MAX_SECONDS, f"the simulation took {took:.1f} s"


def test_a_large_task_starts_once_the_longest_small_one_has_ended() -> None:
    """An endless stream of small tasks of the same job does not starve it: it waits for one node to empty."""
    world = SchedulerWorld(3)
    for num in range(1, 11):
        world.add_node(num, 4)
    job = world.add_job(SimJob(1))
    longest, large_num = 20, 1000

    def stream(time: int) -> None:
        for offset in range(10):
            world.add_task(SimTask(10_000 + 10 * time + offset, job, 1, world.random.randint(1, longest)))

    for num in range(1, 200):
        world.add_task(SimTask(num, job, 1, world.random.randint(1, longest)))
    for time in range(1, 400):
        world.at(time, partial(stream, time))
    world.at(30, partial(world.add_task, SimTask(large_num, job, 4, 5)))
    world.run(until=400)
    large = world.tasks[large_num]
    ahead = max(world.tasks[num].started or 0 for num in range(1, 200))
    assert large.started is not None
    assert large.started <= max(30, ahead) + longest


def test_a_job_of_lower_priority_has_what_the_higher_ones_cannot_use() -> None:
    """Limits, ineligible nodes and large tasks of a long line before it hide no slot from the last job."""
    world = SchedulerWorld(1)
    for num in (1, 2, 3, 4):
        world.add_node(num, 2)
    limited = world.add_job(SimJob(1, 30, max_parallel=1))
    banned = world.add_job(SimJob(2, 20, ineligible={1, 2, 3, 4}))
    large = world.add_job(SimJob(3, 10))
    last = world.add_job(SimJob(4, 0))
    for num in range(1, 401):
        job = (limited, banned, large, last)[num % 4]
        world.add_task(SimTask(num, job, 3 if job is large else 1, 5))
    world.decide()
    assert (len(limited.running), len(banned.running), len(large.running), len(last.running)) == (1, 0, 0, 7)


def test_jobs_in_turn_share_the_pool_and_none_waits_for_another_to_end() -> None:
    """Two jobs of one priority get the slots one by one in turn, also when they come free one by one."""
    world = SchedulerWorld(1, in_turn=True)
    world.add_node(1, 3)
    first, second = world.add_job(SimJob(1)), world.add_job(SimJob(2))
    for num in range(1, 301):
        world.add_task(SimTask(num, first if num <= 200 else second, 1, 1 + num % 5))
    for time in range(60):
        world.run(until=time)
        started = Counter(task.job.num for task in world.tasks.values() if task.started is not None)
        assert abs(started[1] - started[2]) <= 1
    assert min(started.values()) > 20
