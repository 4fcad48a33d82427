"""Jobs, tasks and nodes through every order of events: counts, slots and ends hold (design.md §8)."""

import contextlib
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nodeagent.model.enums import (
    DependencyAction,
    DisableTasks,
    ExecutionResult,
    JobAction,
    JobState,
    NodeState,
    NodeTaskState,
    OnAllTasksComplete,
    OnTaskFailure,
    TaskState,
)
from nodeagent.model.events import EventRecord
from nodeagent.model.job import JobConstraints, JobManagerTask, JobPatch, JobPreparationTask
from nodeagent.model.pool import PoolCreate
from nodeagent.model.protocol import (
    Assignment,
    AttemptKind,
    EndJobSession,
    Outcome,
    RemoveFiles,
    Report,
    ReportStatus,
    ReturnReason,
    StopReason,
    Transition,
)
from nodeagent.model.task import ExitCodeMapping, ExitConditions, ExitOptions, TaskCreate, TaskDependencies
from nodeagent.rules.failures import task_ended
from nodeagent.rules.retry import MAX_INTERNAL_RETRIES
from nodeagent.service.background import ClockWatch
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, jobs, nodes, pools, tasks
from nodeagent.service.store import counts, events, job_nodes
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store import nodes as node_rows
from nodeagent.service.store import tasks as task_rows
from nodeagent.service.store.database import Transaction
from tests.unit.service_world import (
    LEASE,
    POOL,
    PREPARATION,
    RELEASE,
    START,
    FakeNode,
    Running,
    World,
    ignore,
    job_spec,
)

pytest_plugins = ["tests.unit.service_fixtures"]


def test_a_task_runs_to_its_end_with_the_states_and_times_of_batch(world: World) -> None:
    """Active → running → completed: each state shows exactly the fields that Batch shows in it."""
    world.create_job()
    world.add_task("t")
    node = world.nodes[0]
    active = world.task("t")
    assert (active.state, active.previous_state) == (TaskState.ACTIVE, None)
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    running = world.task("t")
    assert (running.state, running.previous_state) == (TaskState.RUNNING, TaskState.ACTIVE)
    assert running.execution.start_time is not None
    assert running.execution.end_time is None
    assert running.node is not None
    assert running.node.task_root_directory == "workitems/job/job-1/t"
    assert (node.row.state, node.row.running_tasks, node.row.free_slots) == (NodeState.RUNNING, 1, 1)
    node.finish(attempt)
    completed = world.task("t")
    assert (completed.state, completed.previous_state) == (TaskState.COMPLETED, TaskState.RUNNING)
    assert completed.execution.exit_code == 0
    assert completed.execution.result is ExecutionResult.SUCCESS
    assert completed.etag == active.etag, "the ETag is the definition's, not the state's"
    row = node.row
    assert (row.state, row.running_tasks, row.free_slots) == (NodeState.IDLE, 0, 2)
    assert (row.total_tasks_run, row.total_tasks_succeeded) == (1, 1)


def test_the_event_of_an_end_without_an_execution_has_no_statistics(world: World) -> None:
    """The documented properties are all there, `exitCode` as null; of a task that never ran nothing was used."""
    world.create_job()
    world.drain_node(world.nodes[0])
    world.add_task("t")
    world.verb(tasks.terminate_task, "job", "t")
    rows = world.store.do(lambda tx: events.after(tx, 0))
    ends = [EventRecord.from_json(text) for _, text in rows]
    assert [event.operation_name for event in ends] == ["TaskCompleteEvent", "TaskFailEvent"]
    for _, text in rows:
        assert '"exitCode":null' in text
        assert "nodeagent" not in text


def test_a_failure_is_retried_until_no_retry_is_left(world: World) -> None:
    """A nonzero exit makes the task active again, counted; nothing of the failed try is shown until the last."""
    world.create_job(constraints=JobConstraints(max_task_retry_count=1))
    world.add_task("t")
    node = world.nodes[0]
    for expected in (0, 1):
        node.fetch()
        (attempt,) = node.live.values()
        assert attempt.assignment.retry_count == expected
        node.run(attempt)
        node.finish(attempt, exit_code=3)
    task = world.task("t")
    assert task.state is TaskState.COMPLETED
    assert (task.execution.retry_count, task.execution.exit_code) == (1, 3)
    assert task.execution.failure_info is not None
    assert task.execution.last_retry_time is not None


def test_a_task_that_no_node_can_run_is_not_recovered_for_ever(world: World) -> None:
    """After so many losses the task completes with the code that Batch has for that, and its last reason."""
    world.create_job()
    world.add_task("t")
    node = world.nodes[0]
    for _ in range(MAX_INTERNAL_RETRIES + 1):
        assert world.task("t").state is TaskState.ACTIVE
        node.fetch()
        (attempt,) = node.live.values()
        node.report(attempt, Transition.LOST)
    task = world.task("t")
    assert (task.state, task.execution.retry_count, task.execution.exit_code) == (TaskState.COMPLETED, 0, None)
    assert task.execution.failure_info is not None
    assert task.execution.failure_info.code == "MaxInternalRetryCountReached"
    assert node.row.free_slots == 2


def test_reports_are_applied_once_and_in_order(world: World) -> None:
    """Below the expected number: already. Above: a gap that names what is missing. The first end wins."""
    world.create_job()
    world.add_task("t")
    node = world.nodes[0]
    node.fetch()
    (attempt,) = node.live.values()
    early = Report(attempt_id=attempt.assignment.attempt_id, seq=2, transition=Transition.LOST, at=world.store.now)
    assert node.send(early) is ReportStatus.GAP
    node.run(attempt)
    node.finish(attempt)
    for report in node.ended[attempt.assignment.attempt_id]:
        assert node.send(report) is ReportStatus.ALREADY
    assert node.send(early.model_copy(update={"seq": 3})) is ReportStatus.APPLIED
    assert world.task("t").state is TaskState.COMPLETED
    stranger = early.model_copy(update={"attempt_id": "nobody"})
    assert node.send(stranger) is ReportStatus.UNKNOWN


def test_preparation_runs_once_and_release_only_where_it_ran(worlds: Callable[..., World]) -> None:
    """Two tasks wait for one preparation; a node that got no task has neither preparation nor release."""
    world = worlds(2, 1)
    world.drain_node(world.nodes[1])
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("a")
    world.add_task("b")
    node, other = world.nodes
    node.fetch()
    kinds = [attempt.assignment.attempt_kind for attempt in node.live.values()]
    assert kinds == [AttemptKind.JOB_PREPARATION, AttemptKind.USER, AttemptKind.USER]
    assert world.task("a").state is TaskState.PREPARING
    world.drain()
    assert world.task("b").execution.result is ExecutionResult.SUCCESS
    world.add_task("c")
    world.drain()
    prepared = [message for message in node.seen if isinstance(message, Assignment) and not message.required_slots]
    assert len(prepared) == 1
    world.verb(jobs.terminate_job, "job")
    assert world.job().state is JobState.TERMINATING
    world.drain()
    job = world.job()
    assert (job.state, job.previous_state, job.terminate_reason) == (
        JobState.COMPLETED,
        JobState.ACTIVE,
        "UserTerminate",
    )
    row = world.job_node(node)
    assert row.release is not None
    assert row.release.result is ExecutionResult.SUCCESS
    assert isinstance(node.seen[-1], EndJobSession)
    assert other.seen == []


def test_a_failed_preparation_makes_the_node_ineligible_for_the_job_only(worlds: Callable[..., World]) -> None:
    """The tasks go to the other node; another job still runs on the first."""
    world = worlds(1, 1)
    world.create_job(job_preparation_task=PREPARATION)
    world.add_task("a")
    first, second = world.nodes
    first.fetch()
    preparation = next(iter(first.live.values()))
    first.run(preparation)
    first.finish(preparation, exit_code=1)
    world.drain()
    task = world.task("a")
    assert task.execution.result is ExecutionResult.SUCCESS
    assert task.node is not None
    assert task.node.id == second.id
    assert task.execution.retry_count == 0
    world.create_job("other")
    world.add_task("x", "other", slots=1)
    world.add_task("y", "other", slots=1)
    world.drain()
    used = {task.node.id for name in ("x", "y") if (task := world.task(name, "other")).node is not None}
    assert used == {first.id, second.id}


def test_a_task_given_back_before_the_report_of_its_failed_preparation_does_not_return(world: World) -> None:
    """The order of reports of different attempts is free: the node is not tried again meanwhile."""
    world.create_job(job_preparation_task=PREPARATION)
    world.add_task("a")
    node = world.nodes[0]
    node.fetch()
    preparation, waiting = node.live.values()
    node.run(preparation)
    node.report(waiting, Transition.RETURNED, return_reason=ReturnReason.PREPARATION_FAILED)
    assert node.fetch() == 0
    node.finish(preparation, exit_code=1)
    assert node.fetch() == 0
    assert world.task("a").state is TaskState.ACTIVE


def test_a_lost_preparation_runs_anew(world: World) -> None:
    """Its tasks are asked back, and bring a new preparation along."""
    world.create_job(job_preparation_task=PREPARATION)
    world.add_task("a")
    node = world.nodes[0]
    node.fetch()
    preparation, _ = node.live.values()
    node.run(preparation)
    node.report(preparation, Transition.LOST)
    world.drain()
    assert world.task("a").execution.result is ExecutionResult.SUCCESS


def test_terminating_a_running_task_completes_it_at_once(world: World) -> None:
    """The end that the node reports later frees the slots and changes nothing else."""
    world.create_job()
    world.add_task("t", slots=2)
    world.add_task("next", slots=2)
    node = world.nodes[0]
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    world.verb(tasks.terminate_task, "job", "t")
    task = world.task("t")
    assert task.state is TaskState.COMPLETED
    assert task.execution.failure_info is not None
    assert task.execution.failure_info.code == "TaskEnded"
    with pytest.raises(BatchError, match="TaskCompleted"):
        world.verb(tasks.terminate_task, "job", "t")
    world.verb(tasks.reactivate_task, "job", "t")
    assert node.fetch() == 1, "only the stop: the slots are held until the process is gone"
    node.finish(attempt)
    world.drain()
    assert world.task("t").execution.result is ExecutionResult.SUCCESS
    assert world.task("next").execution.result is ExecutionResult.SUCCESS


def test_a_terminated_task_shows_how_its_process_ended_once_that_is_known(world: World) -> None:
    """It is complete at once; evidence comes later, unless the task was reactivated, or its process was faster."""
    world.create_job()
    node = world.nodes[0]

    def terminate(task_id: str) -> Running:
        world.add_task(task_id)
        node.fetch()
        attempt = next(found for found in node.live.values() if found.assignment.task_id == task_id)
        node.run(attempt)
        world.verb(tasks.terminate_task, "job", task_id)
        assert world.task(task_id).execution.exit_code is None
        return attempt

    told, again = terminate("told"), terminate("again")
    node.fetch()
    world.verb(tasks.reactivate_task, "job", "again")
    world.verb(tasks.terminate_task, "job", "again")
    for attempt in (told, again):
        failure = task_ended(StopReason.USER_TERMINATE, "last words")
        outcome = Outcome(
            result=ExecutionResult.FAILURE,
            end_time=world.store.now,
            exit_code=-15,
            failure_info=failure,
            stop_reason=StopReason.USER_TERMINATE,
        )
        node.report(attempt, Transition.COMPLETED, outcome=outcome)
    execution = world.task("told").execution
    assert (execution.exit_code, execution.failure_info) == (-15, failure)
    assert world.task("again").execution.exit_code is None, "what ended had been reactivated before"
    faster = terminate("faster")
    node.finish(faster)
    execution = world.task("faster").execution
    assert execution.result is ExecutionResult.FAILURE
    assert (execution.exit_code, execution.failure_info) == (None, task_ended(StopReason.USER_TERMINATE))


def test_a_silent_node_loses_its_tasks_exactly_once(worlds: Callable[..., World]) -> None:
    """After the lease they run elsewhere; what the node still says of them is unknown, also if it comes back."""
    world = worlds(1, 1)
    world.create_job()
    world.add_task("t")
    first, second = world.nodes
    first.fetch()
    (attempt,) = first.live.values()
    first.run(attempt)
    world.store.now += LEASE / 2
    second.heartbeat()
    world.store.now += LEASE / 2 + timedelta(seconds=1)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))
    assert first.row.state is NodeState.UNKNOWN
    task = world.task("t")
    assert (task.state, task.system_task_version) == (TaskState.ACTIVE, 1)
    assert (task.execution.retry_count, task.execution.requeue_count) == (0, 0)
    assert node_of(world, "t") == second.id
    late = Report(attempt_id=attempt.assignment.attempt_id, seq=2, transition=Transition.LOST, at=world.store.now)
    assert first.send(late) is ReportStatus.UNKNOWN
    assert first.row.free_slots == 0, "the process may still run there"
    first.heartbeat()
    assert attempt.assignment.attempt_id not in first.live
    first.fetch()
    first.heartbeat()
    assert (first.row.state, first.row.free_slots) == (NodeState.IDLE, 1)
    world.drain()
    assert world.task("t").execution.result is ExecutionResult.SUCCESS
    assert len([message for message in second.seen if isinstance(message, Assignment)]) == 1


def node_of(world: World, task_id: str) -> str | None:
    """Return the node of a task."""
    node = world.task(task_id).node
    return None if node is None else node.id


def test_an_older_agent_is_fenced(world: World) -> None:
    """A lower epoch, or the same epoch of another life, is refused everywhere."""
    node = world.nodes[0]
    node.epoch = 3
    node.register()
    node.epoch = 2
    with pytest.raises(nodes.NodeRefusedError) as lower:
        node.register()
    assert lower.value.code == "Fenced"
    with pytest.raises(nodes.NodeRefusedError):
        node.heartbeat()
    node.epoch = 3
    node.heartbeat()


def test_a_reboot_loses_what_ran_and_prepares_again(world: World) -> None:
    """Attempts that the agent does not know after a reboot run again; so does a preparation that had succeeded."""
    world.create_job(job_preparation_task=PREPARATION)
    world.add_task("a")
    world.drain()
    world.add_task("b")
    node = world.nodes[0]
    node.fetch()
    node.live.clear()
    node.boot, node.epoch = 2, 2
    node.register()
    assert world.task("b").system_task_version == 1
    node.fetch()
    kinds = [attempt.assignment.attempt_kind for attempt in node.live.values()]
    assert kinds == [AttemptKind.JOB_PREPARATION, AttemptKind.USER]
    world.drain()
    assert world.task("b").execution.result is ExecutionResult.SUCCESS


@pytest.mark.parametrize(
    ("how", "state", "requeues"),
    [
        (DisableTasks.REQUEUE, TaskState.ACTIVE, 1),
        (DisableTasks.TERMINATE, TaskState.COMPLETED, 0),
        (DisableTasks.WAIT, TaskState.COMPLETED, 0),
    ],
)
def test_disabling_a_job_does_to_its_tasks_what_was_asked(
    world: World, how: DisableTasks, state: TaskState, requeues: int
) -> None:
    """The job is disabling until nothing runs; nothing starts until it is enabled again."""
    world.create_job()
    for number in range(3):
        world.add_task(f"t{number}")
    node = world.nodes[0]
    node.fetch()
    for attempt in node.live.values():
        node.run(attempt)
    world.verb(jobs.disable_job, "job", how)
    assert world.job().state is JobState.DISABLING
    world.drain()
    assert world.job().state is JobState.DISABLED
    assert world.task("t0").state is state
    assert world.task("t0").execution.requeue_count == requeues
    assert world.task("t2").state is TaskState.ACTIVE
    world.verb(jobs.enable_job, "job")
    world.drain()
    assert world.task("t2").execution.result is ExecutionResult.SUCCESS


def test_deleting_an_active_job_releases_first_and_then_leaves_nothing(world: World) -> None:
    """Release runs before the job is gone; the node is told to remove its files."""
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("a")
    world.drain()
    world.verb(jobs.delete_job, "job")
    assert world.job().state is JobState.DELETING
    with pytest.raises(BatchError, match="JobBeingDeleted"):
        world.add_task("b")
    world.drain()
    with pytest.raises(BatchError, match="JobNotFound"):
        world.job()
    node = world.nodes[0]
    released = [
        message
        for message in node.seen
        if isinstance(message, Assignment) and message.attempt_kind is AttemptKind.JOB_RELEASE
    ]
    assert len(released) == 1
    assert isinstance(node.seen[-1], RemoveFiles)


def test_a_job_ends_by_itself_when_it_asks_for_that(world: World) -> None:
    """onAllTasksComplete: with the last task, and at once where there is none; back to noaction is refused."""
    world.create_job("empty", on_all_tasks_complete=OnAllTasksComplete.TERMINATE_JOB)
    assert world.job("empty").state is JobState.COMPLETED
    world.create_job()
    world.add_task("a")
    world.drain()
    before = world.job()
    patch = JobPatch(on_all_tasks_complete=OnAllTasksComplete.TERMINATE_JOB)
    world.verb(jobs.patch_job, "job", patch)
    job = world.job()
    assert (job.state, job.terminate_reason) == (JobState.COMPLETED, "AllTasksComplete")
    assert job.etag != before.etag


def test_the_job_manager_has_its_node_for_itself_and_ends_its_job(world: World) -> None:
    """It is the job's first task, takes the whole node, and its end is the job's (killJobOnCompletion)."""
    world.create_job(job_manager_task=JobManagerTask(id="manager", command_line="m"))
    world.add_task("a")
    node = world.nodes[0]
    node.fetch()
    (manager,) = node.live.values()
    assert manager.assignment.attempt_kind is AttemptKind.JOB_MANAGER
    assert node.row.free_slots == 0
    node.run(manager)
    node.finish(manager)
    job = world.job()
    assert (job.state, job.terminate_reason) == (JobState.COMPLETED, "JMComplete")
    assert world.task("a").state is TaskState.ACTIVE


def test_a_job_manager_that_runs_again_does_not_end_its_job(world: World) -> None:
    """A recovery is no end: the job goes on with the new attempt."""
    world.create_job(job_manager_task=JobManagerTask(id="manager", command_line="m"))
    node = world.nodes[0]
    node.fetch()
    (manager,) = node.live.values()
    node.run(manager)
    node.report(manager, Transition.LOST)
    assert world.job().state is JobState.ACTIVE
    world.drain()
    assert world.job().terminate_reason == "JMComplete"


EXIT_7_DISABLES = ExitConditions(
    exit_codes=(ExitCodeMapping(code=7, exit_options=ExitOptions(job_action=JobAction.DISABLE)),),
    default=ExitOptions(job_action=JobAction.NONE),
)


@pytest.mark.parametrize(
    ("conditions", "exit_code", "state"),
    [
        (None, 0, JobState.ACTIVE),
        (None, 1, JobState.COMPLETED),
        (EXIT_7_DISABLES, 1, JobState.ACTIVE),
        (EXIT_7_DISABLES, 7, JobState.DISABLED),
    ],
)
def test_a_failure_does_to_the_job_what_its_exit_options_say(
    world: World, conditions: ExitConditions | None, exit_code: int, state: JobState
) -> None:
    """With performexitoptionsjobaction a failure ends the job unless the task says otherwise."""
    world.create_job(on_task_failure=OnTaskFailure.PERFORM_EXIT_OPTIONS_JOB_ACTION)
    spec = TaskCreate(id="t", command_line="x", exit_conditions=conditions)
    world.store.do(lambda tx: tasks.add_task(tx, "job", spec, world.store.now))
    node = world.nodes[0]
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    node.finish(attempt, exit_code)
    job = world.job()
    assert job.state is state
    assert job.terminate_reason == ("TaskFailed" if state is JobState.COMPLETED else None)


def test_a_jump_of_the_clock_is_noticed() -> None:
    """Set by a minute or asleep for an hour: both clocks going together is no jump."""
    watch = ClockWatch(START, 100.0)
    assert not watch.jumped(START + timedelta(seconds=30), 130.0)
    assert watch.jumped(START + timedelta(seconds=3630), 130.5)
    assert watch.jumped(START, 131.0)
    assert not watch.jumped(START + timedelta(seconds=5), 136.1)


def test_a_job_that_lasts_too_long_is_ended(world: World) -> None:
    """MaxWallClockTime counts from the creation of the job."""
    world.create_job(constraints=JobConstraints(max_wall_clock_time=timedelta(minutes=5)))
    world.add_task("a")
    following = world.store.do(lambda tx: deadlines.expire(tx, world.store.now, timedelta(days=1)))
    assert following is not None
    world.store.now = following
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, timedelta(days=1))))
    job = world.job()
    assert (job.state, job.terminate_reason) == (JobState.TERMINATING, "MaxWallClockTimeExpiry")
    world.drain()
    assert world.job().state is JobState.COMPLETED


def test_a_forced_end_waits_for_nobody(world: World) -> None:
    """With force the job is completed though its node says nothing; the node is told when it speaks."""
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("a")
    node = world.nodes[0]
    node.fetch()
    world.verb(jobs.terminate_job, "job", force=True)
    assert world.job().state is JobState.COMPLETED
    node.heartbeat()
    assert node.live == {}


def test_deleting_a_pool_requeues_its_tasks_and_lets_its_nodes_go(world: World) -> None:
    """The job stays active; the tasks run when there is a pool of that id again."""
    world.create_job()
    world.add_task("a")
    node = world.nodes[0]
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    world.verb(pools.delete_pool, POOL)
    node.fetch()
    node.finish(attempt)
    world.store.do(lambda tx: pools.advance(tx, POOL, world.store.now))
    with pytest.raises(BatchError, match="PoolNotFound"):
        world.store.do(lambda tx: ignore(pools.require(tx, POOL)))
    task = world.task("a")
    assert (task.state, task.execution.requeue_count) == (TaskState.ACTIVE, 1)
    assert world.job().state is JobState.ACTIVE
    world.verb(pools.create_pool, PoolCreate(id=POOL, vm_size="v"))
    node.cursor = 0
    node.register()
    world.drain()
    assert world.task("a").execution.result is ExecutionResult.SUCCESS


def test_tasks_are_refused_by_name(world: World) -> None:
    """Each item of a collection gets its own error; ids compare without case."""
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    names = ("A", "a", "JobPreparation", "jobrelease", "b")
    specs = [TaskCreate(id=name, command_line="x") for name in names]
    results = world.store.do(lambda tx: tasks.add_tasks(tx, "JOB", specs, world.store.now))
    codes = [result.code if isinstance(result, BatchError) else result.id for result in results]
    assert codes == ["A", "TaskExists", "TaskIdSameAsJobPreparationTask", "TaskIdSameAsJobReleaseTask", "b"]
    counted = world.store.do(lambda tx: counts.get(tx, jobs.require(tx, "job").num))
    assert counted.unfinished == 2


def buckets_of(task: task_rows.TaskRow) -> tuple[str, ...]:
    """Return the counters that a reader of the list would count a task in."""
    if task.state is TaskState.COMPLETED:
        return ("completed", "succeeded" if task.execution.result is ExecutionResult.SUCCESS else "failed")
    return ("active",) if task.state is TaskState.ACTIVE else ("running",)


BESIDE = PREPARATION.model_copy(update={"wait_for_success": False})
JOBS = ("one", "two", "three")
SMALL = st.integers(min_value=0, max_value=7)


class Lifecycles(RuleBasedStateMachine):
    """Everything at once, in any order."""

    @initialize(slots=st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def begin(self, slots: list[int]) -> None:
        """Start with one to three nodes."""
        self.world = World(*slots)
        self.largest = max(slots)

    def teardown(self) -> None:
        """Let everything end, and see that it did."""
        if not hasattr(self, "world"):
            return
        try:
            self._everything_ends()
        finally:
            self.world.store.close()

    def _try(self, verb: Callable[..., object], *arguments: object, **more: object) -> None:
        """Refusals are fine here: what they must not do is leave anything behind."""
        with contextlib.suppress(BatchError):
            self.world.verb(verb, *arguments, **more)

    def _attempt(self, node_index: int, attempt_index: int) -> tuple[FakeNode, Running] | None:
        node = self.world.nodes[node_index % len(self.world.nodes)]
        attempts = list(node.live.values())
        return (node, attempts[attempt_index % len(attempts)]) if attempts else None

    @rule(
        job=st.sampled_from(JOBS),
        preparation=st.sampled_from((None, PREPARATION, BESIDE)),
        dependent=st.booleans(),
        ends=st.booleans(),
        retries=st.integers(0, 2),
        limit=st.sampled_from((-1, 1, 2)),
    )
    def create_job(
        self,
        job: str,
        *,
        preparation: JobPreparationTask | None,
        dependent: bool,
        ends: bool,
        retries: int,
        limit: int,
    ) -> None:
        """Add a job."""
        spec = job_spec(
            job,
            uses_task_dependencies=dependent,
            job_preparation_task=preparation,
            job_release_task=RELEASE if preparation else None,
            on_all_tasks_complete=OnAllTasksComplete.TERMINATE_JOB if ends else OnAllTasksComplete.NO_ACTION,
            constraints=JobConstraints(max_task_retry_count=retries),
            max_parallel_tasks=limit,
        )
        self._try(jobs.create_job, spec)

    @rule(job=st.sampled_from(JOBS), number=SMALL, slots=st.integers(1, 3))
    def add_task(self, job: str, number: int, slots: int) -> None:
        """Add a task to a job."""
        self._try(tasks.add_task, job, TaskCreate(id=f"t{number}", command_line="x", required_slots=slots))

    @rule(
        job=st.sampled_from(JOBS),
        number=SMALL,
        ids=st.lists(SMALL.map(lambda number: f"t{number}"), max_size=2),
        action=st.sampled_from((None, *DependencyAction)),
    )
    def add_dependent_task(self, job: str, number: int, ids: list[str], action: DependencyAction | None) -> None:
        """Add a task that waits for others, and may be of use to those that wait for it even if it fails."""
        conditions = ExitConditions(default=ExitOptions(dependency_action=action))
        depends_on = TaskDependencies(task_ids=tuple(ids))
        spec = TaskCreate(id=f"t{number}", command_line="x", depends_on=depends_on, exit_conditions=conditions)
        self._try(tasks.add_task, job, spec)

    @rule(node=SMALL)
    def fetch(self, node: int) -> None:
        """Take the messages that wait; return how many there were."""
        self.world.nodes[node % len(self.world.nodes)].fetch()

    @rule(node=SMALL, attempt=SMALL, exit_code=st.sampled_from((0, 0, 1, -9)))
    def go_on(self, node: int, attempt: int, exit_code: int) -> None:
        """Let an attempt start, or end."""
        found = self._attempt(node, attempt)
        if found is not None and not found[0].waits(found[1]):
            found[0].finish(found[1], exit_code)

    @rule(node=SMALL, attempt=SMALL)
    def lose(self, node: int, attempt: int) -> None:
        """Lose an attempt."""
        found = self._attempt(node, attempt)
        if found is not None:
            found[0].report(found[1], Transition.LOST)

    @rule(node=SMALL)
    def say_again(self, node: int) -> None:
        """Resend a report that was sent before."""
        found = self.world.nodes[node % len(self.world.nodes)]
        for reports in found.ended.values():
            assert found.send(reports[0]) in (ReportStatus.ALREADY, ReportStatus.UNKNOWN)

    @rule(node=SMALL, what=st.sampled_from(("agent", "machine", "machine that remembers", "image")))
    def restart(self, node: int, what: str) -> None:
        """Restart an agent, with or without its machine, which may have been reimaged."""
        found = self.world.nodes[node % len(self.world.nodes)]
        found.epoch += 1
        if what != "agent":
            found.boot += 1
        if what in ("machine", "image"):
            found.live.clear()
        found.register(reimaged=what == "image")

    @rule(node=SMALL)
    def go_silent_and_come_back(self, node: int) -> None:
        """Let a node be silent for longer than its lease."""
        silent = self.world.nodes[node % len(self.world.nodes)]
        self.world.store.now += LEASE - timedelta(seconds=1)
        for other in self.world.nodes:
            if other is not silent:
                other.heartbeat()
        self.world.store.now += timedelta(seconds=2)
        self.world.store.do(lambda tx: ignore(deadlines.expire(tx, self.world.store.now, LEASE)))
        assert silent.row.state is NodeState.UNKNOWN
        silent.heartbeat()

    @rule(
        job=st.sampled_from(JOBS),
        number=SMALL,
        verb=st.sampled_from((tasks.terminate_task, tasks.reactivate_task, tasks.delete_task)),
    )
    def change_task(self, job: str, number: int, verb: Callable[..., object]) -> None:
        """Terminate, reactivate or delete a task."""
        self._try(verb, job, f"t{number}")

    @rule(job=st.sampled_from(JOBS), how=st.sampled_from(DisableTasks))
    def disable(self, job: str, how: DisableTasks) -> None:
        """Disable a job."""
        self._try(jobs.disable_job, job, how)

    @rule(job=st.sampled_from(JOBS))
    def enable(self, job: str) -> None:
        """Enable a job."""
        self._try(jobs.enable_job, job)

    @rule(job=st.sampled_from(JOBS), force=st.booleans())
    def terminate(self, job: str, *, force: bool) -> None:
        """Terminate a job."""
        self._try(jobs.terminate_job, job, force=force)

    @rule(job=st.sampled_from(JOBS), force=st.booleans())
    def delete(self, job: str, *, force: bool) -> None:
        """Delete a job."""
        self._try(jobs.delete_job, job, force=force)

    @invariant()
    @precondition(lambda self: hasattr(self, "world"))
    def counts_equal_a_full_listing(self) -> None:
        """The counters are those that a full listing gives."""

        def check(tx: Transaction) -> None:
            for job in job_rows.page(tx):
                listed = task_rows.page(tx, job.num)
                counted = counts.get(tx, job.num)
                for state, number in (
                    ((TaskState.ACTIVE,), counted.tasks.active),
                    ((TaskState.PREPARING, TaskState.RUNNING), counted.tasks.running),
                    ((TaskState.COMPLETED,), counted.tasks.completed),
                ):
                    assert sum(task.state in state for task in listed) == number
                succeeded = [task for task in listed if task.execution.result is ExecutionResult.SUCCESS]
                assert len(succeeded) == counted.tasks.succeeded
                for name in ("active", "running", "completed", "succeeded", "failed"):
                    slots = sum(task.required_slots for task in listed if name in buckets_of(task))
                    assert slots == getattr(counted.slots, name)

        self.world.store.do(check)

    @invariant()
    @precondition(lambda self: hasattr(self, "world"))
    def slots_are_never_oversubscribed(self) -> None:
        """What is free and what is held make up the slots of each node (I8)."""

        def check(tx: Transaction) -> None:
            rows = tx.execute(
                "SELECT n.id, n.slots, n.free_slots, n.running_tasks,"
                " (SELECT coalesce(sum(slots_held), 0) FROM attempts a WHERE a.node_num = n.num),"
                " (SELECT count(*) FROM attempts a WHERE a.node_num = n.num AND a.state = 'running'"
                "  AND a.kind = 'user') FROM nodes n"
            )
            for name, slots, free, running, held, truly_running in rows:
                assert free + held == slots, name
                assert running == truly_running, name

        self.world.store.do(check)

    @invariant()
    @precondition(lambda self: hasattr(self, "world"))
    def what_waits_is_not_met_and_is_not_started(self) -> None:
        """A task waits exactly while it watches a dependency, and that one has not satisfied it."""

        def check(tx: Transaction) -> None:
            assert not tx.execute(
                "SELECT t.id FROM tasks t LEFT JOIN task_waits w ON w.task_num = t.num"
                " WHERE t.waits <> (w.task_num IS NOT NULL) OR (t.waits = 1 AND t.attempt_num IS NOT NULL)"
            )
            assert not tx.execute(
                "SELECT w.key FROM task_waits w JOIN satisfied s ON s.job_num = w.job_num AND s.key = w.key"
                " WHERE s.until IS NULL OR s.until >= w.task_num"
            )

        self.world.store.do(check)

    def _everything_ends(self) -> None:
        """When no more happens to it, every job and task comes to its end, on the nodes that may take it."""
        self.world.drain()
        for node in self.world.nodes:
            node.heartbeat()
        self.world.drain()
        for job in JOBS:
            self._try(jobs.enable_job, job)
        self.world.drain()
        self.world.store.do(self._check_ends)
        self.counts_equal_a_full_listing()
        self.slots_are_never_oversubscribed()

    def _check_ends(self, tx: Transaction) -> None:
        assert tx.one("SELECT count(*) FROM attempts WHERE state IN ('assigned', 'running')") == (0,)
        for job in job_rows.page(tx):
            assert job.state in (JobState.ACTIVE, JobState.COMPLETED)
            for row in job_nodes.of_job(tx, job.num):
                shown = [info.state for info in (row.preparation, row.release) if info is not None]
                assert NodeTaskState.RUNNING not in shown, "nothing runs, and nobody is told so"
                assert row.release is None or job.state is JobState.COMPLETED
            ineligible = job_nodes.ineligible_nodes(tx, job.num)
            able = [node for node in node_rows.page(tx, POOL) if node.num not in ineligible]
            for task in task_rows.page(tx, job.num):
                could_run = any(node.slots >= task.required_slots for node in able)
                waits = tx.one("SELECT 1 FROM task_waits WHERE task_num = ?", (task.num,)) is not None
                if job.state is JobState.ACTIVE and could_run and not waits:
                    assert task.state is TaskState.COMPLETED, task


Lifecycles.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLifecycles = Lifecycles.TestCase
