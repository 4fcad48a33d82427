"""Limits that the node's settings set, kept by the kernel: what a task meets, and what is told of it."""

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.boundary import probe
from nodeagent.boundary.base import BoundaryError
from nodeagent.boundary.limits import CONTROLLERS, LimitedBoundaries, Limits, counted
from nodeagent.model.protocol import AttemptKind, EndJobSession, Outcome
from tests.integration.command_line import nodeagent

MIB = 1 << 20
PYTHON = sys.executable

Agent = Callable[..., AbstractAsyncContextManager[ScriptedService]]


def controllers_work() -> bool:
    """Whether this machine lets this user limit by cgroups; root always may, a plain user seldom."""
    root = f"test-{uuid.uuid4().hex}"
    provider = probe.choose(root).provider
    try:
        asyncio.run(LimitedBoundaries(provider, root, CONTROLLERS).close())
    except BoundaryError:
        asyncio.run(provider.close())
        return False
    return True


LIMITABLE = controllers_work()


def needs_controllers() -> None:
    """A plain user on a machine that delegates no controller cannot limit; that it is refused has its own test."""
    assert LIMITABLE or os.geteuid() != 0, "root can limit everywhere"
    if not LIMITABLE:
        pytest.skip("no cgroup controller is delegated to this user")


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """Opens a scripted service with one agent that has these settings."""

    @asynccontextmanager
    async def opened(**settings: object) -> AsyncIterator[ScriptedService]:
        async with ScriptedService() as service:
            stop = asyncio.Event()
            running = asyncio.create_task(run_agent(agent_settings(tmp_path, service.url, **settings), stop))
            await service.registered()
            yield service
            stop.set()
            assert await running == 0

    return opened


async def end_of(service: ScriptedService, attempt: str) -> tuple[Outcome, dict[str, str]]:
    """The outcome of an attempt, and the details of its failure."""
    outcome = (await service.terminal(attempt)).outcome
    assert outcome is not None
    details = outcome.failure_info.details if outcome.failure_info else ()
    return outcome, {item.name: item.value or "" for item in details}


def leftovers() -> list[Path]:
    """Cgroups of agents of tests in the hierarchies of the controllers."""
    return [path for name in CONTROLLERS for path in Path("/sys/fs/cgroup", name).rglob("nodeagent-node-1-*")]


async def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], **settings: object) -> None:
    """Where no controller can be had, the agent does not run without the limit."""
    assert await run_agent(agent_settings(tmp_path, "http://127.0.0.1:1", **settings)) == 2
    assert "a limit of the settings cannot be kept here" in capfd.readouterr().err


async def test_a_task_beyond_its_memory_is_told_as_out_of_memory(
    agent: Agent, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel ends it, and its own count is the evidence: kills, limit, peak. Two slots have twice the memory."""
    if not LIMITABLE:
        return await refused(tmp_path, capfd, memory_bytes_per_slot=64 * MIB)
    hog = f"{PYTHON} -c 'print(len(bytearray(90 << 20)))'"
    async with agent(memory_bytes_per_slot=64 * MIB) as service:
        service.send(task("a1", hog), task("a2", hog).model_copy(update={"required_slots": 2}))
        outcome, details = await end_of(service, "a1")
        wide, _ = await end_of(service, "a2")
    assert outcome.exit_code == -signal.SIGKILL
    assert details["OutOfMemory"].startswith("1 processes of the task were ended by the kernel")
    assert details["MemoryLimit"] == f"{64 * MIB} bytes"
    assert int(details["PeakMemory"].split()[0]) <= 64 * MIB
    assert wide.exit_code == 0
    assert leftovers() == []
    return None


async def test_a_child_that_the_kernel_ended_is_told_with_the_failure_of_its_parent(agent: Agent) -> None:
    """The first process has an exit code of its own: it stays, with the evidence beside it; success stays success."""
    needs_controllers()
    script = f'{PYTHON} -c "bytearray(90 << 20)"; exit'
    async with agent(memory_bytes_per_slot=64 * MIB) as service:
        service.send(task("a1", f"/bin/sh -c '{script} 3'"), task("a2", f"/bin/sh -c '{script} 0'"))
        outcome, details = await end_of(service, "a1")
        fine, none = await end_of(service, "a2")
    assert outcome.exit_code == 3
    assert "OutOfMemory" in details
    assert (fine.exit_code, fine.failure_info, none) == (0, None, {})


async def test_a_sigkill_without_evidence_is_never_called_out_of_memory(agent: Agent) -> None:
    """Anybody may send a SIGKILL: without the kernel's count it is signal 9 and nothing else, limit or not."""
    settings: dict[str, object] = {"memory_bytes_per_slot": 64 * MIB} if LIMITABLE else {}
    async with agent(**settings) as service:
        service.send(task("a1", "/bin/sh -c 'kill -KILL $$'"))
        outcome, details = await end_of(service, "a1")
    assert outcome.exit_code == -9
    assert not {"OutOfMemory", "MemoryLimit", "PeakMemory"} & details.keys()


async def test_processes_beyond_the_limit_are_refused_and_counted(agent: Agent) -> None:
    """A storm of forks fails inside the task; the node goes on, and the task's failure says why."""
    needs_controllers()
    storm = "for i in 1 2 3 4 5 6 7 8 9; do sleep 60 & done; wait"
    async with agent(pids_per_task=5) as service:
        service.send(task("a1", f"/bin/sh -c '{storm}'"), task("a2", "/bin/true"))
        _, details = await end_of(service, "a1")
        beside, _ = await end_of(service, "a2")
    assert details["ProcessLimit"].endswith("5 are allowed")
    assert details["LeftoverProcesses"] == "4 killed, 0 remain"
    assert beside.exit_code == 0


async def test_processor_time_is_limited(agent: Agent, tmp_path: Path) -> None:
    """Half a second of work with a tenth of a core takes seconds, not half of one."""
    needs_controllers()
    burn = "import time; s = time.monotonic()\nwhile time.process_time() < .5: pass\nprint(time.monotonic() - s)"
    (tmp_path / "burn.py").write_text(burn)
    async with agent(cpu_cores_per_slot=0.1) as service:
        service.send(task("a1", f"{PYTHON} {tmp_path}/burn.py", task_id="t"))
        outcome, _ = await end_of(service, "a1")
    assert outcome.exit_code == 0
    assert float((tmp_path / "root/workitems/job/job-1/t/stdout.txt").read_text()) > 2.5


async def test_what_a_preparation_left_running_stays_limited_and_its_cgroups_go_with_the_session(agent: Agent) -> None:
    """Cgroups of the limits nest as boundaries do, and are taken away with them."""
    needs_controllers()
    async with agent(memory_bytes_per_slot=64 * MIB, pids_per_task=50) as service:
        service.send(task("p1", "/bin/sh -c 'sleep 600 & exit 0'", kind=AttemptKind.JOB_PREPARATION))
        outcome, _ = await end_of(service, "p1")
        assert outcome.exit_code == 0
        nested = [path for base in leftovers() for path in base.rglob("session-p1/p1")]
        assert len(nested) == 2
        assert all((path / "cgroup.procs").read_text().split() for path in nested)
        service.send(EndJobSession(job_id="job"))
        async with asyncio.timeout(20):
            while any(path.exists() for path in nested):  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.01)
    assert leftovers() == []


async def test_open_files_and_core_dumps(agent: Agent, tmp_path: Path) -> None:
    """The soft limit of files is the setting's; a crash leaves no core, not even with a dump handler."""
    crash = "ulimit -n; cd $AZ_BATCH_TASK_WORKING_DIR; kill -SEGV $$"
    async with agent(open_files_per_task=77) as service:
        service.send(task("a1", f"/bin/sh -c '{crash}'", task_id="t"))
        outcome, _ = await end_of(service, "a1")
    directory = tmp_path / "root/workitems/job/job-1/t"
    assert (directory / "stdout.txt").read_text() == "77\n"
    assert outcome.exit_code == -signal.SIGSEGV
    assert list((directory / "wd").iterdir()) == []


async def test_capped_output_keeps_head_and_tail(agent: Agent, tmp_path: Path) -> None:
    """A task that writes without end fills no disk: first and last bytes are kept, and how many are left out."""
    async with agent(output_head_bytes=100, output_tail_bytes=50) as service:
        service.send(task("a1", "/bin/sh -c 'seq 1 100000; echo end; seq 5 >&2'", task_id="t"))
        outcome, _ = await end_of(service, "a1")
    text = (tmp_path / "root/workitems/job/job-1/t/stdout.txt").read_text()
    assert outcome.exit_code == 0
    assert text.startswith("1\n2\n3\n")
    assert text.endswith("100000\nend\n")
    assert "bytes left out: the output is capped" in text
    assert len(text) < 300
    assert (tmp_path / "root/workitems/job/job-1/t/stderr.txt").read_text() == "1\n2\n3\n4\n5\n"


async def test_the_run_command_tells_out_of_memory(tmp_path: Path) -> None:
    """A limit from the environment holds in local mode, and the evidence is in the task's failureInfo."""
    needs_controllers()
    command = f"{PYTHON} -c 'bytearray(90 << 20)'"
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"id": "hungry", "tasks": [{"id": "t", "commandLine": command}]}))
    environment = {"NODEAGENT_AGENT_MEMORY_BYTES_PER_SLOT": str(64 * MIB)}
    status, out, err = await nodeagent(
        "run", job, "--json", f"--state-dir={tmp_path / 'state'}", environment=environment
    )
    assert status == 1, err
    (told,) = json.loads(out)["tasks"]
    details = {item["name"]: item["value"] for item in told["failureInfo"]["details"]}
    assert "for want of memory" in details["OutOfMemory"]


def test_limits_of_nothing_need_nothing() -> None:
    """Without limits any boundary will do, and the kernel is asked for no count."""
    boundaries = LimitedBoundaries(probe.choose("x", "process_group").provider, "x", Limits().controllers)
    boundary = boundaries.create("a")
    boundaries.limit(boundary, Limits())
    assert (counted(boundary).oom_kills, counted(boundary).forks_refused) == (None, None)
    boundaries.remove(boundary)


async def test_limits_work_beside_a_boundary_without_cgroups(agent: Agent) -> None:
    """Containment and limits are chosen apart: a process group can be limited as well."""
    needs_controllers()
    async with agent(memory_bytes_per_slot=64 * MIB, boundary="process_group") as service:
        service.send(task("a1", f"{PYTHON} -c 'bytearray(90 << 20)'"))
        _, details = await end_of(service, "a1")
    assert "OutOfMemory" in details
    assert leftovers() == []
