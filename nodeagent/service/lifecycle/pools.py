"""The verbs of pools (spec/rest.md §8.3)."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from nodeagent.model.enums import AllocationState, NodeState, PoolState
from nodeagent.model.pool import DEFAULT_AUTO_SCALE_INTERVAL, PoolCreate, ResizeError
from nodeagent.model.protocol import StopReason
from nodeagent.rules.pool_secrets import without_secrets
from nodeagent.service.autoscale.samples import PERIOD
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import applications, dispatch
from nodeagent.service.lifecycle.names import ALLOCATION, AUTO_SCALE, DEADLINES, SCHEDULE
from nodeagent.service.store import attempts, autoscale, nodes, pools
from nodeagent.service.store.columns import later
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow

_STOPPED = ResizeError(code="ResizeStopped", message="The resize was stopped before it was complete.")
_TIMED_OUT = ResizeError(code="AllocationTimedout", message="Desired number of dedicated nodes could not be allocated")


def require(tx: Transaction, pool_id: str) -> PoolRow:
    """Return a pool. Raises PoolNotFound."""
    pool = pools.get(tx, pool_id)
    if pool is None:
        raise refusal("PoolNotFound")
    return pool


def require_open(tx: Transaction, pool_id: str) -> PoolRow:
    """Return a pool that is not being deleted. Raises PoolNotFound, PoolBeingDeleted."""
    pool = require(tx, pool_id)
    if pool.state is PoolState.DELETING:
        raise refusal("PoolBeingDeleted")
    return pool


def create_pool(tx: Transaction, spec: PoolCreate, now: datetime) -> PoolRow:
    """Add a pool. It is steady at once if it wants no nodes, else when as many have joined.

    Raises PoolExists, PoolBeingDeleted, InvalidApplicationPackageReferences.
    """
    existing = pools.get(tx, spec.id)
    if existing is not None:
        raise refusal("PoolBeingDeleted" if existing.state is PoolState.DELETING else "PoolExists")
    applications.check_pool(tx, spec.application_package_references or ())
    wanted = spec.target_dedicated_nodes + spec.target_low_priority_nodes
    if spec.enable_auto_scale:
        interval = spec.auto_scale_evaluation_interval or DEFAULT_AUTO_SCALE_INTERVAL
        spec = spec.model_copy(update={"auto_scale_evaluation_interval": interval})
    pools.insert(
        tx,
        without_secrets(spec),
        allocation_state=AllocationState.RESIZING if wanted else AllocationState.STEADY,
        deadline=now + spec.resize_timeout if wanted else None,
        now=now,
    )
    tx.signal(DEADLINES)
    tx.signal(ALLOCATION)
    pool = require(tx, spec.id)
    if spec.enable_auto_scale:
        autoscale.set_due(tx, pool.num, now + PERIOD)
        tx.signal(AUTO_SCALE)
    return pool


def ensure_pool(tx: Transaction, spec: PoolCreate, now: datetime) -> PoolRow:
    """Return the pool of this id, made if it is missing: how local mode brings its own. Raises PoolBeingDeleted."""
    pool = pools.get(tx, spec.id)
    if pool is None:
        return create_pool(tx, spec, now)
    if pool.state is PoolState.DELETING:
        raise refusal("PoolBeingDeleted")
    return pool


def settle_allocation(tx: Transaction, pool_id: str, now: datetime) -> None:
    """End a pool's resizing when all the nodes that it wants are there, and those that it does not want are gone.

    A resizing that somebody has stopped ends as soon as no node is on its way out.
    """
    pool = require(tx, pool_id)
    if pool.allocation_state is AllocationState.STEADY:
        return
    if any(node.state is NodeState.LEAVING_POOL for node in nodes.of_pool(tx, pool.num)):
        return
    if pool.allocation_state is AllocationState.STOPPING:
        pools.set_steady(tx, pool.num, (_STOPPED,), now)
        return
    enough = pool.current_dedicated_nodes >= pool.spec.target_dedicated_nodes
    if enough and pool.current_low_priority_nodes >= pool.spec.target_low_priority_nodes:
        pools.set_steady(tx, pool.num, (), now)
    else:
        tx.signal(ALLOCATION)


def expire_resize(tx: Transaction, pool: PoolRow, now: datetime) -> None:
    """End a pool's resizing after its resizeTimeout, with the error that says so."""
    pools.set_steady(tx, pool.num, (_TIMED_OUT,), now)


def delete_pool(tx: Transaction, pool_id: str, now: datetime) -> None:
    """Remove a pool: running tasks are requeued, jobs stay active without it.

    Raises PoolNotFound, PoolBeingDeleted.
    """
    pool = require_open(tx, pool_id)
    pools.set_state(tx, pool.num, PoolState.DELETING, now)
    for node in nodes.of_pool(tx, pool.num):
        for attempt in attempts.open_on_node(tx, node.num):
            dispatch.stop(tx, attempt, StopReason.NODE_REMOVED)
        if node.state is not NodeState.UNKNOWN:
            nodes.set_state(tx, node.num, NodeState.LEAVING_POOL, now)
    advance(tx, pool_id, now)


def advance(tx: Transaction, pool_id: str, now: datetime) -> None:
    """Let the nodes that leave a pool go when nothing runs there; then the pool itself if it is being deleted."""
    pool = pools.get(tx, pool_id)
    if pool is None:
        return
    deleting = pool.state is PoolState.DELETING
    remaining = 0
    for node in nodes.of_pool(tx, pool.num):
        if not deleting and node.state is not NodeState.LEAVING_POOL:
            continue
        if not _let_go(tx, node):
            remaining += 1
        elif not deleting:
            nodes.remember_removed(tx, node.instance_id, now)
    if remaining:
        return
    if deleting:
        pools.delete(tx, pool.num)
    else:
        settle_allocation(tx, pool_id, now)
    tx.signal(SCHEDULE)
    tx.signal(ALLOCATION)


def _let_go(tx: Transaction, node: NodeRow) -> bool:
    """Forget a node if nothing runs there any more; tell whether it is gone."""
    held = attempts.open_on_node(tx, node.num)
    if any(attempt.live for attempt in held):
        return False
    for attempt in held:
        attempts.free_slots(tx, attempt.num)
    nodes.delete(tx, node.num)
    return True


def shrink(tx: Transaction, pool: PoolRow, leaving: Sequence[NodeRow], deadline: datetime, now: datetime) -> None:
    """Let a pool want the nodes that leave it no longer, and be resizing until they are gone or it took too long."""
    dedicated = sum(node.is_dedicated for node in leaving)
    spec = pool.spec
    wanted = {
        "target_dedicated_nodes": max(0, spec.target_dedicated_nodes - dedicated),
        "target_low_priority_nodes": max(0, spec.target_low_priority_nodes - (len(leaving) - dedicated)),
    }
    pools.replace_spec(tx, pool.num, spec.model_copy(update=wanted), now)
    pools.set_resizing(tx, pool.num, deadline, now)
    tx.signal(DEADLINES)


def patch_pool(tx: Transaction, pool_id: str, changes: Mapping[str, object], now: datetime) -> PoolRow:
    """Replace properties of a pool. Start task and packages reach a node when it begins anew: reboot, reimage, join.

    Raises PoolNotFound, PoolBeingDeleted, InvalidApplicationPackageReferences.
    """
    pool = require_open(tx, pool_id)
    spec = without_secrets(pool.spec.model_copy(update=dict(changes)))
    applications.check_pool(tx, spec.application_package_references or ())
    pools.replace_spec(tx, pool.num, spec, later(now, pool.modified))
    return require(tx, pool_id)
