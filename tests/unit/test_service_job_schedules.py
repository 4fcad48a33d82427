"""Job schedules at the service, with a clock that only the test moves (spec/rest.md §3.13, §8.6).

| sentence of the SDK's pages | test |
| --- | --- |
| "A Job Schedule can have at most one active Job under it at any given time" | `test_the_next_job_waits_for_the_last` |
| "the schedule is complete as soon as that Job finishes" | `test_a_single_schedule_is_complete_with_its_job` |
| "as soon as this deadline is past and there is no active Job" | `test_the_end_of_a_schedule_waits_for_its_job` |
| "No new Jobs will be created until the Job Schedule is enabled again" | `test_a_disabled_schedule_...` |
| "Updates affect only Jobs that are started after the update has taken place" | `test_an_update_...` |
| "the Batch service will remove the existing schedule" | `test_a_put_without_a_schedule_...` |
| "this also deletes all Jobs and Tasks under that schedule" | `test_a_deleted_schedule_goes_with_its_jobs` |
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from nodeagent.model.enums import JobState
from nodeagent.model.job import JobManagerTask, JobSpecification, PoolInfo
from nodeagent.model.job_schedule import (
    JobScheduleCreate,
    JobSchedulePatch,
    JobScheduleState,
    JobScheduleUpdate,
    Schedule,
)
from nodeagent.service.errors import BatchError
from nodeagent.service.lifecycle import deadlines, job_schedules, jobs
from nodeagent.service.rest.links import Links
from nodeagent.service.rest.shapes.job_schedule import job_schedule_shape
from nodeagent.service.store import job_schedules as rows
from nodeagent.service.store.job_schedules import JobScheduleRow
from tests.unit.service_world import POOL, PREPARATION, RELEASE, START, Running, World

pytest_plugins = ["tests.unit.service_fixtures"]

MINUTE = timedelta(minutes=1)
HOUR = 60 * MINUTE
HOURLY: dict[str, Any] = {"recurrence_interval": HOUR}


class Schedules:
    """One schedule `s` in a world whose clock the test sets."""

    def __init__(self, world: World) -> None:
        self.world = world

    def create(self, schedule: dict[str, Any] | None = None, **specification: Any) -> None:  # noqa: ANN401 - properties
        """Add the schedule."""
        spec = JobScheduleCreate(
            id="s", schedule=Schedule(**schedule or {}), job_specification=jobs_like(**specification)
        )
        self.world.verb(job_schedules.create_schedule, spec)

    def at(self, minutes: float) -> None:
        """Let the clock stand so many minutes after the beginning, and the service do what is due then."""
        store = self.world.store
        store.now = START + minutes * MINUTE
        store.do(lambda tx: deadlines.expire(tx, store.now, timedelta(days=10_000)))

    @property
    def next_look(self) -> datetime | None:
        """When the service looks again of its own accord."""
        return self.world.store.do(rows.next_wake)

    @property
    def row(self) -> JobScheduleRow:
        """The schedule as it stands."""
        return self.world.store.do(lambda tx: job_schedules.require(tx, "s"))

    @property
    def gone(self) -> bool:
        """Whether there is no such schedule."""
        return self.world.store.do(lambda tx: rows.get(tx, "s")) is None

    @property
    def jobs(self) -> list[tuple[str, str]]:
        """The ids of its jobs and their states."""
        found = self.world.store.do(lambda tx: rows.jobs_page(tx, "s"))
        return [(job.id, job.state.value) for job in found]

    @property
    def next_run(self) -> str | None:
        """What `nextRunTime` shows, as hours and minutes."""
        shown = job_schedule_shape(Links("http://h"), self.row, self.world.store.now)["executionInfo"]
        return None if "nextRunTime" not in shown else str(shown["nextRunTime"])[11:16]

    def end_job(self, number: int) -> None:
        """End one of its jobs, as a user does."""
        self.world.verb(jobs.terminate_job, f"s:job-{number}")

    def verb(self, name: str, **more: object) -> None:
        """Run a verb on it."""
        self.world.verb(getattr(job_schedules, f"{name}_schedule"), "s", **more)


def jobs_like(**more: Any) -> JobSpecification:  # noqa: ANN401 - properties
    """Return what the jobs of a schedule are like."""
    return JobSpecification(pool_info=PoolInfo(pool_id=POOL), **more)


@pytest.fixture
def schedules(world: World) -> Schedules:
    """A world in which to make a schedule."""
    return Schedules(world)


def test_the_first_job_is_there_with_the_schedule(schedules: Schedules) -> None:
    """Nobody has to look at the clock before; the next one comes an interval after the creation."""
    schedules.create(HOURLY)
    assert schedules.jobs == [("s:job-1", "active")]
    assert (schedules.row.state, schedules.row.recent_job) == (JobScheduleState.ACTIVE, "s:job-1")
    assert schedules.next_run == "01:00"


def test_no_job_is_made_before_its_time(schedules: Schedules) -> None:
    """The service knows when to look again, to the moment."""
    schedules.create({"do_not_run_until": START + 10 * MINUTE})
    assert (schedules.jobs, schedules.next_run, schedules.row.recent_job) == ([], "00:10", None)
    schedules.at(9.99)
    assert schedules.jobs == []
    assert schedules.next_look == START + 10 * MINUTE
    schedules.at(10)
    assert schedules.jobs == [("s:job-1", "active")]
    assert schedules.next_run is None


def test_each_recurrence_has_its_job(schedules: Schedules) -> None:
    """Once each, however often the service looks, with numbers from 1."""
    schedules.create(HOURLY | {"do_not_run_until": START + HOUR})
    for hour in (1, 2, 3):
        for _ in range(3):
            schedules.at(hour * 60)
        assert len(schedules.jobs) == hour
        schedules.end_job(hour)
        schedules.at(hour * 60 + 1)
    assert schedules.jobs == [(f"s:job-{number}", "completed") for number in (1, 2, 3)]
    assert (schedules.next_run, schedules.next_look) == ("04:00", START + 4 * HOUR)


def test_the_next_job_waits_for_the_last(schedules: Schedules) -> None:
    """What became due meanwhile is made when the last job has ended; what became due before that is lost."""
    schedules.create(HOURLY)
    schedules.at(190)
    assert schedules.jobs == [("s:job-1", "active")]
    assert (schedules.next_run, schedules.next_look) == ("03:00", None)
    schedules.end_job(1)
    schedules.at(191)
    assert schedules.jobs == [("s:job-1", "completed"), ("s:job-2", "active")]
    assert schedules.next_run == "04:00"


def test_a_job_that_ends_outside_the_window_is_not_followed_before_the_next_recurrence(schedules: Schedules) -> None:
    """The opportunity is lost."""
    schedules.create(HOURLY | {"do_not_run_until": START, "start_window": 5 * MINUTE})
    schedules.at(64)
    schedules.end_job(1)
    schedules.at(66)
    assert schedules.jobs == [("s:job-1", "completed")]
    assert schedules.next_look == START + 2 * HOUR
    schedules.at(121)
    assert schedules.jobs[-1] == ("s:job-2", "active")


def test_a_deleted_job_makes_room_as_an_ended_one_does(schedules: Schedules) -> None:
    """Its number is not used again."""
    schedules.create(HOURLY)
    schedules.world.verb(jobs.delete_job, "s:job-1")
    schedules.at(61)
    assert schedules.jobs == [("s:job-2", "active")]


def test_a_job_counts_as_running_until_its_release_is_over(schedules: Schedules) -> None:
    """Jobs of one schedule never overlap, not even in their ends."""
    world = schedules.world
    schedules.create(HOURLY, job_preparation_task=PREPARATION, job_release_task=RELEASE)
    world.add_task("t", "s:job-1")
    (node,) = world.nodes
    world.drain()
    schedules.end_job(1)
    schedules.at(61)
    assert schedules.jobs == [("s:job-1", "terminating")]
    world.drain()
    schedules.at(62)
    assert schedules.jobs == [("s:job-1", "completed"), ("s:job-2", "active")]
    assert {message.job_id for message in node.seen if hasattr(message, "job_id")} == {"s:job-1"}


def test_a_single_schedule_is_complete_with_its_job(schedules: Schedules) -> None:
    """Not before it; then nothing changes it any more."""
    schedules.create()
    schedules.at(500)
    assert schedules.row.state is JobScheduleState.ACTIVE
    schedules.end_job(1)
    schedules.at(501)
    row = schedules.row
    assert (row.state, row.previous_state, row.ended) == (
        JobScheduleState.COMPLETED,
        JobScheduleState.ACTIVE,
        row.state_time,
    )
    assert schedules.next_look is None


def test_a_job_without_tasks_that_ends_with_them_is_complete_at_once(schedules: Schedules) -> None:
    """And so is a single schedule, in the same transaction."""
    schedules.create(on_all_tasks_complete="terminatejob")
    assert schedules.jobs == [("s:job-1", "completed")]
    assert schedules.row.state is JobScheduleState.COMPLETED


def test_the_end_of_a_schedule_waits_for_its_job(schedules: Schedules) -> None:
    """`doNotRunAfter` ends the schedule, but not the job that runs."""
    schedules.create(HOURLY | {"do_not_run_after": START + 90 * MINUTE})
    schedules.end_job(1)
    schedules.at(61)
    schedules.at(91)
    assert schedules.jobs[1:] == [("s:job-2", "active")]
    assert schedules.row.state.value == "active"
    schedules.end_job(2)
    schedules.at(92)
    assert schedules.row.state.value == "completed"


def test_a_schedule_without_a_job_ends_at_its_time(schedules: Schedules) -> None:
    """Between the last recurrence and doNotRunAfter it is still active."""
    schedules.create(HOURLY | {"do_not_run_after": START + 90 * MINUTE})
    schedules.end_job(1)
    schedules.at(61)
    schedules.end_job(2)
    schedules.at(62)
    assert (schedules.row.state, schedules.next_run) == (JobScheduleState.ACTIVE, None)
    assert schedules.next_look == START + 90 * MINUTE + timedelta(microseconds=1)
    schedules.at(90.01)
    assert schedules.row.state is JobScheduleState.COMPLETED


def test_a_window_that_closes_before_anything_could_run_ends_a_single_schedule(schedules: Schedules) -> None:
    """A service that was down all the time makes no job afterwards."""
    schedules.create({"do_not_run_until": START + 10 * MINUTE, "start_window": MINUTE})
    schedules.at(11)
    assert (schedules.jobs, schedules.row.state) == ([], JobScheduleState.COMPLETED)


def test_a_service_that_was_down_makes_one_job(schedules: Schedules) -> None:
    """That of the present interval; those of the intervals before are lost."""
    schedules.create(HOURLY | {"do_not_run_until": START + HOUR})
    schedules.at(630)
    assert schedules.jobs == [("s:job-1", "active")]
    assert schedules.next_run == "11:00"


def test_a_disabled_schedule_makes_no_job_and_leaves_the_one_that_runs(schedules: Schedules) -> None:
    """Enabled again, it makes at once what is due and not lost."""
    schedules.create(HOURLY)
    schedules.verb("disable")
    assert (schedules.row.state, schedules.row.previous_state) == (JobScheduleState.DISABLED, JobScheduleState.ACTIVE)
    assert schedules.jobs == [("s:job-1", "active")]
    schedules.end_job(1)
    schedules.at(150)
    assert schedules.jobs == [("s:job-1", "completed")]
    assert (schedules.next_run, schedules.next_look) == ("02:00", None)
    schedules.verb("enable")
    assert schedules.jobs == [("s:job-1", "completed"), ("s:job-2", "active")]
    assert schedules.row.state is JobScheduleState.ACTIVE


def test_an_update_is_for_the_jobs_to_come(schedules: Schedules) -> None:
    """The job that runs keeps its definition; the same timetable makes no job of its own."""
    schedules.create(HOURLY, priority=1)
    before = schedules.row.etag
    update = JobScheduleUpdate(schedule=Schedule(**HOURLY), job_specification=jobs_like(priority=2))
    schedules.world.verb(job_schedules.update_schedule, "s", update)
    assert schedules.row.etag != before
    schedules.end_job(1)
    schedules.at(30)
    assert schedules.jobs == [("s:job-1", "completed")]
    schedules.at(61)
    priorities = [schedules.world.job(f"s:job-{number}").spec.priority for number in (1, 2)]
    assert priorities == [1, 2]


def test_a_patch_brings_the_next_job_forward(schedules: Schedules) -> None:
    """The service looks again at once, and the rest of the definition stays."""
    schedules.create({"do_not_run_until": START + 10 * HOUR}, priority=5)
    patch = JobSchedulePatch(schedule=Schedule(do_not_run_until=START))
    schedules.world.verb(job_schedules.patch_schedule, "s", patch)
    assert schedules.jobs == [("s:job-1", "active")]
    assert schedules.world.job("s:job-1").spec.priority == 5


def test_a_put_without_a_schedule_ends_it_with_its_job(schedules: Schedules) -> None:
    """It does not recur any more."""
    schedules.create(HOURLY)
    update = JobScheduleUpdate(job_specification=jobs_like())
    schedules.world.verb(job_schedules.update_schedule, "s", update)
    schedules.end_job(1)
    schedules.at(61)
    assert (schedules.jobs, schedules.row.state) == ([("s:job-1", "completed")], JobScheduleState.COMPLETED)


def running(world: World, job_id: str) -> Running:
    """Add a task to a job and let it start."""
    world.add_task("t", job_id)
    (node,) = world.nodes
    node.fetch()
    (attempt,) = node.live.values()
    node.run(attempt)
    return attempt


def test_a_terminated_schedule_ends_its_job(schedules: Schedules) -> None:
    """It is terminating until the task has stopped; the job tells why."""
    world = schedules.world
    schedules.create(HOURLY)
    running(world, "s:job-1")
    schedules.verb("terminate")
    assert (schedules.row.state, world.job("s:job-1").state) == (JobScheduleState.TERMINATING, JobState.TERMINATING)
    world.drain()
    schedules.at(61)
    row = schedules.row
    assert (row.state, row.previous_state) == (JobScheduleState.COMPLETED, JobScheduleState.ACTIVE)
    job = world.job("s:job-1")
    assert (job.state, job.terminate_reason) == (JobState.COMPLETED, "TerminateJobSchedule")


def test_a_forced_end_does_not_wait_for_a_node(schedules: Schedules) -> None:
    """Neither does one that was asked for before without force."""
    running_world = schedules.world
    schedules.create(HOURLY)
    running(running_world, "s:job-1")
    schedules.verb("terminate")
    schedules.verb("terminate", force=True)
    assert schedules.row.state is JobScheduleState.COMPLETED
    assert schedules.jobs == [("s:job-1", "completed")]


def test_a_deleted_schedule_goes_with_its_jobs(schedules: Schedules) -> None:
    """The ended ones at once; the schedule is there until the last has stopped, and its id is free afterwards."""
    world = schedules.world
    schedules.create(HOURLY)
    schedules.end_job(1)
    schedules.at(61)
    running(world, "s:job-2")
    schedules.verb("delete")
    assert (schedules.row.state, schedules.jobs) == (JobScheduleState.DELETING, [("s:job-2", "deleting")])
    with pytest.raises(BatchError, match="JobScheduleBeingDeleted"):
        schedules.verb("delete")
    world.drain()
    schedules.at(62)
    assert schedules.gone
    assert schedules.jobs == []
    schedules.create()
    assert schedules.jobs == [("s:job-1", "active")]


def test_a_forced_deletion_does_not_wait_for_a_node(schedules: Schedules) -> None:
    """Neither does one that was asked for before without force."""
    schedules.create(HOURLY)
    running(schedules.world, "s:job-1")
    schedules.verb("delete")
    schedules.verb("delete", force=True)
    schedules.at(61)
    assert schedules.gone


def test_many_jobs_are_deleted_in_steps(schedules: Schedules, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look of the service ends some, until none is left."""
    monkeypatch.setattr(job_schedules, "_JOBS_AT_ONCE", 2)
    schedules.create(HOURLY, on_all_tasks_complete="terminatejob")
    for hour in range(1, 5):
        schedules.at(hour * 60 + 1)
    assert len(schedules.jobs) == 5
    schedules.verb("delete")
    assert len(schedules.jobs) == 3
    schedules.at(301)
    assert len(schedules.jobs) == 1
    schedules.at(302)
    assert schedules.gone


def test_a_job_manager_comes_with_each_job(schedules: Schedules) -> None:
    """It runs, its end ends the job, and the next recurrence begins anew."""
    world = schedules.world
    manager = JobManagerTask(id="manager", command_line="true")
    schedules.create(HOURLY, job_manager_task=manager, display_name="shown", uses_task_dependencies=True)
    for number in (1, 2):
        world.drain()
        job = world.job(f"s:job-{number}")
        assert (job.state, job.terminate_reason) == (JobState.COMPLETED, "JMComplete")
        assert (job.spec.display_name, job.spec.uses_task_dependencies) == ("shown", True)
        schedules.at(number * 60 + 1)
    assert [state for _, state in schedules.jobs] == ["completed", "completed", "active"]


STATES: dict[JobScheduleState, Callable[[Schedules], None]] = {
    JobScheduleState.TERMINATING: lambda one: one.verb("terminate"),
    JobScheduleState.COMPLETED: lambda one: one.verb("terminate", force=True),
    JobScheduleState.DELETING: lambda one: one.verb("delete"),
}
REFUSED = {
    JobScheduleState.TERMINATING: "JobScheduleBeingTerminated",
    JobScheduleState.COMPLETED: "JobScheduleCompleted",
    JobScheduleState.DELETING: "JobScheduleBeingDeleted",
}
VERBS: dict[str, Callable[[Schedules], None]] = {
    "patch": lambda one: one.world.verb(job_schedules.patch_schedule, "s", JobSchedulePatch()),
    "update": lambda one: one.world.verb(
        job_schedules.update_schedule, "s", JobScheduleUpdate(job_specification=jobs_like())
    ),
    "disable": lambda one: one.verb("disable"),
    "enable": lambda one: one.verb("enable"),
    "terminate": lambda one: one.verb("terminate"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", STATES)
def test_a_schedule_that_ends_takes_no_verb(schedules: Schedules, state: JobScheduleState, verb: str) -> None:
    """Each state has its code, and nothing changes."""
    schedules.create(HOURLY)
    running(schedules.world, "s:job-1")
    STATES[state](schedules)
    before = schedules.row
    assert before.state is state
    with pytest.raises(BatchError, match=REFUSED[state]):
        VERBS[verb](schedules)
    assert schedules.row == before


def test_jobs_and_schedules_share_their_ids(schedules: Schedules) -> None:
    """Their directories on a node would be the same."""
    schedules.create()
    with pytest.raises(BatchError, match="JobScheduleWithSameIdExists"):
        schedules.world.create_job("S")
    with pytest.raises(BatchError, match="JobScheduleExists"):
        schedules.create()
    schedules.world.create_job("other")
    spec = JobScheduleCreate(id="Other", schedule=Schedule(), job_specification=jobs_like())
    with pytest.raises(BatchError, match="JobWithSameIdExists"):
        schedules.world.verb(job_schedules.create_schedule, spec)


def test_the_jobs_of_a_schedule_are_its_own(schedules: Schedules) -> None:
    """Not those of one whose id begins alike."""
    schedules.create()
    for other in ("s-2", "s2"):
        spec = JobScheduleCreate(id=other, schedule=Schedule(), job_specification=jobs_like())
        schedules.world.verb(job_schedules.create_schedule, spec)
    assert schedules.jobs == [("s:job-1", "active")]
