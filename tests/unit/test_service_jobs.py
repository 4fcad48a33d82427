"""The verbs of jobs and tasks at the service: in which state which verb, and what it leaves (spec/rest.md §8.1, §8.2).

| sentence of the SDK's pages | test |
| --- | --- |
| "If you try to disable a Job that is in any state other than active, disabling, or disabled, ... 409" | the matrix |
| "All update operations on a Job that is in deleting state will fail with status code 409" | the matrix |
| "new Tasks cannot be added"; reactivation "will fail if the Job has completed" | the matrix |
| "the system will not accept any more Tasks or any further changes to the Job" | the matrix |
| "to the enabling state. ... the Job moves to the active state" | `test_the_states_of_a_job_and_their_times` |
| "You may change the Pool for a Job only when the Job is disabled" | `test_a_disabled_job_moves_to_another_pool` |
| "in the disabling state until ... all Tasks have been dealt with" | `test_a_job_is_disabled_once_more_...` |
| requeueCount, lastRequeueTime | the same |
| "The maximum number of times each Task may be retried" | `test_tasks_inherit_the_retries_of_their_job` |
| "The number of scheduling slots that the Task requires" | `test_a_job_of_higher_priority_goes_first` |
"""

from collections.abc import Callable
from datetime import timedelta

import pytest

from nodeagent.model.enums import DisableTasks, ExecutionResult, JobState, OnAllTasksComplete, TaskState
from nodeagent.model.job import JobConstraints, JobManagerTask, JobPatch, JobUpdate, PoolInfo
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import Assignment, AttemptKind
from nodeagent.model.task import TaskConstraints, TaskCreate
from nodeagent.model.values import EnvironmentSetting
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import jobs, pools, tasks
from tests.unit.service_world import POOL, PREPARATION, RELEASE, FakeNode, Running, World

pytest_plugins = ["tests.unit.service_fixtures"]


def running(world: World, node: FakeNode, task_id: str, job_id: str = "job") -> Running:
    """Add a task and let it start on the node."""
    world.add_task(task_id, job_id)
    node.fetch()
    (found,) = (
        attempt
        for attempt in node.live.values()
        if (attempt.assignment.job_id, attempt.assignment.task_id) == (job_id, task_id)
    )
    node.run(found)
    return found


def disabled(world: World) -> None:
    """Let the job's task end, and disable the job."""
    (node,) = world.nodes
    node.finish(next(iter(node.live.values())))
    world.verb(jobs.disable_job, "job", DisableTasks.WAIT)


STATES: dict[JobState, Callable[[World], None]] = {
    JobState.ACTIVE: lambda _: None,
    JobState.DISABLING: lambda world: world.verb(jobs.disable_job, "job", DisableTasks.WAIT),
    JobState.DISABLED: disabled,
    JobState.TERMINATING: lambda world: world.verb(jobs.terminate_job, "job"),
    JobState.COMPLETED: lambda world: world.verb(jobs.terminate_job, "job", force=True),
    JobState.DELETING: lambda world: world.verb(jobs.delete_job, "job"),
}
UPDATE = JobUpdate(pool_info=PoolInfo(pool_id=POOL), priority=3)
VERBS: dict[str, Callable[[World], None]] = {
    "patch": lambda world: world.verb(jobs.patch_job, "job", JobPatch(priority=3)),
    "update": lambda world: world.verb(jobs.update_job, "job", UPDATE),
    "disable": lambda world: world.verb(jobs.disable_job, "job", DisableTasks.WAIT),
    "enable": lambda world: world.verb(jobs.enable_job, "job"),
    "terminate": lambda world: world.verb(jobs.terminate_job, "job"),
    "delete": lambda world: world.verb(jobs.delete_job, "job"),
    "add": lambda world: world.add_task("new"),
    "reactivate": lambda world: world.verb(tasks.reactivate_task, "job", "failed"),
}
REFUSED = {
    JobState.TERMINATING: "JobBeingTerminated",
    JobState.COMPLETED: "JobCompleted",
    JobState.DELETING: "JobBeingDeleted",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", STATES)
def test_which_verb_a_job_takes_in_which_state(world: World, state: JobState, verb: str) -> None:
    """Until it ends, all; then none but its deletion, which is asked for once."""
    world.create_job()
    world.add_task("failed")
    world.verb(tasks.terminate_task, "job", "failed")
    world.nodes[0].fetch()
    world.drain()
    running(world, world.nodes[0], "busy")
    STATES[state](world)
    assert world.job().state is state
    before = world.job()
    allowed = state not in REFUSED or (verb == "delete" and state is not JobState.DELETING)
    if not allowed:
        with pytest.raises(BatchError, match=REFUSED[state]):
            VERBS[verb](world)
        assert world.job() == before
        return
    VERBS[verb](world)
    if verb in ("patch", "update"):
        assert (world.job().spec.priority, world.job().state) == (3, state)
        assert world.job().etag != before.etag


def test_the_states_of_a_job_and_their_times(world: World) -> None:
    """Each state tells the one before and since when that was; the end shows what it was before it was terminating."""
    (node,) = world.nodes
    world.create_job()
    first = world.job()
    assert (first.state, first.previous_state, first.previous_state_time) == (JobState.ACTIVE, None, None)
    busy = running(world, node, "busy")
    world.verb(jobs.disable_job, "job", DisableTasks.WAIT)
    disabling = world.job()
    assert (disabling.previous_state, disabling.previous_state_time) == (JobState.ACTIVE, first.state_time)
    assert disabling.etag != first.etag
    node.finish(busy)
    disabled = world.job()
    assert (disabled.state, disabled.previous_state) == (JobState.DISABLED, JobState.DISABLING)
    assert (disabled.previous_state_time, disabled.etag) == (disabling.state_time, disabling.etag)
    world.verb(jobs.enable_job, "job")
    active = world.job()
    assert (active.state, active.previous_state) == (JobState.ACTIVE, JobState.ENABLING)
    busy = running(world, node, "busier")
    world.verb(jobs.terminate_job, "job", reason="enough")
    terminating = world.job()
    assert (terminating.state, terminating.previous_state) == (JobState.TERMINATING, JobState.ACTIVE)
    assert (terminating.terminate_reason, terminating.ended) == ("enough", None)
    node.fetch()
    node.finish(busy)
    ended = world.job()
    assert (ended.state, ended.previous_state, ended.previous_state_time) == (
        JobState.COMPLETED,
        JobState.ACTIVE,
        active.state_time,
    )
    assert (ended.ended, ended.etag) == (ended.state_time, terminating.etag)
    assert first.created < disabling.state_time < disabled.state_time < active.state_time < ended.state_time


def test_a_terminated_job_ends_what_runs_and_leaves_what_waits(world: World) -> None:
    """Running tasks are completed as ended by the job; active ones stay active and never run."""
    (node,) = world.nodes
    world.create_job()
    attempts = [running(world, node, name) for name in ("a", "b")]
    world.add_task("waits")
    world.verb(jobs.terminate_job, "job")
    node.fetch()
    for attempt in attempts:
        node.finish(attempt)
    world.drain()
    for name in ("a", "b"):
        execution = world.task(name).execution
        assert execution.failure_info is not None
        assert (execution.failure_info.code, execution.exit_code) == ("TaskEnded", -15)
    waits = world.task("waits")
    assert (waits.state, waits.node, waits.previous_state) == (TaskState.ACTIVE, None, None)


def test_a_job_is_disabled_once_more_with_another_option(world: World) -> None:
    """First it waited for its tasks; asked again, it requeues them, counted with the time of that."""
    (node,) = world.nodes
    world.create_job()
    busy = running(world, node, "t")
    world.verb(jobs.disable_job, "job", DisableTasks.WAIT)
    assert busy.stop is None
    since = world.job().state_time
    world.verb(jobs.disable_job, "job", DisableTasks.REQUEUE)
    assert (world.job().state, world.job().state_time) == (JobState.DISABLING, since)
    node.fetch()
    node.finish(busy)
    assert world.job().state is JobState.DISABLED
    task = world.task("t")
    assert (task.state, task.previous_state) == (TaskState.ACTIVE, TaskState.RUNNING)
    assert (task.execution.requeue_count, task.execution.retry_count) == (1, 0)
    assert task.execution.last_requeue_time == task.state_time
    assert (task.execution.start_time, task.execution.exit_code, task.execution.failure_info) == (None, None, None)
    world.verb(jobs.enable_job, "job")
    world.drain()
    assert world.task("t").execution.result is ExecutionResult.SUCCESS
    assert world.task("t").execution.requeue_count == 1


def test_a_disabled_job_moves_to_another_pool(world: World) -> None:
    """Not while it is active, whatever the case of the id that it has; afterwards its tasks wait for the other pool."""
    (node,) = world.nodes
    world.create_job()
    same = JobPatch(pool_info=PoolInfo(pool_id=POOL.upper()))
    other = JobPatch(pool_info=PoolInfo(pool_id="other"))
    world.verb(jobs.patch_job, "job", same)
    with pytest.raises(BatchError, match="OperationInvalidForCurrentState"):
        world.verb(jobs.patch_job, "job", other)
    world.verb(jobs.disable_job, "job", DisableTasks.WAIT)
    world.verb(jobs.patch_job, "job", other)
    world.verb(jobs.enable_job, "job")
    world.add_task("t")
    assert node.fetch() == 0
    world.verb(pools.create_pool, PoolCreate(id="Other", vm_size="v"))
    newcomer = FakeNode(world.store, "newcomer", 1)
    newcomer.register(pool_id="other")
    world.nodes.append(newcomer)
    world.drain()
    task = world.task("t")
    assert task.node is not None
    assert (task.node.id, task.execution.result) == ("newcomer", ExecutionResult.SUCCESS)


def test_tasks_inherit_the_retries_of_their_job(world: World) -> None:
    """Their own number counts if they have one; a change of the job's holds from the next end on."""
    (node,) = world.nodes
    world.create_job(constraints=JobConstraints(max_task_retry_count=1))

    def fail(task_id: str, constraints: TaskConstraints | None) -> int:
        spec = TaskCreate(id=task_id, command_line="x", constraints=constraints)
        world.verb(lambda tx, now: tasks.add_task(tx, "job", spec, now))
        tries = 0
        while node.fetch() or node.live:
            (attempt,) = node.live.values()
            node.run(attempt)
            node.finish(attempt, exit_code=1)
            tries += 1
        assert world.task(task_id).execution.retry_count == tries - 1
        return tries

    assert fail("inherits", None) == 2
    assert fail("silent", TaskConstraints(max_wall_clock_time=timedelta(hours=1))) == 2
    assert fail("never", TaskConstraints(max_task_retry_count=0)) == 1
    assert fail("more", TaskConstraints(max_task_retry_count=3)) == 4
    world.verb(jobs.patch_job, "job", JobPatch(constraints=JobConstraints(max_task_retry_count=2)))
    assert fail("later", None) == 3


def test_a_job_of_higher_priority_goes_first(world: World) -> None:
    """Of two jobs that wait; a priority that is changed counts from then on; equal ones go by age."""
    (node,) = world.nodes
    world.create_job("busy")
    busy = running(world, node, "one", "busy"), running(world, node, "two", "busy")
    for job_id, priority in (("low", -1000), ("old", 0), ("young", 0), ("high", 5)):
        world.create_job(job_id, priority=priority)
        world.add_task("t", job_id, slots=2)
    world.verb(jobs.patch_job, "low", JobPatch(priority=1000))
    for attempt in busy:
        node.finish(attempt)
    world.drain()
    order = [message.job_id for message in node.seen if isinstance(message, Assignment) and message.job_id != "busy"]
    assert order == ["low", "high", "old", "young"]


def test_no_more_tasks_of_a_job_run_than_it_allows(worlds: Callable[..., World]) -> None:
    """The limit can be changed while they run."""
    world = worlds(4)
    (node,) = world.nodes
    world.create_job(max_parallel_tasks=1)
    for number in range(5):
        world.add_task(f"t{number}")
    node.fetch()
    assert len(node.live) == 1
    world.verb(jobs.patch_job, "job", JobPatch(max_parallel_tasks=3))
    node.fetch()
    assert len(node.live) == 3
    world.verb(jobs.patch_job, "job", JobPatch(max_parallel_tasks=-1))
    node.fetch()
    assert len(node.live) == 4


def test_common_environment_settings_reach_every_kind_of_task(world: World) -> None:
    """Preparation, manager, user and release task; what a task says itself comes after, and so wins."""
    (node,) = world.nodes

    def settings(**values: str) -> tuple[EnvironmentSetting, ...]:
        return tuple(EnvironmentSetting(name=name, value=value) for name, value in values.items())

    own = settings(A="own")
    manager = JobManagerTask(id="m", command_line="m", run_exclusive=False, environment_settings=own)
    world.create_job(
        common_environment_settings=settings(A="job", B="job"),
        job_preparation_task=PREPARATION.model_copy(update={"environment_settings": own}),
        job_release_task=RELEASE.model_copy(update={"environment_settings": own}),
        job_manager_task=manager.model_copy(update={"kill_job_on_completion": False}),
    )
    spec = TaskCreate(id="t", command_line="x", environment_settings=own)
    world.verb(lambda tx, now: tasks.add_task(tx, "job", spec, now))
    world.drain()
    world.verb(jobs.terminate_job, "job")
    world.drain()
    sent = {message.attempt_kind: message.work for message in node.seen if isinstance(message, Assignment)}
    assert set(sent) == {
        AttemptKind.JOB_PREPARATION,
        AttemptKind.JOB_MANAGER,
        AttemptKind.USER,
        AttemptKind.JOB_RELEASE,
    }
    for work in sent.values():
        assert {item.name: item.value for item in work.environment_settings} == {"A": "own", "B": "job"}


def test_deleting_the_last_unfinished_task_completes_a_job_that_wants_that(world: World) -> None:
    """All of its tasks are complete then."""
    world.create_job()
    world.drain_node(world.nodes[0])
    world.add_task("t")
    world.verb(jobs.patch_job, "job", JobPatch(on_all_tasks_complete=OnAllTasksComplete.TERMINATE_JOB))
    assert world.job().state is JobState.ACTIVE
    with pytest.raises(BatchError, match="InvalidPropertyValue"):
        world.verb(jobs.patch_job, "job", JobPatch(on_all_tasks_complete=OnAllTasksComplete.NO_ACTION))
    world.verb(tasks.delete_task, "job", "t")
    assert (world.job().state, world.job().terminate_reason) == (JobState.COMPLETED, "AllTasksComplete")


def test_a_reactivated_task_forgets_its_end(world: World) -> None:
    """Exit code, failure and retries are gone, requeues are not; it may be retried as often again."""
    (node,) = world.nodes
    world.create_job(constraints=JobConstraints(max_task_retry_count=1))
    busy = running(world, node, "t")
    world.verb(jobs.disable_job, "job", DisableTasks.REQUEUE)
    node.fetch()
    node.finish(busy)
    world.verb(jobs.enable_job, "job")
    for _ in range(2):
        node.fetch()
        (attempt,) = node.live.values()
        node.run(attempt)
        node.finish(attempt, exit_code=1)
    failed = world.task("t")
    assert (failed.state, failed.execution.retry_count) == (TaskState.COMPLETED, 1)
    world.drain_node(node)
    world.verb(tasks.reactivate_task, "job", "t")
    again = world.task("t")
    assert (again.state, again.previous_state, again.previous_state_time) == (
        TaskState.ACTIVE,
        TaskState.COMPLETED,
        failed.state_time,
    )
    shown = again.execution
    assert (shown.retry_count, shown.last_retry_time, shown.requeue_count) == (0, None, 1)
    assert (shown.start_time, shown.end_time, shown.exit_code, shown.result, shown.failure_info) == (None,) * 5
    with pytest.raises(BatchError, match="TaskNotCompleted"):
        world.verb(tasks.reactivate_task, "job", "t")
    node.begin_anew()
    for _ in range(2):
        node.fetch()
        (attempt,) = node.live.values()
        node.run(attempt)
        node.finish(attempt, exit_code=1)
    assert world.task("t").execution.retry_count == 1
