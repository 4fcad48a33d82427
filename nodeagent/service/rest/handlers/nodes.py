"""Compute nodes: what they are, and what users do to them (spec/rest.md §2.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nodeagent.model.base import BatchModel
from nodeagent.model.node import DisableSchedulingOptions, RebootOptions, ReimageOptions
from nodeagent.service.lifecycle import node_verbs
from nodeagent.service.lifecycle import pools as pool_verbs
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.handlers.listing import Listing, Page, entity_reply
from nodeagent.service.rest.reply import Reply
from nodeagent.service.rest.shapes.node import PROPERTIES, node_shape
from nodeagent.service.rest.validate import json_object, parse
from nodeagent.service.store import nodes, start_tasks, tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow
from nodeagent.service.store.start_tasks import StartTaskRow
from nodeagent.service.store.tasks import TaskRow

_SECURE_SHELL_PORT = 22

Options = TypeVar("Options", bound=BatchModel)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a node; `recent` are (job id, task) of those whose state changed there last."""

    node: NodeRow
    recent: list[tuple[str, TaskRow]]
    start_task: StartTaskRow | None


def _shown(tx: Transaction, node: NodeRow) -> Shown:
    return Shown(node, tasks.recent_on_node(tx, node.num), start_tasks.of_node(tx, node.num))


NODES: Listing[Shown] = Listing("nodes", PROPERTIES, nodes.COLUMNS, lambda shown: shown.node.id)


async def list_nodes(call: Call) -> Reply:
    """List the nodes of a pool."""
    pool_id = call.variables["pool_id"]

    def fetch(tx: Transaction, page: Page) -> list[Shown]:
        pool_verbs.require(tx, pool_id)
        rows = nodes.page(tx, pool_id, after=page.after, limit=page.limit, where=page.where)
        return [_shown(tx, row) for row in rows]

    url = f"{call.links.pool(pool_id)}/nodes"
    return await NODES.reply(
        call, url, fetch, lambda shown: node_shape(call.links, shown.node, shown.recent, shown.start_task)
    )


async def get_node(call: Call) -> Reply:
    """Show one node."""
    pool_id, node_id = call.variables["pool_id"], call.variables["node_id"]
    shown = await call.database.read(lambda tx: _shown(tx, node_verbs.require(tx, pool_id, node_id)))
    shape = node_shape(call.links, shown.node, shown.recent, shown.start_task)
    return Reply(200, entity_reply(call, "nodes", shape, PROPERTIES))


async def get_remote_login(call: Call) -> Reply:
    """Tell where the node's machine can be logged into: its own secure shell, with the accounts that it has.

    What is in front of the node, such as a gateway, is not known here.
    """
    pool_id, node_id = call.variables["pool_id"], call.variables["node_id"]
    node = await call.database.read(lambda tx: node_verbs.require(tx, pool_id, node_id))
    body = {
        "odata.metadata": call.links.metadata("Microsoft.Azure.Batch.Protocol.Entities.ComputeNodeRemoteLoginSettings"),
        "remoteLoginIPAddress": node.ip_address,
        "remoteLoginPort": _SECURE_SHELL_PORT,
    }
    return Reply(200, body, call.links.node(pool_id, node_id))


async def reboot_node(call: Call) -> Reply:
    """Reboot a node."""
    option = node_verbs.option_of(_options(call, RebootOptions).node_reboot_option)
    now = call.context.clock()
    return await _act(
        call, 202, lambda tx, pool_id, node_id: node_verbs.command(tx, pool_id, node_id, "reboot", option, now)
    )


async def reimage_node(call: Call) -> Reply:
    """Bring a node back to how it joined."""
    option = node_verbs.option_of(_options(call, ReimageOptions).node_reimage_option)
    now = call.context.clock()
    return await _act(
        call, 202, lambda tx, pool_id, node_id: node_verbs.command(tx, pool_id, node_id, "reimage", option, now)
    )


async def disable_scheduling(call: Call) -> Reply:
    """Give a node no more tasks."""
    option = node_verbs.option_of(_options(call, DisableSchedulingOptions).node_disable_scheduling_option)
    now = call.context.clock()
    return await _act(
        call, 200, lambda tx, pool_id, node_id: node_verbs.disable_scheduling(tx, pool_id, node_id, option, now)
    )


async def enable_scheduling(call: Call) -> Reply:
    """Let a node take tasks again."""
    now = call.context.clock()
    return await _act(call, 200, lambda tx, pool_id, node_id: node_verbs.enable_scheduling(tx, pool_id, node_id, now))


def _options(call: Call, model: type[Options]) -> Options:
    """Return the options of a verb: its body may be left out."""
    return parse(model, json_object(call.body) if call.body.strip() else {})


async def _act(call: Call, status: int, verb: Callable[[Transaction, str, str], None]) -> Reply:
    pool_id, node_id = call.variables["pool_id"], call.variables["node_id"]
    await call.database.write(lambda tx: verb(tx, pool_id, node_id))
    return Reply(status, url=call.links.node(pool_id, node_id))
