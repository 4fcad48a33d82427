"""Kill -9 of the agent at every durable step, under real tasks, and what must hold afterwards (design.md §8).

I1 a command runs at most once per attempt: each writes its pid into a file of its own. I2 every accepted attempt has
exactly one terminal state at the service. I3 exit codes are the kernel's. I4 nothing of an attempt runs after its
end was told. I10 recovering twice changes nothing.
"""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nodeagent.agent import failpoints
from nodeagent.agent.testing import NODE_KEY, ScriptedService, agent_settings, task
from nodeagent.model.protocol import (
    TERMINAL_TRANSITIONS,
    AttemptKind,
    EndJobSession,
    RemoveFiles,
    Report,
    StopAttempt,
    StopReason,
    Transition,
)

PROGRAM = """
import asyncio, sys
from nodeagent.agent.daemon import run_agent
from nodeagent.agent.settings import AgentSettings
sys.exit(asyncio.run(run_agent(AgentSettings.model_validate_json(sys.argv[1]))))
"""


class Node:
    """An agent as a process of its own, which may be killed and started again on the same folders."""

    def __init__(self, folder: Path, service: ScriptedService, **settings: object) -> None:
        key = folder / "node.key"
        key.write_text(NODE_KEY)
        given = {"node_key": None, "node_key_file": key} | settings
        self.settings = agent_settings(folder, service.url, **given)
        self.shared = folder / "root" / "shared"
        self.pids = folder / "pids"
        self.pids.mkdir()
        self.process: asyncio.subprocess.Process | None = None
        self._service = service
        self._log = folder / "agent.log"

    async def start(self, failpoint: str | None = None) -> None:
        """Begin a life."""
        environment = {key: value for key, value in os.environ.items() if key != failpoints.VARIABLE}
        if failpoint is not None:
            environment[failpoints.VARIABLE] = failpoint
        with self._log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, self.settings.model_dump_json(exclude_none=True),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            )  # fmt: skip

    async def ended(self) -> int:
        """Wait for the end of this life; its exit status."""
        assert self.process is not None
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def kill(self) -> None:
        """Kill -9."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM."""
        assert self.process is not None
        self.process.terminate()
        return await self.ended()

    def command(self, name: str, exit_code: int, wait_for: str | None = None) -> str:
        """A command that writes its pid into a file of its own, waits for a file, and exits."""
        wait = f"while [ ! -e {self.pids}/{wait_for} ]; do sleep 0.02; done; " if wait_for else ""
        return f"/bin/sh -c 'echo $$ >> {self.pids}/{name}; {wait}exit {exit_code}'"

    def ran(self, name: str) -> list[int]:
        """The pids with which a command was executed."""
        path = self.pids / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def pid_of(self, name: str) -> int:
        """Wait until a command has been executed."""
        await until(lambda: bool(self.ran(name)), f"{name} to run")
        return self.ran(name)[0]

    def log(self) -> str:
        """What the agent wrote."""
        return self._log.read_text(errors="replace")


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process does, and nothing announces."""
    try:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - files and processes have no event
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise TimeoutError(f"waited for {what}") from error


def start_ticks(pid: int) -> str:
    """What tells a process from a later one with the same pid."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def alive(pid: int) -> bool:
    """Whether a process with this pid is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def shim_of(pid: int) -> int:
    """The parent of a task's first process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def exit_code(report: Report) -> int | None:
    """The exit code of a completed attempt."""
    assert report.transition is Transition.COMPLETED, report
    assert report.outcome is not None
    return report.outcome.exit_code


def assert_ended_once(service: ScriptedService) -> None:
    """I2, and sequence numbers without gaps."""
    ends = Counter(report.attempt_id for report in service.reports if report.transition in TERMINAL_TRANSITIONS)
    assert set(ends.values()) <= {1}, ends
    for attempt_id in {report.attempt_id for report in service.reports}:
        reports = service.reports_of(attempt_id)
        assert [report.seq for report in reports] == list(range(1, len(reports) + 1))


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def node(service: ScriptedService, tmp_path: Path) -> AsyncIterator[Node]:
    """A node, not started; afterwards nothing of it runs."""
    made = Node(tmp_path, service)
    yield made
    if made.process is not None and made.process.returncode is None:
        assert await made.stop() == 0, made.log()
    for path in made.pids.iterdir():
        assert not any(alive(pid) for pid in made.ran(path.name)), f"a process of {path.name} is left"


ELSEWHERE = ("mid_migration", "_account_", "_disk", "_package_", "_upload_", "_transfer_", "_node_command_")
POINTS = [name for name in failpoints.NAMES if not any(part in name for part in ELSEWHERE)]
"""Those of accounts are in test_account_kills.py, of packages in test_package_install.py, of uploads in
test_upload_kills.py, of transfers in test_transfer_kills.py, of reboots in test_reboot_kills.py."""


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_failpoint_nothing_is_lost_and_nothing_runs_twice(
    point: str, service: ScriptedService, node: Node
) -> None:
    """A task that ran before goes on with its pid; preparation, retry, stop and removal come out right as well."""
    await node.start()
    await service.registered()
    service.send(
        task("long", node.command("long", 5, "go")),
        task("first", node.command("first", 1), task_id="again"),
        task("gone", node.command("gone", 0), job_id="old"),
    )
    pid = await node.pid_of("long")
    born = start_ticks(pid)
    await service.terminal("first")
    await service.terminal("gone")
    await node.kill()

    await node.start(point)
    service.send(
        RemoveFiles(job_id="old"),
        task("prep", node.command("prep", 0), kind=AttemptKind.JOB_PREPARATION),
        *(task(f"u{code}", node.command(f"u{code}", code), gate="prep") for code in range(4)),
        task("second", node.command("second", 0), task_id="again", retry_count=1),
        task("stopped", node.command("stopped", 0, "never")),
        StopAttempt(attempt_id="stopped", reason=StopReason.USER_TERMINATE),
    )
    assert await node.ended() == -signal.SIGKILL, node.log()

    await node.start()
    await service.until(lambda: service.registers[-1].epoch == 3, "the third life")
    assert alive(pid)
    assert start_ticks(pid) == born
    (node.pids / "go").touch()

    codes = {f"u{code}": code for code in range(4)} | {"long": 5, "second": 0, "prep": 0, "first": 1}
    assert {name: exit_code(await service.terminal(name)) for name in codes} == codes
    stopped = await service.terminal("stopped")
    assert stopped.outcome is not None
    assert stopped.outcome.stop_reason is StopReason.USER_TERMINATE
    service.send(EndJobSession(job_id="job"))
    workitems = node.settings.root / "workitems"
    await until(lambda: not (workitems / "old").exists(), "the old job's files to go")

    assert_ended_once(service)
    for name in codes:
        assert len(node.ran(name)) == 1, f"{name} ran {len(node.ran(name))} times"
    assert len(node.ran("stopped")) <= 1
    assert (workitems / "job" / "job-1" / "again~1" / "stdout.txt").exists()
    assert not list(workitems.glob("job/job-1/again~[2-9]"))


async def test_killed_in_the_first_migration_the_next_life_makes_the_database(
    service: ScriptedService, node: Node
) -> None:
    """The layout is there whole, or not at all."""
    await node.start("mid_migration")
    assert await node.ended() == -signal.SIGKILL

    await node.start()
    service.send(task("a1", node.command("a1", 3)))
    assert exit_code(await service.terminal("a1")) == 3


async def test_tasks_that_end_while_the_agent_is_dead_have_their_true_exit_codes(
    service: ScriptedService, node: Node
) -> None:
    """The shims write them down; the next life reads them."""
    await node.start()
    names = [f"t{code}" for code in range(8)]
    service.send(*(task(name, node.command(name, code, "go")) for code, name in enumerate(names)))
    pids = [await node.pid_of(name) for name in names]
    await node.kill()
    (node.pids / "go").touch()
    await until(lambda: not any(alive(pid) for pid in pids), "the tasks to end")

    await node.start()

    assert [exit_code(await service.terminal(name)) for name in names] == list(range(8))
    assert_ended_once(service)
    assert all(len(node.ran(name)) == 1 for name in names)


async def test_a_stopped_agent_leaves_tasks_running_and_the_next_life_adopts_them(
    service: ScriptedService, node: Node
) -> None:
    """SIGTERM is not a drain (design.md §6)."""
    await node.start()
    service.send(task("a1", node.command("a1", 4, "go")))
    pid = await node.pid_of("a1")
    assert await node.stop() == 0
    assert alive(pid)

    await node.start()
    registration = await service.registered(2)
    assert registration.live_attempts == ("a1",)
    assert registration.epoch == 2
    (node.pids / "go").touch()

    assert exit_code(await service.terminal("a1")) == 4


async def test_a_killed_shim_makes_the_attempt_lost_and_leaves_nothing(service: ScriptedService, node: Node) -> None:
    """Nobody knows the exit code then, so none is told; the processes are gone, and the report says how many."""
    await node.start()
    service.send(task("a1", node.command("a1", 0, "never")))
    pid = await node.pid_of("a1")
    shim = shim_of(pid)
    os.kill(shim, signal.SIGKILL)

    report = await service.terminal("a1")

    assert report.transition is Transition.LOST
    assert report.outcome is None
    assert "killed" in (report.detail or "")
    assert not alive(pid)


async def test_agent_and_shim_killed_together(service: ScriptedService, node: Node) -> None:
    """The next life finds a free lock and no exit record: swept, then lost."""
    await node.start()
    service.send(task("a1", node.command("a1", 0, "never")))
    pid = await node.pid_of("a1")
    shim = shim_of(pid)
    await node.kill()
    os.kill(shim, signal.SIGKILL)
    await node.start()

    report = await service.terminal("a1")

    assert report.transition is Transition.LOST
    assert not alive(pid)
    assert len(node.ran("a1")) == 1


async def test_a_preparation_whose_shim_is_killed_is_run_again(service: ScriptedService, node: Node) -> None:
    """Recovered on the node, not counted as a retry; tasks wait for the execution that succeeds."""
    await node.start()
    service.send(
        task("p", node.command("p", 0, "go"), kind=AttemptKind.JOB_PREPARATION),
        task("u", node.command("u", 0), gate="p"),
    )
    pid = await node.pid_of("p")
    os.kill(shim_of(pid), signal.SIGKILL)
    await until(lambda: len(node.ran("p")) == 2, "the second execution")
    (node.pids / "go").touch()

    assert exit_code(await service.terminal("u")) == 0
    preparation = await service.terminal("p")
    assert exit_code(preparation) == 0
    assert preparation.retry_count == 0
    assert not alive(pid)


async def test_records_without_an_attempt_are_swept_and_put_aside(service: ScriptedService, node: Node) -> None:
    """The database was lost: what still runs of it must not go on unseen."""
    await node.start()
    service.send(task("a1", node.command("a1", 0, "never")))
    pid = await node.pid_of("a1")
    await node.kill()
    for path in node.settings.state_dir.glob("agent.db*"):
        path.unlink()

    await node.start()
    await service.registered(2)

    assert not alive(pid)
    assert (node.settings.state_dir / "quarantine" / "a1" / "spec.json").exists()
    assert list((node.settings.state_dir / "attempts").iterdir()) == []


@pytest.mark.parametrize("record", ["shim.json", "started.json", "exit.json"])
async def test_a_damaged_record_costs_its_attempt_and_not_the_node(
    record: str, service: ScriptedService, node: Node
) -> None:
    """No exit code is guessed: what runs is ended, the attempt is lost, and the node goes on with the others."""
    await node.start()
    service.send(task("a1", node.command("a1", 6, "go")), task("a2", node.command("a2", 7, "go")))
    pids = [await node.pid_of("a1"), await node.pid_of("a2")]
    await node.kill()
    if record == "exit.json":
        (node.pids / "go").touch()
        await until(lambda: not any(alive(pid) for pid in pids), "the tasks to end")
    path = node.settings.state_dir / "attempts" / "a1" / record
    await until(path.exists, f"{record} to be written")
    path.write_bytes(path.read_bytes()[:-20] + b'"crc32":"00000000"}')

    await node.start()
    lost = await service.terminal("a1")
    (node.pids / "go").touch()

    assert lost.transition is Transition.LOST
    assert lost.outcome is None
    assert exit_code(await service.terminal("a2")) == 7
    assert not any(alive(pid) for pid in pids)
    assert_ended_once(service)


async def test_a_damaged_spec_costs_nothing_while_its_shim_lives(service: ScriptedService, node: Node) -> None:
    """The shim has read it, and its exit record is the truth."""
    await node.start()
    service.send(task("a1", node.command("a1", 6, "go")))
    await node.pid_of("a1")
    await node.kill()
    (node.settings.state_dir / "attempts" / "a1" / "spec.json").write_text("{")

    await node.start()
    await service.registered(2)
    (node.pids / "go").touch()

    assert exit_code(await service.terminal("a1")) == 6


async def test_recovering_twice_changes_nothing(service: ScriptedService, node: Node) -> None:
    """I10: a life that only recovers leaves everything as the life before it did."""
    await node.start()
    service.send(
        task("run", node.command("run", 2, "go")),
        task("p", node.command("p", 0, "go"), kind=AttemptKind.JOB_PREPARATION),
        task("u", node.command("u", 1), gate="p"),
    )
    pid = await node.pid_of("run")
    await node.pid_of("p")
    for life in range(2, 5):
        await node.kill()
        await node.start()
        registration = await service.registered(life)
        assert set(registration.live_attempts) == {"run", "p", "u"}
        assert alive(pid)
    (node.pids / "go").touch()

    assert [exit_code(await service.terminal(name)) for name in ("run", "p", "u")] == [2, 0, 1]
    assert all(len(node.ran(name)) == 1 for name in ("run", "p", "u"))
    assert_ended_once(service)


async def test_killed_again_and_again_under_load(service: ScriptedService, node: Node) -> None:
    """A random killer over a hundred short tasks: each runs once, and ends once with its own exit code."""
    dice = random.Random(20261121)  # noqa: S311 - no secret, and the same every time
    names = [f"t{number}" for number in range(100)]
    await node.start()
    await service.registered()
    for number, name in enumerate(names):
        service.send(task(name, node.command(name, number % 7)))

    def ended() -> int:
        return sum(report.transition in TERMINAL_TRANSITIONS for report in service.reports)

    for life in range(2, 8):
        wanted = ended() + dice.randint(1, 12)
        await service.until(lambda wanted=wanted: ended() >= min(wanted, len(names)), "progress")  # type: ignore[misc]
        await node.kill()
        await node.start()
        await service.registered(life)

    reports = [await service.terminal(name) for name in names]
    assert_ended_once(service)
    for number, (name, report) in enumerate(zip(names, reports, strict=True)):
        assert exit_code(report) == number % 7
        assert len(node.ran(name)) == 1
