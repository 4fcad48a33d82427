"""Any story of a job schedule: whatever happens when, one job at a time, none twice, none forgotten."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.model.enums import JobState
from nodeagent.model.job import JobSpecification, PoolInfo
from nodeagent.model.job_schedule import JobScheduleCreate, JobSchedulePatch, JobScheduleState, Schedule
from nodeagent.rules.recurrence import is_over, next_run, timetable
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, job_schedules, jobs
from nodeagent.service.store import job_schedules as rows
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.job_schedules import JobScheduleRow
from nodeagent.service.store.jobs import JobRow
from tests.unit.service_world import POOL, START, World

MINUTE = timedelta(minutes=1)
LEASE = timedelta(days=10_000)

MINUTES = st.integers(min_value=1, max_value=90)
TIMINGS = st.builds(
    Schedule,
    do_not_run_until=st.none() | MINUTES.map(lambda minutes: START + minutes * MINUTE),
    do_not_run_after=st.none() | MINUTES.map(lambda minutes: START + (100 + 3 * minutes) * MINUTE),
    start_window=st.none() | MINUTES.map(lambda minutes: minutes * MINUTE),
    recurrence_interval=st.none() | MINUTES.map(lambda minutes: minutes * MINUTE),
)
STEPS = st.one_of(
    st.tuples(st.just("wait"), MINUTES),
    st.tuples(st.just("end job"), st.none()),
    st.tuples(st.just("delete job"), st.none()),
    st.tuples(st.just("disable"), st.none()),
    st.tuples(st.just("enable"), st.none()),
    st.tuples(st.just("patch"), TIMINGS),
)


class Story:
    """A schedule, and what has been seen of it."""

    def __init__(self, world: World, timing: Schedule) -> None:
        self.world = world
        self.made: dict[str, JobRow] = {}
        specification = JobSpecification(pool_info=PoolInfo(pool_id=POOL))
        spec = JobScheduleCreate(id="s", schedule=timing, job_specification=specification)
        world.verb(job_schedules.create_schedule, spec)
        self.check()

    def step(self, name: str, argument: object) -> None:
        """Let something happen, then let the service do what is due."""
        store = self.world.store
        last = rows.job_name("s", max(1, len(self.made)))
        try:
            match name:
                case "wait" if isinstance(argument, int):
                    store.now += argument * MINUTE
                case "end job":
                    self.world.verb(jobs.terminate_job, last)
                case "delete job":
                    self.world.verb(jobs.delete_job, last)
                case "patch" if isinstance(argument, Schedule):
                    self.world.verb(job_schedules.patch_schedule, "s", JobSchedulePatch(schedule=argument))
                case _:
                    self.world.verb(getattr(job_schedules, f"{name}_schedule"), "s")
        except BatchError as error:  # what the story asks for may have ended
            if error.code not in ("JobNotFound", "JobCompleted", "JobScheduleCompleted"):
                raise
        store.do(lambda tx: deadlines.expire(tx, store.now, LEASE))
        self.check()

    def check(self) -> None:
        """Hold what must always hold."""
        row, found, wake = self.world.store.do(_seen)
        self.made |= {job.id: job for job in found if job.id not in self.made}
        assert len(self.made) == row.last_number, "a number was left out, or used twice"
        unfinished = [job for job in found if job.state is not JobState.COMPLETED]
        assert len(unfinished) <= 1, "two jobs at a time"
        if row.state is not JobScheduleState.ACTIVE or unfinished:
            assert wake is None
            return
        table = timetable(row.spec.schedule, row.created)
        now = self.world.store.now
        when = next_run(table, row.last_run, now)
        assert not is_over(table, row.last_run, now), "nothing will come, but the schedule is not complete"
        assert when is None or when > now, "a job is due, and was not made"
        assert wake == (when or table.closes), "the service looks again too late, or never"


def _seen(tx: Transaction) -> tuple[JobScheduleRow, list[JobRow], object]:
    return job_schedules.require(tx, "s"), rows.jobs_page(tx, "s"), rows.next_wake(tx)


@settings(max_examples=60, deadline=None)
@given(timing=TIMINGS, steps=st.lists(STEPS, max_size=25))
def test_any_story(timing: Schedule, steps: list[tuple[str, object]]) -> None:
    """At every moment after the service has done what is due."""
    world = World(1)
    try:
        story = Story(world, timing)
        for name, argument in steps:
            story.step(name, argument)
    finally:
        world.store.close()


def test_a_story_makes_many_jobs() -> None:
    """What the stories hold is not held by doing nothing."""
    world = World(1)
    try:
        story = Story(world, Schedule(recurrence_interval=10 * MINUTE))
        for _ in range(20):
            story.step("end job", None)
            story.step("wait", 10)
        assert len(story.made) == 21
    finally:
        world.store.close()
