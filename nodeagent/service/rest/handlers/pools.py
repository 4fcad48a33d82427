"""Pools and their nodes (spec/rest.md §2.1, §2.2)."""

from typing import TypeAlias

import structlog

from nodeagent.model.pool import PoolCreate
from nodeagent.rules.supported import unsupported_pool
from nodeagent.service.lifecycle import pools as lifecycle
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.handlers.find import find_node
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.reply import Reply, created
from nodeagent.service.rest.shapes.pool import (
    NODE_PROPERTIES,
    PROPERTIES,
    node_counts_shape,
    node_shape,
    pool_shape,
)
from nodeagent.service.rest.validate import json_object, parse, refuse_unsupported
from nodeagent.service.store import nodes, pools, tasks
from nodeagent.service.store.columns import Column, ColumnType
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow
from nodeagent.service.store.tasks import TaskRow

_log = structlog.get_logger()

NodeEntry: TypeAlias = tuple[NodeRow, list[tuple[str, TaskRow]]]
"""A node, and (job id, task) of those whose state changed there last."""

POOLS: Listing[PoolRow] = Listing("pools", PROPERTIES, pools.COLUMNS, lambda row: row.id)
NODES: Listing[NodeEntry] = Listing("nodes", NODE_PROPERTIES, nodes.COLUMNS, lambda entry: entry[0].id)
NODE_COUNTS: Listing[tuple[PoolRow, list[NodeRow]]] = Listing(
    "poolnodecounts",
    frozenset({"poolId", "dedicated", "lowPriority"}),
    {"poolId": Column("p.key", ColumnType.ID)},
    lambda entry: entry[0].id,
)


async def add_pool(call: Call) -> Reply:
    """Add a pool; nodes join it when their agents register."""
    spec = parse(PoolCreate, json_object(call.body))
    ignored = refuse_unsupported(unsupported_pool(spec), loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", pool=spec.id, properties=ignored)
    now = call.context.clock()
    row = await call.database.write(lambda tx: lifecycle.create_pool(tx, spec, now))
    return created(call.links.pool(row.id), row.modified)


async def list_pools(call: Call) -> Reply:
    """List the pools of the account."""

    def fetch(tx: Transaction, page: Page) -> list[PoolRow]:
        return pools.page(tx, after=page.after, limit=page.limit, where=page.where)

    return await POOLS.reply(call, call.links.pools(), fetch, lambda row: pool_shape(call.links, row))


async def get_pool(call: Call) -> Reply:
    """Show one pool."""
    pool_id = call.variables["pool_id"]
    row = await call.database.read(lambda tx: lifecycle.require(tx, pool_id))
    call.condition.check(row.etag, row.modified)
    body = entity_reply(call, "pools", pool_shape(call.links, row), PROPERTIES)
    return Reply(200, body, call.links.pool(row.id), row.modified)


async def pool_exists(call: Call) -> Reply:
    """Tell whether a pool exists, by the status alone."""
    pool_id = call.variables["pool_id"]
    row = await call.database.read(lambda tx: lifecycle.require(tx, pool_id))
    call.condition.check(row.etag, row.modified)
    return Reply(200, url=call.links.pool(row.id), modified=row.modified)


async def delete_pool(call: Call) -> Reply:
    """Remove a pool with its nodes; running tasks go back into the queue."""
    pool_id, now = call.variables["pool_id"], call.context.clock()

    def delete(tx: Transaction) -> None:
        row = lifecycle.require(tx, pool_id)
        call.condition.check(row.etag, row.modified)
        lifecycle.delete_pool(tx, pool_id, now)

    await call.database.write(delete)
    return Reply(202)


async def list_node_counts(call: Call) -> Reply:
    """Count the nodes of each pool by state; a pool without nodes is listed with zeros."""

    def fetch(tx: Transaction, page: Page) -> list[tuple[PoolRow, list[NodeRow]]]:
        rows = pools.page(tx, after=page.after, limit=page.limit, where=page.where)
        return [(row, nodes.of_pool(tx, row.num)) for row in rows]

    url = f"{call.links.base}/nodecounts"
    return await NODE_COUNTS.reply(call, url, fetch, lambda entry: node_counts_shape(*entry))


async def list_nodes(call: Call) -> Reply:
    """List the nodes of a pool."""
    pool_id = call.variables["pool_id"]

    def fetch(tx: Transaction, page: Page) -> list[NodeEntry]:
        lifecycle.require(tx, pool_id)
        rows = nodes.page(tx, pool_id, after=page.after, limit=page.limit, where=page.where)
        return [(row, tasks.recent_on_node(tx, row.num)) for row in rows]

    url = f"{call.links.pool(pool_id)}/nodes"
    return await NODES.reply(call, url, fetch, lambda entry: node_shape(call.links, *entry))


async def get_node(call: Call) -> Reply:
    """Show one node."""
    pool_id, node_id = call.variables["pool_id"], call.variables["node_id"]

    def find(tx: Transaction) -> NodeEntry:
        row = find_node(tx, pool_id, node_id)
        return row, tasks.recent_on_node(tx, row.num)

    entry = await call.database.read(find)
    return Reply(200, entity_reply(call, "nodes", node_shape(call.links, *entry), NODE_PROPERTIES))
