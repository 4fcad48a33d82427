"""What operators and functions of a formula do with values, by the types that Microsoft documents."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import TypeAlias

Vector: TypeAlias = tuple[float, ...]
Value: TypeAlias = float | Vector | str | datetime | timedelta

_TYPES: Mapping[type, str] = {
    float: "double",
    tuple: "doubleVec",
    str: "string",
    datetime: "timestamp",
    timedelta: "timeinterval",
}


class WrongValueError(Exception):
    """These values cannot be taken together so."""


def type_name(value: Value) -> str:
    """Return what the documentation calls the type of a value."""
    return _TYPES[type(value)]


def _divide(left: float, right: float) -> float:
    if right == 0:
        raise WrongValueError("division by zero")
    return left / right


_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": _divide,
}


def _order(operator: str, left: float, right: float) -> float:
    match operator:
        case "<":
            return float(left < right)
        case "<=":
            return float(left <= right)
        case ">":
            return float(left > right)
        case ">=":
            return float(left >= right)
        case "==":
            return float(left == right)
        case _:
            return float(left != right)


def combine(operator: str, left: Value, right: Value) -> Value:
    """Return `left operator right`. Raises WrongValueError."""
    try:
        found = _arithmetic(operator, left, right) if operator in _ARITHMETIC else _compare(operator, left, right)
    except OverflowError as error:
        raise WrongValueError("the result is too large") from error
    if found is None:
        raise WrongValueError(f"{type_name(left)} {operator} {type_name(right)} is not defined")
    return found


def _arithmetic(operator: str, left: Value, right: Value) -> Value | None:
    apply = _ARITHMETIC[operator]
    match left, right:
        case float(), float():
            return apply(left, right)
        case tuple(), float():
            return tuple(apply(item, right) for item in left)
        case float(), tuple():
            return tuple(apply(left, item) for item in right)
        case tuple(), tuple():
            if len(left) != len(right):
                raise WrongValueError(f"the vectors have {len(left)} and {len(right)} elements")
            return tuple(apply(*pair) for pair in zip(left, right, strict=True))
        case _:
            return _times(operator, left, right)


def _times(operator: str, left: Value, right: Value) -> Value | None:
    if isinstance(left, datetime):
        return _of_timestamp(operator, left, right)
    if isinstance(left, timedelta):
        return _of_interval(operator, left, right)
    if isinstance(left, float) and isinstance(right, timedelta) and operator == "*":
        return _scaled(right, left)
    return None


def _of_timestamp(operator: str, left: datetime, right: Value) -> Value | None:
    if isinstance(right, timedelta) and operator in ("+", "-"):
        return left + right if operator == "+" else left - right
    if isinstance(right, datetime) and operator == "-":
        return left - right
    return None


def _of_interval(operator: str, left: timedelta, right: Value) -> Value | None:
    if isinstance(right, datetime):
        return right + left if operator == "+" else None
    if isinstance(right, timedelta):
        of_intervals = {"+": left.__add__, "-": left.__sub__}.get(operator)
        if of_intervals is not None:
            return of_intervals(right)
        return _divide(left.total_seconds(), right.total_seconds()) if operator == "/" else None
    if isinstance(right, float) and operator in ("*", "/"):
        return _scaled(left, right if operator == "*" else _divide(1.0, right))
    return None


def _scaled(interval: timedelta, factor: float) -> timedelta:
    if not math.isfinite(factor):
        raise WrongValueError("the factor is no number")
    return interval * factor


def _compare(operator: str, left: Value, right: Value) -> Value | None:
    if isinstance(left, float) and isinstance(right, float):
        return _order(operator, left, right)
    if isinstance(left, str) and isinstance(right, str) and operator in ("==", "!="):
        # names of options are compared as they may be written: in any case
        return _order(operator, 0.0, float(left.lower() != right.lower()))
    if isinstance(left, datetime) and isinstance(right, datetime):
        return _order(operator, 0.0, (right - left).total_seconds())
    if isinstance(left, timedelta) and isinstance(right, timedelta):
        return _order(operator, 0.0, (right - left).total_seconds())
    return None


def numbers(values: Iterable[Value]) -> Vector:
    """Return doubles and doubleVecs as one vector. Raises WrongValueError."""
    found: list[float] = []
    for value in values:
        if isinstance(value, float):
            found.append(value)
        elif isinstance(value, tuple):
            found += value
        else:
            raise WrongValueError(f"a double or a doubleVec is wanted, not a {type_name(value)}")
    return tuple(found)


def percentile(values: Vector, percent: float) -> float:
    """Return the value below which so many per cent lie, between the two nearest ones in proportion."""
    if not 0 <= percent <= 100:
        raise WrongValueError("a percentile is from 0 to 100")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


REDUCING: Mapping[str, Callable[[Vector], float]] = {
    "avg": statistics.fmean,
    "max": max,
    "min": min,
    "norm": lambda values: math.hypot(*values),
    "range": lambda values: max(values) - min(values),
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else 0.0,
}
"""Functions of at least one number that give one."""

ELEMENTWISE: Mapping[str, Callable[[float], float]] = {
    "ceil": lambda value: float(math.ceil(value)),
    "exp": math.exp,
    "floor": lambda value: float(math.floor(value)),
    "lg": math.log2,
    "ln": math.log,
    "log": math.log10,
    "round": lambda value: float(math.floor(value + 0.5)),
}
"""Functions of one number, or of each element of a vector."""

INTERVALS: Mapping[str, timedelta] = {
    "timeinterval_zero": timedelta(0),
    "timeinterval_100ns": timedelta(microseconds=0.1),
    "timeinterval_microsecond": timedelta(microseconds=1),
    "timeinterval_millisecond": timedelta(milliseconds=1),
    "timeinterval_second": timedelta(seconds=1),
    "timeinterval_minute": timedelta(minutes=1),
    "timeinterval_hour": timedelta(hours=1),
    "timeinterval_day": timedelta(days=1),
    "timeinterval_week": timedelta(weeks=1),
    "timeinterval_year": timedelta(days=365),
}

MEMBERS: Mapping[str, Callable[[datetime], float]] = {
    "year": lambda at: float(at.year),
    "month": lambda at: float(at.month),
    "day": lambda at: float(at.day),
    "weekday": lambda at: float(at.isoweekday() % 7),
    "hour": lambda at: float(at.hour),
    "minute": lambda at: float(at.minute),
    "second": lambda at: float(at.second),
}
"""Parts of a timestamp, UTC; Sunday is weekday 0."""
