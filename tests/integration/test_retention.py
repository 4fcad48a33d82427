"""Directories go when their retention time is over: not before the service has the end, the earliest first."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.protocol import AttemptKind, EndJobSession, RemoveFiles

SOON = timedelta(seconds=0.2)


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def job(service: ScriptedService, tmp_path: Path) -> AsyncIterator[Path]:
    """The directory of the job on a node whose agent looks often."""
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(agent_settings(tmp_path, service.url, cleanup_seconds=0.05), stop))
    await service.registered()
    yield tmp_path / "root" / "workitems" / "job" / "job-1"
    stop.set()
    assert await agent == 0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what the agent does by itself."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)
    assert condition(), what


async def test_a_directory_goes_when_its_time_is_over_and_the_others_stay(
    service: ScriptedService, job: Path, tmp_path: Path
) -> None:
    """Directory and records of the one whose time is over; the default of a week keeps the other."""
    service.send(
        task("a1", "/bin/sh -c 'mkdir -p deep/er; touch deep/er/file'", task_id="short", retention_time=SOON),
        task("a2", "/bin/true", task_id="long"),
    )
    await service.terminal("a1")
    await service.terminal("a2")

    await until(lambda: not (job / "short").exists(), "the files to go")
    await until(lambda: not (tmp_path / "state" / "attempts" / "a1").exists(), "the records to go")
    assert (job / "long" / "stdout.txt").exists()

    service.send(RemoveFiles(job_id="job", attempt_ids=("a1", "a2")))
    await until(lambda: not (job / "long").exists(), "a removal of what has gone by itself and of what has not")


async def test_an_earlier_attempt_goes_by_its_own_time(service: ScriptedService, job: Path) -> None:
    """The newest keeps the task's directory; the earlier one beside it goes, and its number is not given again."""
    service.send(task("a1", "/bin/sh -c 'exit 1'", task_id="t", retention_time=timedelta(seconds=1)))
    await service.terminal("a1")
    service.send(task("a2", "/bin/sh -c 'echo two; exit 1'", task_id="t"))
    await service.terminal("a2")
    assert (job / "t~1").is_dir()

    await until(lambda: not (job / "t~1").exists(), "the earlier attempt to go")
    service.send(task("a3", "/bin/true", task_id="t"))
    await service.terminal("a3")
    assert (job / "t~2" / "stdout.txt").read_text() == "two\n"


async def test_nothing_goes_that_the_service_has_not_heard_of(service: ScriptedService, job: Path) -> None:
    """An end that is not acknowledged is kept, however old; it goes once it is."""
    service.refuse("reports", 503, "Busy", times=4)
    service.send(task("a1", "/bin/true", task_id="kept", retention_time=SOON))
    await until((job / "kept" / "stdout.txt").exists, "the task to run")
    seen = []

    def gone() -> bool:
        seen.append((bool(service.reports_of("a1")), (job / "kept").exists()))
        return not (job / "kept").exists()

    await until(gone, "the files to go")
    assert all(exists for acknowledged, exists in seen if not acknowledged)
    await service.terminal("a1")


async def test_a_preparation_keeps_its_directory_as_long_as_its_job_is_here(
    service: ScriptedService, job: Path
) -> None:
    """Tasks may look into AZ_BATCH_JOB_PREP_DIR until the job session ends (retention is a least time)."""
    service.send(
        task("p", "/bin/sh -c 'echo 5 > answer'", kind=AttemptKind.JOB_PREPARATION, retention_time=SOON),
        task("u1", "/bin/true", task_id="u1", gate="p", retention_time=SOON),
    )
    await service.terminal("u1")
    await until(lambda: not (job / "u1").exists(), "the task's files to go")
    service.send(task("u2", "/bin/sh -c 'cat $AZ_BATCH_JOB_PREP_WORKING_DIR/answer'", task_id="u2", gate="p"))
    await service.terminal("u2")
    assert (job / "u2" / "stdout.txt").read_text() == "5\n"

    service.send(EndJobSession(job_id="job"))
    await until(lambda: not (job / "jobpreparation").exists(), "the preparation's files to go")


async def test_a_release_s_directory_goes_by_its_own_retention_time(service: ScriptedService, job: Path) -> None:
    """Its time runs from its end, though the job is still here, and the preparation's directory stays."""
    service.send(task("p", "/bin/true", kind=AttemptKind.JOB_PREPARATION))
    await service.terminal("p")
    service.send(task("r", "/bin/sh -c 'echo x > file'", kind=AttemptKind.JOB_RELEASE, retention_time=SOON))
    await service.terminal("r")
    await until(lambda: not (job / "jobrelease").exists(), "the release's files to go")
    assert (job / "jobpreparation" / "stdout.txt").exists()


async def test_what_expired_while_the_agent_was_away_goes_at_its_start(
    service: ScriptedService, tmp_path: Path
) -> None:
    """The times are in agent.db: the next life knows them."""
    directory = tmp_path / "root" / "workitems" / "job" / "job-1" / "t"
    for seconds in (1000, 0.05):
        stop = asyncio.Event()
        agent = asyncio.create_task(run_agent(agent_settings(tmp_path, service.url, cleanup_seconds=seconds), stop))
        if seconds == 1000:
            service.send(task("a1", "/bin/true", task_id="t", retention_time=SOON))
            await service.terminal("a1")
            await service.until(lambda: bool(service.heartbeats) and not service.heartbeats[-1].live_attempts)
            assert directory.exists()
        else:
            await until(lambda: not directory.exists(), "the files to go")
        stop.set()
        assert await agent == 0


async def test_files_go_with_the_pool_but_for_ends_that_nobody_has_heard_of(
    service: ScriptedService, job: Path, tmp_path: Path
) -> None:
    """Retention ends early when the node leaves its pool; what a preparation left running ends too."""
    marker = tmp_path / "root" / "shared" / "pid"
    left = "/bin/sh -c 'sleep 600 & echo $! > $AZ_BATCH_NODE_SHARED_DIR/pid'"
    service.send(task("p", left, kind=AttemptKind.JOB_PREPARATION))
    await service.terminal("p")
    service.send(task("u", "/bin/true", task_id="u", gate="p"))
    await service.terminal("u")
    await service.until(lambda: not service.heartbeats[-1].live_attempts)
    service.refuse("reports", 503, "Busy", times=1000)
    service.send(task("owed", "/bin/true", task_id="owed"))
    await until((job / "owed" / "stdout.txt").exists, "the task to run")

    service.refuse("register", 404, "PoolNotFound", times=1000)
    service.forget_node()
    await until(lambda: not (job / "u").exists(), "the files to go")
    assert (job / "owed" / "stdout.txt").exists()
    assert (job / "jobpreparation").exists()

    service._refusals.clear()
    await service.terminal("owed")
    await until(lambda: not Path(f"/proc/{marker.read_text().strip()}").exists(), "what was left to end")
    await until(lambda: not (job / "jobpreparation").exists(), "the preparation's files to go")


async def test_a_pool_that_is_not_there_when_the_agent_starts_costs_no_files(
    service: ScriptedService, tmp_path: Path
) -> None:
    """It may be a name that was mistyped, or a service of somebody else."""
    directory = tmp_path / "root" / "workitems" / "job" / "job-1" / "t"
    for life in range(2):
        stop = asyncio.Event()
        agent = asyncio.create_task(run_agent(agent_settings(tmp_path, service.url), stop))
        if life == 0:
            service.send(task("a1", "/bin/true", task_id="t"))
            await service.terminal("a1")
            await service.until(lambda: bool(service.heartbeats) and not service.heartbeats[-1].live_attempts)
            service.refuse("register", 404, "PoolNotFound", times=3)
        else:
            await service.registered(2)
        stop.set()
        assert await agent == 0
    assert directory.exists()
