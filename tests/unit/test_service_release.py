"""Job release tasks at the service, sentence by sentence of their class page (seed 002).

| sentence | test |
| --- | --- |
| "calls the Terminate Job API, or the Delete Job API while still active, ..." | `test_every_end_of_a_job_...` |
| "runs on each Node where Tasks of the Job have run" | `test_a_node_without_a_task_...`, `test_a_failed_...` |
| "and the Job Preparation Task ran and completed" | `test_a_preparation_that_was_cut_off_...` |
| "If you reimage a Node ..., then the Job Release Task does not run" | `test_after_a_reimage_...` |
| "If a Node reboots while the Job Release Task is still running, ... runs again" | `test_a_reboot_...` (2) |
| "not marked as complete until all Job Release Tasks have completed" | `test_every_end_of_a_job_...` |
| "does not occupy a scheduling slot" | `test_a_release_needs_no_slot` |
"""

from collections.abc import Callable
from datetime import timedelta

import pytest

from nodeagent.model.enums import (
    DisableTasks,
    DrainOption,
    ExecutionResult,
    JobState,
    NodeState,
    NodeTaskState,
    OnAllTasksComplete,
    OnTaskFailure,
)
from nodeagent.model.job import JobConstraints, JobManagerTask, JobPatch, JobReleaseTaskExecutionInfo
from nodeagent.model.protocol import Assignment, AttemptKind, ReturnReason, Transition
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, jobs, node_verbs
from tests.unit.service_world import LEASE, POOL, PREPARATION, RELEASE, FakeNode, Running, World, ignore, job_spec

pytest_plugins = ["tests.unit.service_fixtures"]

BESIDE = PREPARATION.model_copy(update={"wait_for_success": False})


def attempt_of(node: FakeNode, kind: AttemptKind) -> Running:
    """Return the one live attempt of a kind that a node has."""
    (found,) = (attempt for attempt in node.live.values() if attempt.assignment.attempt_kind is kind)
    return found


def releases_of(node: FakeNode) -> int:
    """Return how often a node was sent a release task."""
    return sum(
        isinstance(message, Assignment) and message.attempt_kind is AttemptKind.JOB_RELEASE for message in node.seen
    )


def release_of(world: World, node: FakeNode) -> JobReleaseTaskExecutionInfo | None:
    """Return what the status list shows of the release on a node."""
    return world.job_node(node).release


def silence(world: World) -> None:
    """Let every lease run out."""
    world.store.now += LEASE + timedelta(seconds=1)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))


@pytest.fixture
def ran(world: World) -> tuple[World, FakeNode]:
    """Return a node where a job has been prepared, and one task of it has run."""
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    world.drain()
    return world, world.nodes[0]


def expire(world: World) -> None:
    """Let the job's wall clock run out, and no lease."""
    world.store.now += timedelta(minutes=5)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, timedelta(days=1))))


def end_manager(world: World) -> None:
    """Let the job manager end."""
    (node,) = world.nodes
    node.finish(attempt_of(node, AttemptKind.JOB_MANAGER))


def disable_then_terminate(world: World) -> None:
    """Terminate a job that is disabled."""
    world.verb(jobs.disable_job, "job", DisableTasks.WAIT)
    world.verb(jobs.terminate_job, "job")


ENDS: dict[str, tuple[dict[str, object], Callable[[World], None]]] = {
    "UserTerminate": ({}, lambda world: world.verb(jobs.terminate_job, "job")),
    "disabled": ({}, disable_then_terminate),
    "deleted": ({}, lambda world: world.verb(jobs.delete_job, "job")),
    "MaxWallClockTimeExpiry": ({"constraints": JobConstraints(max_wall_clock_time=timedelta(minutes=5))}, expire),
    "JMComplete": ({"job_manager_task": JobManagerTask(id="m", command_line="m", run_exclusive=False)}, end_manager),
    "AllTasksComplete": ({"on_all_tasks_complete": OnAllTasksComplete.TERMINATE_JOB}, lambda _: None),
    "TaskFailed": ({"on_task_failure": OnTaskFailure.PERFORM_EXIT_OPTIONS_JOB_ACTION}, lambda _: None),
}


@pytest.mark.parametrize("why", ENDS)
def test_every_end_of_a_job_runs_its_release_and_waits_for_it(world: World, why: str) -> None:
    """Terminate (disabled or not), delete, wall clock, job manager, last task, failed task: once, and then the end."""
    more, end = ENDS[why]
    (node,) = world.nodes
    spec = job_spec("job", job_preparation_task=PREPARATION, job_release_task=RELEASE, **more)
    # a job that ends with its last task must have one before that is looked at
    asks = spec.model_copy(update={"on_all_tasks_complete": OnAllTasksComplete.NO_ACTION})
    world.verb(jobs.create_job, asks)
    world.add_task("t")
    node.fetch()
    preparation = attempt_of(node, AttemptKind.JOB_PREPARATION)
    node.run(preparation)
    node.finish(preparation)
    for attempt in list(node.live.values()):
        node.run(attempt)
    if spec.on_all_tasks_complete is not OnAllTasksComplete.NO_ACTION:
        world.verb(
            lambda tx, now: jobs.patch_job(tx, "job", JobPatch(on_all_tasks_complete=spec.on_all_tasks_complete), now)
        )
    node.finish(attempt_of(node, AttemptKind.USER), exit_code=int(why == "TaskFailed"))
    end(world)
    node.fetch()
    release = attempt_of(node, AttemptKind.JOB_RELEASE)
    node.run(release)
    assert world.job().state is (JobState.DELETING if why == "deleted" else JobState.TERMINATING)
    assert release_of(world, node) is not None
    node.finish(release, exit_code=9)
    if why == "deleted":
        with pytest.raises(BatchError, match="JobNotFound"):
            world.job()
    else:
        job = world.job()
        assert (job.state, job.terminate_reason) == (
            JobState.COMPLETED,
            "UserTerminate" if why == "disabled" else why,
        )
        world.verb(jobs.delete_job, "job")
        world.drain()
    assert releases_of(node) == 1, "it is not retried, and a delete after the end does not run it again"


def end_before_preparation(world: World, node: FakeNode) -> None:
    """Terminate the job while its one task waits for a preparation that has not begun."""
    node.fetch()
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    node.finish(attempt_of(node, AttemptKind.USER))
    node.fetch()
    node.finish(attempt_of(node, AttemptKind.JOB_PREPARATION))
    assert world.job().state is JobState.COMPLETED


def test_a_node_without_a_task_of_the_job_is_not_released(worlds: Callable[..., World]) -> None:
    """Nor is one whose task was terminated before its preparation had even begun."""
    world = worlds(1, 1)
    first, second = world.nodes
    world.drain_node(second)
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    end_before_preparation(world, first)
    assert (releases_of(first), releases_of(second)) == (0, 0)


@pytest.mark.parametrize(("preparation", "expected"), [(PREPARATION, 0), (BESIDE, 1)])
def test_a_failed_preparation_is_released_only_where_tasks_have_run(
    world: World, preparation: object, expected: int
) -> None:
    """Beside a preparation that nobody waits for they do; where its success is waited for, none has run."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=preparation, job_release_task=RELEASE)
    world.add_task("t")
    node.fetch()
    failing = attempt_of(node, AttemptKind.JOB_PREPARATION)
    node.run(failing)
    node.finish(failing, exit_code=1)
    world.drain()
    world.verb(jobs.terminate_job, "job")
    world.drain()
    assert world.job().state is JobState.COMPLETED
    assert releases_of(node) == expected


def test_a_preparation_that_was_cut_off_by_the_job_s_end_is_not_released(world: World) -> None:
    """It is stopped when the tasks that wait for it have come back; it did not complete, and no task has run."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    node.fetch()
    preparation = attempt_of(node, AttemptKind.JOB_PREPARATION)
    node.run(preparation)
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    node.report(attempt_of(node, AttemptKind.USER), Transition.RETURNED, return_reason=ReturnReason.STOPPED)
    node.fetch()
    assert preparation.stop is not None
    node.finish(preparation)
    assert world.job().state is JobState.COMPLETED
    assert world.job_node(node).preparation is not None
    assert releases_of(node) == 0


def test_a_release_needs_no_slot(world: World) -> None:
    """It comes to a node that is full, and the node stays as full as it was."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    world.drain()
    world.create_job("other")
    for number in range(2):
        world.add_task(f"o{number}", "other")
    node.fetch()
    for attempt in list(node.live.values()):
        node.run(attempt)
    assert node.row.free_slots == 0
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    release = attempt_of(node, AttemptKind.JOB_RELEASE)
    assert release.assignment.required_slots == 0
    node.run(release)
    assert (node.row.free_slots, node.row.running_tasks, node.row.running_slots) == (0, 2, 2)
    node.finish(release)
    assert world.job().state is JobState.COMPLETED
    assert (node.row.total_tasks_run, node.row.state) == (1, NodeState.RUNNING)


def test_a_reboot_between_preparation_and_end_changes_nothing(ran: tuple[World, FakeNode]) -> None:
    """That the preparation would run again before the next task does not matter: there is none."""
    world, node = ran
    node.begin_anew()
    world.verb(jobs.terminate_job, "job")
    world.drain()
    assert (releases_of(node), world.job().state) == (1, JobState.COMPLETED)


@pytest.mark.parametrize("knows", [False, True])
def test_a_reboot_during_the_release_runs_it_again(ran: tuple[World, FakeNode], *, knows: bool) -> None:
    """Whether or not the agent still knows of it; not for ever, as its command may be what reboots the node."""
    world, node = ran
    world.verb(jobs.terminate_job, "job")
    for times in range(1, 4):
        node.fetch()
        release = attempt_of(node, AttemptKind.JOB_RELEASE)
        node.run(release)
        shown = release_of(world, node)
        assert shown is not None
        assert (shown.state, shown.end_time, releases_of(node)) == (NodeTaskState.RUNNING, None, times)
        assert world.job().state is JobState.TERMINATING
        if knows:
            node.epoch += 1
            node.boot += 1
            node.register()
            node.report(release, Transition.LOST)
        else:
            node.begin_anew()
    shown = release_of(world, node)
    assert shown is not None
    assert (shown.state, shown.result, shown.exit_code) == (NodeTaskState.COMPLETED, ExecutionResult.FAILURE, None)
    assert world.job().state is JobState.COMPLETED


def test_a_release_that_a_reboot_met_ends_well_the_second_time(ran: tuple[World, FakeNode]) -> None:
    """What is shown is the last execution."""
    world, node = ran
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    node.run(attempt_of(node, AttemptKind.JOB_RELEASE))
    first = release_of(world, node)
    node.begin_anew()
    world.drain()
    second = release_of(world, node)
    assert first is not None
    assert second is not None
    assert (second.exit_code, second.failure_info) == (0, None)
    assert second.start_time > first.start_time
    assert world.job().state is JobState.COMPLETED


@pytest.mark.parametrize(("tasks_after", "expected"), [(False, 0), (True, 1)])
def test_after_a_reimage_a_job_is_released_only_where_it_has_run_again(
    ran: tuple[World, FakeNode], *, tasks_after: bool, expected: int
) -> None:
    """What the first preparation did there stays in the list."""
    world, node = ran
    before = world.job_node(node).preparation
    node.begin_anew(reimaged=True)
    if tasks_after:
        world.add_task("again")
        world.drain()
    world.verb(jobs.terminate_job, "job")
    world.drain()
    assert (releases_of(node), world.job().state) == (expected, JobState.COMPLETED)
    assert (world.job_node(node).preparation == before) is not tasks_after


def test_a_preparation_of_before_the_reimage_does_not_count(ran: tuple[World, FakeNode]) -> None:
    """A task has been assigned to the new node, but the job ended before the preparation there had begun."""
    world, node = ran
    node.begin_anew(reimaged=True)
    world.add_task("again")
    end_before_preparation(world, node)
    assert releases_of(node) == 0


def test_a_reimage_during_the_release_ends_it(ran: tuple[World, FakeNode]) -> None:
    """Nothing of the job is there any more to be released."""
    world, node = ran
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    node.run(attempt_of(node, AttemptKind.JOB_RELEASE))
    node.begin_anew(reimaged=True)
    assert world.job().state is JobState.COMPLETED
    assert releases_of(node) == 1


def test_silent_nodes_do_not_keep_a_job_terminating(worlds: Callable[..., World]) -> None:
    """A node that is unknown already gets no release; one that goes silent during it is waited for one lease."""
    world = worlds(1, 1)
    first, second = world.nodes
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("a")
    world.add_task("b")
    world.drain()
    world.store.now += LEASE / 2
    second.heartbeat()
    world.store.now += LEASE / 2 + timedelta(seconds=1)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))
    assert (first.row.state, second.row.state) == (NodeState.UNKNOWN, NodeState.IDLE)
    world.verb(jobs.terminate_job, "job")
    second.fetch()
    second.run(attempt_of(second, AttemptKind.JOB_RELEASE))
    assert release_of(world, first) is None
    assert world.job().state is JobState.TERMINATING
    silence(world)
    assert world.job().state is JobState.COMPLETED
    lost = release_of(world, second)
    assert lost is not None
    assert lost.failure_info is not None
    assert (lost.state, lost.failure_info.code) == (NodeTaskState.COMPLETED, "Unknown")
    for node in (first, second):
        node.heartbeat()
    world.drain()
    assert (releases_of(first), releases_of(second)) == (0, 1)
    assert world.job().state is JobState.COMPLETED


def test_a_node_that_leaves_its_pool_does_not_keep_a_job_terminating(ran: tuple[World, FakeNode]) -> None:
    """The release is stopped with the removal; its entry outlives the node."""
    world, node = ran
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    release = attempt_of(node, AttemptKind.JOB_RELEASE)
    node.run(release)
    deadline = world.store.now + timedelta(minutes=15)
    world.verb(lambda tx, now: node_verbs.remove_nodes(tx, POOL, [node.id], DrainOption.REQUEUE, deadline, now))
    node.fetch()
    assert release.stop is not None
    node.finish(release)
    assert world.job().state is JobState.COMPLETED
    shown = release_of(world, node)
    assert shown is not None
    assert (shown.result, shown.exit_code) == (ExecutionResult.FAILURE, -15)
