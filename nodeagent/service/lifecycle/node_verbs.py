"""What users do to nodes: reboot, reimage, disable and enable scheduling, remove (spec/node.md §14, spec/rest.md §8.4).

What runs is first brought to its end, as the option says; a command goes into the node's queue only then. Start,
preparation and release tasks hold nothing up: they run again by their own rules.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from uuid import uuid4

from nodeagent.model.enums import AllocationState, DrainOption, NodeState, SchedulingState
from nodeagent.model.protocol import NodeCommand, StopReason
from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.lifecycle import dispatch, node_state, pools
from nodeagent.service.lifecycle.names import DEADLINES
from nodeagent.service.store import attempts, messages, nodes
from nodeagent.service.store.attempts import TASK_KINDS, AttemptRow
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow

MAX_REMOVED_AT_ONCE = 100

_COMMANDABLE = frozenset(
    {
        NodeState.IDLE,
        NodeState.RUNNING,
        NodeState.OFFLINE,
        NodeState.WAITING_FOR_START_TASK,
        NodeState.START_TASK_FAILED,
        NodeState.UNUSABLE,
    }
)
"""Batch documents idle and running; a node whose start task failed has no other way out than a reboot."""
_BUSY = {
    NodeState.REBOOTING: "NodeBeingRebooted",
    NodeState.REIMAGING: "NodeBeingReimaged",
    NodeState.STARTING: "NodeBeingStarted",
    NodeState.CREATING: "NodeBeingCreated",
    NodeState.UNKNOWN: "NodeStateUnusable",
}
_STOPS = {DrainOption.REQUEUE: StopReason.DRAIN_REQUEUE, DrainOption.TERMINATE: StopReason.DRAIN_TERMINATE}


def require(tx: Transaction, pool_id: str, node_id: str) -> NodeRow:
    """Return a node. Raises PoolNotFound, NodeNotFound."""
    pools.require(tx, pool_id)
    node = nodes.get(tx, pool_id, node_id)
    if node is None:
        raise refusal("NodeNotFound")
    return node


def command(
    tx: Transaction, pool_id: str, node_id: str, verb: Literal["reboot", "reimage"], option: DrainOption, now: datetime
) -> None:
    """Reboot or reimage a node, when its tasks have ended as `option` says.

    Raises PoolNotFound, NodeNotFound, NodeBeingRebooted, NodeBeingReimaged, NodeBeingStarted, NodeStateUnusable,
    OperationInvalidForCurrentState.
    """
    node = require(tx, pool_id, node_id)
    if node.state not in _COMMANDABLE:
        raise refusal(_BUSY.get(node.state, "OperationInvalidForCurrentState"))
    nodes.set_command(tx, node.num, verb, uuid4().hex)
    node_state.settle(tx, node.num, now)
    _drain(tx, node, option)
    tx.signal(DEADLINES)
    commanded = nodes.by_num(tx, node.num)
    if commanded is not None:
        send_command(tx, commanded)


def send_command(tx: Transaction, node: NodeRow) -> None:
    """Put the command of a node into its queue if none of its tasks is left."""
    if node.command is None or node.command_id is None or _live_tasks(tx, node):
        return
    verb: Literal["reboot", "reimage"] = "reboot" if node.command == "reboot" else "reimage"
    messages.add(tx, node.num, NodeCommand(command=verb, command_id=node.command_id))
    nodes.set_command_sent(tx, node.num)


def disable_scheduling(tx: Transaction, pool_id: str, node_id: str, option: DrainOption, now: datetime) -> None:
    """Give a node no more tasks; those that run end as `option` says.

    Raises PoolNotFound, NodeNotFound, NodeAlreadyInTargetSchedulingState.
    """
    node = require(tx, pool_id, node_id)
    if node.scheduling_state is SchedulingState.DISABLED:
        raise refusal("NodeAlreadyInTargetSchedulingState")
    nodes.disable_scheduling(tx, node.num, "user", now)
    _drain(tx, node, option)


def enable_scheduling(tx: Transaction, pool_id: str, node_id: str, now: datetime) -> None:
    """Let a node take tasks again. Raises PoolNotFound, NodeNotFound, NodeAlreadyInTargetSchedulingState."""
    node = require(tx, pool_id, node_id)
    if node.scheduling_state is SchedulingState.ENABLED:
        raise refusal("NodeAlreadyInTargetSchedulingState")
    nodes.enable_scheduling(tx, node.num, now)
    node_state.settle(tx, node.num, now)


def remove_nodes(
    tx: Transaction, pool_id: str, node_ids: Sequence[str], option: DrainOption, deadline: datetime, now: datetime
) -> None:
    """Take nodes out of their pool, when their tasks have ended as `option` says; the pool is resizing until then.

    Raises PoolNotFound, PoolBeingDeleted, PoolBeingResized, NodeNotFound.
    """
    pool = pools.require_open(tx, pool_id)
    if pool.allocation_state is not AllocationState.STEADY:
        raise refusal("PoolBeingResized")
    leaving = [require(tx, pool_id, node_id) for node_id in dict.fromkeys(name.lower() for name in node_ids)]
    pools.shrink(tx, pool, leaving, deadline, now)
    release(tx, leaving, option, now)
    pools.advance(tx, pool_id, now)


def release(tx: Transaction, leaving: Sequence[NodeRow], option: DrainOption, now: datetime) -> None:
    """Let nodes leave their pool, when their tasks have ended as `option` says; `pools.advance` lets them go."""
    for node in leaving:
        nodes.set_state(tx, node.num, NodeState.LEAVING_POOL, now)
        _drain(tx, node, option)
        for attempt in attempts.open_on_node(tx, node.num):
            if attempt.kind not in TASK_KINDS:
                dispatch.stop(tx, attempt, StopReason.NODE_REMOVED)


def option_of(value: DrainOption | None) -> DrainOption:
    """Return what a verb does with running tasks. Raises BatchError for the deprecated option that nobody serves."""
    if value is DrainOption.RETAINED_DATA:
        raise BatchError(
            400,
            "InvalidPropertyValue",
            "The option retaineddata is not supported; use taskcompletion, and read the files before.",
        )
    return value or DrainOption.REQUEUE


def _drain(tx: Transaction, node: NodeRow, option: DrainOption) -> None:
    reason = _STOPS.get(option)
    if reason is not None:
        for attempt in _live_tasks(tx, node):
            dispatch.stop(tx, attempt, reason)


def _live_tasks(tx: Transaction, node: NodeRow) -> list[AttemptRow]:
    return [item for item in attempts.open_on_node(tx, node.num) if item.live and item.kind in TASK_KINDS]
