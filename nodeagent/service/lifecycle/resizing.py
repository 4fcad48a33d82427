"""A pool grows and shrinks: resize and stop (spec/rest.md §8.3).

The service starts no machines. A pool that wants more nodes is resizing until they have joined, or it took too long;
whoever has machines to give, as local mode has, is told by the signal ALLOCATION.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from nodeagent.model.enums import AllocationState, DrainOption, NodeState
from nodeagent.model.pool import ResizeError
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import node_verbs, pools
from nodeagent.service.lifecycle.names import ALLOCATION, DEADLINES
from nodeagent.service.store import nodes
from nodeagent.service.store import pools as pool_rows
from nodeagent.service.store.columns import later
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow

_OF_NO_USE = frozenset({NodeState.UNKNOWN, NodeState.UNUSABLE, NodeState.START_TASK_FAILED, NodeState.OFFLINE})


@dataclass(frozen=True, slots=True)
class Size:
    """What a pool is to become: how many nodes of each kind, what becomes of tasks, and how long it may take."""

    dedicated: int | None
    """None: as it is."""
    low_priority: int | None
    option: DrainOption
    timeout: timedelta


def resize(tx: Transaction, pool_id: str, size: Size, now: datetime) -> None:
    """Let a pool want other numbers of nodes.

    Raises PoolNotFound, PoolBeingDeleted, PoolBeingResized, OperationInvalidForCurrentState (it scales by a formula).
    """
    pool = pools.require_open(tx, pool_id)
    if pool.spec.enable_auto_scale:
        raise refusal("OperationInvalidForCurrentState", ("Reason", "The pool scales automatically."))
    if pool.allocation_state is not AllocationState.STEADY:
        raise refusal("PoolBeingResized")
    apply(tx, pool, size, now)


def apply(tx: Transaction, pool: PoolRow, size: Size, now: datetime) -> None:
    """Let a steady pool want other numbers of nodes; those that it does not want leave it."""
    spec = pool.spec
    dedicated = spec.target_dedicated_nodes if size.dedicated is None else size.dedicated
    low_priority = spec.target_low_priority_nodes if size.low_priority is None else size.low_priority
    wanted = {"target_dedicated_nodes": dedicated, "target_low_priority_nodes": low_priority}
    pool_rows.replace_spec(tx, pool.num, spec.model_copy(update=wanted), later(now, pool.modified))
    pool_rows.set_resizing(tx, pool.num, now + size.timeout, now)
    there = nodes.of_pool(tx, pool.num)
    leaving = [
        *_too_many([node for node in there if node.is_dedicated], dedicated),
        *_too_many([node for node in there if not node.is_dedicated], low_priority),
    ]
    node_verbs.release(tx, leaving, size.option, now)
    tx.signal(DEADLINES)
    tx.signal(ALLOCATION)
    pools.advance(tx, pool.id, now)


def stop_resize(tx: Transaction, pool_id: str, now: datetime) -> None:
    """Leave a pool at what it has. What has begun to leave it, leaves; to stop twice is no error.

    Raises PoolNotFound, PoolBeingDeleted, OperationInvalidForCurrentState (nothing to stop).
    """
    pool = pools.require_open(tx, pool_id)
    if pool.allocation_state is AllocationState.STEADY:
        raise refusal("OperationInvalidForCurrentState", ("Reason", "The pool is not being resized."))
    if pool.allocation_state is AllocationState.RESIZING:
        pool_rows.set_stopping(tx, pool.num, now)
    tx.signal(ALLOCATION)
    pools.settle_allocation(tx, pool_id, now)


def give_up(tx: Transaction, pool_id: str, error: ResizeError, now: datetime) -> None:
    """End a pool's resizing because the nodes that it waits for cannot be had."""
    pool = pool_rows.get(tx, pool_id)
    if pool is not None and pool.allocation_state is AllocationState.RESIZING:
        pool_rows.set_steady(tx, pool.num, (error,), now)


def _too_many(there: Sequence[NodeRow], wanted: int) -> list[NodeRow]:
    """Return the nodes that go: useless ones first, then those that do least, the youngest of them first."""
    staying = [node for node in there if node.state is not NodeState.LEAVING_POOL]
    order = sorted(staying, key=lambda node: (node.state not in _OF_NO_USE, node.running_slots, -node.num))
    return order[: max(0, len(staying) - wanted)]
