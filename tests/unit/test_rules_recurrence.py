"""When a schedule's jobs are due: the sentences of the SDK's `BatchJobScheduleConfiguration`, without a clock.

| sentence | test |
| --- | --- |
| "The default is that the schedule does not recur: one Job is created, within the startWindow" | the single ones |
| "If a Job is not created within the startWindow interval, then the 'opportunity' is lost" | both `..._lost` |
| "the Job that is 'due' in one recurrenceInterval is not carried forward" | `test_an_occurrence_is_never_carried_...` |
| "A time after which no Job will be created" | `test_nothing_is_due_after_...` |
"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nodeagent.model.job_schedule import Schedule
from nodeagent.rules.recurrence import Timetable, is_over, next_run, timetable

FIRST = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOURLY = Timetable(FIRST, interval=60 * MINUTE)
LATEST = datetime.max.replace(tzinfo=UTC)


def at(minutes: float) -> datetime:
    """Return the time so many minutes after the first occurrence."""
    return FIRST + minutes * MINUTE


def test_a_single_run_is_due_until_it_has_been_used() -> None:
    """Late is not too late without a window; once used, the schedule is over."""
    table = Timetable(FIRST)
    assert next_run(table, None, at(-5)) == FIRST
    assert next_run(table, None, at(100_000)) == FIRST
    assert not is_over(table, None, at(100_000))
    assert next_run(table, at(1), at(2)) is None
    assert is_over(table, at(1), at(2))


def test_a_single_run_is_lost_when_its_window_closes() -> None:
    """Just before its end it may be used still."""
    table = Timetable(FIRST, window=5 * MINUTE)
    assert next_run(table, None, at(4.999)) == FIRST
    assert next_run(table, None, at(5)) is None
    assert not is_over(table, None, at(4.999))
    assert is_over(table, None, at(5))


def test_a_single_schedule_that_is_put_off_after_its_run_runs_again() -> None:
    """A new doNotRunUntil after the last run is a new occurrence."""
    assert next_run(Timetable(at(10)), at(0), at(5)) == at(10)


@pytest.mark.parametrize(
    ("last_run", "now", "expected"),
    [
        (None, -30, 0),
        (None, 0, 0),
        (None, 59.9, 0),
        (0, 0, 60),
        (59, 59.5, 60),
        (60, 60, 120),
        (0, 61, 60),
        (0, 119.9, 60),
    ],
)
def test_each_interval_has_one_occurrence(last_run: float | None, now: float, expected: float) -> None:
    """What has been used, early or late in its interval, is followed by the next."""
    assert next_run(HOURLY, None if last_run is None else at(last_run), at(now)) == at(expected)


def test_an_occurrence_is_never_carried_into_the_next_interval() -> None:
    """A job that ran through three of them, or a service that was down: one job is made, for the present one."""
    for window in (None, 60 * MINUTE, 1000 * MINUTE):
        table = Timetable(FIRST, interval=60 * MINUTE, window=window)
        assert next_run(table, at(0), at(200)) == at(180)
        assert next_run(table, at(200), at(200)) == at(240)


def test_a_missed_window_loses_the_occurrence() -> None:
    """Until the next recurrence nothing is made."""
    table = Timetable(FIRST, interval=60 * MINUTE, window=10 * MINUTE)
    assert next_run(table, at(0), at(69.9)) == at(60)
    assert next_run(table, at(0), at(70)) == at(120)
    assert not is_over(table, at(0), at(70))


def test_nothing_is_due_after_the_last_time() -> None:
    """An occurrence at that very time is made; the schedule is over only when that time has passed."""
    table = Timetable(FIRST, interval=60 * MINUTE, last=at(120))
    assert next_run(table, at(60), at(61)) == at(120)
    assert next_run(table, at(60), at(120)) == at(120)
    assert next_run(table, at(60), at(120.1)) is None
    assert next_run(table, at(120), at(120)) is None
    assert not is_over(table, at(120), at(120))
    assert table.closes is not None
    assert is_over(table, at(120), table.closes)


def test_a_recurrence_beyond_the_end_of_time_is_none() -> None:
    """Neither an interval of thousands of years nor .NET's last moment breaks anything."""
    table = Timetable(FIRST, interval=timedelta(days=10_675_199), window=timedelta(days=10_675_199), last=LATEST)
    assert next_run(table, FIRST, at(1)) is None
    assert table.closes is None
    assert not is_over(table, FIRST, at(1))
    assert next_run(Timetable(LATEST, interval=MINUTE), None, at(0)) == LATEST


def test_the_timetable_of_a_schedule_begins_with_its_creation_or_later() -> None:
    """Without doNotRunUntil it is ready at once."""
    assert timetable(Schedule(), FIRST) == Timetable(FIRST)
    schedule = Schedule(do_not_run_until=at(5), do_not_run_after=at(9), start_window=MINUTE, recurrence_interval=MINUTE)
    assert timetable(schedule, FIRST) == Timetable(at(5), MINUTE, MINUTE, at(9))


@pytest.mark.parametrize("name", ["startWindow", "recurrenceInterval"])
def test_less_than_a_minute_is_refused(name: str) -> None:
    """59.9 seconds are too few, a minute is enough."""
    with pytest.raises(ValidationError, match="PT1M"):
        Schedule.model_validate({name: "PT59.9S"})
    assert Schedule.model_validate({name: "PT1M"}).to_wire() == {name: "PT1M"}


def test_a_schedule_without_time_to_run_is_refused() -> None:
    """It could never make a job."""
    with pytest.raises(ValidationError, match="doNotRunAfter"):
        Schedule(do_not_run_until=FIRST, do_not_run_after=FIRST)


MINUTES = st.integers(min_value=0, max_value=10_000)


@given(
    interval=st.integers(min_value=1, max_value=500),
    window=st.none() | st.integers(min_value=1, max_value=1000),
    looks=st.lists(MINUTES, max_size=60).map(sorted),
)
def test_no_occurrence_makes_two_jobs(interval: int, window: int | None, looks: list[int]) -> None:
    """Whenever anybody looks: each run belongs to another occurrence, within its window, and none is past due."""
    table = Timetable(FIRST, interval * MINUTE, None if window is None else window * MINUTE)
    last_run: datetime | None = None
    used: set[datetime] = set()
    for look in looks:
        now = at(look)
        found = next_run(table, last_run, now)
        assert found is not None
        assert (found - FIRST) % (interval * MINUTE) == timedelta(0)
        open_for = min(interval, window or interval) * MINUTE
        assert now < found + open_for
        if found <= now:
            assert found not in used
            used.add(found)
            last_run = now
        else:
            # nothing open was passed over
            before = found - interval * MINUTE
            assert before in used or before < FIRST or now >= before + open_for
