"""The scheduler: never more than there is, never less than it could, large tasks too."""

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.enums import NodeFillType
from nodeagent.service.scheduler import Hindrance, JobView, NodeView, Placement, Plan, TaskView, schedule


@dataclass(frozen=True)
class Snapshot:
    """One pool at one moment, with everything that waits; `tasks` in the order in which they want to run."""

    nodes: tuple[NodeView, ...]
    jobs: tuple[JobView, ...]
    tasks: tuple[TaskView, ...]
    fill: NodeFillType = NodeFillType.SPREAD

    def ready(self, job_num: int, after: int, max_slots: int, limit: int) -> list[TaskView]:
        """Read a job's line, as the store does."""
        line = sorted((task for task in self.tasks if task.job_num == job_num), key=lambda task: task.num)
        return [task for task in line if task.num > after and task.required_slots <= max_slots][:limit]


def decided(snapshot: Snapshot, before: int | None = None) -> Plan:
    """Let the scheduler decide on a snapshot."""
    return schedule(snapshot.nodes, snapshot.jobs, snapshot.ready, fill=snapshot.fill, before=before)


def placed(snapshot: Snapshot) -> list[Placement]:
    """Return what the scheduler starts."""
    return decided(snapshot).placements


def test_spread_takes_the_emptiest_node_and_pack_the_fullest() -> None:
    """Spread lays tasks over the nodes, pack fills one after the other."""
    nodes = (NodeView(1, 2, 1), NodeView(2, 2, 2))
    tasks = (TaskView(10, 1, 1), TaskView(11, 1, 1))
    snapshot = Snapshot(nodes, (JobView(1),), tasks)
    assert placed(snapshot) == [Placement(10, 2, 1), Placement(11, 1, 1)]
    packed = replace(snapshot, fill=NodeFillType.PACK)
    assert placed(packed) == [Placement(10, 1, 1), Placement(11, 2, 1)]


def test_a_large_task_reserves_a_node_so_that_small_ones_do_not_starve_it() -> None:
    """The node with most free slots is kept for it; the other node goes on taking small tasks."""
    nodes = (NodeView(1, 4, 3), NodeView(2, 4, 1))
    tasks = (TaskView(10, 1, 4), TaskView(11, 1, 1), TaskView(12, 1, 1))
    assert placed(Snapshot(nodes, (JobView(1),), tasks)) == [Placement(11, 2, 1)]


def test_an_exclusive_task_takes_a_whole_empty_node() -> None:
    """A job manager with runExclusive waits for an empty node and leaves no slot on it."""
    busy = Snapshot((NodeView(1, 4, 3),), (JobView(1),), (TaskView(10, 1, 1, exclusive=True),))
    assert placed(busy) == []
    empty = replace(busy, nodes=(NodeView(1, 4, 4),))
    assert placed(empty) == [Placement(10, 1, 4)]


def test_limits_of_a_job_leave_room_for_the_next_job() -> None:
    """MaxParallelTasks and ineligible nodes hold back the job's tasks only."""
    nodes = (NodeView(1, 2, 2), NodeView(2, 2, 2))
    jobs = (JobView(1, headroom=1), JobView(2, ineligible_nodes=frozenset({1})))
    tasks = (TaskView(10, 1, 1), TaskView(11, 1, 1), TaskView(20, 2, 1), TaskView(21, 2, 1), TaskView(22, 2, 1))
    assert placed(Snapshot(nodes, jobs, tasks)) == [
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
        for num in range(1, draw(st.integers(0, 15)) + 1)
    )
    return Snapshot(nodes, jobs, tasks, draw(st.sampled_from(NodeFillType)))


@given(snapshots())
def test_no_snapshot_is_oversubscribed_or_left_idle(snapshot: Snapshot) -> None:
    """Slots and limits hold; the first task in line that fits somewhere is placed; no task twice."""
    placements = placed(snapshot)
    tasks = {task.num: task for task in snapshot.tasks}
    jobs = {job.num: job for job in snapshot.jobs}
    assert len({placement.task_num for placement in placements}) == len(placements)
    for node in snapshot.nodes:
        assert sum(item.slots for item in placements if item.node_num == node.num) <= node.free_slots
    for job in snapshot.jobs:
        of_job = [item for item in placements if tasks[item.task_num].job_num == job.num]
        assert job.headroom is None or len(of_job) <= job.headroom
        assert all(item.node_num not in job.ineligible_nodes for item in of_job)
    for item in placements:
        task = tasks[item.task_num]
        total = next(node.slots for node in snapshot.nodes if node.num == item.node_num)
        assert item.slots == (total if task.exclusive else task.required_slots)
    line = sorted(snapshot.tasks, key=lambda task: (task.job_num, task.num))
    if line and _fits(line[0], jobs[line[0].job_num], snapshot):
        assert placements[0].task_num == line[0].num


@given(snapshots())
def test_a_task_is_placed_exactly_if_nothing_hinders_it_when_its_turn_comes(snapshot: Snapshot) -> None:
    """What `nodeagent explain` asks of a plan is what the decision was made on, for every task of the line."""
    started = {placement.task_num for placement in placed(snapshot)}
    jobs = {job.num: job for job in snapshot.jobs}
    for task in snapshot.tasks:
        plan, job = decided(snapshot, before=task.num), jobs[task.job_num]
        headroom = plan.headroom(job)
        hindrances = [plan.hindrance(node.num, job, task) for node in snapshot.nodes]
        assert (task.num in started) == ((headroom is None or headroom > 0) and None in hindrances)


def test_affinity_wins_while_there_is_room_and_is_forgotten_where_there_is_none() -> None:
    """The node that a task prefers is taken before an emptier one; a full one, or one that is not there, is no bar."""
    nodes = (NodeView(1, 4, 4, "a"), NodeView(2, 4, 2, "b"), NodeView(3, 4, 0, "c"))
    tasks = tuple(TaskView(num, 1, 1, preferred=key) for num, key in ((10, "b"), (11, "c"), (12, "gone"), (13, "b")))
    assert placed(Snapshot(nodes, (JobView(1),), tasks)) == [
        Placement(10, 2, 1),
        Placement(11, 1, 1),
        Placement(12, 1, 1),
        Placement(13, 2, 1),
    ]


def test_a_plan_tells_what_hinders_a_task_on_each_node() -> None:
    """Ineligible, too small, kept for the task before it, too few free slots, not empty for an exclusive one."""
    nodes = (NodeView(1, 4, 4), NodeView(2, 1, 1), NodeView(3, 4, 3), NodeView(4, 4, 1))
    job = JobView(1, ineligible_nodes=frozenset({1}))
    snapshot = Snapshot(nodes, (job,), (TaskView(10, 1, 4), TaskView(11, 1, 2)))
    plan = decided(snapshot, before=11)
    assert plan.reserved == {3: 10}
    assert [plan.hindrance(node.num, job, TaskView(11, 1, 2)) for node in nodes] == [
        Hindrance.INELIGIBLE,
        Hindrance.TOO_SMALL,
        Hindrance.RESERVED,
        Hindrance.NO_ROOM,
    ]
    assert plan.hindrance(4, job, TaskView(12, 1, 1, exclusive=True)) is Hindrance.NO_ROOM
    assert plan.hindrance(4, job, TaskView(12, 1, 1)) is None


def _fits(task: TaskView, job: JobView, snapshot: Snapshot) -> bool:
    return (job.headroom is None or job.headroom > 0) and any(
        node.free_slots >= task.required_slots
        and (not task.exclusive or node.free_slots == node.slots)
        and node.num not in job.ineligible_nodes
        for node in snapshot.nodes
    )
