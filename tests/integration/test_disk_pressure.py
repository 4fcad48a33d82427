"""A small disk that tasks fill: who pays for it, what is told, and that the node goes on afterwards."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.protocol import AttemptKind, Outcome, RemoveFiles, StopAttempt, StopReason, Transition

MIB = 1 << 20
DISK = 64 * MIB
LOOP = "with open('big', 'wb', 0) as f:\n  try:\n    while f.write(b'x' * 65536): pass\n"
STUBBORN = f'{sys.executable} -c "import time\n{LOOP}  except OSError: time.sleep(600)"'
"""Fills the disk, and stays when it is full."""
RELENTLESS = "/bin/sh -c 'while :; do cat /dev/zero >> big; done 2> /dev/null'"
"""Fills it again as soon as there is a free byte."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 MiB of its own, which only root can have."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    path.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "nodeagent-test", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@asynccontextmanager
async def agent(folder: Path, **settings: object) -> AsyncIterator[ScriptedService]:
    """A scripted service with one agent below `folder`."""
    async with ScriptedService() as service:
        stop = asyncio.Event()
        running = asyncio.create_task(run_agent(agent_settings(folder, service.url, **settings), stop))
        await service.registered()
        yield service
        assert not running.done()
        stop.set()
        assert await running == 0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)


async def end_of(service: ScriptedService, attempt: str) -> tuple[Outcome, dict[str, str]]:
    """The outcome of an attempt, and the details of its failure."""
    outcome = (await service.terminal(attempt)).outcome
    assert outcome is not None
    details = outcome.failure_info.details if outcome.failure_info else ()
    return outcome, {item.name: item.value or "" for item in details}


def code(outcome: Outcome) -> str | None:
    """The failure's code."""
    return None if outcome.failure_info is None else outcome.failure_info.code


def free(path: Path) -> int:
    """Free bytes."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def fill(path: Path) -> None:
    """Leave no byte free."""
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=4k"], stderr=subprocess.DEVNULL, check=False)
    assert free(path.parent) == 0


PRESSURE = {
    "disk_soft_free_bytes": 16 * MIB,
    "disk_hard_free_bytes": 8 * MIB,
    "ballast_bytes": 4 * MIB,
    "disk_check_seconds": 0.1,
}


async def test_who_fills_the_disk_fails_with_disk_full_and_the_node_goes_on(disk: Path) -> None:
    """The biggest writer is ended, a small one beside it is not; files and ballast are as before, and tasks run."""
    async with agent(disk, slots=3, **PRESSURE) as service:
        service.send(task("a1", "/bin/sh -c 'echo small > f; sleep 600'"))
        await service.running("a1")
        assert (disk / "state/ballast").stat().st_blocks * 512 == 4 * MIB
        service.send(task("a2", STUBBORN))
        outcome, details = await end_of(service, "a2")

        assert code(outcome) == "DiskFull"
        assert outcome.stop_reason is StopReason.DISK_PRESSURE
        assert outcome.exit_code is not None
        assert int(details["DiskUsed"].split()[0]) > 20 * MIB
        assert details["Limit"] == f"disk_hard_free_bytes {8 * MIB} bytes"
        assert details["StoppedBy"] == "node"
        assert details["LeftoverProcesses"].endswith("0 remain")
        assert not list((disk / "root/workitems/job/job-1/task-a2/wd").iterdir())
        assert free(disk) > 32 * MIB

        service.send(task("a3", "/bin/sh -c 'head -c 4000000 /dev/zero > f'"))
        after, _ = await end_of(service, "a3")
        assert after.exit_code == 0
        await until((disk / "state/ballast").exists)
        assert "a1" not in {report.attempt_id for report in service.reports if report.outcome}
        service.send(StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE))
        await service.terminal("a1")


async def test_a_task_that_fails_by_itself_on_the_full_disk_failed_for_want_of_space(disk: Path) -> None:
    """It keeps the exit code that the kernel gave, the failure is DiskFull, and the space is free again."""
    slow = PRESSURE | {"disk_check_seconds": 600, "ballast_bytes": MIB}
    async with agent(disk, **slow) as service:
        service.send(task("a1", "/bin/sh -c 'cat /dev/zero > big; truncate -s 57M big; echo no room >&2; exit 28'"))
        outcome, details = await end_of(service, "a1")
        assert (code(outcome), outcome.exit_code, outcome.stop_reason) == ("DiskFull", 28, None)
        assert details["StandardError"].endswith("no room")
        assert free(disk) > 32 * MIB
        service.send(task("a2", "/bin/true"), task("a3", "/bin/sh -c 'exit 28'"))
        assert (await end_of(service, "a2"))[0].exit_code == 0
        assert code((await end_of(service, "a3"))[0]) == "FailureExitCode"


async def test_a_filler_that_is_dead_before_anybody_looked_ends_too(disk: Path) -> None:
    """Its shim waits for room to record the end: the ballast makes it."""
    async with agent(disk, **PRESSURE) as service:
        service.send(task("a1", "/bin/sh -c 'cat /dev/zero > big'"))
        outcome, _ = await end_of(service, "a1")
        assert code(outcome) == "DiskFull"
        await until(lambda: free(disk) > 32 * MIB)
        service.send(task("a2", "/bin/true"))
        assert (await end_of(service, "a2"))[0].exit_code == 0


async def test_several_fillers_pay_one_after_the_other(disk: Path) -> None:
    """As many as it takes, and each is told why; the node is usable afterwards."""
    async with agent(disk, slots=3, **PRESSURE) as service:
        service.send(*(task(f"a{number}", RELENTLESS) for number in range(3)))
        for number in range(3):
            assert code((await end_of(service, f"a{number}"))[0]) == "DiskFull"
        service.send(task("b", "/bin/true"))
        assert (await end_of(service, "b"))[0].exit_code == 0


async def test_at_the_soft_level_no_task_begins_but_a_release_does(disk: Path) -> None:
    """What was assigned waits until there is room; who waits can be stopped; a release may clean up."""
    async with agent(disk, **PRESSURE) as service:
        service.send(task("a0", "/bin/true"))
        await service.terminal("a0")
        filler = disk / "filler"
        filler.write_bytes(b"x" * (DISK - 14 * MIB - (DISK - free(disk))))
        service.send(task("r1", "/bin/true", kind=AttemptKind.JOB_RELEASE))
        await service.terminal("r1")
        assert 8 * MIB < free(disk) < 16 * MIB
        await asyncio.sleep(0.3)  # longer than a look takes: nothing tells that nothing happened
        service.send(task("a1", "/bin/true"), task("a2", "/bin/true"))
        await service.running("a1")
        await service.running("a2")
        service.send(StopAttempt(attempt_id="a2", reason=StopReason.USER_TERMINATE))
        stopped, _ = await end_of(service, "a2")
        assert (code(stopped), stopped.exit_code) == ("TaskEnded", None)
        assert not (disk / "root/workitems/job/job-1/task-a1").exists()
        filler.unlink()
        assert (await end_of(service, "a1"))[0].exit_code == 0


async def test_a_disk_that_somebody_else_filled_costs_no_task(disk: Path) -> None:
    """Tasks that hold less than what is missing are not made to pay; the ballast is let go, and the agent lives."""
    async with agent(disk, **PRESSURE) as service:
        service.send(task("a1", "/bin/sh -c 'echo small > f; sleep 600'"))
        await service.running("a1")
        await until((disk / "root/workitems/job/job-1/task-a1/wd/f").exists)
        with (disk / "filler").open("wb", 0) as filler:
            filler.write(b"x" * (free(disk) - 1 * MIB))
        await until(lambda: not (disk / "state/ballast").exists())
        service.send(RemoveFiles(job_id="job", attempt_ids=("nobody",)))
        assert not [report for report in service.reports if report.outcome]
        (disk / "filler").unlink()
        await until((disk / "state/ballast").exists)
        service.send(StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE))
        assert code((await end_of(service, "a1"))[0]) == "TaskEnded"


async def test_the_agent_outlives_a_disk_without_a_single_free_byte(disk: Path) -> None:
    """Without any setting: what cannot be stored waits, the task's end is not lost, and is told when there is room."""
    async with agent(disk) as service:
        service.send(task("a1", "/bin/sh -c 'while [ -e ../../../../../../filler ]; do sleep 0.05; done; exit 7'"))
        await service.running("a1")
        await until((disk / "state/attempts/a1/started.json").exists)
        fill(disk / "filler")
        service.send(*(task(f"b{number}", "/bin/true") for number in range(50)))
        await until(lambda: len(service.polls) > 1)
        await asyncio.sleep(1)  # the agent tries in vain meanwhile
        (disk / "filler").unlink()
        outcome, _ = await end_of(service, "a1")
        assert outcome.exit_code == 7
        for number in range(50):
            end = await service.terminal(f"b{number}")
            if end.outcome is None:
                assert end.transition is Transition.LOST  # the node could not launch it: it runs again
            else:
                assert code(end.outcome) in (None, "DiskFull")


async def test_a_task_beyond_its_disk_budget_is_ended_and_its_files_stay(tmp_path: Path) -> None:
    """The budget is the task's own: nothing is taken away, and another task beside it is not touched."""
    async with agent(tmp_path, disk_bytes_per_task=4 * MIB, disk_check_seconds=0.1) as service:
        service.send(task("a1", "/bin/sh -c 'head -c 9000000 /dev/zero > f; sleep 600'"), task("a2", "/bin/sleep 1"))
        outcome, details = await end_of(service, "a1")
        beside, _ = await end_of(service, "a2")
    assert (code(outcome), outcome.stop_reason) == ("DiskFull", StopReason.DISK_BUDGET)
    assert details["Limit"] == f"disk_bytes_per_task {4 * MIB} bytes"
    assert int(details["DiskUsed"].split()[0]) >= 9_000_000
    assert (tmp_path / "root/workitems/job/job-1/task-a1/wd/f").stat().st_size == 9_000_000
    assert beside.exit_code == 0
