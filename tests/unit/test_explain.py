"""Why a task, a job or a node is in its state: every reason, from the rows that the service has."""

from collections.abc import Callable

import pytest

from nodeagent.model.enums import DisableTasks, NodeState, OnAllTasksComplete
from nodeagent.model.explanation import Explanation, Reason
from nodeagent.model.job import JobPatch
from nodeagent.model.task import TaskConstraints, TaskCreate, TaskDependencies, TaskIdRange
from nodeagent.service.errors import BatchError
from nodeagent.service.explain.jobs import explain_job
from nodeagent.service.explain.nodes import explain_node
from nodeagent.service.explain.tasks import explain_task
from nodeagent.service.lifecycle import deadlines, jobs, pools, tasks
from nodeagent.service.store import nodes as node_rows
from tests.unit.service_world import LEASE, POOL, PREPARATION, RELEASE, FakeNode, World, ignore

pytest_plugins = ["tests.unit.service_fixtures"]


def of_task(world: World, task_id: str, job_id: str = "job") -> Explanation:
    """Explain a task."""
    return world.store.do(lambda tx: explain_task(tx, job_id, task_id))


def of_job(world: World, job_id: str = "job") -> Explanation:
    """Explain a job."""
    return world.store.do(lambda tx: explain_job(tx, job_id))


def of_node(world: World, node: FakeNode) -> Explanation:
    """Explain a node."""
    return world.store.do(lambda tx: explain_node(tx, POOL, node.id))


def codes(explanation: Explanation) -> list[str]:
    """Return the codes of the reasons."""
    return [reason.code for reason in explanation.reasons]


def reason(explanation: Explanation, code: str) -> Reason:
    """Return the only reason with a code."""
    (found,) = [item for item in explanation.reasons if item.code == code]
    return found


def add(world: World, task_id: str, **more: object) -> None:
    """Add a task to the job."""
    spec = TaskCreate.model_validate({"id": task_id, "command_line": "true", **more})
    world.store.do(lambda tx: tasks.add_task(tx, "job", spec, world.store.now))


def set_state(world: World, node: FakeNode, state: NodeState) -> None:
    """Move a node to a state."""
    num = node.row.num
    world.store.do(lambda tx: node_rows.set_state(tx, num, state, world.store.now))


def only(node: FakeNode, task_id: str) -> None:
    """Start what the node has of a task."""
    node.fetch()
    (attempt,) = [item for item in node.live.values() if item.assignment.task_id == task_id]
    node.run(attempt)


def test_waiting_for_slots_names_the_node_what_is_free_and_who_holds_the_rest(world: World) -> None:
    """The first in line says it of its node; those behind it say how many are ahead."""
    world.create_job()
    for task_id in ("a", "b", "c", "d"):
        add(world, task_id)
    waits = reason(of_task(world, "c"), "WaitingForSlots")
    assert waits.subject == "node0"
    assert "0 of 2 slots free" in waits.message
    assert "job/a (1), job/b (1)" in waits.message
    assert waits.since is not None
    assert codes(of_task(world, "c")) == ["WaitingForSlots"]
    assert "1 task of its job" in reason(of_task(world, "d"), "TasksAhead").message
    assert any("another node joins" in change for change in of_task(world, "c").would_change)


def test_a_large_task_waits_and_a_small_one_behind_it_is_told_for_whom_the_node_is_kept(world: World) -> None:
    """The reservation is the scheduler's own; more slots than any node has is something else."""
    world.create_job()
    add(world, "first")
    add(world, "large", required_slots=2)
    add(world, "small")
    assert "1 of 2 slots free" in reason(of_task(world, "large"), "WaitingForSlots").message
    kept = reason(of_task(world, "small"), "NodeReserved")
    assert kept.subject == "job/large"
    assert "Task job/large starts." in of_task(world, "small").would_change
    add(world, "giant", required_slots=5)
    giant = of_task(world, "giant")
    assert codes(giant) == ["RequiredSlotsTooMany"]
    assert giant.would_change == ("A node with at least 5 slots joins the pool.",)


def test_max_parallel_tasks(worlds: Callable[..., World]) -> None:
    """The job's own limit is told although the node has room; the node tells the same."""
    world = worlds(4)
    world.create_job(max_parallel_tasks=1)
    add(world, "a")
    add(world, "b")
    assert codes(of_task(world, "b")) == ["MaxParallelTasksReached"]
    assert "MaxParallelTasksReached" in codes(of_node(world, world.nodes[0]))


def test_an_exclusive_manager_waits_for_a_whole_node(world: World) -> None:
    """It says that it needs the node alone."""
    world.create_job("other")
    world.add_task("x", "other")
    world.create_job(job_manager_task={"id": "manager", "commandLine": "m"})
    waits = reason(of_task(world, "manager"), "WaitingForSlots")
    assert "the whole node (runExclusive)" in waits.message
    assert "1 of 2 slots free" in waits.message


def test_pool_and_node_states_are_told(worlds: Callable[..., World]) -> None:
    """No pool, no nodes, silent nodes, disabled scheduling, and every other state that takes no tasks."""
    world = worlds()
    world.create_job("lost", pool_info={"poolId": "nowhere"})
    world.add_task("t", "lost")
    assert codes(of_task(world, "t", "lost")) == ["PoolNotFound"]
    world.create_job()
    add(world, "t")
    assert codes(of_task(world, "t")) == ["NoNodes"]
    world = worlds(1, 1, 1)
    world.drain_node(world.nodes[1])
    for node, state in ((world.nodes[0], NodeState.UNKNOWN), (world.nodes[2], NodeState.START_TASK_FAILED)):
        set_state(world, node, state)
    world.create_job()
    add(world, "t")
    told = of_task(world, "t")
    assert sorted((item.code, item.subject) for item in told.reasons) == [
        ("NodeNotAvailable", "node0"),
        ("NodeNotAvailable", "node2"),
        ("SchedulingDisabled", "node1"),
    ]
    assert "Enable scheduling on node node1." in told.would_change
    world.verb(pools.delete_pool, POOL)
    assert codes(of_task(world, "t"))[0] in ("PoolDeleting", "PoolNotFound")


@pytest.mark.parametrize(
    "state", [state for state in NodeState if state not in (NodeState.IDLE, NodeState.RUNNING)], ids=str
)
def test_every_state_in_which_a_node_takes_no_tasks_has_its_sentence(world: World, state: NodeState) -> None:
    """A node state that is added to the model must be explained as well."""
    set_state(world, world.nodes[0], state)
    world.create_job()
    add(world, "t")
    for told in (of_task(world, "t"), of_node(world, world.nodes[0])):
        assert codes(told)[0] in ("NodeNotAvailable", "SchedulingDisabled")
        assert f"state {state.value}" in told.reasons[0].message


def test_preparation_that_runs_and_one_that_failed(worlds: Callable[..., World]) -> None:
    """Waiting says on which node and since when; a failure makes the node ineligible, with the exit code."""
    world = worlds(2)
    node = world.nodes[0]
    world.create_job(job_preparation_task=PREPARATION)
    add(world, "t")
    assert codes(of_task(world, "t")) == ["Assigned"]
    node.fetch()
    (preparation, task) = node.live.values()
    world.store.do(lambda tx: ignore(tx.execute("DELETE FROM messages")))  # the node has committed them
    assert "has not started there yet" in reason(of_task(world, "t"), "WaitingForPreparation").message
    node.run(preparation)
    waits = reason(of_task(world, "t"), "WaitingForPreparation")
    assert (waits.subject, waits.since is not None) == ("node0", True)
    assert "runs there" in waits.message
    node.finish(preparation, exit_code=7)
    node.run(task)
    told = of_task(world, "t")
    assert codes(told)[0] == "NodeIneligible"
    assert "exit code 7" in told.reasons[0].message
    assert told.reasons[0].since is not None
    assert "NodeIneligible" in codes(of_node(world, node))


def test_dependencies_that_are_open_failed_missing_blocked_or_a_circle(worlds: Callable[..., World]) -> None:
    """Which task, why it does not satisfy, and whether it ever can."""
    world = worlds(2)
    world.create_job(uses_task_dependencies=True)
    add(world, "1")
    add(world, "2")
    add(world, "open", depends_on=TaskDependencies(task_ids=("2",)))
    add(world, "mixed", depends_on=TaskDependencies(task_ids=("gone",), task_id_ranges=(TaskIdRange(start=1, end=2),)))
    add(world, "behind", depends_on=TaskDependencies(task_ids=("mixed",)))
    add(world, "x", depends_on=TaskDependencies(task_ids=("y",)))
    add(world, "y", depends_on=TaskDependencies(task_ids=("x",)))
    node = world.nodes[0]
    node.fetch()
    for attempt, code in zip(list(node.live.values()), (3, None), strict=True):
        node.run(attempt)
        if code is not None:
            node.finish(attempt, exit_code=code)
    assert (codes(of_task(world, "open")), of_task(world, "open").reasons[0].subject) == (
        ["DependencyNotCompleted"],
        "2",
    )
    mixed = of_task(world, "mixed")
    assert sorted(codes(mixed)) == ["DependencyMissing", "DependencyNotCompleted", "DependencyNotSatisfied"]
    assert "exit code 3" in reason(mixed, "DependencyNotSatisfied").message
    assert "Reactivate task 1, so that it can end as this task needs it." in mixed.would_change
    assert codes(of_task(world, "behind")) == ["DependencyBlocked"]
    assert codes(of_task(world, "x")) == ["DependencyCircle"]
    assert codes(of_job(world))[:2] == ["TasksNotCompleted", "FirstInLine"]
    assert "5 waiting for other tasks" in of_job(world).reasons[0].message


def test_ranges_find_ids_with_leading_zeros(world: World) -> None:
    """The number of a range is the task of that number, however it is written."""
    world.create_job(uses_task_dependencies=True)
    add(world, "007")
    add(world, "000")
    add(
        world,
        "t",
        depends_on=TaskDependencies(task_id_ranges=(TaskIdRange(start=7, end=7), TaskIdRange(start=0, end=0))),
    )
    assert [item.subject for item in of_task(world, "t").reasons] == ["007", "000"]


def test_running_failed_retried_and_succeeded_tasks(world: World) -> None:
    """Since when and where; how it ended in one line; how often it was retried."""
    world.create_job()
    add(world, "t", constraints=TaskConstraints(max_task_retry_count=1))
    add(world, "fine")
    node = world.nodes[0]
    only(node, "t")
    running = reason(of_task(world, "t"), "Running")
    assert (running.subject, running.since is not None) == ("node0", True)
    node.finish(next(iter(node.live.values())), exit_code=4)
    retry = of_task(world, "t")
    assert codes(retry) == ["Assigned", "RetryPending", "Retried"]
    assert "retry 1 of 1" in reason(retry, "RetryPending").message
    only(node, "t")
    node.finish(next(item for item in node.live.values() if item.running), exit_code=4)
    failed = of_task(world, "t")
    assert codes(failed) == ["Failed", "Retried"]
    assert "exit code 4 (FailureExitCode" in failed.reasons[0].message
    assert failed.would_change
    world.drain()
    assert codes(of_task(world, "fine")) == ["Succeeded"]
    assert of_task(world, "fine").would_change == ()


def test_a_terminated_task_that_is_reactivated_waits_for_its_last_attempt(world: World) -> None:
    """Completed already, still ending on the node; the node's report lets it run again."""
    world.create_job()
    add(world, "t")
    only(world.nodes[0], "t")
    world.verb(tasks.terminate_task, "job", "t")
    assert codes(of_task(world, "t")) == ["Failed", "LastAttemptEnding"]
    world.verb(tasks.reactivate_task, "job", "t")
    assert codes(of_task(world, "t")) == ["LastAttemptEnding"]
    assert "is being ended" in of_node(world, world.nodes[0]).reasons[-1].message
    world.drain()
    assert codes(of_task(world, "t")) == ["Succeeded"]


def test_disabled_and_ended_jobs_explain_their_tasks_and_themselves(world: World) -> None:
    """Disabling says who still runs; disabled what would help; completed how it ended."""
    world.create_job()
    for task_id in ("a", "b", "c"):
        add(world, task_id)
    only(world.nodes[0], "a")
    world.verb(jobs.disable_job, "job", DisableTasks.WAIT)
    assert codes(of_task(world, "c")) == ["JobNotActive"]
    told = of_job(world)
    assert codes(told)[0] == "JobNotActive"
    assert codes(told).count("TaskEnding") == 2
    world.drain()
    assert (of_job(world).state, codes(of_job(world))) == ("disabled", ["JobNotActive"])
    assert of_job(world).would_change == ("Enable the job (POST /jobs/job/enable).",)
    world.verb(jobs.terminate_job, "job", reason="enough")
    ended = reason(of_job(world), "JobEnded")
    assert "enough" in ended.message
    assert "2 succeeded, 0 failed, 1 never ran" in ended.message
    assert codes(of_task(world, "c")) == ["JobNotActive"]


def test_a_terminating_job_says_which_release_it_waits_for(world: World) -> None:
    """On which node, and when that node was last heard of."""
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    add(world, "t")
    world.drain()
    assert codes(of_job(world)) == ["AllTasksCompleted"]
    world.verb(jobs.terminate_job, "job")
    told = of_job(world)
    assert codes(told) == ["JobNotActive", "ReleaseRunning"]
    assert told.reasons[1].subject == "node0"
    assert "NodeRuns" in codes(of_node(world, world.nodes[0]))
    world.drain()
    assert codes(of_job(world)) == ["JobEnded"]


def test_a_job_that_ends_by_itself_says_so(world: World) -> None:
    """`terminatejob`, with the reason of its end."""
    world.create_job()
    add(world, "t")
    patch = JobPatch(on_all_tasks_complete=OnAllTasksComplete.TERMINATE_JOB)
    world.verb(jobs.patch_job, "job", patch)
    world.drain()
    assert "AllTasksComplete" in reason(of_job(world), "JobEnded").message


def test_nodes_say_what_they_run_and_why_they_get_nothing(worlds: Callable[..., World]) -> None:
    """Nothing waits; all slots held; silent, and the tasks given to others."""
    world = worlds(1)
    node = world.nodes[0]
    assert codes(of_node(world, node)) == ["NothingWaits"]
    world.create_job()
    add(world, "t")
    only(node, "t")
    busy = of_node(world, node)
    assert codes(busy) == ["WaitingForSlots", "NodeRuns"]
    assert reason(busy, "NodeRuns").subject == "job/t"
    world.store.now += LEASE * 2
    world.store.do(lambda tx: deadlines.expire(tx, world.store.now, LEASE))
    silent = of_node(world, node)
    assert codes(silent) == ["NodeNotAvailable", "NodeRuns"]
    assert "given up" in reason(silent, "NodeRuns").message
    lost = of_task(world, "t")
    assert codes(lost) == ["NodeNotAvailable", "Recovered"]


def test_a_hundred_nodes_are_told_shortly(worlds: Callable[..., World]) -> None:
    """Ten of them one by one, the others as a number."""
    world = worlds(*([1] * 30))
    world.create_job()
    for number in range(31):
        add(world, f"t{number}")
    told = of_task(world, "t30")
    assert codes(told) == [*["WaitingForSlots"] * 10, "More"]
    assert "20 nodes more" in told.reasons[-1].message


def test_what_is_not_there_cannot_be_explained(world: World) -> None:
    """The codes of the Batch API."""
    world.create_job()
    for explain, code in (
        (lambda tx: explain_task(tx, "job", "none"), "TaskNotFound"),
        (lambda tx: explain_job(tx, "none"), "JobNotFound"),
        (lambda tx: explain_node(tx, POOL, "none"), "NodeNotFound"),
        (lambda tx: explain_node(tx, "none", "none"), "PoolNotFound"),
    ):
        with pytest.raises(BatchError) as caught:
            world.store.do(explain)
        assert caught.value.code == code


def test_a_task_behind_thousands_is_explained_with_bounded_work(worlds: Callable[..., World]) -> None:
    """Two layers of 3,000 dependencies each: some are told, and not every pair of tasks is looked at."""
    world = worlds()
    world.create_job(uses_task_dependencies=True)
    count = 3000
    first = TaskDependencies(task_id_ranges=(TaskIdRange(start=1, end=count),))
    second = TaskDependencies(task_id_ranges=(TaskIdRange(start=count + 1, end=2 * count),))
    specs = [
        TaskCreate(id=str(number), command_line="x", depends_on=None if number <= count else first)
        for number in range(1, 2 * count + 1)
    ]
    world.store.do(lambda tx: ignore(tasks.add_tasks(tx, "job", specs, world.store.now)))
    add(world, "last", depends_on=second)
    statements: list[str] = []
    world.store.do(lambda tx: tx._connection.set_trace_callback(statements.append))
    told = of_task(world, "last")
    assert codes(told) == [*["DependencyNotCompleted"] * 20, "More"]
    assert len(statements) < 25_000
