"""How tasks end, seen by the service of a real agent: what never starts, what fails, what is stopped, what will not go.

docs/failure-codes.md names these tests as the proof of its rows.
"""

import asyncio
import os
import shlex
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from shutil import rmtree

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.container import ContainerSettings
from nodeagent.model.enums import ExecutionResult
from nodeagent.model.failure import FailureInfo
from nodeagent.model.protocol import Assignment, AttemptKind, Outcome, StopAttempt, StopReason, Transition
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.shim import records

NOT_A_PROGRAM = "neither a program nor a script"


class Node:
    """An agent of this process, and where its things lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = folder / "root" / "shared"
        self.records = folder / "state" / "attempts"

    def directory(self, task_id: str) -> Path:
        """A task's directory."""
        return self.folder / "root" / "workitems" / "job" / "job-1" / task_id

    def record(self, execution: str) -> records.ExitRecord:
        """How an execution ended, by its shim."""
        found = records.read(str(self.records / execution), records.ExitRecord)
        assert found is not None
        return found


@asynccontextmanager
async def agent(service: ScriptedService, folder: Path, runtime: ProcessRuntime | None = None, **settings: object):  # type: ignore[no-untyped-def] # noqa: ANN201
    """Run an agent; it is stopped at the end."""
    stop = asyncio.Event()
    chosen = agent_settings(folder, service.url, **settings)
    running = asyncio.create_task(run_agent(chosen, stop, runtime=runtime))
    await service.registered()
    try:
        yield Node(folder)
    finally:
        stop.set()
        status = await running
    assert status == 0


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def node(service: ScriptedService, tmp_path: Path) -> AsyncIterator[Node]:
    """A node as `agent_settings` makes it: one second of grace."""
    async with agent(service, tmp_path) as running:
        yield running


async def outcome_of(service: ScriptedService, attempt_id: str) -> Outcome:
    """The outcome of a completed attempt."""
    report = await service.terminal(attempt_id)
    assert report.transition is Transition.COMPLETED, report
    assert report.outcome is not None
    return report.outcome


async def failure_of(service: ScriptedService, attempt_id: str) -> tuple[FailureInfo, dict[str, str | None]]:
    """The failure of a completed attempt, and its details by name."""
    outcome = await outcome_of(service, attempt_id)
    assert outcome.result is ExecutionResult.FAILURE
    assert outcome.failure_info is not None
    return outcome.failure_info, {detail.name: detail.value for detail in outcome.failure_info.details}


def shell(script: str) -> str:
    """A command line that runs a script."""
    return f"/bin/sh -c {shlex.quote(script)}"


def python(program: str) -> str:
    """A command line that runs a Python program."""
    return f"{sys.executable} -c {shlex.quote(program)}"


def living(node: Node, attempt_id: str) -> list[int]:
    """The processes that carry the mark of an attempt of this node and are no zombies."""
    found = []
    marks = (f"NODEAGENT_ATTEMPT={attempt_id}\0".encode(), f"AZ_BATCH_NODE_ROOT_DIR={node.folder}/root\0".encode())
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and all(mark in (entry / "environ").read_bytes() for mark in marks):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what another process does, and nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files and processes have no event
            await asyncio.sleep(0.01)
    assert condition(), what


# What never starts.


def make_programs(shared: Path) -> None:
    """Put files that cannot be executed, each for another reason, into the shared directory."""
    foreign = 21 if os.uname().machine != "ppc64" else 22
    header = b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HH", 2, foreign)
    for name, mode, content in (
        ("plain", 0o644, b"#!/bin/sh\n"),
        ("orphan", 0o755, b"#!/no/such/interpreter -x\n"),
        ("text", 0o755, b"just words\n"),
        ("foreign", 0o755, header.ljust(64, b"\0")),
    ):
        (shared / name).write_bytes(content)
        (shared / name).chmod(mode)


@pytest.mark.parametrize(
    ("command", "code", "message", "hint"),
    [
        ("no-such-program", "CommandProgramNotFound", "ENOENT", "not found in PATH="),
        ("./missing", "CommandProgramNotFound", "ENOENT", "relative paths start at the working directory"),
        ("{shared}/orphan", "CommandProgramNotFound", "ENOENT", "its interpreter /no/such/interpreter does not exist"),
        ("{shared}/plain", "CommandLaunchFailed", "EACCES", "not executable for this user"),
        ("/etc/", "CommandLaunchFailed", "EACCES", "this is a directory"),
        ("{shared}/text", "CommandLaunchFailed", "ENOEXEC", "nor a script that begins with #!"),
        ("{shared}/foreign", "CommandLaunchFailed", "ENOEXEC", "a program for "),
        ("/bin/echo {long}", "CommandLaunchFailed", "E2BIG", "longer than this system allows"),
    ],
    ids=["bare", "relative", "interpreter", "mode", "directory", "text", "architecture", "too long"],
)
async def test_what_cannot_be_launched(
    service: ScriptedService, node: Node, command: str, code: str, message: str, hint: str
) -> None:
    """A pre-processing failure: code, errno, path, user, working directory and a hint; no exit code, nothing ran."""
    make_programs(node.shared)
    service.send(task("a1", command.format(shared=node.shared, long="x" * 200_000), task_id="t"))

    failure, details = await failure_of(service, "a1")
    outcome = await outcome_of(service, "a1")
    assert (failure.code, outcome.exit_code) == (code, None)
    assert message in str(details["Message"])
    assert hint in str(details["Hint"])
    assert details["WorkingDirectory"] == str(node.directory("t") / "wd")
    assert {"Path", "User"} <= details.keys()
    assert node.record("a1").started_at is None


class Removing(ProcessRuntime):
    """A runtime before whose launches somebody deletes the working directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "state", warm=1)
        self._workitems = folder / "root" / "workitems"

    async def launch(self, attempt_id: str) -> None:
        """Delete, then launch."""
        for wd in self._workitems.glob("*/*/*/wd"):
            rmtree(wd)
        await super().launch(attempt_id)


async def test_a_working_directory_that_is_gone_fails_the_launch(service: ScriptedService, tmp_path: Path) -> None:
    """It is no missing program: the step is told."""
    (tmp_path / "state").mkdir(mode=0o700)
    async with agent(service, tmp_path, Removing(tmp_path)):
        service.send(task("a1", "/bin/true"))
        failure, details = await failure_of(service, "a1")
    assert failure.code == "CommandLaunchFailed"
    assert details["Step"] == "chdir"
    assert "ENOENT" in str(details["Message"])
    assert "working directory is missing" in str(details["Hint"])


async def test_a_directory_that_cannot_be_made_fails_the_task(service: ScriptedService, node: Node) -> None:
    """A file lies where the job's directory would be."""
    (node.folder / "root" / "workitems" / "job").touch()
    service.send(task("a1", "/bin/true"))
    failure, details = await failure_of(service, "a1")
    assert failure.code == "ResourceDirectoryCreateFailed"
    assert "ENOTDIR" in str(details["Message"]) or "EEXIST" in str(details["Message"])
    assert str(details["Path"]).startswith(str(node.folder / "root" / "workitems" / "job"))


def asking(assignment: Assignment, **more: object) -> Assignment:
    """The assignment with more work than this agent knows how to do."""
    return assignment.model_copy(update={"work": assignment.work.model_copy(update=more)})


async def test_what_this_agent_is_too_old_for_fails_by_name(service: ScriptedService, node: Node) -> None:
    """The service refuses such work; an agent that gets it all the same says so, and runs nothing."""
    service.send(asking(task("a1", "/bin/true"), container_settings=ContainerSettings(image_name="i")))
    failure, details = await failure_of(service, "a1")
    assert (failure.code, (await outcome_of(service, "a1")).exit_code) == ("ContainerMiscError", None)
    assert "container images" in str(details["Message"])


# What fails by itself.


@pytest.mark.parametrize("code", [1, 2, 126, 127, 255])
async def test_an_exit_code_is_told_as_it_is(service: ScriptedService, node: Node, code: int) -> None:
    """FailureExitCode, by Batch's words."""
    service.send(task("a1", shell(f"exit {code}")))
    failure, details = await failure_of(service, "a1")
    assert (failure.code, failure.message) == (
        "FailureExitCode",
        "The task exited with an exit code representing a failure",
    )
    assert details == {
        "Message": "The task process exited with an unexpected exit code",
        "AdditionalErrorCode": "FailureExitCode",
        "ExitCode": str(code),
        "LeftoverProcesses": "0 killed, 0 remain",
    }
    assert (await outcome_of(service, "a1")).exit_code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
async def test_a_signal_is_told_as_a_negative_exit_code(
    service: ScriptedService, node: Node, number: signal.Signals
) -> None:
    """Kept apart from exit codes; no core is dumped; a SIGKILL is never said to be the kernel's without evidence."""
    service.send(task("a1", shell(f"ulimit -c; kill -{number.value} $$"), task_id="t"))
    _, details = await failure_of(service, "a1")
    assert (await outcome_of(service, "a1")).exit_code == -number
    assert details["ExitCode"] == str(-number)
    assert details["Signal"] == f"The task process was ended by signal {number.value}"
    assert not [name for name in details if "memory" in name.lower() or "oom" in name.lower()]
    assert (node.directory("t") / "stdout.txt").read_text() == "0\n"
    assert list((node.directory("t") / "wd").iterdir()) == []
    assert not node.record("a1").core


async def test_a_task_says_in_its_own_words_why_it_failed(service: ScriptedService, node: Node) -> None:
    """What it wrote to the file that NODEAGENT_ERROR_FILE names, at most 2 KiB, and no file that a link leads to."""
    (node.shared / "secret").write_text("secret")
    service.send(
        task("a1", shell('echo "input 7 is damaged" > "$NODEAGENT_ERROR_FILE"; exit 3')),
        task("a2", shell('head -c 9000 /dev/zero | tr "\\0" x > "$NODEAGENT_ERROR_FILE"; exit 3')),
        task("a3", shell('ln -s "$AZ_BATCH_NODE_SHARED_DIR/secret" "$NODEAGENT_ERROR_FILE"; exit 3')),
        task("a4", shell('echo fine > "$NODEAGENT_ERROR_FILE"')),
    )
    assert (await failure_of(service, "a1"))[1]["ErrorFile"] == "input 7 is damaged"
    assert (await failure_of(service, "a2"))[1]["ErrorFile"] == "x" * 2048
    assert "ErrorFile" not in (await failure_of(service, "a3"))[1]
    assert (await outcome_of(service, "a4")).failure_info is None


@pytest.mark.parametrize("told", [True, False])
async def test_the_last_words_can_be_kept_on_the_node(service: ScriptedService, tmp_path: Path, *, told: bool) -> None:
    """`stderr_tail = false`: nothing of stderr leaves the node, the task's own message does."""
    async with agent(service, tmp_path, stderr_tail=told):
        service.send(task("a1", shell('echo password >&2; echo mine > "$NODEAGENT_ERROR_FILE"; exit 3')))
        _, details = await failure_of(service, "a1")
    assert details.get("StandardError") == ("password" if told else None)
    assert details["ErrorFile"] == "mine"


async def test_a_preparation_that_is_lost_again_and_again_is_given_up(service: ScriptedService, node: Node) -> None:
    """Its shim is killed four times: three times it is begun anew, then it has failed, and no exit code is invented."""
    service.send(task("p", "/bin/sleep 300", kind=AttemptKind.JOB_PREPARATION))
    for execution in ("p", "p-r1", "p-r2", "p-r3"):
        where = str(node.records / execution)
        await until(lambda where=where: records.exists(where, records.StartedRecord.FILE), f"{execution} to run")  # type: ignore[misc]
        shim = records.read(where, records.ShimRecord)
        assert shim is not None
        os.kill(shim.pid, signal.SIGKILL)
    failure, details = await failure_of(service, "p")
    assert failure.code == "MaxInternalRetryCountReached"
    assert details["Recoveries"] == "3"
    assert (await outcome_of(service, "p")).exit_code is None
    assert not living(node, "p")


# What is stopped.


@pytest.mark.parametrize("kind", [AttemptKind.USER, AttemptKind.JOB_PREPARATION, AttemptKind.JOB_RELEASE])
async def test_the_wall_clock_ends_every_kind_by_its_own_limit(
    service: ScriptedService, node: Node, kind: AttemptKind
) -> None:
    """Killed and completed, never retried, and the limit is told."""
    limit = timedelta(seconds=0.3)
    service.send(task("a1", "/bin/sleep 60", kind=kind, max_wall_clock_time=limit, max_task_retry_count=2))
    failure, details = await failure_of(service, "a1")
    outcome = await outcome_of(service, "a1")
    assert (failure.code, failure.message) == ("TaskEnded", "The task was ended by user request")
    assert (outcome.exit_code, outcome.stop_reason) == (-15, StopReason.WALL_CLOCK)
    assert details["Message"] == "The maximum execution time configured on the task was exceeded"
    assert (details["AdditionalErrorCode"], details["StoppedBy"]) == ("MaxWallClockTimeExpired", "node")
    assert details["Limit"] == "maxWallClockTime PT0.3S"
    assert len(service.reports_of("a1")) == 2


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (StopReason.USER_TERMINATE, "TaskTerminated"),
        (StopReason.JOB_TERMINATE, "JobTerminated"),
        (StopReason.JOB_DISABLE_TERMINATE, "JobDisabled"),
        (StopReason.JOB_DISABLE_REQUEUE, "JobDisabled"),
        (StopReason.TASK_DELETE, "TaskDeleted"),
        (StopReason.DRAIN_REQUEUE, "NodeDrain"),
        (StopReason.NODE_REMOVED, "NodeRemoved"),
        (StopReason.PREEMPTED, "NodePreempted"),
        (StopReason.SUPERSEDED, "Superseded"),
    ],
)
async def test_who_stopped_a_task_is_told(service: ScriptedService, node: Node, reason: StopReason, code: str) -> None:
    """TaskEnded for all, with the cause as the additional code."""
    service.send(task("a1", shell("touch up; exec sleep 60"), task_id="t"))
    await until((node.directory("t") / "wd" / "up").exists, "the task to run")
    service.send(StopAttempt(attempt_id="a1", reason=reason))
    failure, details = await failure_of(service, "a1")
    assert failure.code == "TaskEnded"
    assert (details["AdditionalErrorCode"], details["StoppedBy"]) == (code, "service")
    assert details["LeftoverProcesses"] == "0 killed, 0 remain"


async def test_a_task_may_use_its_grace(service: ScriptedService, tmp_path: Path) -> None:
    """SIGTERM first: it tidies up and exits with a code of its own, which is told beside TaskEnded."""
    async with agent(service, tmp_path, grace_seconds=20) as node:
        service.send(
            task("a1", shell('trap "touch tidy; exit 7" TERM; touch up; while :; do sleep 0.1; done'), task_id="t")
        )
        wd = node.directory("t") / "wd"
        await until((wd / "up").exists, "the task to run")
        service.send(StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE))
        failure, _ = await failure_of(service, "a1")
        assert (failure.code, (await outcome_of(service, "a1")).exit_code) == ("TaskEnded", 7)
        assert (wd / "tidy").exists()


@pytest.mark.parametrize("grace", [0, 0.5])
async def test_the_grace_is_a_setting(service: ScriptedService, tmp_path: Path, grace: float) -> None:
    """Who ignores SIGTERM is killed when it is over, not earlier."""
    async with agent(service, tmp_path, grace_seconds=grace) as node:
        service.send(task("a1", shell('trap "" TERM; touch up; while :; do sleep 0.1; done'), task_id="t"))
        await until((node.directory("t") / "wd" / "up").exists, "the task to run")
        service.send(StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE))
        outcome = await outcome_of(service, "a1")
        stop = records.read(str(node.records / "a1"), records.StopRecord)
        assert stop is not None
        assert outcome.exit_code == (-9 if grace else outcome.exit_code)
        assert grace <= node.record("a1").ended_at - stop.requested_at < grace + 5
        assert not living(node, "a1")


# What will not go.

ESCAPE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/"); os.closerange(0, 3); os.write(w, b"x"); os.close(w)
        time.sleep(300)
    os._exit(0)
"""
ESCAPEE = f"import os\nr, w = os.pipe()\n{ESCAPE}\nos.close(w); os.read(r, 1); os._exit(3)"
PIPE_HOLDER = "import os, time\nif os.fork() == 0:\n    time.sleep(300)\nos.write(1, b'out'); os._exit(5)"
STORM = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)
            time.sleep(0.005)
open("up", "w").close()
time.sleep(300)
"""
IGNORER = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    time.sleep(300)
open("up", "w").close()
time.sleep(300)
"""


@pytest.mark.parametrize(("program", "code"), [(ESCAPEE, 3), (PIPE_HOLDER, 5)], ids=["escapee", "pipe holder"])
async def test_what_a_task_leaves_is_killed_and_counted(
    service: ScriptedService, node: Node, program: str, code: int
) -> None:
    """The end is the task's own; what it left behind is gone before that is told, and the failure says how many."""
    service.send(task("a1", python(program)))
    _, details = await failure_of(service, "a1")
    assert not living(node, "a1")
    assert (await outcome_of(service, "a1")).exit_code == code
    assert details["LeftoverProcesses"] == "1 killed, 0 remain"
    swept = records.read(str(node.records / "a1"), records.SweptRecord)
    assert swept is not None
    assert (swept.killed, swept.remaining) == (1, 0)


@pytest.mark.parametrize(("program", "least"), [(IGNORER, 2), (STORM, 9)], ids=["ignorer", "storm"])
async def test_what_does_not_want_to_end_is_ended(
    service: ScriptedService, node: Node, program: str, least: int
) -> None:
    """A stop ends who ignores it and who forks faster than anybody can list: nothing remains."""
    service.send(task("a1", python(program), task_id="t"))
    await until((node.directory("t") / "wd" / "up").exists, "the task to run")
    service.send(StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE))
    failure, details = await failure_of(service, "a1")
    assert not living(node, "a1")
    assert failure.code == "TaskEnded"
    killed, _, rest = str(details["LeftoverProcesses"]).partition(" ")
    assert int(killed) >= least
    assert rest == "killed, 0 remain"
