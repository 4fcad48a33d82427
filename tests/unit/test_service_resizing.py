"""Pools that grow and shrink, at the service (spec/rest.md §8.3)."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from nodeagent.model.enums import AllocationState, DrainOption, NodeState, TaskState
from nodeagent.model.pool import PoolResize, ResizeError
from nodeagent.model.protocol import StopReason
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, pools, resizing
from nodeagent.service.lifecycle.resizing import Size
from nodeagent.service.store.pools import PoolRow
from tests.unit.service_world import LEASE, POOL, FakeNode, World, ignore

pytest_plugins = ["tests.unit.service_fixtures"]

TIMEOUT = timedelta(minutes=15)


def resize(
    world: World, dedicated: int | None, low_priority: int | None = None, option: DrainOption = DrainOption.REQUEUE
) -> None:
    """Resize the pool."""
    size = Size(dedicated, low_priority, option, TIMEOUT)
    world.verb(lambda tx, now: resizing.resize(tx, POOL, size, now))


def pool_of(world: World) -> PoolRow:
    """Return the pool."""
    return world.store.do(lambda tx: pools.require(tx, POOL))


def codes(world: World) -> list[str]:
    """Return why the pool did not get what it wanted."""
    return [error.code for error in pool_of(world).resize_errors]


def refused(function: Callable[[], object]) -> str:
    """Return the code that a verb is refused with."""
    with pytest.raises(BatchError) as caught:
        function()
    return caught.value.code


def test_a_pool_that_grows_is_resizing_until_its_nodes_have_joined(worlds: Callable[..., World]) -> None:
    """Each kind of node counts for itself; a second resize has to wait."""
    world = worlds(1)
    resize(world, 2, 1)
    assert pool_of(world).allocation_state is AllocationState.RESIZING
    assert refused(lambda: resize(world, 1)) == "PoolBeingResized"
    world.add_node(1)
    assert pool_of(world).allocation_state is AllocationState.RESIZING
    world.add_node(1)
    assert pool_of(world).allocation_state is AllocationState.RESIZING, "a third dedicated node is none of low priority"
    low = FakeNode(world.store, "low", 1)
    low.register(is_dedicated=False)
    pool = pool_of(world)
    assert (pool.allocation_state, pool.resize_errors) == (AllocationState.STEADY, ())


def test_the_nodes_that_do_least_leave_first_and_tasks_run_elsewhere(worlds: Callable[..., World]) -> None:
    """An unusable node goes before an idle one, an idle one before one with tasks."""
    world = worlds(1, 1, 1)
    busy, idle, broken = world.nodes
    world.create_job()
    world.add_task("t")
    busy.fetch()
    (attempt,) = busy.live.values()
    busy.run(attempt)
    num = broken.row.num
    world.store.do(lambda tx: tx.execute("UPDATE nodes SET state = 'unusable' WHERE num = ?", (num,)))
    resize(world, 2)
    assert [node["id"] for node in shown(world)] == [busy.id, idle.id]
    resize(world, 1)
    assert [node["id"] for node in shown(world)] == [busy.id]
    resize(world, 0)
    assert (pool_of(world).allocation_state, busy.row.state) == (AllocationState.RESIZING, NodeState.LEAVING_POOL)
    busy.fetch()
    assert attempt.stop is StopReason.DRAIN_REQUEUE
    busy.finish(attempt)
    assert (pool_of(world).allocation_state, shown(world)) == (AllocationState.STEADY, [])
    assert world.task("t").state is TaskState.ACTIVE


def shown(world: World) -> list[dict[str, str]]:
    """Return ids and states of the pool's nodes."""
    sql = "SELECT id, state FROM nodes ORDER BY key"
    return [{"id": str(row[0]), "state": str(row[1])} for row in world.store.do(lambda tx: tx.execute(sql))]


def test_with_taskcompletion_a_node_stays_until_its_task_has_ended(world: World) -> None:
    """Nothing is stopped, nothing new begins there."""
    (node,) = world.nodes
    world.create_job()
    world.add_task("t")
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    resize(world, 0, option=DrainOption.TASK_COMPLETION)
    world.add_task("later")
    node.fetch()
    assert (attempt.stop, len(node.live)) == (None, 1)
    node.finish(attempt)
    assert pool_of(world).allocation_state is AllocationState.STEADY
    assert world.task("t").state is TaskState.COMPLETED
    assert world.task("later").state is TaskState.ACTIVE


def test_a_stopped_resize_leaves_the_pool_at_what_it_has_and_says_so(worlds: Callable[..., World]) -> None:
    """What has begun to leave, leaves first; to stop again is no error meanwhile, and one afterwards."""
    world = worlds(1)

    def stop() -> None:
        world.verb(resizing.stop_resize, POOL)

    assert refused(stop) == "OperationInvalidForCurrentState"
    resize(world, 5)
    stop()
    assert (pool_of(world).allocation_state, codes(world)) == (AllocationState.STEADY, ["ResizeStopped"])
    (node,) = world.nodes
    world.create_job()
    world.add_task("t")
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    resize(world, 0)
    assert codes(world) == []
    for _ in range(2):
        stop()
        assert pool_of(world).allocation_state is AllocationState.STOPPING
    node.fetch()
    node.finish(attempt)
    pool = pool_of(world)
    assert (pool.allocation_state, pool.current_dedicated_nodes) == (AllocationState.STEADY, 0)
    assert codes(world) == ["ResizeStopped"]


def test_a_resize_that_takes_too_long_ends_with_the_error_that_says_so(world: World) -> None:
    """The target stays; the next resize forgets the error."""
    resize(world, 3)
    world.store.now += TIMEOUT
    world.store.do(lambda tx: ignore(deadlines.expire(tx, world.store.now, LEASE)))
    pool = pool_of(world)
    assert (pool.allocation_state, pool.spec.target_dedicated_nodes) == (AllocationState.STEADY, 3)
    assert codes(world) == ["AllocationTimedout"]
    resize(world, 3)
    assert codes(world) == []


def test_nodes_that_cannot_be_had_end_a_resize_at_once(world: World) -> None:
    """Whoever starts machines knows better than a timeout; a pool that is steady is not touched."""
    error = ResizeError(code="AllocationFailed", message="there are no more")
    world.verb(lambda tx, now: resizing.give_up(tx, POOL, error, now))
    assert codes(world) == []
    resize(world, 3)
    world.verb(lambda tx, now: resizing.give_up(tx, POOL, error, now))
    assert (pool_of(world).allocation_state, codes(world)) == (AllocationState.STEADY, ["AllocationFailed"])


def test_a_resize_without_targets_or_with_a_short_timeout_is_refused() -> None:
    """The documented limits."""
    for body in ({}, {"targetDedicatedNodes": -1}, {"targetDedicatedNodes": 1, "resizeTimeout": "PT4M59S"}):
        with pytest.raises(ValueError, match=r"targetDedicatedNodes|resizeTimeout"):
            PoolResize.model_validate(body)
