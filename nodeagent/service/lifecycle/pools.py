"""The verbs of pools (spec/rest.md §8.3)."""

from datetime import datetime

from nodeagent.model.enums import AllocationState, NodeState, PoolState
from nodeagent.model.pool import PoolCreate, ResizeError
from nodeagent.model.protocol import StopReason
from nodeagent.rules.pool_secrets import without_secrets
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import applications, dispatch
from nodeagent.service.lifecycle.names import DEADLINES, SCHEDULE
from nodeagent.service.store import attempts, nodes, pools
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.pools import PoolRow

_TIMED_OUT = ResizeError(code="AllocationTimedout", message="Desired number of dedicated nodes could not be allocated")


def require(tx: Transaction, pool_id: str) -> PoolRow:
    """Return a pool. Raises PoolNotFound."""
    pool = pools.get(tx, pool_id)
    if pool is None:
        raise refusal("PoolNotFound")
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
    pools.insert(
        tx,
        without_secrets(spec),
        allocation_state=AllocationState.RESIZING if wanted else AllocationState.STEADY,
        deadline=now + spec.resize_timeout if wanted else None,
        now=now,
    )
    tx.signal(DEADLINES)
    return require(tx, spec.id)


def ensure_pool(tx: Transaction, spec: PoolCreate, now: datetime) -> PoolRow:
    """Return the pool of this id, made if it is missing: how local mode brings its own. Raises PoolBeingDeleted."""
    pool = pools.get(tx, spec.id)
    if pool is None:
        return create_pool(tx, spec, now)
    if pool.state is PoolState.DELETING:
        raise refusal("PoolBeingDeleted")
    return pool


def settle_allocation(tx: Transaction, pool_id: str, now: datetime) -> None:
    """End a pool's resizing when all the nodes that it wants are there."""
    pool = require(tx, pool_id)
    wanted = pool.spec.target_dedicated_nodes + pool.spec.target_low_priority_nodes
    if pool.allocation_state is AllocationState.RESIZING and pool.current_dedicated_nodes >= wanted:
        pools.set_steady(tx, pool.num, (), now)


def expire_resize(tx: Transaction, pool: PoolRow, now: datetime) -> None:
    """End a pool's resizing after its resizeTimeout, with the error that says so."""
    pools.set_steady(tx, pool.num, (_TIMED_OUT,), now)


def delete_pool(tx: Transaction, pool_id: str, now: datetime) -> None:
    """Remove a pool: running tasks are requeued, jobs stay active without it.

    Raises PoolNotFound, PoolBeingDeleted.
    """
    pool = require(tx, pool_id)
    if pool.state is PoolState.DELETING:
        raise refusal("PoolBeingDeleted")
    pools.set_state(tx, pool.num, PoolState.DELETING, now)
    for node in nodes.of_pool(tx, pool.num):
        for attempt in attempts.open_on_node(tx, node.num):
            dispatch.stop(tx, attempt, StopReason.NODE_REMOVED)
        if node.state is not NodeState.UNKNOWN:
            nodes.set_state(tx, node.num, NodeState.LEAVING_POOL, now)
    advance(tx, pool_id)


def advance(tx: Transaction, pool_id: str) -> None:
    """Let the nodes of a pool that is being deleted go when nothing runs there, and then the pool."""
    pool = pools.get(tx, pool_id)
    if pool is None or pool.state is not PoolState.DELETING:
        return
    remaining = 0
    for node in nodes.of_pool(tx, pool.num):
        held = attempts.open_on_node(tx, node.num)
        if any(attempt.live for attempt in held):
            remaining += 1
            continue
        for attempt in held:
            attempts.free_slots(tx, attempt.num)
        nodes.delete(tx, node.num)
    if not remaining:
        pools.delete(tx, pool.num)
        tx.signal(SCHEDULE)
