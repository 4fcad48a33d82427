"""Nodes come, go silent and come back: registration, heartbeats, leases, fencing (spec/node.md §14, §16)."""

from datetime import datetime

from nodeagent.model.enums import ExecutionResult, NodeState, PoolState
from nodeagent.model.protocol import AttemptKind, Heartbeat, HeartbeatAnswer, NodeCall, Register
from nodeagent.service.lifecycle import giving_up, jobs, node_state, node_verbs, pools, start_tasks
from nodeagent.service.lifecycle.names import DEADLINES, SCHEDULE
from nodeagent.service.store import attempts, job_nodes, messages, nodes
from nodeagent.service.store import jobs as job_rows
from nodeagent.service.store import pools as pool_rows
from nodeagent.service.store import start_tasks as start_task_rows
from nodeagent.service.store.attempts import AttemptRow, AttemptState
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow


class NodeRefusedError(Exception):
    """A call of an agent that is refused: HTTP status, and a code of `ProtocolError`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def require(tx: Transaction, call: NodeCall) -> NodeRow:
    """Return the node that calls. Raises NodeRefusedError: Fenced, NodeNotRegistered."""
    node = nodes.by_id(tx, call.node_id)
    if node is None or call.epoch > node.epoch:
        raise NodeRefusedError(409, "NodeNotRegistered", f"node {call.node_id} is not registered with this epoch")
    if call.epoch < node.epoch:
        raise _fenced(node, call)
    return node


def register(tx: Transaction, call: Register, now: datetime) -> tuple[str, ...]:
    """Let a node join its pool or come back; settle what it no longer knows. Return its unknown live attempts.

    A node that has packages to install gets no work before it asks for some: see `ready`.

    Raises NodeRefusedError: PoolNotFound, Fenced.
    """
    pool = pool_rows.get(tx, call.pool_id)
    if pool is None or pool.state is PoolState.DELETING:
        raise NodeRefusedError(404, "PoolNotFound", f"there is no pool {call.pool_id}: make it, or name another")
    if nodes.was_removed(tx, call.instance_id):
        raise NodeRefusedError(409, "NodeRemoved", f"node {call.node_id} was removed from pool {call.pool_id}")
    node = nodes.by_id(tx, call.node_id)
    tx.signal(SCHEDULE)
    tx.signal(DEADLINES)
    starting = bool(pool.spec.application_package_references)
    if node is None:
        num = nodes.insert(tx, pool.num, call, NodeState.STARTING, now)
        _begin(tx, num, now)
        node_state.settle(tx, num, now, starting=starting)
        pools.settle_allocation(tx, call.pool_id, now)
        return _unknown(tx, num, call.live_attempts)
    _fence(node, call)
    _come_back(tx, node, call, now)
    node_state.settle(tx, node.num, now, starting=starting)
    return _unknown(tx, node.num, call.live_attempts)


def _come_back(tx: Transaction, node: NodeRow, call: Register, now: datetime) -> None:
    """A node that is known registers again: its agent was started anew, or its machine, or that was reimaged."""
    reimaged = call.reimaged or _is_wiped(node, call)
    anew = reimaged or node.boot_id != call.boot_id
    nodes.renew(tx, node.num, call, now)
    if reimaged:
        job_nodes.forget_node(tx, node.num)
    elif anew:
        _forget_preparations(tx, node)
    _settle_attempts(tx, node, call, rebooted=anew, now=now)
    nodes.set_slots(tx, node.num, call.slots)
    nodes.set_errors(tx, node.num, ())
    if node.instance_id != call.instance_id and node.disabled_by != "user":
        nodes.enable_scheduling(tx, node.num, now)
    if node.command is not None and (
        call.command_id == node.command_id or reimaged or (anew and node.command == "reboot")
    ):
        nodes.set_command(tx, node.num, None, None)
    if reimaged:
        messages.forget(tx, node.num)
    else:
        messages.acknowledge(tx, node.num, call.cursor)
    if anew:
        _begin(tx, node.num, now)
    else:
        start_tasks.owed(tx, node, frozenset(call.live_attempts), call.cursor, now)


def _begin(tx: Transaction, num: int, now: datetime) -> None:
    """A node begins: its pool's start task is the first thing that it does."""
    node = nodes.by_num(tx, num)
    if node is not None:
        start_tasks.begin(tx, node, now)


def advance(tx: Transaction, node: NodeRow, now: datetime) -> None:
    """Do what waited for the end of a node's tasks: let it leave its pool, reboot it, reimage it."""
    if node.state is NodeState.LEAVING_POOL:
        pools.advance(tx, node.pool_id, now)
    elif node.command is not None and not node.command_sent:
        node_verbs.send_command(tx, node)


def _fence(node: NodeRow, call: Register) -> None:
    if call.pool_id.lower() != node.pool_id.lower():
        raise NodeRefusedError(
            409, "Fenced", f"node id {node.id} belongs to pool {node.pool_id}: give this node another id"
        )
    if _is_wiped(node, call):
        return
    if call.epoch < node.epoch or (call.epoch == node.epoch and call.instance_id != node.instance_id):
        raise _fenced(node, call)


def _is_wiped(node: NodeRow, call: Register) -> bool:
    """Tell whether the machine was reimaged, as it was told to: then its agent cannot know its former epoch."""
    return node.command == "reimage" and node.command_sent and node.boot_id != call.boot_id and call.cursor == 0


def _fenced(node: NodeRow, call: NodeCall) -> NodeRefusedError:
    return NodeRefusedError(
        409,
        "Fenced",
        f"node {node.id} has a newer agent: epoch {node.epoch} is registered, this call has {call.epoch}",
    )


def _forget_preparations(tx: Transaction, node: NodeRow) -> None:
    """After a reboot, preparations that succeeded run again where the job wants it so (spec/node.md §11)."""
    for row in job_nodes.of_node(tx, node.num):
        job = job_rows.by_num(tx, row.job_num)
        if job is None or job.spec.job_preparation_task is None or not row.prepared or row.preparation is None:
            continue
        again = job.spec.job_preparation_task.rerun_on_node_reboot_after_success
        if again and row.preparation.result is ExecutionResult.SUCCESS:
            job_nodes.need_preparation(tx, row)


def _settle_attempts(tx: Transaction, node: NodeRow, call: Register, *, rebooted: bool, now: datetime) -> None:
    """What the node has fetched and does not know is lost; given up attempts that it no longer has free their slots.

    A reboot cuts off every preparation whose end is not known here: if it succeeded before, that boot is gone.
    """
    known = frozenset(call.live_attempts)
    for attempt in attempts.open_on_node(tx, node.num):
        cut_off = rebooted and attempt.live and attempt.kind is AttemptKind.JOB_PREPARATION
        if attempt.id in known and not cut_off:
            continue
        if not attempt.live:
            _free(tx, attempt)
        elif rebooted or _fetched(attempt, call.cursor):
            lose(tx, attempt, AttemptState.GIVEN_UP, now, again=not call.reimaged)
            _free(tx, attempt)


def _fetched(attempt: AttemptRow, cursor: int) -> bool:
    return attempt.message_number is not None and attempt.message_number <= cursor


def _free(tx: Transaction, attempt: AttemptRow) -> None:
    attempts.free_slots(tx, attempt.num)
    nodes.hold_slots(tx, attempt.node_num, -attempt.slots_held)


def _unknown(tx: Transaction, node_num: int, live: tuple[str, ...]) -> tuple[str, ...]:
    """Return those attempts that the service does not know on this node, or has given up."""
    unknown = []
    for attempt_id in live:
        start_task = start_task_rows.by_attempt(tx, attempt_id)
        if start_task is not None and start_task.node_num == node_num:
            continue
        attempt = attempts.get(tx, attempt_id)
        if attempt is None or attempt.node_num != node_num or attempt.state is AttemptState.GIVEN_UP:
            unknown.append(attempt_id)
    return tuple(unknown)


def lose(tx: Transaction, attempt: AttemptRow, state: AttemptState, now: datetime, *, again: bool = False) -> None:
    """End an attempt that its node cannot end any more, and take its job along.

    `again`: the node is there, with its files (`giving_up.lose`).
    """
    job = job_rows.by_num(tx, attempt.job_num)
    if job is not None:
        giving_up.lose(tx, job, attempt, state, now, again=again)
        jobs.advance(tx, job.num, now)


def heartbeat(tx: Transaction, call: Heartbeat, now: datetime) -> HeartbeatAnswer:
    """Hear that a node lives; a silent one is back. Raises NodeRefusedError: Fenced."""
    node = nodes.by_id(tx, call.node_id)
    if node is None or call.epoch > node.epoch:
        return HeartbeatAnswer(register_again=True)
    if call.epoch < node.epoch:
        raise _fenced(node, call)
    nodes.beat(tx, node.num, call.host, now)
    messages.acknowledge(tx, node.num, call.cursor)
    live = frozenset(call.live_attempts)
    for attempt in attempts.open_on_node(tx, node.num):
        if not attempt.live and attempt.id not in live and _fetched(attempt, call.cursor):
            _free(tx, attempt)
            tx.signal(SCHEDULE)
    if node.state is NodeState.UNKNOWN:
        tx.signal(DEADLINES)
    if call.errors != node.errors:
        nodes.set_errors(tx, node.num, call.errors)
    if call.errors and node.state is not NodeState.LEAVING_POOL:
        _take_out(tx, node, call.cursor, now)
    elif node.state in (NodeState.UNKNOWN, NodeState.UNUSABLE):
        node_state.settle(tx, node.num, now)
    advance(tx, node, now)
    return HeartbeatAnswer(unknown_attempts=_unknown(tx, node.num, call.live_attempts))


def ready(tx: Transaction, call: NodeCall, now: datetime) -> None:
    """A node asks for work for the first time since it registered: from now on it may get some.

    Raises NodeRefusedError: Fenced, NodeNotRegistered.
    """
    node = require(tx, call)
    if node.state is NodeState.STARTING:
        node_state.settle(tx, node.num, now)


def _take_out(tx: Transaction, node: NodeRow, cursor: int, now: datetime) -> None:
    """Give a node with errors no more work (spec/node.md §14); what it has not even fetched runs elsewhere."""
    nodes.set_state(tx, node.num, NodeState.UNUSABLE, now)
    for attempt in attempts.open_on_node(tx, node.num):
        if attempt.live and not _fetched(attempt, cursor):
            lose(tx, attempt, AttemptState.GIVEN_UP, now)


def expire_lease(tx: Transaction, node: NodeRow, now: datetime) -> None:
    """Count a silent node as unknown, and run its tasks elsewhere."""
    if node.state is not NodeState.LEAVING_POOL:
        nodes.set_state(tx, node.num, NodeState.UNKNOWN, now)
    for attempt in attempts.open_on_node(tx, node.num):
        if attempt.live:
            lose(tx, attempt, AttemptState.GIVEN_UP, now)
    pools.advance(tx, node.pool_id, now)
