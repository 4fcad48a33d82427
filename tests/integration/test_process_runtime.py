"""The process runtime with real processes: what a task can do, and what is recorded of it, in each kind of boundary."""

# ruff: noqa: ASYNC110, ASYNC240
# tests look at what other processes do to the disk, which nothing announces

import asyncio
import contextlib
import errno
import os
import signal
import stat
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nodeagent.boundary import probe
from nodeagent.boundary.base import Boundary, BoundaryError, BoundaryProvider
from nodeagent.runtime.base import (
    Ended,
    LaunchError,
    LaunchUnknown,
    Lost,
    LostCandidate,
    NeverStarted,
    Running,
    RuntimeFailure,
)
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.shim import kernel, records
from nodeagent.shim.records import Deadline, OutputCap, ShimRecord, Spec, StartedRecord, User


def available() -> list[str]:
    """The kinds of boundary that this machine has; a unified one has no cgroup1, a plain user often neither."""
    kinds = []
    for kind in ("cgroup2", "cgroup1", "process_group"):
        with contextlib.suppress(BoundaryError):
            asyncio.run(probe.choose(f"test-{uuid.uuid4().hex}", kind).provider.close())
            kinds.append(kind)
    return kinds


KINDS = available()
ROOT = os.geteuid() == 0


class Node:
    """A runtime, a boundary provider and a folder of attempts, as an agent has them."""

    def __init__(self, folder: Path, provider: BoundaryProvider) -> None:
        self.folder = folder
        self.provider = provider
        self.runtime = ProcessRuntime(folder, warm=8)
        self.boundaries: list[Boundary] = []

    def directory(self, attempt_id: str) -> Path:
        """Where the records of an attempt are."""
        return self.runtime.attempts / attempt_id

    def prepare(
        self,
        *argv: str,
        parent: Boundary | None = None,
        attempt_id: str | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        user: User | None = None,
        sweep: bool = True,
        grace_seconds: float = 10.0,
        deadline: Deadline | None = None,
        output_cap: OutputCap | None = None,
        limits: dict[str, int] | None = None,
        boundary: Boundary | None = None,
    ) -> str:
        """Write the spec of an attempt; its id."""
        attempt_id = attempt_id or uuid.uuid4().hex
        work = self.directory(attempt_id) / "wd"
        work.mkdir(parents=True, exist_ok=True)
        if boundary is None:
            boundary = self.provider.create(attempt_id, parent)
            self.boundaries.append(boundary)
        if user is not None:
            os.chown(work, user.uid, user.gid)
        records.write(
            str(self.directory(attempt_id)),
            Spec(
                attempt_id,
                argv,
                {"PATH": f"/usr/bin:/bin:{work}"} if env is None else env,
                cwd or str(work),
                str(work.parent / "stdout.txt"),
                str(work.parent / "stderr.txt"),
                boundary,
                user=user,
                sweep=sweep,
                grace_seconds=grace_seconds,
                deadline=deadline,
                output_cap=output_cap,
                limits={"core": 0} if limits is None else limits,
            ),
        )
        return attempt_id

    async def run(self, attempt_id: str) -> Ended:
        """Launch the attempt and wait for its end, which must be one."""
        await self.runtime.launch(attempt_id)
        outcome = await asyncio.wait_for(self.runtime.wait(attempt_id), 30)
        assert isinstance(outcome, Ended), outcome
        return outcome

    async def shell(self, script: str, **changes: object) -> Ended:
        """Run a shell script as an attempt."""
        return await self.run(self.prepare("/bin/sh", "-c", script, **changes))  # type: ignore[arg-type]

    def output(self, outcome: Ended, name: str = "stdout.txt") -> str:
        """What the attempt wrote."""
        return (self.directory(outcome.exit.attempt_id) / name).read_text()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of boundary in turn."""
    return str(request.param)


@pytest.fixture
async def node(kind: str, tmp_path: Path) -> AsyncIterator[Node]:
    """A node of that kind; at the end nothing of it is left in the kernel."""
    tmp_path.chmod(0o755)
    provider = probe.choose(f"test-{uuid.uuid4().hex}", kind).provider
    node = Node(tmp_path, provider)
    await node.runtime.open()
    yield node
    await node.runtime.close()
    for boundary in node.boundaries:
        assert (await provider.sweep(boundary)).remaining == 0
        provider.remove(boundary)
    await provider.close()


def lives(pid: int) -> bool:
    """Whether code of that process may still run."""
    seen = kernel.stat(pid)
    return seen is not None and seen.lives


async def until(true: Callable[[], bool]) -> None:
    """Look until a condition of the disk or of /proc holds; it cannot be awaited."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def pid_in(file: Path) -> int:
    """The pid that a task writes into a file, once it is there."""
    await until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


async def test_exit_code_output_and_usage_are_recorded(node: Node) -> None:
    """A task that ends by itself leaves its code, its output, its times and a proof that nothing is left."""
    before = time.time()
    outcome = await node.shell("echo out; echo err >&2; exit 7")
    assert (outcome.exit.exit_code, outcome.exit.signal, outcome.exit.exec_error) == (7, None, None)
    assert outcome.exit.started_at is not None
    assert before - 1 < outcome.exit.started_at <= outcome.exit.ended_at < time.time() + 1
    assert outcome.exit.usage is not None
    assert outcome.exit.usage.max_rss_kib > 0
    assert outcome.swept is not None
    assert (outcome.swept.killed, outcome.swept.remaining) == (0, 0)
    assert (node.output(outcome), node.output(outcome, "stderr.txt")) == ("out\n", "err\n")


async def test_death_by_signal_is_no_exit_code(node: Node) -> None:
    """A task killed by a signal is told from one that exits with 128 + n."""
    by_signal, by_code = await node.shell("kill -9 $$"), await node.shell("exit 137")
    assert (by_signal.exit.exit_code, by_signal.exit.signal) == (None, signal.SIGKILL)
    assert (by_code.exit.exit_code, by_code.exit.signal) == (137, None)


async def test_hundreds_of_tasks_that_end_at_once(node: Node) -> None:
    """Many tasks of a millisecond, many in flight: each has its own code, and every shim is used again."""
    ids = [node.prepare("/bin/sh", "-c", f"exit {number % 251}") for number in range(150)]
    gate = asyncio.Semaphore(8)

    async def one(attempt_id: str) -> int | None:
        async with gate:
            return (await node.run(attempt_id)).exit.exit_code

    codes = await asyncio.gather(*map(one, ids))
    assert codes == [number % 251 for number in range(150)]
    shims = [records.read(str(node.directory(attempt_id)), ShimRecord) for attempt_id in ids]
    assert len({shim.pid for shim in shims if shim}) <= 8


async def test_environment_is_the_specs_and_the_markers(node: Node) -> None:
    """Nothing of the agent's environment reaches a task, and both markers do."""
    outcome = await node.run(node.prepare("/usr/bin/env", env={"A": "b c", "U": "äß"}))
    lines = dict(line.split("=", 1) for line in node.output(outcome).splitlines())
    assert lines.pop("NODEAGENT_ATTEMPT") == outcome.exit.attempt_id
    assert lines.pop("NODEAGENT_BOUNDARY").endswith(f"/{outcome.exit.attempt_id}")
    assert lines == {"A": "b c", "U": "äß"}


async def test_task_gets_clean_signals_files_and_session(node: Node) -> None:
    """A task is born with no blocked or ignored signal, no foreign file, as leader of its own session in its wd."""
    script = (
        "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l; pwd; ulimit -c;"
        "readlink /proc/self/fd/0; cut -d' ' -f6 /proc/$$/stat; echo $$"
    )
    outcome = await node.shell(script)
    blocked, ignored, files, cwd, core, stdin, session, pid = node.output(outcome).splitlines()
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) & 0x7FFFFFFF == 0  # glibc keeps 32 and 33 for itself
    assert int(files) == 4  # three, and the one by which ls looks
    assert cwd == str(node.directory(outcome.exit.attempt_id) / "wd")
    assert core == "0"
    assert stdin == "/dev/null"
    assert int(session) == int(pid)


async def test_bare_names_are_found_in_path_and_wd(node: Node) -> None:
    """A bare name is looked up in the task's PATH, which has wd; a relative path starts at wd (spec/node.md §3)."""
    bare = node.prepare("hello-bare")
    relative = node.prepare("./hello-relative")
    for attempt_id, name in ((bare, "hello-bare"), (relative, "hello-relative")):
        program = node.directory(attempt_id) / "wd" / name
        program.write_text("#!/bin/sh\nexit 5\n")
        program.chmod(0o755)
    assert (await node.run(bare)).exit.exit_code == 5
    assert (await node.run(relative)).exit.exit_code == 5


@pytest.mark.parametrize("as_user", [False, True][: 1 + ROOT])
@pytest.mark.parametrize(
    ("argv", "number", "step", "hint"),
    [
        (["no-such-program-at-all"], errno.ENOENT, "exec", "PATH="),
        (["./nowhere"], errno.ENOENT, "exec", "working directory"),
        (["./data"], errno.EACCES, "exec", "not executable"),
        (["data"], errno.EACCES, "exec", "not executable"),
        (["/etc"], errno.EACCES, "exec", "directory"),
        (["./garbage"], errno.ENOEXEC, "exec", "#!"),
        (["./orphan"], errno.ENOENT, "exec", "/no/such/interpreter"),
        (["true", "x" * 200_000], errno.E2BIG, "exec", "longer"),
        (["true"], errno.ENOENT, "chdir", "working directory"),
    ],
    ids=["name", "path", "mode", "mode-by-name", "directory", "format", "interpreter", "too-long", "cwd"],
)
async def test_why_a_command_could_not_be_executed(
    node: Node, argv: list[str], number: int, step: str, hint: str, *, as_user: bool
) -> None:
    """An exec error is recorded with errno, path, user, cwd and a hint; it is never an exit code."""
    user = User(12345, 12345) if as_user else None
    attempt_id = node.prepare(*argv, user=user, cwd="/no/such/folder" if step == "chdir" else None)
    work = node.directory(attempt_id) / "wd"
    (work / "data").write_text("x")
    (work / "garbage").write_text("not a program\n")
    (work / "orphan").write_text("#!/no/such/interpreter\n")
    (work / "garbage").chmod(0o755)
    (work / "orphan").chmod(0o755)
    opened_up(node.folder)
    outcome = await node.run(attempt_id)
    error = outcome.exit.exec_error
    assert error is not None
    assert (error.errno, error.step, error.strerror) == (number, step, os.strerror(number))
    assert hint in error.hint
    assert error.user == (12345 if as_user else None)
    assert error.path.endswith("/no/such/folder" if step == "chdir" else Path(argv[0]).name)
    assert (outcome.exit.exit_code, outcome.exit.signal, outcome.exit.started_at) == (None, None, None)
    assert node.output(outcome) == ""


def opened_up(folder: Path) -> None:
    """Let other users through to a test's folder, which pytest makes private."""
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    for path in (folder / "attempts").iterdir():
        path.chmod(0o755)
    (folder / "attempts").chmod(0o755)


@pytest.mark.skipif(not ROOT, reason="only root can run tasks as another user")
async def test_another_user_gets_exactly_its_identity(node: Node) -> None:
    """A task of another user has its ids and groups, owns its output, and may not signal its shim."""
    attempt_id = node.prepare(
        "/bin/sh", "-c", "id -u; id -g; id -G; kill -9 $PPID; exit 9", user=User(12345, 23456, (23456, 34567))
    )
    opened_up(node.folder)
    outcome = await node.run(attempt_id)
    assert node.output(outcome).split() == ["12345", "23456", "23456", "34567"]
    assert outcome.exit.exit_code == 9
    owner = (node.directory(attempt_id) / "stdout.txt").stat()
    assert (owner.st_uid, owner.st_gid) == (12345, 23456)


@pytest.mark.skipif(not ROOT, reason="becoming another user needs root")
async def test_a_file_linked_into_the_place_of_the_output_is_left_alone(node: Node) -> None:
    """The directory is the user's: what it has linked there is neither emptied nor given to it."""
    attempt_id = node.prepare("/bin/true", user=User(12345, 12345))
    treasure = node.folder / "treasure"
    treasure.write_text("precious")
    (node.directory(attempt_id) / "stdout.txt").hardlink_to(treasure)
    opened_up(node.folder)
    error = (await node.run(attempt_id)).exit.exec_error
    assert error is not None
    assert (error.step, error.errno) == ("stdout", errno.EMLINK)
    assert (treasure.read_text(), treasure.stat().st_uid) == ("precious", 0)


# what a task leaves behind

ESCAPEE = (
    "(setsid env -i /bin/sh -c 'setsid sleep 600 & echo $! > escaped; wait' > /dev/null 2>&1 &);"
    "while ! grep -q . escaped 2>/dev/null; do :; done; exit 4"
)


async def test_double_forked_escapee_is_swept(node: Node) -> None:
    """A process that left session, parent and environment behind is killed with its attempt, and counted."""
    outcome = await node.shell(ESCAPEE)
    escaped = int((node.directory(outcome.exit.attempt_id) / "wd" / "escaped").read_text())
    assert outcome.exit.exit_code == 4
    assert outcome.swept is not None
    assert outcome.swept.killed >= 2
    assert outcome.swept.remaining == 0
    assert not lives(escaped)


async def test_holder_of_the_output_does_not_hold_the_task(node: Node) -> None:
    """A background child that keeps stdout open does not delay the end, and is swept."""
    before = time.monotonic()
    outcome = await node.shell("echo early; sleep 600 & exit 0")
    assert time.monotonic() - before < 5
    assert node.output(outcome) == "early\n"
    assert outcome.swept is not None
    assert outcome.swept.killed == 1


async def test_fork_storm_is_swept(node: Node) -> None:
    """Processes that keep forking while they are looked for are all gone afterwards (the storm ends by itself)."""
    storm = (
        "end=$(( $(date +%s) + 20 )); i=0\n"
        "storm() { while [ $(date +%s) -lt $end ]; do ( sleep 0.05 & ) ; done; }\n"
        "storm & storm & storm & sleep 0.3; exit 6"
    )
    outcome = await node.shell(storm)
    assert outcome.exit.exit_code == 6
    assert outcome.swept is not None
    assert outcome.swept.killed >= 3
    assert outcome.swept.remaining == 0
    boundary = node.boundaries[-1]
    assert kernel.marked(boundary["marker"]) == {}


async def test_task_that_kills_its_shim_is_lost_and_swept(node: Node) -> None:
    """Without a shim the outcome is not known: lost, never an exit code, and nothing of the attempt survives."""
    attempt_id = node.prepare("/bin/sh", "-c", "sleep 600 & echo $! > child; kill -9 $PPID; sleep 600")
    await node.runtime.launch(attempt_id)
    outcome = await asyncio.wait_for(node.runtime.wait(attempt_id), 20)
    assert isinstance(outcome, Lost)
    assert outcome.remaining == 0
    assert outcome.killed >= 2
    assert not lives(int((node.directory(attempt_id) / "wd" / "child").read_text()))
    assert kernel.marked(node.boundaries[-1]["marker"]) == {}
    assert node.runtime.look(attempt_id) == outcome == await node.runtime.resolve_lost(attempt_id)
    assert (await node.shell("exit 3")).exit.exit_code == 3


async def test_preparation_leaves_a_service_for_its_session(node: Node) -> None:
    """Leftovers of an attempt that does not sweep live until the session is swept, with all below it."""
    session = node.provider.create("session")
    node.boundaries.insert(0, session)
    prepared = await node.shell("sleep 600 > /dev/null 2>&1 & echo $! > service", parent=session, sweep=False)
    service = int((node.directory(prepared.exit.attempt_id) / "wd" / "service").read_text())
    assert prepared.swept is None
    assert lives(service)
    task = await node.shell("sleep 600 & exit 0", parent=session)
    assert task.swept is not None
    assert task.swept.killed == 1
    assert lives(service)
    swept = await node.provider.sweep(session)
    assert (swept.killed, swept.remaining) == (1, 0)
    assert not lives(service)
    assert (await node.provider.sweep(session)).killed == 0


# stopping


async def test_stop_is_polite_first(node: Node) -> None:
    """SIGTERM reaches every process of the tree; a task that ends on it keeps its own exit code."""
    attempt_id = node.prepare(
        "/bin/sh",
        "-c",
        "trap 'echo told; exit 21' TERM;(trap 'echo child; exit' TERM; echo > up; while :; do sleep 0.05; done) & wait",
    )
    await node.runtime.launch(attempt_id)
    await exists(node.directory(attempt_id) / "wd" / "up")
    await node.runtime.stop(attempt_id, "user_terminate", 20)
    outcome = await asyncio.wait_for(node.runtime.wait(attempt_id), 15)
    assert isinstance(outcome, Ended)
    assert (outcome.exit.exit_code, outcome.exit.stop_reason) == (21, "user_terminate")
    assert "told" in node.output(outcome)


async def exists(path: Path) -> None:
    """Wait until a task has made a file."""
    await until(path.exists)


async def test_stop_kills_after_the_grace_and_a_second_stop_shortens_it(node: Node) -> None:
    """Who ignores SIGTERM is killed when the grace is over; a later stop may shorten it but not change the reason."""
    attempt_id = node.prepare("/bin/sh", "-c", "trap '' TERM; echo > up; sleep 600 & while :; do sleep 0.05; done")
    await node.runtime.launch(attempt_id)
    await exists(node.directory(attempt_id) / "wd" / "up")
    await node.runtime.stop(attempt_id, "job_terminate", 500)
    await node.runtime.stop(attempt_id, "drain_requeue", 900)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(node.runtime.wait(attempt_id), 0.3)
    assert isinstance(node.runtime.look(attempt_id), Running)
    before = time.monotonic()
    await node.runtime.stop(attempt_id, "user_terminate", 0.2)
    outcome = await asyncio.wait_for(node.runtime.wait(attempt_id), 15)
    assert 0.15 < time.monotonic() - before < 10
    assert isinstance(outcome, Ended)
    assert (outcome.exit.signal, outcome.exit.stop_reason) == (signal.SIGKILL, "job_terminate")
    assert outcome.swept is not None
    assert outcome.swept.remaining == 0


async def test_stop_before_the_launch_means_never(node: Node) -> None:
    """A command whose stop was asked for first is never executed, and that is recorded."""
    attempt_id = node.prepare("/bin/sh", "-c", "echo > ran")
    await node.runtime.stop(attempt_id, "user_terminate", 5)
    outcome = await node.run(attempt_id)
    assert (outcome.exit.never_started, outcome.exit.exit_code) == (True, None)
    assert outcome.exit.stop_reason == "user_terminate"
    assert not (node.directory(attempt_id) / "wd" / "ran").exists()


async def test_stop_after_the_end_is_harmless(node: Node) -> None:
    """A stop that comes too late changes nothing, neither for this attempt nor for the shim's next one."""
    outcome = await node.shell("exit 3")
    await node.runtime.stop(outcome.exit.attempt_id, "user_terminate", 0)
    assert await node.runtime.wait(outcome.exit.attempt_id) == outcome
    assert [(await node.shell(f"exit {code}")).exit.exit_code for code in range(4)] == [0, 1, 2, 3]


async def test_deadline_is_kept_by_the_shim(node: Node) -> None:
    """The wall clock is enforced without the agent, with the spec's grace and the deadline's reason."""
    soon = time.clock_gettime(time.CLOCK_BOOTTIME) + 0.3
    outcome = await node.shell("trap '' TERM; while :; do sleep 0.05; done", deadline=Deadline(soon), grace_seconds=0.2)
    assert (outcome.exit.signal, outcome.exit.stop_reason) == (signal.SIGKILL, "wall_clock")
    past = await node.shell("echo > ran", deadline=Deadline(soon))
    assert (past.exit.never_started, past.exit.stop_reason) == (True, "wall_clock")


# output


async def test_capped_output_keeps_head_and_tail(node: Node) -> None:
    """With a cap the first and the last bytes are kept, the file is bounded, and stderr is counted for itself."""
    outcome = await node.shell("seq 1 200000; echo small >&2", output_cap=OutputCap(100, 50))
    text = node.output(outcome)
    assert text.startswith("1\n2\n3\n")
    assert text.endswith("199999\n200000\n")
    assert "bytes left out" in text
    assert len(text) < 300
    assert node.output(outcome, "stderr.txt") == "small\n"


async def test_capped_output_ends_although_a_child_holds_it(node: Node) -> None:
    """The pipe's last writer is swept with the attempt, so the output ends."""
    outcome = await node.shell("sleep 600 & echo done", output_cap=OutputCap(100, 100))
    assert node.output(outcome) == "done\n"
    assert outcome.swept is not None
    assert outcome.swept.killed == 1


async def test_limits_reach_the_task_and_not_the_shim(node: Node) -> None:
    """A soft limit is the task's alone: the next task of the same shim does not inherit it."""
    limited = await node.shell("ulimit -n; ulimit -c", limits={"nofile": 77, "core": 0})
    free = await node.shell("ulimit -n")
    assert node.output(limited).split() == ["77", "0"]
    assert node.output(free).strip() != "77"
    wrong = await node.shell("exit 0", limits={"colour": 1})
    assert wrong.exit.exec_error is not None
    assert (wrong.exit.exec_error.step, wrong.exit.exec_error.path) == ("limits", "colour")


# launching


async def test_launch_is_at_most_once(node: Node) -> None:
    """A second launch, also at the same time or by another runtime, never runs the command again."""
    attempt_id = node.prepare("/bin/sh", "-c", "echo ran >> ../count; sleep 0.2")
    other = ProcessRuntime(node.folder)
    await other.open()
    results = await asyncio.gather(
        node.runtime.launch(attempt_id),
        other.launch(attempt_id),
        node.runtime.launch(attempt_id),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(LaunchUnknown) == 2
    assert results.count(None) == 1
    outcomes = await asyncio.gather(node.runtime.wait(attempt_id), other.wait(attempt_id))
    assert outcomes[0] == outcomes[1]
    with pytest.raises(LaunchUnknown):
        await node.runtime.launch(attempt_id)
    assert (node.directory(attempt_id) / "count").read_text() == "ran\n"
    await other.close()


async def test_launch_without_a_good_spec_is_refused(node: Node) -> None:
    """No spec, or a damaged one: LaunchError that names it, and nothing ran."""
    with pytest.raises(LaunchError, match=r"no spec\.json"):
        await node.runtime.launch("nothing")
    attempt_id = node.prepare("true")
    spec = node.directory(attempt_id) / "spec.json"
    spec.write_bytes(spec.read_bytes().replace(b"true", b"rm  "))
    with pytest.raises(LaunchError, match="damaged"):
        await node.runtime.launch(attempt_id)
    assert isinstance(node.runtime.look(attempt_id), NeverStarted)


async def test_given_up_attempt_is_never_launched(node: Node) -> None:
    """resolve_lost on an attempt that nobody took leaves a tombstone that every later launch obeys."""
    attempt_id = node.prepare("/bin/sh", "-c", "echo > ran")
    outcome = await node.runtime.resolve_lost(attempt_id)
    assert isinstance(outcome, Ended)
    assert outcome.exit.never_started
    with pytest.raises(LaunchUnknown):
        await node.runtime.launch(attempt_id)
    assert await node.runtime.wait(attempt_id) == outcome
    assert not (node.directory(attempt_id) / "wd" / "ran").exists()


async def test_boundary_that_is_gone_is_an_exec_error(node: Node, kind: str) -> None:
    """A cgroup that was taken away under the spec keeps the command from running, with the step that failed."""
    if kind == "process_group":
        assert "path" not in node.provider.create("x")
        return
    attempt_id = node.prepare("true")
    node.provider.remove(node.boundaries[-1])
    outcome = await node.run(attempt_id)
    assert outcome.exit.exec_error is not None
    assert (outcome.exit.exec_error.step, outcome.exit.exec_error.errno) == ("boundary", errno.ENOENT)
    assert (await node.shell("exit 2")).exit.exit_code == 2


async def test_shim_is_not_in_the_tasks_cgroup(node: Node, kind: str) -> None:
    """Task and shim sit in sibling cgroups, so that the shim is neither charged nor killed with the task."""
    attempt_id = node.prepare("/bin/sh", "-c", "echo $PPID > shim; sleep 600")
    await node.runtime.launch(attempt_id)
    shim = await pid_in(node.directory(attempt_id) / "wd" / "shim")
    boundary = node.boundaries[-1]
    inside = kernel.members(boundary)
    started = records.read(str(node.directory(attempt_id)), StartedRecord)
    assert started is not None
    assert shim not in inside
    assert (started.pid in inside) == (kind != "process_group")
    await node.runtime.stop(attempt_id, "user_terminate", 0)
    await node.runtime.wait(attempt_id)


# the death of everybody else


async def test_zygote_killed_while_tasks_run(node: Node) -> None:
    """Running tasks end with their true codes, and new ones can be launched."""
    running = node.prepare("/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 11")
    await node.runtime.launch(running)
    before = node.runtime.zygote_pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    fresh = [node.prepare("/bin/sh", "-c", f"exit {code}") for code in range(12)]  # more than there are warm shims
    outcomes = await asyncio.gather(*map(node.run, fresh))
    assert [outcome.exit.exit_code for outcome in outcomes] == list(range(12))
    assert node.runtime.zygote_pid != before
    (node.directory(running) / "wd" / "go").touch()
    outcome = await asyncio.wait_for(node.runtime.wait(running), 10)
    assert isinstance(outcome, Ended)
    assert outcome.exit.exit_code == 11


async def test_idle_shim_killed(node: Node) -> None:
    """A launch that meets a dead idle shim goes to another one: nothing had begun, so nothing is lost."""
    for _ in range(3):
        outcome = await node.shell("exit 1")
        shim = records.read(str(node.directory(outcome.exit.attempt_id)), ShimRecord)
        assert shim is not None
        os.kill(shim.pid, signal.SIGKILL)
        assert (await node.shell("exit 8")).exit.exit_code == 8


async def test_next_runtime_adopts_what_runs(node: Node) -> None:
    """After close, tasks run on; another runtime finds the same process, stops it, and hears its end."""
    ids = [node.prepare("/bin/sh", "-c", f"while [ ! -e go ]; do sleep 0.02; done; exit {code}") for code in (31, 32)]
    ended = await node.shell("exit 30")
    for attempt_id in ids:
        await node.runtime.launch(attempt_id)
        await exists(node.directory(attempt_id) / "started.json")
    seen = [node.runtime.look(attempt_id) for attempt_id in ids]
    await node.runtime.close()
    node.runtime = ProcessRuntime(node.folder)
    await node.runtime.open()
    assert [node.runtime.look(attempt_id) for attempt_id in ids] == seen
    await node.runtime.adopt(ids[0])
    waits = [asyncio.create_task(node.runtime.wait(attempt_id)) for attempt_id in ids]
    (node.directory(ids[0]) / "wd" / "go").touch()
    first = await asyncio.wait_for(waits[0], 10)
    await node.runtime.stop(ids[1], "user_terminate", 5)
    second = await asyncio.wait_for(waits[1], 10)
    assert isinstance(first, Ended)
    assert isinstance(second, Ended)
    assert (first.exit.exit_code, second.exit.signal) == (31, signal.SIGTERM)
    assert await node.runtime.wait(ended.exit.attempt_id) == ended
    assert await node.runtime.resolve_lost(ended.exit.attempt_id) == ended


async def test_closing_before_the_answer_leaves_it_open(node: Node) -> None:
    """A launch that is cut off by close may have been taken: that is not "nothing ran", and looking tells."""
    attempt_id = node.prepare("/bin/sh", "-c", "exit 6")
    request = asyncio.create_task(node.runtime.launch(attempt_id))
    await asyncio.sleep(0)
    await node.runtime.close()
    with pytest.raises(LaunchUnknown, match="closed"):
        await request
    node.runtime = ProcessRuntime(node.folder)
    await node.runtime.open()
    await exists(node.directory(attempt_id) / "shim.json")
    outcome = await asyncio.wait_for(node.runtime.wait(attempt_id), 10)
    assert isinstance(outcome, Ended)
    assert outcome.exit.exit_code == 6


async def test_damaged_exit_record_is_lost_not_guessed(node: Node) -> None:
    """An exit record whose checksum does not match says nothing: the attempt is lost, and the file is named."""
    outcome = await node.shell("exit 0")
    attempt_id = outcome.exit.attempt_id
    path = node.directory(attempt_id) / "exit.json"
    path.write_bytes(path.read_bytes().replace(b'"exit_code":0', b'"exit_code":1'))
    assert isinstance(node.runtime.look(attempt_id), LostCandidate)
    settled = await node.runtime.wait(attempt_id)
    assert isinstance(settled, Lost)
    assert "exit.json is damaged" in settled.detail
    assert node.runtime.look(attempt_id) == settled


async def test_damaged_proof_is_made_again(node: Node) -> None:
    """A damaged swept.json costs nothing but another sweep: the exit is still known."""
    outcome = await node.shell("exit 4")
    (node.directory(outcome.exit.attempt_id) / "swept.json").write_bytes(b"{}")
    again = await node.runtime.wait(outcome.exit.attempt_id)
    assert isinstance(again, Ended)
    assert again.exit == outcome.exit
    assert again.swept is not None
    assert again.swept.remaining == 0
    assert node.runtime.look(outcome.exit.attempt_id) == again


async def test_attempt_of_an_earlier_boot_is_lost_without_a_hunt(node: Node) -> None:
    """After a reboot nothing runs any more: pids of the records mean nothing, and nobody is killed for them."""
    stranger = await node.shell("exit 0")
    bystander = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    attempt_id = node.prepare("true")
    folder = str(node.directory(attempt_id))
    ticks = kernel.start_ticks(bystander.pid)
    records.write(folder, ShimRecord(attempt_id, bystander.pid, ticks, "another-boot"))
    records.write(folder, StartedRecord(attempt_id, bystander.pid, ticks, 1.0))
    await node.runtime.stop(attempt_id, "user_terminate", 0)
    outcome = await node.runtime.wait(attempt_id)
    assert isinstance(outcome, Lost)
    assert (outcome.killed, "reboot" in outcome.detail) == (0, True)
    assert lives(bystander.pid)
    bystander.kill()
    await bystander.wait()
    assert await node.runtime.wait(stranger.exit.attempt_id) == stranger


async def test_closing_tells_who_waits(node: Node) -> None:
    """A waiter of a closed runtime is told so; the task is not touched."""
    attempt_id = node.prepare("/bin/sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 5")
    await node.runtime.launch(attempt_id)
    waiter = asyncio.create_task(node.runtime.wait(attempt_id))
    await asyncio.sleep(0)
    await node.runtime.close()
    with pytest.raises(RuntimeFailure, match="closed"):
        await waiter
    (node.directory(attempt_id) / "wd" / "go").touch()
    node.runtime = ProcessRuntime(node.folder)
    outcome = await asyncio.wait_for(node.runtime.wait(attempt_id), 10)
    assert isinstance(outcome, Ended)
    assert outcome.exit.exit_code == 5


def command(*argv: str) -> None:
    """Run a command of the system, which must succeed."""
    subprocess.run(argv, check=True)


@pytest.mark.skipif(not ROOT, reason="only root can mount a small file system")
async def test_full_disk_delays_the_record_but_never_loses_it(node: Node) -> None:
    """While exit.json finds no room the attempt goes on being held; with room again the true code is there."""
    small = node.folder / "attempts"
    command("mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small))
    try:
        attempt_id = node.prepare("/bin/sh", "-c", "while [ ! -e ../go ]; do sleep 0.02; done; exit 13")
        await node.runtime.launch(attempt_id)
        await exists(node.directory(attempt_id) / "started.json")
        (node.directory(attempt_id) / "go").touch()
        ballast = small / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(b"x" * 500_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.runtime.wait(attempt_id), 0.5)
        assert isinstance(node.runtime.look(attempt_id), Running)
        ballast.unlink()
        outcome = await asyncio.wait_for(node.runtime.wait(attempt_id), 10)
        assert isinstance(outcome, Ended)
        assert outcome.exit.exit_code == 13
    finally:
        command("umount", "-l", str(small))
