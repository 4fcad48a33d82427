"""Rows of compute nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter

from nodeagent.model.enums import NodeState, SchedulingState
from nodeagent.model.protocol import FileServer, HostStatistics, NodeError, Register
from nodeagent.service.store.columns import (
    Column,
    ColumnType,
    Where,
    condition,
    from_micros,
    optional_time,
    to_micros,
    wire_time_micros,
)
from nodeagent.service.store.database import Row, Transaction

_ERRORS = TypeAdapter(tuple[NodeError, ...])


def _start_task_info(name: str) -> str:
    """Return the SQL of a property of what the node has reported of its start task; NULL as long as it has not."""
    return f"(SELECT json_extract(s.info, '$.{name}') FROM start_tasks s WHERE s.node_num = n.num)"  # noqa: S608 - constants


COLUMNS: Mapping[str, Column] = {
    "id": Column("n.key", ColumnType.ID),
    "state": Column("n.state", ColumnType.ENUM),
    "stateTransitionTime": Column("n.state_time", ColumnType.TIME),
    "lastBootTime": Column("n.booted", ColumnType.TIME),
    "allocationTime": Column("n.allocated", ColumnType.TIME),
    "startTaskInfo/state": Column(_start_task_info("state"), ColumnType.ENUM),
    "startTaskInfo/result": Column(_start_task_info("result"), ColumnType.ENUM),
    "startTaskInfo/exitCode": Column(_start_task_info("exitCode"), ColumnType.INTEGER),
    "startTaskInfo/startTime": Column(wire_time_micros(_start_task_info("startTime")), ColumnType.TIME),
    "startTaskInfo/endTime": Column(wire_time_micros(_start_task_info("endTime")), ColumnType.TIME),
}

_SELECT = """
SELECT n.num, n.pool_num, p.id, p.vm_size, n.id, n.state, n.state_time, n.scheduling_state, n.allocated, n.booted,
       n.boot_id, n.epoch, n.instance_id, n.slots, n.free_slots, n.running_tasks, n.running_slots, n.total_tasks_run,
       n.total_tasks_succeeded, n.cores, n.hostname, n.ip_address, n.root_directory, n.agent_version,
       n.agent_updated, n.file_server_url, n.file_server_token, n.heartbeat, n.errors,
       n.command, n.command_id, n.command_sent, n.disabled_by, n.is_dedicated
FROM nodes n JOIN pools p ON p.num = n.pool_num
"""

REACHABLE = frozenset({NodeState.IDLE, NodeState.RUNNING, NodeState.OFFLINE})
"""States that the counters of a node's tasks and its scheduling state decide between."""
EXPECTED = REACHABLE | {
    NodeState.STARTING,
    NodeState.WAITING_FOR_START_TASK,
    NodeState.START_TASK_FAILED,
    NodeState.REBOOTING,
    NodeState.UNUSABLE,
}
"""States in which the agent takes messages, now or in a while, and the files of jobs are still there."""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as it stands; `free_slots` counts what no attempt holds."""

    num: int
    pool_num: int
    pool_id: str
    vm_size: str
    id: str
    state: NodeState
    state_time: datetime
    scheduling_state: SchedulingState
    allocated: datetime
    booted: datetime | None
    boot_id: str
    epoch: int
    instance_id: str
    slots: int
    free_slots: int
    running_tasks: int
    running_slots: int
    total_tasks_run: int
    total_tasks_succeeded: int
    cores: int
    hostname: str
    ip_address: str
    root_directory: str
    agent_version: str
    agent_updated: datetime
    file_server: FileServer
    heartbeat: datetime
    errors: tuple[NodeError, ...]
    """What is wrong with it now."""
    command: str | None
    """A reboot or reimage that the node has not answered by a new registration yet."""
    command_id: str | None
    command_sent: bool
    """The command is in the node's queue: its tasks have ended."""
    disabled_by: str | None
    """Who keeps the node from taking tasks: `user`, or its `agent`, which is on its way out."""
    is_dedicated: bool
    """Whether it is there to stay; a node of low priority may be taken away at any time."""

    @property
    def affinity_id(self) -> str:
        """What a task's affinityInfo names this node by."""
        return f"TVM:{self.id}"


def _row(row: Row) -> NodeRow:
    return NodeRow(
        num=row[0],
        pool_num=row[1],
        pool_id=row[2],
        vm_size=row[3],
        id=row[4],
        state=NodeState(row[5]),
        state_time=from_micros(row[6]),
        scheduling_state=SchedulingState(row[7]),
        allocated=from_micros(row[8]),
        booted=optional_time(row[9]),
        boot_id=row[10],
        epoch=row[11],
        instance_id=row[12],
        slots=row[13],
        free_slots=row[14],
        running_tasks=row[15],
        running_slots=row[16],
        total_tasks_run=row[17],
        total_tasks_succeeded=row[18],
        cores=row[19],
        hostname=row[20],
        ip_address=row[21],
        root_directory=row[22],
        agent_version=row[23],
        agent_updated=from_micros(row[24]),
        file_server=FileServer(url=row[25], token=row[26]),
        heartbeat=from_micros(row[27]),
        errors=_ERRORS.validate_json(row[28]) if row[28] else (),
        command=row[29],
        command_id=row[30],
        command_sent=bool(row[31]),
        disabled_by=row[32],
        is_dedicated=bool(row[33]),
    )


def get(tx: Transaction, pool_id: str, node_id: str) -> NodeRow | None:
    """Return a node of a pool, ids in any case."""
    row = tx.one(f"{_SELECT} WHERE p.key = ? AND n.key = ?", (pool_id.lower(), node_id.lower()))
    return None if row is None else _row(row)


def by_id(tx: Transaction, node_id: str) -> NodeRow | None:
    """Return a node by its id alone: how agents name themselves."""
    row = tx.one(f"{_SELECT} WHERE n.key = ?", (node_id.lower(),))
    return None if row is None else _row(row)


def by_num(tx: Transaction, num: int) -> NodeRow | None:
    """Return a node by its number."""
    row = tx.one(f"{_SELECT} WHERE n.num = ?", (num,))
    return None if row is None else _row(row)


def page(
    tx: Transaction, pool_id: str, *, after: str | None = None, limit: int = 1000, where: Where | None = None
) -> list[NodeRow]:
    """Return up to `limit` nodes of a pool with ids after `after`, ordered by id."""
    sql, parameters = condition(where)
    rows = tx.execute(
        f"{_SELECT} WHERE p.key = ? AND n.key > ?{sql} ORDER BY n.key LIMIT ?",
        (pool_id.lower(), (after or "").lower(), *parameters, limit),
    )
    return [_row(row) for row in rows]


def of_pool(tx: Transaction, pool_num: int) -> list[NodeRow]:
    """Return all nodes of a pool."""
    return [_row(row) for row in tx.execute(f"{_SELECT} WHERE n.pool_num = ? ORDER BY n.key", (pool_num,))]


_TAKING = """
FROM nodes n JOIN pools p ON p.num = n.pool_num
WHERE n.state IN ('idle', 'running') AND n.scheduling_state = 'enabled' AND p.state = 'active'
"""


TakingNode = tuple[int, int, int, str, bool]
"""Number, slots, free slots and lower-case id of a node that takes tasks, and whether it is dedicated."""
_TAKEN = "n.num, n.slots, n.free_slots, n.key, n.is_dedicated"


def with_free_slots(tx: Transaction) -> dict[str, list[TakingNode]]:
    """Return the nodes where a task could start now, by pool key."""
    found: dict[str, list[TakingNode]] = {}
    sql = f"SELECT p.key, {_TAKEN} {_TAKING} AND n.free_slots > 0 ORDER BY n.num"
    for pool_key, *node in tx.execute(sql):
        found.setdefault(pool_key, []).append((node[0], node[1], node[2], node[3], bool(node[4])))
    return found


def taking_tasks(tx: Transaction, pool_key: str) -> list[TakingNode]:
    """Return the nodes of a pool that take tasks, those without a free slot too."""
    sql = f"SELECT {_TAKEN} {_TAKING} AND p.key = ? ORDER BY n.num"
    return [(row[0], row[1], row[2], row[3], bool(row[4])) for row in tx.execute(sql, (pool_key,))]


def insert(tx: Transaction, pool_num: int, call: Register, state: NodeState, now: datetime) -> int:
    """Add a node that registers for the first time, in a state; return its number."""
    micros = to_micros(now)
    rows = tx.execute(
        "INSERT INTO nodes (pool_num, key, id, state, state_time, scheduling_state, allocated, booted, boot_id, epoch,"
        " instance_id, slots, free_slots, cores, hostname, ip_address, root_directory, agent_version, agent_updated,"
        " file_server_url, file_server_token, heartbeat, is_dedicated)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) RETURNING num",
        (
            pool_num,
            call.node_id.lower(),
            call.node_id,
            state,
            micros,
            SchedulingState.ENABLED,
            micros,
            to_micros(call.boot_time),
            call.boot_id,
            call.epoch,
            call.instance_id,
            call.slots,
            call.slots,
            call.cores,
            call.hostname,
            call.ip_address,
            call.root_directory,
            call.agent_version,
            micros,
            call.file_server.url,
            call.file_server.token,
            micros,
            call.is_dedicated,
        ),
    )
    return int(rows[0][0])


def renew(tx: Transaction, num: int, call: Register, now: datetime) -> None:
    """Take over what a node that registers again says of itself; its slots stay until `set_slots`."""
    micros = to_micros(now)
    tx.execute(
        "UPDATE nodes SET booted = ?, boot_id = ?, epoch = ?, instance_id = ?, cores = ?, hostname = ?, ip_address = ?,"
        " root_directory = ?, agent_version = ?, agent_updated = ?, file_server_url = ?, file_server_token = ?,"
        " heartbeat = ?, is_dedicated = ? WHERE num = ?",
        (
            to_micros(call.boot_time),
            call.boot_id,
            call.epoch,
            call.instance_id,
            call.cores,
            call.hostname,
            call.ip_address,
            call.root_directory,
            call.agent_version,
            micros,
            call.file_server.url,
            call.file_server.token,
            micros,
            call.is_dedicated,
            num,
        ),
    )


def set_slots(tx: Transaction, num: int, slots: int) -> None:
    """Change how many slots a node has; while attempts hold more than that, it keeps as many as they hold."""
    tx.execute(
        "UPDATE nodes SET slots = max(:slots, slots - free_slots),"
        " free_slots = max(:slots, slots - free_slots) - (slots - free_slots) WHERE num = :num",
        {"slots": slots, "num": num},
    )


def hold_slots(tx: Transaction, num: int, slots: int) -> None:
    """Take slots from a node (give them back with a negative number). Raises sqlite3.IntegrityError below zero."""
    if slots:
        tx.execute("UPDATE nodes SET free_slots = free_slots - ? WHERE num = ?", (slots, num))


_SHOWN = """
CASE WHEN state NOT IN ('idle', 'running', 'offline') THEN state WHEN running_tasks + :tasks > 0 THEN 'running'
WHEN scheduling_state = 'disabled' THEN 'offline' ELSE 'idle' END
"""
_UPDATE = "UPDATE nodes"
_CHANGE = f"""
{_UPDATE} SET free_slots = free_slots + :freed, running_tasks = running_tasks + :tasks,
running_slots = running_slots + :slots, state_time = CASE WHEN state = {_SHOWN} THEN state_time ELSE :now END,
state = {_SHOWN} WHERE num = :num
"""


def count_running(tx: Transaction, num: int, *, tasks: int, slots: int, freed: int = 0, now: datetime) -> None:
    """Change a node's counters of running tasks, and give back slots that they held.

    A reachable node is shown as what its counters and its scheduling state make it (spec/node.md §14).
    """
    tx.execute(_CHANGE, {"freed": freed, "tasks": tasks, "slots": slots, "now": to_micros(now), "num": num})


def settle(tx: Transaction, num: int, now: datetime) -> None:
    """Show a reachable node as what it is now."""
    count_running(tx, num, tasks=0, slots=0, now=now)


def count_ended(tx: Transaction, num: int, *, succeeded: bool) -> None:
    """Count a task that completed on a node."""
    tx.execute(
        "UPDATE nodes SET total_tasks_run = total_tasks_run + 1, total_tasks_succeeded = total_tasks_succeeded + ?"
        " WHERE num = ?",
        (int(succeeded), num),
    )


def set_state(tx: Transaction, num: int, state: NodeState, now: datetime) -> None:
    """Move a node to a state."""
    tx.execute(
        "UPDATE nodes SET state = ?, state_time = ? WHERE num = ? AND state <> ?", (state, to_micros(now), num, state)
    )


def set_errors(tx: Transaction, num: int, errors: tuple[NodeError, ...]) -> None:
    """Store what is wrong with a node now."""
    text = _ERRORS.dump_json(errors, by_alias=True, exclude_none=True).decode() if errors else None
    tx.execute("UPDATE nodes SET errors = ? WHERE num = ?", (text, num))


def disable_scheduling(tx: Transaction, num: int, by: Literal["user", "agent"], now: datetime) -> None:
    """Give a node no more tasks. What a user has disabled stays so until a user enables it."""
    tx.execute(
        "UPDATE nodes SET scheduling_state = ?, disabled_by = CASE WHEN disabled_by = 'user' THEN 'user' ELSE ? END"
        " WHERE num = ?",
        (SchedulingState.DISABLED, by, num),
    )
    settle(tx, num, now)


def enable_scheduling(tx: Transaction, num: int, now: datetime) -> None:
    """Let a node take tasks again."""
    tx.execute(
        "UPDATE nodes SET scheduling_state = ?, disabled_by = NULL WHERE num = ?", (SchedulingState.ENABLED, num)
    )
    settle(tx, num, now)


def set_command(tx: Transaction, num: int, command: str | None, command_id: str | None) -> None:
    """Record the command that a node has yet to obey; None when it has."""
    tx.execute(
        "UPDATE nodes SET command = ?, command_id = ?, command_sent = 0 WHERE num = ?", (command, command_id, num)
    )


def set_command_sent(tx: Transaction, num: int) -> None:
    """Record that the command is in the node's queue."""
    tx.execute("UPDATE nodes SET command_sent = 1 WHERE num = ?", (num,))


def remember_removed(tx: Transaction, instance_id: str, now: datetime) -> None:
    """Record that a life of an agent has been removed from its pool: it must not simply join again."""
    tx.execute("INSERT OR IGNORE INTO removed_nodes VALUES (?, ?)", (instance_id, to_micros(now)))


def was_removed(tx: Transaction, instance_id: str) -> bool:
    """Tell whether a user has removed this life of an agent from its pool."""
    return tx.one("SELECT 1 FROM removed_nodes WHERE instance_id = ?", (instance_id,)) is not None


def beat(tx: Transaction, num: int, host: HostStatistics | None, now: datetime) -> None:
    """Record a heartbeat."""
    tx.execute(
        "UPDATE nodes SET heartbeat = ?, host = coalesce(?, host) WHERE num = ?",
        (to_micros(now), None if host is None else host.to_json(), num),
    )


_HEARD = (
    "('starting', 'waitingforstarttask', 'starttaskfailed', 'idle', 'running', 'offline', 'unusable', 'leavingpool')"
)
"""States in which the agent is there and sends heartbeats."""
_AWAY = "('rebooting', 'reimaging')"
"""States in which the agent may be silent for a while."""


def grant_grace(tx: Transaction, now: datetime) -> None:
    """Count every node as heard of now: the service was not there to hear it, or its clock was set."""
    tx.execute("UPDATE nodes SET heartbeat = ?", (to_micros(now),))


def silent_since(tx: Transaction, before: datetime, away_before: datetime) -> list[NodeRow]:
    """Return the nodes that were last heard of too long ago; those that reboot or are reimaged may be away longer."""
    rows = tx.execute(
        f"{_SELECT} WHERE (n.heartbeat <= ? AND n.state IN {_HEARD}) OR (n.heartbeat <= ? AND n.state IN {_AWAY})",
        (to_micros(before), to_micros(away_before)),
    )
    return [_row(row) for row in rows]


def oldest_heartbeat(tx: Transaction, *, away: bool) -> datetime | None:
    """Return when the most silent node was heard of: of those that are `away`, or of all others that are expected."""
    row = tx.one(f"SELECT min(heartbeat) FROM nodes WHERE state IN {_AWAY if away else _HEARD}")  # noqa: S608 - constants
    return None if row is None or row[0] is None else from_micros(row[0])


def delete(tx: Transaction, num: int) -> None:
    """Remove a node with its messages."""
    tx.execute("DELETE FROM nodes WHERE num = ?", (num,))
