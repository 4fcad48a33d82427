"""What is the matter with a node, and what a running task transfers: told by `nodeagent explain`."""

from collections.abc import Callable
from typing import Literal

import pytest

from nodeagent.model.enums import DrainOption
from nodeagent.model.explanation import Reason
from nodeagent.model.pool import StartTask
from nodeagent.model.protocol import AttemptKind, NodeError, TransferPhase, TransferProgress, Transition
from nodeagent.model.values import NameValuePair
from nodeagent.service.explain.nodes import explain_node
from nodeagent.service.explain.tasks import explain_task
from nodeagent.service.lifecycle import node_verbs, pools
from tests.unit.service_world import LEASE, POOL, FakeNode, Running, World

pytest_plugins = ["tests.unit.service_fixtures"]


def told(world: World, node: FakeNode) -> dict[str, Reason]:
    """Return the reasons of a node's state by code."""
    return {item.code: item for item in world.store.do(lambda tx: explain_node(tx, POOL, node.id)).reasons}


def begin_with(world: World, start_task: StartTask) -> tuple[FakeNode, Callable[[], Running]]:
    """Let the node begin anew with a start task; return it, and what fetches the start task."""
    world.verb(lambda tx, now: pools.patch_pool(tx, POOL, {"start_task": start_task}, now))
    node = world.nodes[0]
    node.begin_anew()

    def fetched() -> Running:
        node.fetch()
        (found,) = (item for item in node.live.values() if item.assignment.attempt_kind is AttemptKind.START)
        return found

    return node, fetched


def test_a_start_task_is_told_from_its_way_to_its_failure(world: World) -> None:
    """Not fetched, not started, running for the second time, lost once, failed with its exit code; then nothing."""
    node, fetched = begin_with(world, StartTask(command_line="s", max_task_retry_count=2))
    assert told(world, node)["WaitingForStartTask"].message == (
        "The start task was not fetched yet; the node takes no task before it has succeeded."
    )
    attempt = fetched()
    node.heartbeat()  # that acknowledges what was fetched
    assert "has not started yet" in told(world, node)["WaitingForStartTask"].message
    node.run(attempt)
    assert "The start task runs;" in told(world, node)["WaitingForStartTask"].message
    node.report(attempt, Transition.LOST)
    attempt = fetched()
    node.report(attempt, Transition.RUNNING, retry_count=1, last_retry_time=world.store.now)
    message = told(world, node)["WaitingForStartTask"].message
    assert "runs (retry 1 of 2, 1 execution lost, of 3 at most);" in message
    node.finish(attempt, 7)
    reasons = told(world, node)
    assert "exit code 7 (FailureExitCode" in reasons["StartTaskFailed"].message
    assert reasons["StartTaskFailed"].since is not None
    assert "NodeNotAvailable" in reasons
    node.begin_anew()
    attempt = fetched()
    node.run(attempt)
    node.finish(attempt)
    assert set(told(world, node)) == {"NothingWaits"}


def test_a_start_task_that_nobody_waits_for_is_told_too(world: World) -> None:
    """It runs beside the tasks, and its failure keeps nobody away."""
    node, fetched = begin_with(world, StartTask(command_line="s", wait_for_success=False))
    attempt = fetched()
    node.run(attempt)
    assert "tasks run beside it" in told(world, node)["WaitingForStartTask"].message
    node.finish(attempt, 1)
    reasons = told(world, node)
    assert "tasks run all the same" in reasons["StartTaskFailed"].message
    assert "NodeNotAvailable" not in reasons


def test_the_errors_of_a_node_are_told_with_their_details(world: World) -> None:
    """Each by its code; they go when the agent tells them no longer."""
    node = world.nodes[0]
    detail = NameValuePair(name="ApplicationId", value="tool")
    node.errors = (
        NodeError(code="ApplicationPackageError", message="it is not there", error_details=(detail,)),
        NodeError(code="DiskFull", message="no space"),
    )
    node.heartbeat()
    found = world.store.do(lambda tx: explain_node(tx, POOL, node.id))
    messages = [item.message for item in found.reasons if item.code == "NodeError"]
    assert messages == [
        "Its agent tells an error: ApplicationPackageError: it is not there; ApplicationId: tool",
        "Its agent tells an error: DiskFull: no space",
    ]
    assert "The cause of DiskFull is removed." in found.would_change
    node.errors = ()
    node.heartbeat()
    assert set(told(world, node)) == {"NothingWaits"}


@pytest.mark.parametrize("verb", ["reboot", "reimage"])
def test_a_command_tells_which_tasks_it_waits_for_and_then_that_the_node_is_away(
    world: World, verb: Literal["reboot", "reimage"]
) -> None:
    """Those that run, and what was asked of them; when they have ended, when the node was last heard of."""
    node = world.nodes[0]
    world.create_job()
    for task_id in ("a", "b"):
        world.add_task(task_id)
    node.fetch()
    for attempt in node.live.values():
        node.run(attempt)
    world.verb(lambda tx, now: node_verbs.command(tx, POOL, node.id, verb, DrainOption.REQUEUE, now))
    node.fetch()
    message = told(world, node)["CommandPending"].message
    assert "when its tasks have ended: job/a (asked to end: drain requeue), job/b" in message
    for attempt in list(node.live.values()):
        node.finish(attempt)
    message = told(world, node)["CommandPending"].message
    assert "has not come back yet; it was last heard of at 2026-01-01T00:00:00Z" in message
    node.fetch()
    node.obey()
    assert "CommandPending" not in told(world, node)


def test_a_node_that_leaves_its_pool_tells_what_it_waits_for(world: World) -> None:
    """With task completion nobody is asked to end."""
    node = world.nodes[0]
    world.create_job()
    world.add_task("a")
    node.fetch()
    option, deadline = DrainOption.TASK_COMPLETION, world.store.now + LEASE
    world.verb(lambda tx, now: node_verbs.remove_nodes(tx, POOL, [node.id], option, deadline, now))
    assert told(world, node)["CommandPending"].message == "It leaves pool pool when its tasks have ended: job/a."


def test_a_running_task_tells_what_it_transfers(world: World) -> None:
    """Phase, files and bytes, as its node told last; another attempt's are not its own."""
    world.create_job()
    world.add_task("t")
    node = world.nodes[0]
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    attempt_id = attempt.assignment.attempt_id
    progress = TransferProgress(
        attempt_id=attempt_id, phase=TransferPhase.DOWNLOADING, files_done=1, files_total=3, bytes_done=10
    )
    known = {attempt_id: progress, "another": progress.model_copy(update={"phase": TransferPhase.UPLOADING})}
    reasons = world.store.do(lambda tx: explain_task(tx, "job", "t", known)).reasons
    assert [item.code for item in reasons] == ["Running", "Transferring"]
    assert reasons[1].message == "It downloads its resource files: 1 of 3 files, 10 bytes."
    assert [item.code for item in world.store.do(lambda tx: explain_task(tx, "job", "t")).reasons] == ["Running"]
