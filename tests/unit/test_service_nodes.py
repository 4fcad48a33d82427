"""Start tasks and what users do to nodes, at the service (spec/node.md §10, §14)."""

from collections.abc import Callable

import pytest

from nodeagent.model.enums import AllocationState, DrainOption, ExecutionResult, NodeState, NodeTaskState, TaskState
from nodeagent.model.pool import StartTask
from nodeagent.model.protocol import AttemptKind, Heartbeat, NodeCommand, NodeError, StopReason, Transition
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, jobs, node_verbs, nodes, pools
from nodeagent.service.lifecycle.nodes import NodeRefusedError
from nodeagent.service.store import start_tasks
from nodeagent.service.store.start_tasks import StartTaskRow
from tests.unit.service_world import LEASE, POOL, PREPARATION, RELEASE, FakeNode, Running, World, ignore

pytest_plugins = ["tests.unit.service_fixtures"]

START_TASK = StartTask(command_line="install")


def give(world: World, start_task: StartTask | None) -> None:
    """Change the start task of the pool."""
    world.verb(lambda tx, now: pools.patch_pool(tx, POOL, {"start_task": start_task}, now))


def state_of(node: FakeNode) -> NodeState:
    """Return the state of a node."""
    return node.row.state


def start_task_of(world: World, node: FakeNode) -> StartTaskRow:
    """Return how the start task of a node stands."""
    num = node.row.num
    found = world.store.do(lambda tx: start_tasks.of_node(tx, num))
    assert found is not None
    return found


def running_start_task(node: FakeNode) -> Running:
    """Fetch the start task of a node."""
    node.fetch()
    (found,) = (attempt for attempt in node.live.values() if attempt.assignment.attempt_kind is AttemptKind.START)
    return found


@pytest.fixture
def starting(worlds: Callable[..., World]) -> tuple[World, FakeNode]:
    """Return a node that has begun anew in a pool with a start task."""
    world = worlds(2)
    give(world, START_TASK)
    (node,) = world.nodes
    node.begin_anew()
    return world, node


def test_no_task_comes_before_the_start_task_has_succeeded(starting: tuple[World, FakeNode]) -> None:
    """The node waits for it, is idle after it, and has what is needed to know how it went."""
    world, node = starting
    world.create_job()
    world.add_task("t")
    assert state_of(node) == NodeState.WAITING_FOR_START_TASK
    attempt = running_start_task(node)
    assert (attempt.assignment.job_id, attempt.assignment.task_id) == ("", "")
    assert len(node.live) == 1
    node.run(attempt)
    info = start_task_of(world, node).info
    assert info is not None
    assert (info.state, info.end_time, info.result, info.retry_count) == (NodeTaskState.RUNNING, None, None, 0)
    node.finish(attempt)
    info = start_task_of(world, node).info
    assert info is not None
    assert (info.state, info.exit_code, info.result) == (NodeTaskState.COMPLETED, 0, ExecutionResult.SUCCESS)
    assert info.end_time is not None
    world.drain()
    assert world.task("t").state is TaskState.COMPLETED
    assert state_of(node) == NodeState.IDLE


def test_a_start_task_that_failed_keeps_tasks_away_until_the_next_reboot(starting: tuple[World, FakeNode]) -> None:
    """The node is marked, and takes nothing; a reboot runs the start task again."""
    world, node = starting
    attempt = running_start_task(node)
    node.run(attempt)
    node.finish(attempt, exit_code=7)
    assert state_of(node) == NodeState.START_TASK_FAILED
    world.create_job()
    world.add_task("t")
    assert node.fetch() == 0
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reboot", DrainOption.REQUEUE, now))
    assert state_of(node) == NodeState.REBOOTING
    node.fetch()
    node.begin_anew()
    again = running_start_task(node)
    assert state_of(node) == NodeState.WAITING_FOR_START_TASK
    assert again.assignment.attempt_id != attempt.assignment.attempt_id
    node.run(again)
    node.finish(again)
    world.drain()
    assert world.task("t").state is TaskState.COMPLETED


def test_a_start_task_that_nobody_waits_for_holds_nothing_up(worlds: Callable[..., World]) -> None:
    """Tasks run beside it, and its failure shows in startTaskInfo only."""
    world = worlds(2)
    give(world, START_TASK.model_copy(update={"wait_for_success": False}))
    (node,) = world.nodes
    node.begin_anew()
    assert state_of(node) == NodeState.IDLE
    world.create_job()
    world.add_task("t")
    attempt = running_start_task(node)
    assert {found.assignment.task_id for found in node.live.values()} == {"", "t"}
    node.run(attempt)
    node.finish(attempt, exit_code=1)
    assert state_of(node) == NodeState.IDLE
    info = start_task_of(world, node).info
    assert info is not None
    assert info.result is ExecutionResult.FAILURE


def test_an_agent_that_is_restarted_does_not_run_the_start_task_again(starting: tuple[World, FakeNode]) -> None:
    """Only joining, a reboot and a reimage do; what runs goes on."""
    world, node = starting
    attempt = running_start_task(node)
    node.run(attempt)
    node.epoch += 1
    node.register()
    assert state_of(node) == NodeState.WAITING_FOR_START_TASK
    assert attempt.assignment.attempt_id in node.live
    node.finish(attempt)
    node.epoch += 1
    node.register()
    assert state_of(node) == NodeState.IDLE
    assert node.fetch() == 0
    assert start_task_of(world, node).tries == 1


def test_a_start_task_that_is_lost_is_repeated_but_not_for_ever(starting: tuple[World, FakeNode]) -> None:
    """After three times it has failed, and says why."""
    world, node = starting
    for tries in (1, 2):
        attempt = running_start_task(node)
        assert start_task_of(world, node).tries == tries
        node.run(attempt)
        node.report(attempt, Transition.LOST, detail="gone")
    node.fetch()
    node.live.clear()  # the agent's memory is lost, too
    node.epoch += 1
    node.register()
    assert state_of(node) == NodeState.START_TASK_FAILED
    info = start_task_of(world, node).info
    assert info is not None
    assert info.failure_info is not None
    assert info.failure_info.code == "MaxInternalRetryCountReached"


def test_a_changed_start_task_reaches_a_node_when_it_begins_anew(starting: tuple[World, FakeNode]) -> None:
    """Until then the node shows the one that it ran; without one in the pool it forgets it at the next reboot."""
    world, node = starting
    attempt = running_start_task(node)
    node.run(attempt)
    node.finish(attempt)
    give(world, START_TASK.model_copy(update={"command_line": "other"}))
    assert start_task_of(world, node).spec.command_line == "install"
    node.begin_anew()
    assert running_start_task(node).assignment.work.command_line == "other"
    give(world, None)
    node.begin_anew()
    num = node.row.num
    assert world.store.do(lambda tx: start_tasks.of_node(tx, num)) is None
    assert state_of(node) == NodeState.IDLE


@pytest.mark.parametrize(
    ("option", "reason", "state", "requeues"),
    [
        (DrainOption.REQUEUE, StopReason.DRAIN_REQUEUE, TaskState.ACTIVE, 1),
        (DrainOption.TERMINATE, StopReason.DRAIN_TERMINATE, TaskState.COMPLETED, 0),
        (DrainOption.TASK_COMPLETION, None, TaskState.COMPLETED, 0),
    ],
)
def test_a_reboot_waits_for_the_end_of_the_tasks(
    worlds: Callable[..., World], option: DrainOption, reason: StopReason | None, state: TaskState, requeues: int
) -> None:
    """The tasks end as the option says, nothing new comes, and only then the node is told; it comes back idle."""
    world = worlds(2)
    (node,) = world.nodes
    world.create_job()
    world.add_task("t")
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reboot", option, now))
    world.add_task("later")
    node.fetch()
    assert state_of(node) == NodeState.REBOOTING
    assert attempt.stop is reason
    assert not any(isinstance(message, NodeCommand) for message in node.seen)
    node.finish(attempt)
    found = world.task("t")
    assert (found.state, found.execution.requeue_count) == (state, requeues)
    node.fetch()
    (command,) = (message for message in node.seen if isinstance(message, NodeCommand))
    assert not node.live
    with pytest.raises(BatchError, match="NodeBeingRebooted"):
        world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reboot", option, now))
    node.begin_anew(command_id=command.command_id)
    world.drain()
    assert state_of(node) == NodeState.IDLE
    assert world.task("later").state is TaskState.COMPLETED


def test_a_restarted_agent_has_not_obeyed(world: World) -> None:
    """Another life of the agent on the same boot does not end a reboot; the command stays with the node."""
    (node,) = world.nodes
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reboot", DrainOption.REQUEUE, now))
    node.epoch += 1
    node.register()
    assert state_of(node) == NodeState.REBOOTING
    node.heartbeat()
    assert state_of(node) == NodeState.REBOOTING


def test_a_reimaged_node_knows_nothing_any_more(world: World) -> None:
    """A failed preparation counts no longer, one that succeeded runs again; without new tasks there is no release."""
    (node,) = world.nodes
    for job_id in ("failed", "done"):
        world.create_job(job_id, job_preparation_task=PREPARATION, job_release_task=RELEASE)
        world.add_task("t", job_id)
    node.fetch()
    for attempt in list(node.live.values()):
        if attempt.assignment.attempt_kind is AttemptKind.JOB_PREPARATION:
            node.run(attempt)
            node.finish(attempt, exit_code=int(attempt.assignment.job_id == "failed"))
    assert world.job_node(node, "failed").ineligible
    world.drain()
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reimage", DrainOption.REQUEUE, now))
    assert state_of(node) == NodeState.REIMAGING
    node.fetch()
    command = node.seen[-1]
    assert isinstance(command, NodeCommand)
    assert command.command == "reimage"
    node.begin_anew(command_id=command.command_id, reimaged=True)
    assert not world.job_node(node, "failed").ineligible
    before = len(node.seen)
    world.drain()
    kinds = [getattr(message, "attempt_kind", None) for message in node.seen[before:]]
    assert kinds.count(AttemptKind.JOB_PREPARATION) == 1  # of the job whose task still waits
    assert world.task("t", "failed").state is TaskState.COMPLETED


def test_a_machine_that_was_wiped_begins_with_nothing(world: World) -> None:
    """Its agent has lost its epoch and its cursor: it may join all the same, and is not sent what is done already."""
    (node,) = world.nodes
    world.create_job()
    world.add_task("t")
    world.drain()
    node.epoch += 5
    node.register()
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reimage", DrainOption.REQUEUE, now))
    node.epoch, node.cursor = 1, 0
    with pytest.raises(NodeRefusedError, match="newer agent"):
        node.register()  # the same boot: a clone
    node.begin_anew()
    assert state_of(node) == NodeState.IDLE
    assert node.fetch() == 0
    assert node.row.epoch == 2


def test_a_release_waits_for_a_node_that_reboots(world: World) -> None:
    """The job is terminating until the node is back and has released it."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    world.drain()
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reboot", DrainOption.REQUEUE, now))
    world.verb(lambda tx, now: jobs.terminate_job(tx, "job", now))
    assert str(world.job().state) == "terminating"
    node.begin_anew()
    world.drain()
    assert str(world.job().state) == "completed"
    assert world.job_node(node).release is not None


def test_a_job_is_not_released_where_a_reimage_came_between(world: World) -> None:
    """What its release would clean up is not there any more."""
    (node,) = world.nodes
    world.create_job(job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t")
    world.drain()
    node.begin_anew(reimaged=True)
    world.verb(lambda tx, now: jobs.terminate_job(tx, "job", now))
    assert world.job_node(node).release is None
    assert str(world.job().state) == "completed"


def test_a_user_s_wish_to_disable_outlives_the_agent(world: World) -> None:
    """A restarted or rebooted node stays offline until a user enables it; asking twice is refused."""
    (node,) = world.nodes
    world.verb(lambda tx, now: node_verbs.disable_scheduling(tx, POOL, node.id, DrainOption.REQUEUE, now))
    with pytest.raises(BatchError, match="NodeAlreadyInTargetSchedulingState"):
        world.verb(lambda tx, now: node_verbs.disable_scheduling(tx, POOL, node.id, DrainOption.REQUEUE, now))
    assert state_of(node) == NodeState.OFFLINE
    node.begin_anew()
    assert state_of(node) == NodeState.OFFLINE
    world.create_job()
    world.add_task("t")
    assert node.fetch() == 0
    world.verb(lambda tx, now: node_verbs.enable_scheduling(tx, POOL, node.id, now))
    with pytest.raises(BatchError, match="NodeAlreadyInTargetSchedulingState"):
        world.verb(lambda tx, now: node_verbs.enable_scheduling(tx, POOL, node.id, now))
    world.drain()
    assert world.task("t").state is TaskState.COMPLETED


def test_a_drain_of_the_agent_ends_with_its_life(world: World) -> None:
    """An agent that was on its way out, and comes back, takes tasks again."""
    (node,) = world.nodes
    world.drain_node(node)
    assert state_of(node) == NodeState.OFFLINE
    node.epoch += 1
    node.register()
    assert state_of(node) == NodeState.IDLE


def test_nodes_are_removed_when_their_tasks_have_ended(worlds: Callable[..., World]) -> None:
    """The pool resizes meanwhile; the tasks run elsewhere once; the agent that was removed may not come back."""
    world = worlds(1, 1)
    first, second = world.nodes
    world.create_job()
    world.add_task("t")
    for node in world.nodes:
        node.fetch()
    holder = first if first.live else second
    other = second if holder is first else first
    (attempt,) = holder.live.values()
    holder.run(attempt)
    deadline = world.store.now + LEASE

    def remove(*names: str) -> None:
        world.verb(lambda tx, now: node_verbs.remove_nodes(tx, POOL, names, DrainOption.REQUEUE, deadline, now))

    with pytest.raises(BatchError, match="NodeNotFound"):
        remove("nobody")
    remove(holder.id, holder.id.upper())
    assert state_of(holder) == NodeState.LEAVING_POOL
    with pytest.raises(BatchError, match="PoolBeingResized"):
        remove(other.id)
    holder.fetch()
    assert attempt.stop is StopReason.DRAIN_REQUEUE
    holder.finish(attempt)
    pool = world.store.do(lambda tx: pools.require(tx, POOL))
    assert (pool.allocation_state, pool.current_dedicated_nodes) == (AllocationState.STEADY, 1)
    with pytest.raises(NodeRefusedError, match="was removed"):
        holder.register()
    world.nodes = [other]
    world.drain()
    found = world.task("t")
    assert (found.state, found.execution.requeue_count) == (TaskState.COMPLETED, 1)
    holder.epoch += 1
    holder.live.clear()
    holder.register(instance_id="a new life")
    assert state_of(holder) == NodeState.IDLE


def test_a_node_may_be_away_for_a_reboot_but_not_for_ever(world: World) -> None:
    """The lease of a node that reboots is ten times as long; then it is unknown, and a reboot when it comes back."""
    (node,) = world.nodes
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, "reboot", DrainOption.REQUEUE, now))
    world.store.now += 9 * LEASE
    world.verb(lambda tx, now: ignore(deadlines.expire(tx, now, LEASE)))
    assert state_of(node) == NodeState.REBOOTING
    world.store.now += 2 * LEASE
    world.verb(lambda tx, now: ignore(deadlines.expire(tx, now, LEASE)))
    assert state_of(node) == NodeState.UNKNOWN
    node.begin_anew()
    assert state_of(node) == NodeState.IDLE


def test_errors_come_before_the_start_task_and_go_away(starting: tuple[World, FakeNode]) -> None:
    """A node with errors is unusable; without them it is what its start task makes it."""
    world, node = starting
    broken = NodeError(code="ApplicationPackageError", message="m")
    for errors, state in (((broken,), NodeState.UNUSABLE), ((), NodeState.WAITING_FOR_START_TASK)):
        call = Heartbeat(
            node_id=node.id, epoch=node.epoch, cursor=node.cursor, live_attempts=tuple(node.live), errors=errors
        )
        world.verb(lambda tx, now, call=call: nodes.heartbeat(tx, call, now))
        assert state_of(node) == state
