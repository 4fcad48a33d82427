"""The scheduler: never more than there is, never less than it could, large tasks too."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.enums import NodeFillType
from nodeagent.service.scheduler import JobView, NodeView, Placement, Snapshot, TaskView, schedule


def test_spread_takes_the_emptiest_node_and_pack_the_fullest() -> None:
    """Spread lays tasks over the nodes, pack fills one after the other."""
    nodes = (NodeView(1, 2, 1), NodeView(2, 2, 2))
    tasks = (TaskView(10, 1, 1), TaskView(11, 1, 1))
    snapshot = Snapshot(nodes, (JobView(1),), tasks)
    assert schedule(snapshot) == [Placement(10, 2, 1), Placement(11, 1, 1)]
    packed = replace(snapshot, fill=NodeFillType.PACK)
    assert schedule(packed) == [Placement(10, 1, 1), Placement(11, 2, 1)]


def test_a_large_task_reserves_a_node_so_that_small_ones_do_not_starve_it() -> None:
    """The node with most free slots is kept for it; the other node goes on taking small tasks."""
    nodes = (NodeView(1, 4, 3), NodeView(2, 4, 1))
    tasks = (TaskView(10, 1, 4), TaskView(11, 1, 1), TaskView(12, 1, 1))
    assert schedule(Snapshot(nodes, (JobView(1),), tasks)) == [Placement(11, 2, 1)]


def test_an_exclusive_task_takes_a_whole_empty_node() -> None:
    """A job manager with runExclusive waits for an empty node and leaves no slot on it."""
    busy = Snapshot((NodeView(1, 4, 3),), (JobView(1),), (TaskView(10, 1, 1, exclusive=True),))
    assert schedule(busy) == []
    empty = replace(busy, nodes=(NodeView(1, 4, 4),))
    assert schedule(empty) == [Placement(10, 1, 4)]


def test_limits_of_a_job_leave_room_for_the_next_job() -> None:
    """MaxParallelTasks and ineligible nodes hold back the job's tasks only."""
    nodes = (NodeView(1, 2, 2), NodeView(2, 2, 2))
    jobs = (JobView(1, headroom=1), JobView(2, ineligible_nodes=frozenset({1})))
    tasks = (TaskView(10, 1, 1), TaskView(11, 1, 1), TaskView(20, 2, 1), TaskView(21, 2, 1), TaskView(22, 2, 1))
    assert schedule(Snapshot(nodes, jobs, tasks)) == [
        Placement(10, 1, 1),
        Placement(20, 2, 1),
        Placement(21, 2, 1),
    ]


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Pools of up to 5 nodes with up to 4 jobs and 15 tasks."""
    slots = draw(st.lists(st.integers(1, 8), min_size=0, max_size=5))
    nodes = tuple(NodeView(num, total, draw(st.integers(0, total))) for num, total in enumerate(slots, start=1))
    jobs = tuple(
        JobView(
            num,
            draw(st.none() | st.integers(0, 3)),
            draw(st.frozensets(st.sampled_from([node.num for node in nodes]))) if nodes else frozenset(),
        )
        for num in range(1, draw(st.integers(1, 4)) + 1)
    )
    tasks = tuple(
        TaskView(num, draw(st.sampled_from(jobs)).num, draw(st.integers(1, 8)), draw(st.booleans()))
        for num in range(draw(st.integers(0, 15)))
    )
    return Snapshot(nodes, jobs, tasks, draw(st.sampled_from(NodeFillType)))


@given(snapshots())
def test_no_snapshot_is_oversubscribed_or_left_idle(snapshot: Snapshot) -> None:
    """Slots and limits hold; the first task in line that fits somewhere is placed; no task twice."""
    placements = schedule(snapshot)
    tasks = {task.num: task for task in snapshot.tasks}
    jobs = {job.num: job for job in snapshot.jobs}
    assert len({placement.task_num for placement in placements}) == len(placements)
    for node in snapshot.nodes:
        assert sum(item.slots for item in placements if item.node_num == node.num) <= node.free_slots
    for job in snapshot.jobs:
        placed = [item for item in placements if tasks[item.task_num].job_num == job.num]
        assert job.headroom is None or len(placed) <= job.headroom
        assert all(item.node_num not in job.ineligible_nodes for item in placed)
    for item in placements:
        task = tasks[item.task_num]
        total = next(node.slots for node in snapshot.nodes if node.num == item.node_num)
        assert item.slots == (total if task.exclusive else task.required_slots)
    first = next((task for task in snapshot.tasks if _fits(task, jobs[task.job_num], snapshot)), None)
    if first is not None and first is snapshot.tasks[0]:
        assert placements[0].task_num == first.num


def _fits(task: TaskView, job: JobView, snapshot: Snapshot) -> bool:
    return (job.headroom is None or job.headroom > 0) and any(
        node.free_slots >= task.required_slots
        and (not task.exclusive or node.free_slots == node.slots)
        and node.num not in job.ineligible_nodes
        for node in snapshot.nodes
    )


def test_a_large_pool_and_a_long_queue_are_decided_in_rounds_until_all_has_run() -> None:
    """10,000 tasks of mixed sizes over 100 nodes: every round fits, and every task runs once."""
    slots = 8
    waiting = [TaskView(num, 1 + num % 3, 1 + num % slots) for num in range(10_000)]
    jobs = tuple(JobView(num) for num in (1, 2, 3))
    ran: set[int] = set()
    while waiting:
        nodes = tuple(NodeView(num, slots, slots) for num in range(100))
        placements = schedule(Snapshot(nodes, jobs, tuple(waiting[:900])))
        assert placements
        started = {placement.task_num for placement in placements}
        assert not started & ran
        ran |= started
        waiting = [task for task in waiting if task.num not in started]
    assert len(ran) == 10_000
