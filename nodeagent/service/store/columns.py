"""How values stand in SQL: times, and the columns that a `$filter` may name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeAlias

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(value: datetime) -> int:
    """Return microseconds since 1970: how times are stored."""
    return (value - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the time of `to_micros`."""
    return _EPOCH + timedelta(microseconds=value)


def optional_time(value: int | None) -> datetime | None:
    """Return the time of a column that may be NULL."""
    return None if value is None else from_micros(value)


def optional_micros(value: datetime | None) -> int | None:
    """Return the column of a time that may be absent."""
    return None if value is None else to_micros(value)


def wire_time_micros(sql: str) -> str:
    """Return the SQL of `to_micros` for an expression that holds a time as the wire writes it (`format_time`), or NULL.

    SQLite's own functions know milliseconds only, and texts with and without a fraction do not compare as times do.
    """
    fraction = f"CAST(substr(substr(rtrim({sql}, 'Z'), 21) || '000000', 1, 6) AS INTEGER)"
    return f"(CAST(strftime('%s', substr({sql}, 1, 19)) AS INTEGER) * 1000000 + {fraction})"


def later(now: datetime, than: datetime) -> datetime:
    """Return `now`, or the next microsecond after `than`: every change of an entity gives it a new ETag."""
    return max(now, than + _MICROSECOND)


class ColumnType(Enum):
    """What a filterable property holds, and so which literals it may be compared with."""

    ID = "id"
    """Text that compares without case: the column holds it in lower case."""
    TEXT = "text"
    ENUM = "enum"
    """Lower-case text of an enumeration; compares without case."""
    TIME = "time"
    INTEGER = "integer"
    BOOLEAN = "boolean"


Parameter: TypeAlias = str | int | None

_TO_PARAMETER: Mapping[ColumnType, Callable[[str | int | bool | datetime], Parameter]] = {
    ColumnType.ID: lambda value: str(value).lower(),
    ColumnType.TEXT: str,
    ColumnType.ENUM: lambda value: str(value).lower(),
    ColumnType.TIME: lambda value: to_micros(value) if isinstance(value, datetime) else int(value),
    ColumnType.INTEGER: lambda value: int(value) if not isinstance(value, datetime) else to_micros(value),
    ColumnType.BOOLEAN: int,  # type: ignore[dict-item]
}


@dataclass(frozen=True, slots=True)
class Column:
    """A filterable property: the SQL expression that holds it (valid in the `page` query of its entity), its type."""

    sql: str
    type: ColumnType

    def parameter(self, value: str | int | bool | datetime | None) -> Parameter:  # noqa: FBT001 - a literal of a filter
        """Return a filter's literal as the parameter to compare with; those of enumerations and ids lose their case."""
        return None if value is None else _TO_PARAMETER[self.type](value)


Columns: TypeAlias = Mapping[str, Column]
"""Property path of `$filter`, as the REST API spells it → column."""


@dataclass(frozen=True, slots=True)
class Where:
    """A condition made from `Columns` only: user text is in `parameters`, never in `sql`. Positional `?` parameters."""

    sql: str
    parameters: tuple[Parameter, ...] = ()


def condition(where: Where | None) -> tuple[str, tuple[Parameter, ...]]:
    """Return ` AND (...)` with its parameters, or nothing."""
    return ("", ()) if where is None else (f" AND ({where.sql})", where.parameters)
