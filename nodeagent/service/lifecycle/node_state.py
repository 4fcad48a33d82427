"""The state of a node, made from what is known of it (spec/node.md §14): one place decides, whatever has changed."""

from datetime import datetime

from nodeagent.model.enums import NodeState
from nodeagent.service.lifecycle.names import SCHEDULE
from nodeagent.service.store import nodes, start_tasks
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import REACHABLE, NodeRow
from nodeagent.service.store.start_tasks import StartTaskRow

COMMAND_STATES = {"reboot": NodeState.REBOOTING, "reimage": NodeState.REIMAGING}


def settle(tx: Transaction, node_num: int, now: datetime, *, starting: bool = False) -> None:
    """Show a node that was heard of as what it is now, and let it have work if it may.

    `starting`: its agent has registered, and has not asked for work yet.
    """
    node = nodes.by_num(tx, node_num)
    if node is None:
        return
    state = _state(node, start_tasks.of_node(tx, node_num), starting=starting)
    if state not in REACHABLE or node.state not in REACHABLE:
        nodes.set_state(tx, node_num, state, now)
    nodes.settle(tx, node_num, now)
    tx.signal(SCHEDULE)


def _state(node: NodeRow, start_task: StartTaskRow | None, *, starting: bool) -> NodeState:
    if node.state is NodeState.LEAVING_POOL:
        return NodeState.LEAVING_POOL
    if node.command is not None:
        return COMMAND_STATES[node.command]
    if starting:
        return NodeState.STARTING
    if node.errors:
        return NodeState.UNUSABLE
    if start_task is not None and start_task.holds_up:
        return NodeState.START_TASK_FAILED if start_task.completed else NodeState.WAITING_FOR_START_TASK
    return NodeState.IDLE
