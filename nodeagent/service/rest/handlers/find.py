"""Looks an entity up, or refuses with its own "not found"."""

from nodeagent.service.errors import refusal
from nodeagent.service.store import nodes, pools
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow


def find_pool(tx: Transaction, pool_id: str) -> PoolRow:
    """Return a pool. Raises BatchError `PoolNotFound`."""
    row = pools.get(tx, pool_id)
    if row is None:
        raise refusal("PoolNotFound")
    return row


def find_node(tx: Transaction, pool_id: str, node_id: str) -> NodeRow:
    """Return a node. Raises BatchError `PoolNotFound`, `NodeNotFound`."""
    find_pool(tx, pool_id)
    row = nodes.get(tx, pool_id, node_id)
    if row is None:
        raise refusal("NodeNotFound")
    return row
