"""Times and durations in the exact forms of the Batch wire (spec/rest.md §1.3)."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_DURATION = re.compile(
    r"^(?P<sign>-)?P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)(?:\.(?P<fraction>\d+))?S)?)?$"
)
_LONGEST_DURATION = 100
_TIME = re.compile(r"^(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})?$", re.ASCII)

UNLIMITED_TEXT = "P10675199DT2H48M5.4775807S"
UNLIMITED = timedelta(days=10675199, hours=2, minutes=48, seconds=5, microseconds=477580)
"""The duration that means "no limit": .NET's TimeSpan.MaxValue, cut to microseconds."""

_EPOCH_TICKS = 621_355_968_000_000_000
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_now() -> datetime:
    """Return the present time, aware, in UTC."""
    return datetime.now(UTC)


def parse_time(text: str) -> datetime:
    """Parse an ISO 8601 time; without a zone it is UTC. Digits beyond microseconds are cut. Raises ValueError."""
    match = _TIME.match(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a time of the form 2026-01-31T23:59:59Z")
    day, clock, fraction, zone = match.groups()
    micros = (fraction or "")[:6].ljust(6, "0")
    offset = "+00:00" if zone is None or zone in "Zz" else zone
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{micros}{offset}").astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"'{text}' is before the year 1 or after 9999 in UTC") from error


def format_time(value: datetime) -> str:
    """Return `2026-01-31T23:59:59.12Z`: UTC, fraction without trailing zeros."""
    text = value.astimezone(UTC).replace(tzinfo=None).isoformat()  # several times faster than strftime
    return f"{text.rstrip('0') if value.microsecond else text}Z"


@lru_cache(maxsize=1024)  # nearly all tasks have one of a few durations
def parse_duration(text: str) -> timedelta:
    """Parse an ISO 8601 duration; a year is 365 days and a month 30, as the service counts. Raises ValueError."""
    match = _DURATION.match(text.strip())
    if match is None or text.strip().endswith(("P", "T")):
        raise ValueError(f"'{text}' is not an ISO 8601 duration such as PT15M or P7D")
    part = {name: int(value) for name, value in match.groupdict().items() if value and name not in ("sign", "fraction")}
    days = part.get("years", 0) * 365 + part.get("months", 0) * 30 + part.get("weeks", 0) * 7 + part.get("days", 0)
    micros = int((match["fraction"] or "")[:6].ljust(6, "0"))
    try:
        value = timedelta(
            days=days,
            hours=part.get("hours", 0),
            minutes=part.get("minutes", 0),
            seconds=part.get("seconds", 0),
            microseconds=micros,
        )
    except OverflowError as error:
        raise ValueError(f"'{text}' is longer than any duration can be") from error
    return -value if match["sign"] else min(value, UNLIMITED)


@lru_cache(maxsize=1024)
def format_duration(value: timedelta) -> str:
    """Return the normalised ISO 8601 form: days, hours, minutes, seconds; zero is `PT0S`."""
    if value >= UNLIMITED:
        return UNLIMITED_TEXT
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    hours, rest = divmod(value.seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0").rstrip(".")
    clock = "".join(
        (
            f"{hours}H" if hours else "",
            f"{minutes}M" if minutes else "",
            f"{seconds}{fraction}S" if seconds or fraction else "",
        )
    )
    day = f"{value.days}D" if value.days else ""
    return f"{sign}P{day}{'T' + clock if clock else ''}" if day or clock else "PT0S"


def ticks(value: datetime) -> int:
    """Return .NET ticks (100 ns since year 1): what Batch's ETags are made of."""
    delta = value - _UNIX_EPOCH
    return _EPOCH_TICKS + (delta.days * 86_400 + delta.seconds) * 10_000_000 + delta.microseconds * 10


def etag(value: datetime) -> str:
    """Return the ETag of an entity that was last modified at `value`, e.g. `0x8DBAE9D3C8B5A1F`: never quoted."""
    return f"0x{ticks(value):015X}"


def http_date(value: datetime) -> str:
    """Return the RFC 1123 form used in headers: whole seconds, `GMT`."""
    return value.astimezone(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def _time_in(value: Any) -> datetime:  # noqa: ANN401 - a validator sees anything
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, str):
        return parse_time(value)
    raise ValueError("a time must be text of the form 2026-01-31T23:59:59Z")


def _duration_in(value: Any) -> timedelta:  # noqa: ANN401 - a validator sees anything
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        if len(value) > _LONGEST_DURATION:  # what has been parsed is kept
            raise ValueError(f"a duration has at most {_LONGEST_DURATION} characters")
        return parse_duration(value)
    raise ValueError("a duration must be text of the form PT15M or P7D")


def not_negative(value: timedelta) -> timedelta:
    """Return a duration from zero up. Raises ValueError."""
    if value < timedelta(0):
        raise ValueError("must not be negative")
    return value


UtcTime = Annotated[
    datetime, BeforeValidator(_time_in), PlainSerializer(format_time, return_type=str, when_used="json")
]
"""An aware UTC time, text on the wire."""

Duration = Annotated[
    timedelta,
    BeforeValidator(_duration_in),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
]
"""A duration, ISO 8601 text on the wire."""
