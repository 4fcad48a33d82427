"""Which node a task is given, decided over the store: affinity, order of jobs, and no slot left idle."""

from collections.abc import Callable

import pytest

from nodeagent.model.enums import DisableTasks
from nodeagent.model.job import JobManagerTask
from nodeagent.model.pool import PoolCreate, TaskSchedulingPolicy
from nodeagent.model.task import TaskCreate
from nodeagent.model.values import AffinityInfo
from nodeagent.service.explain.nodes import explain_node
from nodeagent.service.explain.tasks import explain_task
from nodeagent.service.lifecycle import jobs, pools, tasks
from nodeagent.service.rest.shapes.pool import node_counts_shape
from nodeagent.service.store import nodes as node_rows
from tests.unit.service_world import POOL, World

pytest_plugins = ["tests.unit.service_fixtures"]


def _add(world: World, task_id: str, affinity_id: str | None, job_id: str = "job") -> str | None:
    """Add a task and return the id of the node that it was given."""
    info = None if affinity_id is None else AffinityInfo(affinity_id=affinity_id)
    spec = TaskCreate(id=task_id, command_line="true", affinity_info=info)
    world.store.do(lambda tx: tasks.add_task(tx, job_id, spec, world.store.now))
    node = world.task(task_id, job_id).node
    return None if node is None else node.id


def test_a_task_goes_to_the_node_of_its_affinity_while_that_has_room(worlds: Callable[..., World]) -> None:
    """By `TVM:<nodeId>` or the bare id, in any case; a full node, or none of that name, is no reason to wait."""
    world = worlds(2, 2, 8)
    world.create_job()
    assert _add(world, "a", "TVM:node1") == "node1"
    assert _add(world, "b", "NODE1") == "node1"
    assert _add(world, "c", "TVM:node1") == "node2"
    assert _add(world, "d", "TVM:nobody") == "node2"
    assert _add(world, "e", None) == "node2"


def test_a_limited_job_with_a_long_line_leaves_no_slot_idle(worlds: Callable[..., World]) -> None:
    """The tasks that maxParallelTasks holds back do not hide the job behind them, in one commit."""
    world = worlds(4)
    world.create_job("limited", priority=10, max_parallel_tasks=1)
    world.create_job("other")
    world.nodes[0].store.do(lambda tx: jobs.disable_job(tx, "limited", DisableTasks.WAIT, world.store.now))
    for number in range(20):
        world.add_task(f"l{number}", "limited")
    world.store.do(
        lambda tx: [
            jobs.enable_job(tx, "limited", world.store.now),
            *(
                tasks.add_task(tx, "other", TaskCreate(id=f"o{number}", command_line="true"), world.store.now)
                for number in range(9)
            ),
        ]
    )
    assert world.nodes[0].row.free_slots == 0
    given = [task for task in (world.task(f"o{number}", "other") for number in range(9)) if task.attempt_num]
    assert len(given) == 3


def test_jobs_of_one_priority_take_turns_where_the_pool_says_so(worlds: Callable[..., World]) -> None:
    """`jobDefaultOrder` none: slots that come free one by one go to the job that has waited longest for one."""
    world = worlds()
    policy = TaskSchedulingPolicy(job_default_order="none")
    spec = PoolCreate(id="turns", vm_size="v", task_scheduling_policy=policy)
    world.store.do(lambda tx: pools.create_pool(tx, spec, world.store.now))
    order = _order_of_starts(world, "turns")
    assert order == ["first", "second"] * 4
    assert _order_of_starts(worlds(), POOL) == ["first"] * 4 + ["second"] * 4


def _order_of_starts(world: World, pool_id: str) -> list[str]:
    """Run two jobs of four tasks on one slot; return whose tasks started."""
    for job_id in ("first", "second"):
        world.create_job(job_id, pool_info={"poolId": pool_id})
        for number in range(4):
            world.add_task(f"t{number}", job_id)
    node = world.add_node(1, pool_id)
    order = []
    for _ in range(8):
        node.fetch()
        (attempt,) = node.live.values()
        order.append(attempt.assignment.job_id)
        node.run(attempt)
        node.finish(attempt)
    return order


@pytest.mark.parametrize(
    "end",
    [
        lambda world: world.verb(jobs.disable_job, "large", DisableTasks.WAIT),
        lambda world: world.verb(jobs.terminate_job, "large"),
        lambda world: world.verb(jobs.delete_job, "large"),
        lambda world: world.verb(tasks.terminate_task, "large", "all"),
        lambda world: world.verb(tasks.delete_task, "large", "all"),
    ],
    ids=["disable", "terminate job", "delete job", "terminate task", "delete task"],
)
def test_a_node_kept_for_a_task_that_goes_is_given_to_the_next_at_once(
    world: World, end: Callable[[World], None]
) -> None:
    """The commit that takes the large task out of the line places the small one behind it."""
    world.create_job()
    world.add_task("one")
    world.create_job("large", priority=10)
    world.add_task("all", "large", slots=2)
    world.add_task("small")
    assert world.task("small").attempt_num is None
    end(world)
    assert world.task("small").attempt_num is not None


def test_a_manager_that_must_not_be_taken_away_waits_for_a_dedicated_node(worlds: Callable[..., World]) -> None:
    """`allowLowPriorityNode` false: only the manager waits, explain says why, and the counts tell the nodes apart."""
    world = worlds()
    low = world.add_node(4)
    low.register(is_dedicated=False)
    manager = JobManagerTask(id="m", command_line="m", allow_low_priority_node=False, run_exclusive=False)
    world.create_job(job_manager_task=manager)
    world.add_task("t")
    assert world.task("m").attempt_num is None
    assert world.task("t").attempt_num is not None
    told = {item.code: item for item in world.store.do(lambda tx: explain_task(tx, "job", "m")).reasons}
    assert told["NodeNotDedicated"].subject == low.id
    of_node = world.store.do(lambda tx: explain_node(tx, POOL, low.id)).reasons
    assert "NodeNotDedicated" in [item.code for item in of_node]
    firm = world.add_node(1)
    assert world.task("m").node is not None
    assert firm.row.is_dedicated
    assert firm.fetch() == 1
    pool = world.store.do(lambda tx: pools.require(tx, POOL))
    assert (pool.current_dedicated_nodes, pool.current_low_priority_nodes) == (1, 1)
    rows = world.store.do(lambda tx: node_rows.of_pool(tx, pool.num))
    shape = node_counts_shape(pool, rows)
    assert [shape[kind]["total"] for kind in ("dedicated", "lowPriority")] == [1, 1]
    assert sum(shape["lowPriority"].values()) == 2  # one in its state, and in the total
    low.begin_anew()
    assert low.row.is_dedicated


def test_a_manager_that_may_be_taken_away_runs_anywhere(worlds: Callable[..., World]) -> None:
    """That is the default."""
    world = worlds()
    world.add_node(1).register(is_dedicated=False)
    world.create_job(job_manager_task=JobManagerTask(id="m", command_line="m"))
    assert world.task("m").attempt_num is not None
