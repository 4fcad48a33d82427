"""Job preparation tasks at the service, sentence by sentence of their class page (seed 001).

| sentence | test |
| --- | --- |
| "to run before any Tasks of the Job on any given Compute Node" | test_service_lifecycle.py |
| "exhausts its retry count ...: Batch will not run Tasks of this Job" | `test_a_failed_preparation_...` (2) |
| "remains ineligible ... until it is reimaged", "active and can be used for other Jobs" | the same |
| "run again ... if rerunOnNodeRebootAfterSuccess is true" | `test_what_a_reboot_does_to_a_preparation_that_succeeded` |
| "or if the Job Preparation Task did not previously complete" | `test_a_preparation_that_a_reboot_cut_off_runs_again` |
| "If the Node is reimaged, ... is run again before scheduling any Task" | `test_a_reimaged_node_is_prepared_again` |
| "Retries due to recovery operations are ... not counted" | `test_a_preparation_that_a_reboot_cut_off_runs_again` |
| waitForSuccess: "If false, ... other Tasks of the Job can start executing" | `test_tasks_that_do_not_wait_...` (2) |
| "even if the Job Preparation Task fails, new Tasks will continue to be scheduled" | the same |
| "the startTime is updated but the lastRetryTime is not" | `test_a_reboot_during_a_retry_...` |
| the same of tasks (seed 004) | `test_a_retry_has_its_time_and_a_recovery_has_none` |
"""

from collections.abc import Callable
from datetime import timedelta

import pytest

from nodeagent.model.enums import DisableTasks, ExecutionResult, NodeTaskState, TaskState
from nodeagent.model.job import JobPreparationTaskExecutionInfo, PreparationConstraints
from nodeagent.model.protocol import AttemptKind, Outcome, ReportStatus, ReturnReason, StopReason, Transition
from nodeagent.service.lifecycle import deadlines, jobs
from tests.unit.service_world import LEASE, PREPARATION, RELEASE, FakeNode, Running, World, ignore

pytest_plugins = ["tests.unit.service_fixtures"]

BESIDE = PREPARATION.model_copy(update={"wait_for_success": False})
ONCE = PREPARATION.model_copy(update={"rerun_on_node_reboot_after_success": False})


def attempt_of(node: FakeNode, kind: AttemptKind, job_id: str = "job") -> Running:
    """Return the one live attempt of a kind that a node has of a job."""
    (found,) = (
        attempt
        for attempt in node.live.values()
        if (attempt.assignment.attempt_kind, attempt.assignment.job_id) == (kind, job_id)
    )
    return found


def kinds_of(node: FakeNode) -> list[AttemptKind]:
    """Return the kinds of a node's live attempts, in the order in which they came."""
    return [attempt.assignment.attempt_kind for attempt in node.live.values()]


def preparation_of(world: World, node: FakeNode) -> JobPreparationTaskExecutionInfo:
    """Return what the status list shows of the preparation on a node."""
    found = world.job_node(node).preparation
    assert found is not None
    return found


def fail_preparation(world: World, node: FakeNode) -> None:
    """Let the preparation that waits on a node fail."""
    node.fetch()
    preparation = attempt_of(node, AttemptKind.JOB_PREPARATION)
    node.run(preparation)
    node.finish(preparation, exit_code=1)
    world.drain()


def test_tasks_that_do_not_wait_run_beside_the_preparation(world: World) -> None:
    """They never are preparing, and its failure changes nothing for them, for later ones, or after a reboot."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=BESIDE)
    world.add_task("early")
    node.fetch()
    task = attempt_of(node, AttemptKind.USER)
    assert world.task("early").state is TaskState.ACTIVE
    node.run(task)
    node.run(attempt_of(node, AttemptKind.JOB_PREPARATION))
    assert world.task("early").state is TaskState.RUNNING
    assert preparation_of(world, node).state is NodeTaskState.RUNNING
    node.finish(attempt_of(node, AttemptKind.JOB_PREPARATION), exit_code=1)
    node.finish(task)
    assert world.task("early").execution.result is ExecutionResult.SUCCESS
    assert not world.job_node(node).ineligible
    world.add_task("late")
    node.fetch()
    assert kinds_of(node) == [AttemptKind.USER]
    node.begin_anew()
    world.drain()
    late = world.task("late")
    assert (late.execution.result, late.system_task_version) == (ExecutionResult.SUCCESS, 1)
    assert preparation_of(world, node).exit_code == 1, "it has completed, so it does not run again"


def test_tasks_that_do_not_wait_are_not_stopped_with_a_lost_preparation(world: World) -> None:
    """A task that is about to begin beside it is nobody's to stop."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=BESIDE)
    world.add_task("t")
    node.fetch()
    preparation = attempt_of(node, AttemptKind.JOB_PREPARATION)
    node.run(preparation)
    node.report(preparation, Transition.LOST)
    node.fetch()
    task = attempt_of(node, AttemptKind.USER)
    assert task.stop is None
    node.run(task)
    node.finish(task)
    assert world.task("t").execution.result is ExecutionResult.SUCCESS
    world.add_task("next")
    node.fetch()
    assert AttemptKind.JOB_PREPARATION in kinds_of(node)


def test_a_failed_preparation_keeps_its_job_away_until_the_node_is_reimaged(world: World) -> None:
    """Neither a restart of the agent nor a reboot nor silence makes the node eligible; other jobs run there."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=PREPARATION)
    world.create_job("other")
    world.add_task("t")
    fail_preparation(world, node)
    task = world.task("t")
    assert (task.state, task.previous_state) == (TaskState.ACTIVE, TaskState.PREPARING)
    node.epoch += 1
    node.register()
    node.begin_anew()
    world.store.now += LEASE + timedelta(seconds=1)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))
    node.heartbeat()
    world.add_task("o", "other")
    world.drain()
    assert world.task("o", "other").execution.result is ExecutionResult.SUCCESS
    assert world.task("t").state is TaskState.ACTIVE
    assert world.job_node(node).ineligible
    node.begin_anew(reimaged=True)
    world.drain()
    assert world.task("t").execution.result is ExecutionResult.SUCCESS
    assert world.task("t").execution.retry_count == 0


def test_a_failed_preparation_leaves_the_job_s_tasks_to_other_nodes(worlds: Callable[..., World]) -> None:
    """Waiting tasks come back with nothing counted; what was given back before the report of the failure as well."""
    world = worlds(2, 1)
    first, second = world.nodes
    world.drain_node(second)
    world.create_job(job_preparation_task=PREPARATION)
    world.add_task("a")
    world.add_task("b")
    first.fetch()
    preparation = attempt_of(first, AttemptKind.JOB_PREPARATION)
    waiting = next(attempt for attempt in first.live.values() if attempt.assignment.task_id == "a")
    first.run(preparation)
    first.report(waiting, Transition.RETURNED, return_reason=ReturnReason.PREPARATION_FAILED)
    first.finish(preparation, exit_code=1)
    world.drain()
    assert [world.task(name).execution.retry_count for name in "ab"] == [0, 0]
    assert [world.task(name).state for name in "ab"] == [TaskState.ACTIVE, TaskState.ACTIVE]
    second.begin_anew()
    world.drain()
    for name in "ab":
        task = world.task(name)
        assert (task.execution.result, task.execution.requeue_count) == (ExecutionResult.SUCCESS, 0)
        assert task.node is not None
        assert task.node.id == second.id


@pytest.mark.parametrize(("preparation", "runs"), [(PREPARATION, 2), (ONCE, 1)])
def test_what_a_reboot_does_to_a_preparation_that_succeeded(world: World, preparation: object, runs: int) -> None:
    """It runs again before the next task, or it does not; nothing runs again only because of the reboot."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=preparation)
    world.add_task("before")
    world.drain()
    before = preparation_of(world, node)
    node.begin_anew()
    assert node.fetch() == 0
    assert preparation_of(world, node) == before
    world.add_task("after")
    node.fetch()
    assert world.task("after").state is (TaskState.PREPARING if runs == 2 else TaskState.ACTIVE)
    assert kinds_of(node).count(AttemptKind.JOB_PREPARATION) == runs - 1
    world.drain()
    assert world.task("after").execution.result is ExecutionResult.SUCCESS
    assert (preparation_of(world, node).start_time > before.start_time) is (runs == 2)


@pytest.mark.parametrize("preparation", [PREPARATION, ONCE])
def test_a_preparation_that_a_reboot_cut_off_runs_again(world: World, preparation: object) -> None:
    """Whatever rerunOnNodeRebootAfterSuccess says; that is no retry; and meanwhile nobody reads that it runs."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=preparation)
    world.add_task("t")
    node.fetch()
    node.run(attempt_of(node, AttemptKind.JOB_PREPARATION))
    world.drain_node(node)
    node.begin_anew(reimaged=False)
    # a drain of the agent ends with its life: the node has been given the task again
    cut = preparation_of(world, node)
    assert (cut.state, cut.result, cut.exit_code) == (NodeTaskState.COMPLETED, ExecutionResult.FAILURE, None)
    assert cut.failure_info is not None
    assert cut.failure_info.code == "Unknown"
    assert not world.job_node(node).ineligible
    node.fetch()
    assert kinds_of(node) == [AttemptKind.JOB_PREPARATION, AttemptKind.USER]
    world.drain()
    again = preparation_of(world, node)
    assert (again.exit_code, again.retry_count, again.failure_info) == (0, 0, None)
    task = world.task("t")
    assert (task.execution.result, task.execution.retry_count) == (ExecutionResult.SUCCESS, 0)


@pytest.mark.parametrize("preparation", [PREPARATION, ONCE])
def test_a_success_that_was_not_told_before_the_reboot_does_not_count(world: World, preparation: object) -> None:
    """The report waited in the node's outbox: what the preparation had started is gone with the boot it ran in."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=preparation)
    world.add_task("t")
    node.fetch()
    done, waiting = attempt_of(node, AttemptKind.JOB_PREPARATION), attempt_of(node, AttemptKind.USER)
    node.run(done)
    node.epoch, node.boot = 2, 2
    node.register()
    assert list(node.live.values()) == [waiting], "the answer to the registration names what the node is to forget"
    node.report(waiting, Transition.LOST)
    node.fetch()
    assert kinds_of(node) == [AttemptKind.JOB_PREPARATION, AttemptKind.USER]
    outcome = Outcome(result=ExecutionResult.SUCCESS, end_time=world.store.now, exit_code=0)
    node.live[done.assignment.attempt_id] = done
    assert node.report(done, Transition.COMPLETED, outcome=outcome) is ReportStatus.UNKNOWN
    assert world.task("t").state is TaskState.PREPARING
    world.drain()
    assert world.task("t").execution.result is ExecutionResult.SUCCESS


def test_a_reboot_during_a_retry_moves_the_start_and_not_the_time_of_the_retry(world: World) -> None:
    """The next execution goes on with the count of retries, which recovery does not touch."""
    (node,) = world.nodes
    limited = PREPARATION.model_copy(update={"constraints": PreparationConstraints(max_task_retry_count=1)})
    world.create_job(job_preparation_task=limited)
    world.add_task("t")
    node.fetch()
    preparation = attempt_of(node, AttemptKind.JOB_PREPARATION)
    node.run(preparation)
    retried = world.store.now
    node.report(preparation, Transition.RUNNING, retry_count=1, start_time=retried, last_retry_time=retried)
    node.begin_anew()
    node.fetch()
    again = attempt_of(node, AttemptKind.JOB_PREPARATION)
    assert again.assignment.retry_count == 1
    node.report(again, Transition.RUNNING, retry_count=1)
    shown = preparation_of(world, node)
    assert (shown.retry_count, shown.last_retry_time) == (1, retried)
    assert shown.start_time > retried
    node.begin_anew(reimaged=True)
    node.fetch()
    anew = attempt_of(node, AttemptKind.JOB_PREPARATION)
    assert anew.assignment.retry_count == 0
    node.run(anew)
    assert (preparation_of(world, node).retry_count, preparation_of(world, node).last_retry_time) == (0, None)


def test_a_reimaged_node_is_prepared_again(world: World) -> None:
    """Whatever the job says of reboots."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=ONCE)
    world.add_task("a")
    world.drain()
    node.begin_anew(reimaged=True)
    world.add_task("b")
    node.fetch()
    assert kinds_of(node) == [AttemptKind.JOB_PREPARATION, AttemptKind.USER]
    assert world.task("b").state is TaskState.PREPARING


def test_a_node_that_vanished_while_it_prepared_is_prepared_anew(worlds: Callable[..., World]) -> None:
    """Its tasks run elsewhere, where preparation runs too; it comes back without having been rebooted."""
    world = worlds(1, 1)
    first, second = world.nodes
    world.create_job(job_preparation_task=PREPARATION)
    world.add_task("t")
    first.fetch()
    first.run(attempt_of(first, AttemptKind.JOB_PREPARATION))
    world.store.now += LEASE / 2
    second.heartbeat()
    world.store.now += LEASE / 2 + timedelta(seconds=1)
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))
    assert preparation_of(world, first).state is NodeTaskState.COMPLETED
    world.drain()
    task = world.task("t")
    assert task.node is not None
    assert (task.node.id, task.execution.result) == (second.id, ExecutionResult.SUCCESS)
    assert preparation_of(world, second).exit_code == 0
    first.heartbeat()
    world.drain_node(second)
    world.add_task("next")
    world.drain()
    assert world.task("next").execution.result is ExecutionResult.SUCCESS
    assert preparation_of(world, first).exit_code == 0


def test_a_retry_has_its_time_and_a_recovery_has_none(world: World) -> None:
    """A task's lastRetryTime is the start of its last retry; a start for another reason moves only startTime."""
    (node,) = world.nodes
    world.create_job(constraints={"maxTaskRetryCount": 1})
    world.add_task("t")
    node.fetch()
    first = attempt_of(node, AttemptKind.USER)
    node.run(first)
    assert world.task("t").execution.last_retry_time is None
    node.finish(first, exit_code=1)
    node.fetch()
    node.run(attempt_of(node, AttemptKind.USER))
    retried = world.task("t").execution
    assert retried.retry_count == 1
    assert retried.last_retry_time == retried.start_time
    node.begin_anew()
    node.fetch()
    node.run(attempt_of(node, AttemptKind.USER))
    recovered = world.task("t").execution
    assert (recovered.retry_count, recovered.last_retry_time) == (1, retried.last_retry_time)
    assert recovered.start_time is not None
    assert retried.start_time is not None
    assert recovered.start_time > retried.start_time


def test_tasks_that_wait_for_a_preparation_come_back_when_the_job_is_disabled(world: World) -> None:
    """The preparation goes on, as it is no task of the job; nothing is counted, as nothing had run."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    node.fetch()
    node.run(attempt_of(node, AttemptKind.JOB_PREPARATION))
    world.verb(jobs.disable_job, "job", DisableTasks.REQUEUE)
    node.fetch()
    waiting = attempt_of(node, AttemptKind.USER)
    assert waiting.stop is StopReason.JOB_DISABLE_REQUEUE
    node.report(waiting, Transition.RETURNED, return_reason=ReturnReason.STOPPED)
    assert str(world.job().state) == "disabled"
    assert attempt_of(node, AttemptKind.JOB_PREPARATION).stop is None
    assert world.task("t").execution.requeue_count == 0
    world.verb(jobs.enable_job, "job")
    world.drain()
    assert world.task("t").execution.result is ExecutionResult.SUCCESS
