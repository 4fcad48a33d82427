"""Pools (spec/rest.md §2.1)."""

from collections.abc import Callable, Mapping

import structlog

from nodeagent.model.pool import NodesToRemove, PoolCreate, PoolPatch, PoolProperties, PoolResize, StartTask
from nodeagent.rules.file_properties import start_task_faults
from nodeagent.rules.supported import unsupported_pool, unsupported_start_task
from nodeagent.service.errors import refusal
from nodeagent.service.lifecycle import node_verbs, resizing
from nodeagent.service.lifecycle import pools as lifecycle
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.handlers.autoscale import check_formula
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.reply import Reply, created
from nodeagent.service.rest.shapes.pool import (
    PROPERTIES,
    node_counts_shape,
    pool_shape,
)
from nodeagent.service.rest.validate import (
    invalid_property,
    json_object,
    parse,
    refuse_faults,
    refuse_unsupported,
    unsupported_property,
)
from nodeagent.service.store import nodes, pools
from nodeagent.service.store.columns import Column, ColumnType
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.pools import PoolRow

_log = structlog.get_logger()
_ALWAYS_CHANGEABLE = frozenset({"start_task", "application_package_references", "metadata"})
_WIDE_PATCH_SINCE = "2024-07"
_TARGETS = frozenset({"target_dedicated_nodes", "target_low_priority_nodes"})

POOLS: Listing[PoolRow] = Listing("pools", PROPERTIES, pools.COLUMNS, lambda row: row.id)
NODE_COUNTS: Listing[tuple[PoolRow, list[NodeRow]]] = Listing(
    "poolnodecounts",
    frozenset({"poolId", "dedicated", "lowPriority"}),
    {"poolId": Column("p.key", ColumnType.ID)},
    lambda entry: entry[0].id,
)


async def add_pool(call: Call) -> Reply:
    """Add a pool; nodes join it when their agents register."""
    spec = parse(PoolCreate, json_object(call.body), loose=call.context.loose)
    ignored = refuse_unsupported(unsupported_pool(spec), loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", pool=spec.id, properties=ignored)
    _check_start_task(call, spec.start_task)
    check_formula(spec.auto_scale_formula)
    if spec.enable_auto_scale and not _TARGETS.isdisjoint(spec.model_fields_set):
        raise invalid_property("enableAutoScale", value=True, reason="a pool with a formula may have no target")
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


async def patch_pool(call: Call) -> Reply:
    """Replace the properties that the body names; most of them only while the pool has no nodes."""
    patch = parse(PoolPatch, json_object(call.body))
    ignored = refuse_unsupported(unsupported_pool(patch), loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", pool=call.variables["pool_id"], properties=ignored)
    _check_start_task(call, patch.start_task)
    changes = {name: getattr(patch, name) for name in patch.model_fields_set if getattr(patch, name) is not None}
    for name in sorted(changes.keys() - _ALWAYS_CHANGEABLE):
        if call.query.api_version < _WIDE_PATCH_SINCE:
            reason = f"it can be changed since api-version {_WIDE_PATCH_SINCE}"
            raise unsupported_property(PoolPatch.model_fields[name].alias or name, reason)
    return await _change(call, 200, changes)


async def replace_properties(call: Call) -> Reply:
    """Replace start task, packages and metadata; a start task that is left out is removed."""
    properties = parse(PoolProperties, json_object(call.body))
    _check_start_task(call, properties.start_task)
    return await _change(call, 204, {name: getattr(properties, name) for name in PoolProperties.model_fields})


async def _change(call: Call, status: int, changes: Mapping[str, object]) -> Reply:
    pool_id, now = call.variables["pool_id"], call.context.clock()

    def change(tx: Transaction) -> PoolRow:
        row = lifecycle.require(tx, pool_id)
        call.condition.check(row.etag, row.modified)
        fixed = sorted(changes.keys() - _ALWAYS_CHANGEABLE)
        if fixed and row.current_dedicated_nodes + row.current_low_priority_nodes:
            names = ", ".join(PoolPatch.model_fields[name].alias or name for name in fixed)
            reason = f"{names} can be changed only while the pool has no nodes."
            raise refusal("OperationInvalidForCurrentState", ("Reason", reason))
        return lifecycle.patch_pool(tx, pool_id, changes, now)

    row = await call.database.write(change)
    return Reply(status, url=call.links.pool(row.id), modified=row.modified)


async def remove_nodes(call: Call) -> Reply:
    """Take nodes out of a pool."""
    body = parse(NodesToRemove, json_object(call.body))
    option = node_verbs.option_of(body.node_deallocation_option)
    pool_id, now = call.variables["pool_id"], call.context.clock()

    def remove(tx: Transaction) -> PoolRow:
        row = lifecycle.require(tx, pool_id)
        call.condition.check(row.etag, row.modified)
        node_verbs.remove_nodes(tx, pool_id, body.node_list, option, now + body.resize_timeout, now)
        return lifecycle.require(tx, pool_id)

    row = await call.database.write(remove)
    return Reply(202, url=call.links.pool(row.id), modified=row.modified)


async def resize_pool(call: Call) -> Reply:
    """Let a pool want other numbers of nodes."""
    body = parse(PoolResize, json_object(call.body))
    size = resizing.Size(
        body.target_dedicated_nodes,
        body.target_low_priority_nodes,
        node_verbs.option_of(body.node_deallocation_option),
        body.resize_timeout,
    )
    now = call.context.clock()
    return await _act(call, 202, lambda tx, pool_id: resizing.resize(tx, pool_id, size, now))


async def stop_resize(call: Call) -> Reply:
    """Leave a pool at what it has."""
    now = call.context.clock()
    return await _act(call, 202, lambda tx, pool_id: resizing.stop_resize(tx, pool_id, now))


async def _act(call: Call, status: int, verb: Callable[[Transaction, str], None]) -> Reply:
    """Do what the caller wants of a pool if it is as the caller's condition says."""
    pool_id = call.variables["pool_id"]

    def act(tx: Transaction) -> PoolRow:
        row = lifecycle.require(tx, pool_id)
        call.condition.check(row.etag, row.modified)
        verb(tx, pool_id)
        return lifecycle.require(tx, pool_id)

    row = await call.database.write(act)
    return Reply(status, url=call.links.pool(row.id), modified=row.modified)


def _check_start_task(call: Call, task: StartTask | None) -> None:
    """Raise BatchError for what a start task may not have, or this version has not."""
    if task is None:
        return
    ignored = refuse_unsupported(unsupported_start_task(task), loose=call.context.loose)
    if ignored:
        _log.warning("properties_ignored", task="startTask", properties=ignored)
    refuse_faults(start_task_faults(task, auto_storage=call.context.auto_storage))


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
