"""When a job schedule makes its jobs. Pure: what is due follows from the timetable, the last job and the present time.

The sentences are those of the SDK's `BatchJobScheduleConfiguration` (spec/rest.md §3.13): an occurrence may be used
from its time on for `startWindow`, but never into the next recurrence; what is not used by then is lost.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nodeagent.model.job_schedule import Schedule

_AT_ONCE_AFTER = timedelta(microseconds=1)
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Timetable:
    """`first` is the time of occurrence 0; without `interval` there is no other. `last` is `doNotRunAfter`."""

    first: datetime
    interval: timedelta | None = None
    window: timedelta | None = None
    last: datetime | None = None

    @property
    def closes(self) -> datetime | None:
        """The first moment at which `last` has passed; None if the timetable has no end."""
        if self.last is None or self.last >= _LATEST:
            return None
        return self.last + _AT_ONCE_AFTER


def timetable(schedule: Schedule, created: datetime) -> Timetable:
    """Return the timetable of a schedule; without `doNotRunUntil` it begins with the schedule's creation."""
    return Timetable(
        first=schedule.do_not_run_until or created,
        interval=schedule.recurrence_interval,
        window=schedule.start_window,
        last=schedule.do_not_run_after,
    )


def next_run(table: Timetable, last_run: datetime | None, now: datetime) -> datetime | None:
    """Return the time of the occurrence that makes the next job; it is due if that is not after `now`.

    `last_run` is when the last job was made: occurrences up to then are used up or lost. None if there is none.
    """
    try:
        found = _recurring(table, table.interval, last_run, now) if table.interval else _single(table, last_run, now)
    except OverflowError:
        return None  # later than any time can be
    if found is None:
        return None
    over = table.last is not None and (found > table.last or now > table.last)
    return None if over else found


def is_over(table: Timetable, last_run: datetime | None, now: datetime) -> bool:
    """Tell whether the schedule will never make a job again: then it is complete once its last job is."""
    if table.last is not None and now > table.last:
        return True
    return table.interval is None and next_run(table, last_run, now) is None


def _single(table: Timetable, last_run: datetime | None, now: datetime) -> datetime | None:
    used = last_run is not None and last_run >= table.first
    lost = table.window is not None and now - table.first >= table.window
    return None if used or lost else table.first


def _recurring(table: Timetable, interval: timedelta, last_run: datetime | None, now: datetime) -> datetime:
    """Return the earliest occurrence after `last_run` that is still open at `now`, or is to come."""
    open_for = interval if table.window is None else min(table.window, interval)
    unused = 0 if last_run is None else (last_run - table.first) // interval + 1
    still_open = (now - table.first - open_for) // interval + 1
    return table.first + max(0, unused, still_open) * interval
