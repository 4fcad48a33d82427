"""Looks a node up; pools, jobs and tasks have `require` in their lifecycles."""

from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle.pools import require as require_pool
from nodeagent.service.store import nodes
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow


def find_node(tx: Transaction, pool_id: str, node_id: str) -> NodeRow:
    """Return a node. Raises BatchError `PoolNotFound`, `NodeNotFound`."""
    require_pool(tx, pool_id)
    row = nodes.get(tx, pool_id, node_id)
    if row is None:
        raise refusal("NodeNotFound")
    return row
