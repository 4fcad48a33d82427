"""A small disk on which little is left free: what goes before its time, in which order, and what never does."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from shutil import rmtree

import pytest
from structlog.testing import capture_logs

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.protocol import AttemptKind, ChangeRetention, EndJobSession, StopAttempt, StopReason
from tests.integration.faulty_server import Asked, Reply, faulty_server

MIB = 1 << 20
WRITES = "/bin/sh -c 'head -c 10M /dev/zero > big'"
MANY_FILES = "/bin/sh -c 'for i in $(seq 100); do : > $i; done'"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 MiB and 600 inodes of its own, which only root can have."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir(mode=0o755)
    options = f"size={64 * MIB},nr_inodes=600,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "nodeagent-test", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    """Leave no byte free."""
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=4k"], stderr=subprocess.DEVNULL, check=False)


@asynccontextmanager
async def agent(folder: Path, service: ScriptedService, **settings: object) -> AsyncIterator[Path]:
    """An agent that looks often; gives the directory of the job."""
    stop = asyncio.Event()
    given = agent_settings(folder, service.url, disk_check_seconds=0.05, **settings)
    running = asyncio.create_task(run_agent(given, stop))
    await service.registered()
    yield folder / "root" / "workitems" / "job" / "job-1"
    assert not running.done()
    stop.set()
    assert await running == 0


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)


def free(path: Path) -> int:
    """Free bytes."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


async def ran(service: ScriptedService, *names: str, command: str = WRITES) -> None:
    """Let tasks run, one after another, to their acknowledged ends."""
    for name in names:
        service.send(task(name, command, task_id=name))
        await service.terminal(name)
        await service.until(lambda: bool(service.heartbeats) and not service.heartbeats[-1].live_attempts)


async def test_the_earliest_end_goes_first_until_there_is_room(disk: Path, service: ScriptedService) -> None:
    """Before its retention time is over, with its records; the log says why. Later ends stay."""
    with capture_logs() as logged:
        async with agent(disk, service, cleanup_free_bytes=38 * MIB, cache_bytes=0) as job:
            await ran(service, "a1", "a2", "a3")
            await until(lambda: free(disk) >= 38 * MIB)

            assert [name for name in ("a1", "a2", "a3") if (job / name).exists()] == ["a2", "a3"]
            await until(lambda: not (disk / "state" / "attempts" / "a1").exists())
    told = [entry for entry in logged if "for room" in entry["event"]]
    assert [entry["attempts"] for entry in told] == [["a1"]]
    assert told[0]["free_bytes"] < 38 * MIB


async def test_files_go_when_inodes_are_short(disk: Path, service: ScriptedService) -> None:
    """Hundreds of empty files take no space, and still nothing could be made any more."""
    async with agent(disk, service, cleanup_free_inodes=300, cache_bytes=0) as job:
        await ran(service, "a1", "a2", "a3", "a4", command=MANY_FILES)
        await until(lambda: os.statvfs(disk).f_favail >= 300)

        assert not (job / "a1").exists()
        assert (job / "a4").exists()
        assert free(disk) > 50 * MIB


async def test_what_runs_and_what_the_service_has_not_heard_of_stay(disk: Path, service: ScriptedService) -> None:
    """However short the node is (I5); they go when they may."""
    async with agent(disk, service, cleanup_free_bytes=60 * MIB, cache_bytes=0) as job:
        service.send(task("runs", "/bin/sh -c 'head -c 10M /dev/zero > big; sleep 600'", task_id="runs"))
        await until((job / "runs" / "wd" / "big").exists)
        service.refuse("reports", 503, "Busy", times=1000)
        service.send(task("owed", WRITES, task_id="owed"))
        await until(lambda: free(disk) < 46 * MIB)
        beats = len(service.heartbeats)
        await service.until(lambda: len(service.heartbeats) > beats + 3)  # some more looks at the disk

        assert (job / "runs" / "wd" / "big").exists()
        assert (job / "owed" / "wd" / "big").exists()

        service._refusals.clear()
        await until(lambda: not (job / "owed").exists())
        assert (job / "runs" / "wd" / "big").exists()
        service.send(StopAttempt(attempt_id="runs", reason=StopReason.USER_TERMINATE))
        await until(lambda: not (job / "runs").exists())


async def test_a_preparation_stays_while_its_job_lives_here(disk: Path, service: ScriptedService) -> None:
    """Tasks of the job that come later need it; then it goes like everything else."""
    async with agent(disk, service, cleanup_free_bytes=60 * MIB, cache_bytes=0) as job:
        service.send(task("p", WRITES, kind=AttemptKind.JOB_PREPARATION))
        await service.terminal("p")
        service.send(task("u", WRITES, task_id="u", gate="p"))
        await service.terminal("u")
        await until(lambda: not (job / "u").exists())
        assert (job / "jobpreparation" / "wd" / "big").exists()

        service.send(EndJobSession(job_id="job"))
        await until(lambda: not (job / "jobpreparation").exists())


async def test_another_retention_time_takes_effect_on_files_that_are_there(
    tmp_path: Path, service: ScriptedService
) -> None:
    """For a task that has ended, and for one that runs; nothing else of the node changes."""
    async with agent(tmp_path, service, cleanup_seconds=0.05) as job:
        await ran(service, "ended", "stays", command="/bin/true")
        service.send(task("runs", f"/bin/sh -c 'while [ ! -e {tmp_path}/go ]; do sleep 0.05; done'", task_id="runs"))
        await until((job / "runs").exists)

        service.send(
            ChangeRetention(attempt_id="ended", retention_time=timedelta(0)),
            ChangeRetention(attempt_id="runs", retention_time=timedelta(0)),
            ChangeRetention(attempt_id="nobody", retention_time=timedelta(0)),
        )
        await until(lambda: not (job / "ended").exists())
        assert (job / "runs").exists()
        (tmp_path / "go").touch()
        await until(lambda: not (job / "runs").exists())
        assert (job / "stays").exists()


class Zeros:
    """A server of one large file."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def answer(self, asked: Asked, reply: Reply) -> None:
        """Send it, or the range of it that was asked for."""
        start, end = asked.range(self.size) if "range" in asked.headers else (0, self.size)
        span = {"Content_Range": f"bytes {start}-{end - 1}/{self.size}"} if "range" in asked.headers else {}
        await reply.head(206 if span else 200, Content_Length=str(end - start), ETag='"one"', **span)
        for _ in range(start, end, MIB):
            await reply.body(bytes(min(MIB, end - start)))


async def test_a_download_that_fills_the_disk_fails_its_task_and_nothing_else(
    disk: Path, service: ScriptedService
) -> None:
    """DiskFull; what had come is gone again, and the node goes on."""
    async with agent(disk, service, cache_bytes=0) as job, faulty_server(Zeros(80 * MIB).answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        service.send(task("a1", "/bin/true", task_id="t", work={"resource_files": (file,)}))
        outcome = (await service.terminal("a1")).outcome
        assert outcome is not None
        assert outcome.failure_info is not None
        assert (outcome.exit_code, outcome.failure_info.code) == (None, "DiskFull")
        await until(lambda: free(disk) > 55 * MIB)
        assert list((job / "t" / "wd").iterdir()) == []

        await ran(service, "a2")
        assert (job / "a2" / "wd" / "big").stat().st_size == 10 * MIB


@pytest.mark.parametrize("limit", ["cleanup_free_bytes", "disk_soft_free_bytes"])
async def test_the_cache_goes_before_files_of_tasks_and_before_tasks_wait(
    limit: str, disk: Path, service: ScriptedService
) -> None:
    """What can be brought again is worth least; it is brought again when it is needed."""
    settings = {limit: 30 * MIB, "cache_bytes": 32 * MIB}
    async with agent(disk, service, **settings) as job, faulty_server(Zeros(20 * MIB).answer) as server:
        file = {"http_url": server.url(), "file_path": "f"}
        work = {"resource_files": (file,)}
        for name in ("a1", "a2"):
            service.send(task(name, "/bin/sh -c 'stat -c %s f; rm f'", task_id=name, work=work))
            await service.terminal(name)
        service.send(task("a3", "/bin/true", task_id="a3", work=work))
        await service.terminal("a3")
        await until(lambda: free(disk) >= 30 * MIB)

        assert {name for name in ("a1", "a2", "a3") if (job / name).exists()} == {"a1", "a2", "a3"}
        assert (job / "a2" / "stdout.txt").read_text() == f"{20 * MIB}\n"
        assert (job / "a3" / "wd" / "f").stat().st_size == 20 * MIB


async def test_a_node_that_starts_on_a_full_disk_makes_room_and_works_on(
    disk: Path, tmp_path: Path, service: ScriptedService
) -> None:
    """There is no room for a cache, so it goes without; ended tasks make way for new ones."""
    settings = {"root": disk / "root", "cache_bytes": 16 * MIB}
    async with agent(tmp_path, service, **settings):
        await ran(service, "a1")
    job = disk / "root" / "workitems" / "job" / "job-1"
    fill(disk / "filled")
    rmtree(disk / "root" / "volatile" / "cache")
    fill(disk / "filled as well")

    async with agent(tmp_path, service, cleanup_free_bytes=8 * MIB, **settings):
        await until(lambda: not (job / "a1").exists())
        await ran(service, "a2", command="/bin/sh -c 'echo x > f'")

    assert (job / "a2" / "wd" / "f").read_text() == "x\n"
