"""Times, durations and ETags keep the exact forms of the wire."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.model.times import (
    UNLIMITED,
    UNLIMITED_TEXT,
    etag,
    format_duration,
    format_time,
    http_date,
    parse_duration,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("P3Y6M4DT12H30M5S", "P1279DT12H30M5S"),
        ("PT01H00M00S", "PT1H"),
        ("PT90M", "PT1H30M"),
        ("P1W", "P7D"),
        ("PT0S", "PT0S"),
        ("PT4.5S", "PT4.5S"),
        (UNLIMITED_TEXT, UNLIMITED_TEXT),
        ("P99999999D", UNLIMITED_TEXT),
    ],
)
def test_durations_come_back_normalised(text: str, normal: str) -> None:
    """Every spelling that clients send is answered in one normal form."""
    assert normal == format_duration(parse_duration(text))


@pytest.mark.parametrize("text", ["", "P", "PT", "P1", "1D", "P1DT", "PT1H2", "P-1D", "P1H", "P9999999999999D"])
def test_bad_durations_are_refused(text: str) -> None:
    """What is no duration is a ValueError that quotes it."""
    with pytest.raises(ValueError, match=r"ISO 8601|longer"):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0), max_value=UNLIMITED - timedelta(days=1)))
def test_durations_survive_the_round_trip(value: timedelta) -> None:
    """Formatting and parsing give the same duration."""
    assert value == parse_duration(format_duration(value))


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_the_round_trip(value: datetime) -> None:
    """Formatting and parsing give the same time; years before 1000 are out of Batch's world."""
    if value.year >= 1000:
        assert value == parse_time(format_time(value))


def test_times_cut_trailing_zeros_and_read_seven_digits() -> None:
    """The wire has up to seven digits, without trailing zeros, and may carry an offset."""
    assert format_time(datetime(2026, 1, 31, 23, 59, 59, 120000, UTC)) == "2026-01-31T23:59:59.12Z"
    assert parse_time("2026-01-31T23:59:59.1234567Z") == datetime(2026, 1, 31, 23, 59, 59, 123456, UTC)
    assert parse_time("2026-02-01T01:59:59+02:00") == datetime(2026, 1, 31, 23, 59, 59, 0, UTC)


def test_etags_are_ticks_in_hexadecimal() -> None:
    """An ETag is `0x` and fifteen upper-case digits, made of the time of the last change."""
    assert etag(datetime(2023, 9, 7, 3, 2, 59, 330000, UTC)).startswith("0x8DBAF")
    assert len(etag(datetime(2026, 1, 1, tzinfo=UTC))) == 17


def test_header_dates_have_whole_seconds() -> None:
    """RFC 1123, GMT."""
    assert http_date(datetime(2026, 11, 21, 7, 5, 3, 999, UTC)) == "Sat, 21 Nov 2026 07:05:03 GMT"
