"""An agent with real shims and processes against a scripted service: what tasks see, and what is told of them."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from nodeagent.agent.daemon import run_agent
from nodeagent.agent.testing import ScriptedService, agent_settings, task
from nodeagent.model.enums import ExecutionResult
from nodeagent.model.protocol import (
    Assignment,
    AttemptKind,
    EndJobSession,
    Outcome,
    RemoveFiles,
    Report,
    ReturnReason,
    StopAttempt,
    StopReason,
    Transition,
)
from nodeagent.shim import records


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A scripted service."""
    async with ScriptedService() as running:
        yield running


@pytest.fixture
async def root(service: ScriptedService, tmp_path: Path) -> AsyncIterator[Path]:
    """The node root of an agent that is registered with the service."""
    stop = asyncio.Event()
    agent = asyncio.create_task(run_agent(agent_settings(tmp_path, service.url), stop))
    await service.registered()
    yield tmp_path / "root"
    stop.set()
    assert await agent == 0


def outcome_of(report: Report) -> Outcome:
    """The outcome of a completed attempt."""
    assert report.transition is Transition.COMPLETED, report
    assert report.outcome is not None
    return report.outcome


def directory(root: Path, task_id: str, job: str = "job") -> Path:
    """A task's directory."""
    return root / "workitems" / job / "job-1" / task_id


def alive(pid: int) -> bool:
    """Whether a process with this pid is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process or thread does, and nothing announces."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - files and processes have no event
            await asyncio.sleep(0.01)
    assert condition(), what


async def number_in(path: Path) -> int:
    """Wait until a task has written a number into a file."""

    def written() -> str:
        return path.read_text() if path.exists() else ""

    await until(lambda: written().endswith("\n"), f"{path} to be written")
    return int(written())


async def test_a_task_runs_and_its_end_is_reported_whole(service: ScriptedService, root: Path) -> None:
    """Running, then completed: exit code, times, statistics, sweep proof, and the directory relative to the root."""
    service.send(task("a1", "/bin/sh -c 'echo out; echo err >&2'", task_id="hello"))

    end = await service.terminal("a1")
    outcome = outcome_of(end)
    begun, ended = service.reports_of("a1")

    assert [begun.transition, ended.transition] == [Transition.RUNNING, Transition.COMPLETED]
    assert begun.start_time is not None
    assert begun.start_time <= outcome.end_time
    assert (outcome.exit_code, outcome.result, outcome.failure_info) == (0, ExecutionResult.SUCCESS, None)
    assert outcome.sweep is not None
    assert outcome.sweep.remaining == 0
    assert outcome.statistics is not None
    assert outcome.statistics.wall_clock_seconds > 0
    assert end.task_root_directory == "workitems/job/job-1/hello"
    assert (directory(root, "hello") / "stdout.txt").read_text() == "out\n"
    assert (directory(root, "hello") / "stderr.txt").read_text() == "err\n"


async def test_a_task_sees_the_environment_of_batch(service: ScriptedService, root: Path) -> None:
    """Spec/node.md §2, and nothing of the agent's own environment."""
    os.environ["NODEAGENT_TEST_LEAK"] = "1"
    try:
        service.send(task("a1", "/usr/bin/env", task_id="t", environment={"MINE": "$AZ_BATCH_TASK_ID!"}))
        await service.terminal("a1")
    finally:
        del os.environ["NODEAGENT_TEST_LEAK"]

    lines = (directory(root, "t") / "stdout.txt").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines)
    assert seen["AZ_BATCH_ACCOUNT_NAME"] == "testaccount"
    assert seen["AZ_BATCH_NODE_ROOT_DIR"] == str(root)
    assert seen["AZ_BATCH_TASK_WORKING_DIR"] == str(directory(root, "t") / "wd")
    assert seen["MINE"] == "t!"
    assert "NODEAGENT_TEST_LEAK" not in seen


async def test_a_failing_task_tells_its_exit_code_and_last_words(service: ScriptedService, root: Path) -> None:
    """FailureExitCode with the tail of stderr as a detail."""
    service.send(task("a1", "/bin/sh -c 'echo no such table >&2; exit 7'"))

    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.exit_code == 7
    assert outcome.failure_info is not None
    assert outcome.failure_info.code == "FailureExitCode"
    assert {"StandardError": "no such table", "ExitCode": "7"}.items() <= {
        detail.name: detail.value for detail in outcome.failure_info.details
    }.items()


async def test_a_task_that_a_signal_ended_has_a_negative_exit_code(service: ScriptedService, root: Path) -> None:
    """Spec/node.md §9: -n for signal n."""
    service.send(task("a1", "/bin/sh -c 'kill -9 $$'"))

    assert outcome_of(await service.terminal("a1")).exit_code == -9


@pytest.mark.parametrize(
    ("command", "code", "word"),
    [
        ("no-such-program-anywhere", "CommandProgramNotFound", "ENOENT"),
        ("/etc/passwd", "CommandLaunchFailed", "EACCES"),
        ("/bin/sh -c 'unclosed", "CommandLaunchFailed", "no closing quotation"),
        ("   ", "CommandLaunchFailed", "names no program"),
    ],
)
async def test_what_cannot_be_launched_says_why(
    service: ScriptedService, root: Path, command: str, code: str, word: str
) -> None:
    """No exit code, and a failure that a person can act on (spec/node.md §3)."""
    service.send(task("a1", command))

    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.exit_code is None
    assert outcome.failure_info is not None
    assert outcome.failure_info.code == code
    assert word in outcome.failure_info.to_json()


async def test_settings_that_refer_to_each_other_in_a_circle_fail_the_task(
    service: ScriptedService, root: Path
) -> None:
    """The command is not launched (spec/node.md §2)."""
    service.send(task("a1", "/bin/true", environment={"ONE": "$TWO", "TWO": "$ONE"}))

    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.failure_info is not None
    assert "circle" in outcome.failure_info.to_json()


async def test_a_stop_ends_the_whole_tree(service: ScriptedService, root: Path) -> None:
    """SIGTERM, grace, kill: also for a child that ignores SIGTERM and left the session; TaskEnded with the reason."""
    script = "setsid sh -c \"trap '' TERM; echo \\$\\$ > child; while :; do sleep 1; done\" & echo $$ > parent; wait"
    service.send(task("a1", f"/bin/bash -c '{script}'", task_id="t"))
    wd = directory(root, "t") / "wd"
    pids = [await number_in(wd / name) for name in ("parent", "child")]

    service.send(StopAttempt(attempt_id="a1", reason=StopReason.USER_TERMINATE))
    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.stop_reason is StopReason.USER_TERMINATE
    assert outcome.exit_code == -15
    assert outcome.failure_info is not None
    assert outcome.failure_info.code == "TaskEnded"
    assert outcome.sweep is not None
    assert outcome.sweep.remaining == 0
    assert not any(alive(pid) for pid in pids)


async def test_assignment_and_stop_in_one_answer(service: ScriptedService, root: Path) -> None:
    """A stop that overtakes the launch: the task ends with TaskEnded, and never stays."""
    service.paused = True
    service.send(
        task("a1", "/bin/sleep 60"),
        StopAttempt(attempt_id="a1", reason=StopReason.JOB_TERMINATE),
    )
    service.paused = False
    service.send(task("a2", "/bin/true"))

    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.stop_reason is StopReason.JOB_TERMINATE
    assert outcome_of(await service.terminal("a2")).exit_code == 0


async def test_the_wall_clock_ends_a_task(service: ScriptedService, root: Path) -> None:
    """Killed and completed, with the documented message (spec/node.md §9)."""
    service.send(task("a1", "/bin/sleep 60", max_wall_clock_time=timedelta(seconds=0.3)))

    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.stop_reason is StopReason.WALL_CLOCK
    assert outcome.failure_info is not None
    assert "The maximum execution time configured on the task was exceeded" in outcome.failure_info.to_json()


async def test_each_attempt_has_a_fresh_directory_and_earlier_ones_are_kept(
    service: ScriptedService, root: Path
) -> None:
    """Spec/node.md §4: a fresh wd for every try; logs of earlier tries stay beside it."""
    for number in (1, 2, 3):
        service.send(
            task(f"a{number}", f"/bin/sh -c 'echo try {number}; ls; touch left'", task_id="t", retry_count=number - 1)
        )
        await service.terminal(f"a{number}")

    assert (directory(root, "t") / "stdout.txt").read_text() == "try 3\n"
    assert (directory(root, "t~1") / "stdout.txt").read_text() == "try 1\n"
    assert (directory(root, "t~2") / "stdout.txt").read_text() == "try 2\n"
    assert (directory(root, "t~1") / "wd" / "left").exists()


async def test_tasks_wait_for_the_preparation_that_is_retried_here(service: ScriptedService, root: Path) -> None:
    """It fails once and is run again in a fresh directory; the task starts only after its success."""
    script = "cd $AZ_BATCH_NODE_SHARED_DIR; if [ -e tried ]; then touch done; else touch tried; exit 4; fi"
    service.send(
        task("p", f"/bin/sh -c '{script}'", kind=AttemptKind.JOB_PREPARATION, max_task_retry_count=1),
        task("u", "/bin/sh -c 'ls $AZ_BATCH_NODE_SHARED_DIR; echo $AZ_BATCH_JOB_PREP_DIR'", task_id="t", gate="p"),
    )

    outcome_of(await service.terminal("u"))
    preparation = await service.terminal("p")

    assert (directory(root, "t") / "stdout.txt").read_text() == f"done\ntried\n{directory(root, 'jobpreparation')}\n"
    assert outcome_of(preparation).exit_code == 0
    assert preparation.retry_count == 1
    assert preparation.last_retry_time is not None
    assert [(report.transition, report.retry_count) for report in service.reports_of("p")] == [
        (Transition.RUNNING, 0),
        (Transition.RUNNING, 1),
        (Transition.COMPLETED, 1),
    ]
    begun = service.reports_of("u")[0]
    assert begun.start_time is not None
    assert begun.start_time >= outcome_of(preparation).end_time
    assert directory(root, "jobpreparation~1").is_dir()


async def test_tasks_are_given_back_when_the_preparation_failed(service: ScriptedService, root: Path) -> None:
    """Also one that comes later, when the preparation is long over; nothing of them runs."""
    service.send(
        task("p", "/bin/false", kind=AttemptKind.JOB_PREPARATION),
        task("u1", "/bin/touch /never", gate="p"),
    )
    first = await service.terminal("u1")
    await service.terminal("p")
    service.send(task("u2", "/bin/touch /never", gate="p"))
    second = await service.terminal("u2")

    for report in (first, second):
        assert report.transition is Transition.RETURNED
        assert report.return_reason is ReturnReason.PREPARATION_FAILED
        assert report.seq == 1


async def test_a_task_whose_preparation_nobody_knows_is_lost(service: ScriptedService, root: Path) -> None:
    """Not given back for a failed preparation: that would bar the node from the job."""
    service.send(task("u", "/bin/true", gate="never-heard-of"))

    assert (await service.terminal("u")).transition is Transition.LOST


async def test_what_the_preparation_started_lives_until_the_job_session_ends(
    service: ScriptedService, root: Path, tmp_path: Path
) -> None:
    """Its service runs beside the tasks and the release task, and is swept when the session ends (design.md §4)."""
    script = 'setsid sleep 300 & echo $! > "$AZ_BATCH_NODE_SHARED_DIR/pid"'
    service.send(
        task("p", f"/bin/bash -c '{script}'", kind=AttemptKind.JOB_PREPARATION),
        task("u", "/bin/sh -c 'kill -0 $(cat $AZ_BATCH_NODE_SHARED_DIR/pid)'", gate="p"),
    )
    assert outcome_of(await service.terminal("u")).exit_code == 0
    service.send(
        task("r", "/bin/sh -c 'kill -0 $(cat $AZ_BATCH_NODE_SHARED_DIR/pid)'", kind=AttemptKind.JOB_RELEASE, gate="p")
    )
    assert outcome_of(await service.terminal("r")).exit_code == 0
    pid = int((root / "shared" / "pid").read_text())
    assert alive(pid)

    service.send(EndJobSession(job_id="job"), RemoveFiles(job_id="job"))

    await until(lambda: not alive(pid), "the end of the service")


async def test_a_task_leaves_no_process_behind(service: ScriptedService, root: Path) -> None:
    """What a task leaves running is swept before its end is told (I4), and the proof says how many."""
    service.send(task("a1", "/bin/bash -c 'setsid sleep 300 & echo $! > pid'", task_id="t"))

    outcome = outcome_of(await service.terminal("a1"))

    assert outcome.exit_code == 0
    assert outcome.sweep is not None
    assert outcome.sweep.killed == 1
    assert not alive(int((directory(root, "t") / "wd" / "pid").read_text()))


async def test_files_of_a_deleted_task_and_of_a_deleted_job_go(
    service: ScriptedService, root: Path, tmp_path: Path
) -> None:
    """Directories of all attempts of the task, records included; then the job's whole directory."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    service.send(task("a1", "/bin/true", task_id="one"), task("b1", "/bin/true", task_id="two"))
    await service.terminal("a1")
    await service.terminal("b1")
    script = f"mkdir -m 000 closed; ln -s {kept} link"
    service.send(task("a2", f"/bin/sh -c '{script}'", task_id="one", retry_count=1))
    await service.terminal("a2")

    service.send(RemoveFiles(job_id="job", attempt_ids=("a1", "a2")))
    records = tmp_path / "state" / "attempts"
    await until(lambda: not (records / "a2").exists() and not directory(root, "one").exists(), "the files to go")
    assert not directory(root, "one~1").exists()
    assert directory(root, "two").exists()

    service.send(RemoveFiles(job_id="job"))
    await until(lambda: not (root / "workitems" / "job").exists(), "the job's files to go")
    assert (kept / "file").exists(), "a link is deleted, not what it points to"


async def test_a_job_that_comes_again_keeps_its_new_files(service: ScriptedService, root: Path) -> None:
    """The removal of the deleted job's files does not touch those of the job that was made under its name."""
    service.send(task("a1", "/bin/sh -c 'echo old'", task_id="t"))
    await service.terminal("a1")

    service.send(RemoveFiles(job_id="job"), task("a2", "/bin/sh -c 'echo new'", task_id="t"))
    await service.terminal("a2")

    assert (directory(root, "t") / "stdout.txt").read_text() == "new\n"
    assert not directory(root, "t~1").exists()


async def test_a_job_that_comes_again_has_a_session_of_its_own(service: ScriptedService, root: Path) -> None:
    """The end of the deleted job's session sweeps what its preparation left, not what that of the new job started."""

    def preparation(name: str) -> Assignment:
        script = f'setsid sleep 300 & echo $! > "$AZ_BATCH_NODE_SHARED_DIR/{name}"'
        return task(name, f"/bin/bash -c '{script}'", kind=AttemptKind.JOB_PREPARATION)

    service.send(preparation("p1"))
    await service.terminal("p1")
    old = await number_in(root / "shared" / "p1")

    service.send(EndJobSession(job_id="job"), RemoveFiles(job_id="job"), preparation("p2"))
    assert outcome_of(await service.terminal("p2")).exit_code == 0
    new = await number_in(root / "shared" / "p2")
    await until(lambda: not alive(old), "the end of the old session")
    await until(lambda: not directory(root, "jobpreparation~1").exists(), "the old files to go")

    assert alive(new)
    assert directory(root, "jobpreparation").is_dir()
    service.send(EndJobSession(job_id="job"))
    await until(lambda: not alive(new), "the end of the new session")


async def test_an_agent_that_ends_with_nothing_running_takes_its_boundary_away(
    service: ScriptedService, tmp_path: Path
) -> None:
    """Cgroups are no litter; the provider is the one that `auto` picked."""
    stop = asyncio.Event()
    settings = agent_settings(tmp_path, service.url)
    agent = asyncio.create_task(run_agent(settings, stop))
    service.send(task("a1", "/bin/true"))
    await service.terminal("a1")
    spec = records.read(str(tmp_path / "state" / "attempts" / "a1"), records.Spec)
    assert spec is not None
    stop.set()
    assert await agent == 0

    if "path" in spec.boundary:
        assert not Path(spec.boundary["path"]).parent.exists()


async def test_records_are_out_of_the_tasks_reach(service: ScriptedService, root: Path, tmp_path: Path) -> None:
    """I9: state_dir is 0700, outside of the node root, and not named in the task's environment."""
    service.send(task("a1", "/usr/bin/env", task_id="t"))
    await service.terminal("a1")

    state = tmp_path / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    assert str(state) not in (directory(root, "t") / "stdout.txt").read_text()
    identity = json.loads((state / "node.json").read_text())
    assert identity == {"version": 1, "nodeId": "node-1", "epoch": 1}
