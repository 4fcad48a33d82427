"""When a request is made again, and after which pause."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.rules.transfer_retry import FIRST_PAUSE, LONGEST_PAUSE, Tries, Trouble, may_help, pause, retry_after

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_statuses_that_may_pass(status: int) -> None:
    """Statuses that may pass."""
    assert may_help(Trouble.STATUS, status)


@pytest.mark.parametrize("status", [304, 400, 401, 403, 404, 405, 409, 410, 412, 416, 451])
def test_statuses_that_stay(status: int) -> None:
    """Statuses that stay."""
    assert not may_help(Trouble.STATUS, status)


def test_what_no_other_try_mends() -> None:
    """What no other try mends."""
    hopeless = {trouble for trouble in Trouble if trouble is not Trouble.STATUS and not may_help(trouble)}
    assert hopeless == {Trouble.CERTIFICATE, Trouble.REDIRECT, Trouble.ADDRESS, Trouble.IDENTITY}


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=60))
def test_only_tries_in_a_row_without_progress_count(allowed: int, brought: list[bool]) -> None:
    """Only tries in a row without progress count."""
    tries, in_a_row = Tries(allowed), 0
    for progress in brought:
        in_a_row = 0 if progress else in_a_row + 1
        assert tries.failed_once(progress=progress) == (in_a_row < allowed)


@given(st.integers(0, 10_000), st.floats(0, 1), st.none() | st.floats(0, 1e6))
def test_pauses_grow_to_a_limit_and_never_undercut_the_server(failed: int, chance: float, asked: float | None) -> None:
    """Pauses grow to a limit and never undercut the server."""
    seconds = pause(failed, chance, asked)
    assert (asked or 0) <= seconds <= (asked or 0) + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failed - 1, 30))
    assert pause(failed, 0.0, asked) == (asked or 0)
    assert pause(failed + 1, chance) >= pause(failed, chance)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 400, 1e9),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("Sun, 01 Mar 2026 12:01:00 -0000", 60.0),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """Retry after."""
    assert retry_after(value, NOW) == seconds


@given(st.text(max_size=40))
def test_nothing_that_a_server_writes_breaks_it(value: str) -> None:
    """Nothing that a server writes breaks it."""
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0
