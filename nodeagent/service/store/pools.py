"""Rows of pools."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from pydantic import TypeAdapter

from nodeagent.model.enums import AllocationState, PoolState
from nodeagent.model.pool import AutoScaleRun, PoolCreate, ResizeError
from nodeagent.model.times import etag
from nodeagent.service.store.columns import Column, ColumnType, Where, condition, from_micros, to_micros
from nodeagent.service.store.database import Row, Transaction

_ERRORS = TypeAdapter(tuple[ResizeError, ...])

COLUMNS: Mapping[str, Column] = {
    "id": Column("p.key", ColumnType.ID),
    "state": Column("p.state", ColumnType.ENUM),
    "allocationState": Column("p.allocation_state", ColumnType.ENUM),
    "stateTransitionTime": Column("p.state_time", ColumnType.TIME),
    "allocationStateTransitionTime": Column("p.allocation_state_time", ColumnType.TIME),
    "creationTime": Column("p.created", ColumnType.TIME),
    "lastModified": Column("p.modified", ColumnType.TIME),
    "enableAutoScale": Column("coalesce(json_extract(p.spec, '$.enableAutoScale'), 0)", ColumnType.BOOLEAN),
    "enableInterNodeCommunication": Column(
        "coalesce(json_extract(p.spec, '$.enableInterNodeCommunication'), 0)", ColumnType.BOOLEAN
    ),
    "vmSize": Column("p.vm_size", ColumnType.ENUM),
}

_SELECT = """
SELECT p.num, p.id, p.spec, p.state, p.state_time, p.allocation_state, p.allocation_state_time, p.resize_errors,
       p.created, p.modified, (SELECT count(*) FROM nodes n WHERE n.pool_num = p.num AND n.is_dedicated = 1),
       (SELECT count(*) FROM nodes n WHERE n.pool_num = p.num AND n.is_dedicated = 0), p.auto_scale_run
FROM pools p
"""


@lru_cache(maxsize=256)
def _spec(text: str) -> PoolCreate:
    return PoolCreate.from_json(text)


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool as it stands."""

    num: int
    id: str
    spec: PoolCreate
    state: PoolState
    state_time: datetime
    allocation_state: AllocationState
    allocation_state_time: datetime
    resize_errors: tuple[ResizeError, ...]
    created: datetime
    modified: datetime
    current_dedicated_nodes: int
    current_low_priority_nodes: int
    auto_scale_run: AutoScaleRun | None = None
    """What the last evaluation of its formula came to."""

    @property
    def etag(self) -> str:
        """The ETag of the definition."""
        return etag(self.modified)


def _row(row: Row) -> PoolRow:
    return PoolRow(
        num=row[0],
        id=row[1],
        spec=_spec(row[2]),
        state=PoolState(row[3]),
        state_time=from_micros(row[4]),
        allocation_state=AllocationState(row[5]),
        allocation_state_time=from_micros(row[6]),
        resize_errors=_ERRORS.validate_json(row[7]) if row[7] else (),
        created=from_micros(row[8]),
        modified=from_micros(row[9]),
        current_dedicated_nodes=row[10],
        current_low_priority_nodes=row[11],
        auto_scale_run=AutoScaleRun.from_json(row[12]) if row[12] else None,
    )


def get(tx: Transaction, pool_id: str) -> PoolRow | None:
    """Return a pool by its id, in any case."""
    row = tx.one(f"{_SELECT} WHERE p.key = ?", (pool_id.lower(),))
    return None if row is None else _row(row)


def page(tx: Transaction, *, after: str | None = None, limit: int = 1000, where: Where | None = None) -> list[PoolRow]:
    """Return up to `limit` pools with ids after `after`, ordered by id."""
    sql, parameters = condition(where)
    rows = tx.execute(
        f"{_SELECT} WHERE p.key > ?{sql} ORDER BY p.key LIMIT ?", ((after or "").lower(), *parameters, limit)
    )
    return [_row(row) for row in rows]


def insert(
    tx: Transaction, spec: PoolCreate, *, allocation_state: AllocationState, deadline: datetime | None, now: datetime
) -> None:
    """Add a pool; `deadline` is when its resizing is given up."""
    micros = to_micros(now)
    tx.execute(
        "INSERT INTO pools (key, id, spec, vm_size, state, state_time, allocation_state, allocation_state_time,"
        " resize_deadline, created, modified) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
        (
            spec.id.lower(),
            spec.id,
            spec.to_json(),
            spec.vm_size.lower(),
            PoolState.ACTIVE,
            micros,
            allocation_state,
            micros,
            None if deadline is None else to_micros(deadline),
            micros,
            micros,
        ),
    )


def replace_spec(tx: Transaction, num: int, spec: PoolCreate, modified: datetime) -> None:
    """Replace the definition of a pool."""
    tx.execute(
        "UPDATE pools SET spec = ?, vm_size = ?, modified = ? WHERE num = ?",
        (spec.to_json(), spec.vm_size.lower(), to_micros(modified), num),
    )


def set_resizing(tx: Transaction, num: int, deadline: datetime, now: datetime) -> None:
    """Show a pool as resizing, until a deadline at the latest."""
    tx.execute(
        "UPDATE pools SET allocation_state = ?, allocation_state_time = ?, resize_deadline = ?, resize_errors = NULL"
        " WHERE num = ?",
        (AllocationState.RESIZING, to_micros(now), to_micros(deadline), num),
    )


def set_stopping(tx: Transaction, num: int, now: datetime) -> None:
    """Show that a pool's resizing goes no further."""
    tx.execute(
        "UPDATE pools SET allocation_state = ?, allocation_state_time = ? WHERE num = ?",
        (AllocationState.STOPPING, to_micros(now), num),
    )


def set_state(tx: Transaction, num: int, state: PoolState, now: datetime) -> None:
    """Move a pool to a state."""
    tx.execute("UPDATE pools SET state = ?, state_time = ? WHERE num = ?", (state, to_micros(now), num))


def set_steady(tx: Transaction, num: int, errors: tuple[ResizeError, ...], now: datetime) -> None:
    """End a pool's resizing, with the errors it ended with."""
    tx.execute(
        "UPDATE pools SET allocation_state = ?, allocation_state_time = ?, resize_deadline = NULL, resize_errors = ?"
        " WHERE num = ?",
        (
            AllocationState.STEADY,
            to_micros(now),
            _ERRORS.dump_json(errors, by_alias=True, exclude_none=True).decode() if errors else None,
            num,
        ),
    )


def delete(tx: Transaction, num: int) -> None:
    """Remove a pool that has no nodes."""
    tx.execute("DELETE FROM pools WHERE num = ?", (num,))


def resizes_due(tx: Transaction, now: datetime) -> list[PoolRow]:
    """Return the pools whose resizing has lasted too long."""
    rows = tx.execute(f"{_SELECT} WHERE p.resize_deadline <= ?", (to_micros(now),))
    return [_row(row) for row in rows]


def next_resize_deadline(tx: Transaction) -> datetime | None:
    """Return when the first resizing is given up."""
    row = tx.one("SELECT min(resize_deadline) FROM pools WHERE resize_deadline IS NOT NULL")
    return None if row is None or row[0] is None else from_micros(row[0])
