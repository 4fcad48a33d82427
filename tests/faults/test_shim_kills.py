"""Kill -9 of the shim at every durable step, of its owner at every durable step, and of both at random.

After each of them a fresh runtime has to say what happened: a true exit code, or lost; a command runs at most once,
and nothing of an attempt survives its outcome (design.md §8: I1, I3, I4, I10).
"""

# ruff: noqa: ASYNC110
# tests look at what other processes do to the disk and in /proc, which nothing announces

import asyncio
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest

from nodeagent.boundary import probe
from nodeagent.boundary.base import BoundaryProvider
from nodeagent.runtime.base import Ended, LaunchError, LaunchUnknown, Lost, NeverStarted, Running
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.shim import kernel, records
from nodeagent.shim.records import ShimRecord, Spec, StartedRecord

OWNER = """
import asyncio, os, sys
from pathlib import Path
from nodeagent.runtime.base import LaunchUnknown, NeverStarted
from nodeagent.runtime.process import ProcessRuntime

async def one(runtime, attempt_id):
    if isinstance(runtime.look(attempt_id), NeverStarted):
        try:
            await runtime.launch(attempt_id)
        except LaunchUnknown:
            pass
    await runtime.wait(attempt_id)

async def main(folder, *ids):
    runtime = ProcessRuntime(Path(folder), warm=2)
    await runtime.open()
    print(runtime.zygote_pid, flush=True)
    await asyncio.gather(*(one(runtime, attempt_id) for attempt_id in ids))
    await runtime.close()

asyncio.run(main(*sys.argv[1:]))
"""

NOTHING_RAN = ("after_lock", "before_shim_rename")
LOST = ("after_shim_record", "after_fork", "before_started_rename", "after_started", "after_wait", "before_exit_rename")
KNOWN = ("after_exit", "before_sweep", "before_swept_rename", "after_sweep")


class Node:
    """A folder of attempts that outlives runtimes and owners."""

    def __init__(self, folder: Path, provider: BoundaryProvider) -> None:
        self.folder = folder
        self.provider = provider
        self.ids: list[str] = []
        self.boundaries: dict[str, dict[str, str]] = {}

    def directory(self, attempt_id: str) -> Path:
        """Where the records of an attempt are."""
        return self.folder / "attempts" / attempt_id

    def prepare(self, script: str) -> str:
        """Write the spec of an attempt that first says that it ran, then runs the script; its id."""
        attempt_id = uuid.uuid4().hex
        work = self.directory(attempt_id) / "wd"
        work.mkdir(parents=True)
        self.boundaries[attempt_id] = self.provider.create(attempt_id)
        argv = ("/bin/sh", "-c", f"echo ran >> ../count; {script}")
        names = (str(work), str(work.parent / "stdout.txt"), str(work.parent / "stderr.txt"))
        spec = Spec(attempt_id, argv, {"PATH": "/usr/bin:/bin"}, *names, self.boundaries[attempt_id])
        records.write(str(work.parent), spec)
        return attempt_id

    def runs(self, attempt_id: str) -> int:
        """How often the command was executed."""
        count = self.directory(attempt_id) / "count"
        return len(count.read_text().splitlines()) if count.exists() else 0

    def survivors(self, attempt_id: str) -> dict[int, int]:
        """Processes of the attempt that still live."""
        boundary = self.boundaries[attempt_id]
        return kernel.marked(boundary["marker"]) | kernel.members(boundary)

    def own(self, ids: Iterable[str], **env: str) -> tuple[subprocess.Popen[str], int]:
        """Start a program that launches and awaits these attempts; it, and the pid of its zygote."""
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(self.folder), *ids],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        assert owner.stdout is not None
        return owner, int(owner.stdout.readline())


@pytest.fixture(params=["auto", "process_group"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    """A node with the strongest kind of boundary and the weakest; at the end nothing of it is left in the kernel."""
    provider = probe.choose(f"test-{uuid.uuid4().hex}", request.param).provider
    node = Node(tmp_path, provider)
    yield node
    for boundary in node.boundaries.values():
        assert (await provider.sweep(boundary)).remaining == 0
        provider.remove(boundary)
    await provider.close()


async def until(true: Callable[[], bool]) -> None:
    """Look until a condition of the disk or of /proc holds; it cannot be awaited."""
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.01)


def kill_owner(owner: subprocess.Popen[str]) -> None:
    """Kill -9 it, and take in what is left of it."""
    owner.kill()
    owner.wait()
    assert owner.stdout is not None
    owner.stdout.close()


def paused(zygote: int) -> list[int]:
    """The shims of that zygote that stopped themselves at a failpoint."""
    found = {pid: kernel.stat(pid) for pid in kernel.descendants([zygote])}
    return [pid for pid, seen in found.items() if seen and seen.state == "T" and seen.parent == zygote]


async def settled_twice(node: Node, attempt_id: str) -> Ended | Lost:
    """The outcome by a fresh runtime, which another one has to agree with; and that nothing survived it."""
    outcomes = []
    for _ in range(2):
        runtime = ProcessRuntime(node.folder)
        outcomes.append(await asyncio.wait_for(runtime.wait(attempt_id), 30))
        assert runtime.look(attempt_id) == outcomes[-1]
        await runtime.close()
    assert node.survivors(attempt_id) == {}
    assert isinstance(outcomes[0], Lost) == isinstance(outcomes[1], Lost)
    if isinstance(outcomes[0], Ended):
        assert outcomes[0] == outcomes[1]
    return outcomes[0]


@pytest.mark.parametrize("point", [*NOTHING_RAN, *LOST, *KNOWN])
async def test_shim_killed_at(node: Node, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its record nothing ran, before its exit record it is lost, from then on its code is true."""
    monkeypatch.setenv("NODEAGENT_FAILPOINT", f"{point}:kill")
    attempt_id = node.prepare("sleep 600 & exit 7")
    runtime = ProcessRuntime(node.folder)
    await runtime.open()
    if point in NOTHING_RAN:
        with pytest.raises(LaunchError, match="died"):
            await runtime.launch(attempt_id)
        assert isinstance(runtime.look(attempt_id), NeverStarted)
        monkeypatch.delenv("NODEAGENT_FAILPOINT")
        await runtime.close()
        runtime = ProcessRuntime(node.folder)
    await runtime.launch(attempt_id)
    outcome = await asyncio.wait_for(runtime.wait(attempt_id), 30)
    await runtime.close()
    if point in LOST:
        assert isinstance(outcome, Lost)
        assert outcome.remaining == 0
    else:
        assert isinstance(outcome, Ended)
        assert outcome.exit.exit_code == 7
        assert outcome.swept is not None
        # what a shim killed before it could record the sweep was killed, but not by the sweep that is recorded
        assert outcome.swept.killed == (0 if point == "before_swept_rename" else 1)
        assert outcome.swept.remaining == 0
    # a command whose shim died before it could note the start may have run or not, but never twice
    assert node.runs(attempt_id) <= 1
    assert node.runs(attempt_id) == 1 or point in LOST
    assert isinstance(await settled_twice(node, attempt_id), type(outcome))


@pytest.mark.parametrize("point", [*NOTHING_RAN, *LOST, *KNOWN])
async def test_owner_killed_at(node: Node, point: str) -> None:
    """Whatever step its shim is at when the agent dies, the attempt ends with its true code and ran once."""
    attempt_id = node.prepare("sleep 600 & exit 7")
    owner, zygote = node.own([attempt_id], NODEAGENT_FAILPOINT=f"{point}:pause")
    await until(lambda: bool(paused(zygote)))
    (shim,) = paused(zygote)
    kill_owner(owner)
    runtime = ProcessRuntime(node.folder)
    await runtime.open()
    seen = runtime.look(attempt_id)
    assert isinstance(seen, NeverStarted if point in NOTHING_RAN else Running)
    if isinstance(seen, NeverStarted):
        again = asyncio.create_task(runtime.launch(attempt_id))
        await asyncio.sleep(0)
        os.kill(shim, signal.SIGCONT)
        with pytest.raises(LaunchUnknown):
            await again
    else:
        await runtime.adopt(attempt_id)
        os.kill(shim, signal.SIGCONT)
    outcome = await asyncio.wait_for(runtime.wait(attempt_id), 30)
    assert isinstance(outcome, Ended)
    assert outcome.exit.exit_code == 7
    record = records.read(str(node.directory(attempt_id)), ShimRecord)
    assert record is not None
    assert record.pid == shim
    assert node.runs(attempt_id) == 1
    await runtime.close()
    await settled_twice(node, attempt_id)


async def test_given_up_while_a_request_is_under_way(node: Node) -> None:
    """A shim that reads its request only after another agent gave the attempt up sees the tombstone and refuses."""
    attempt_id = node.prepare("exit 7")
    old = ProcessRuntime(node.folder, warm=0)  # keeps no idle shim: each launch needs the zygote
    await old.launch(first := node.prepare("exit 0"))
    await old.wait(first)
    assert old.zygote_pid is not None
    os.kill(old.zygote_pid, signal.SIGSTOP)
    request = asyncio.create_task(old.launch(attempt_id))
    await asyncio.sleep(0)
    new = ProcessRuntime(node.folder)
    outcome = await new.resolve_lost(attempt_id)
    assert isinstance(outcome, Ended)
    assert outcome.exit.never_started
    os.kill(old.zygote_pid, signal.SIGCONT)
    with pytest.raises(LaunchUnknown):
        await request
    assert node.runs(attempt_id) == 0
    await new.close()
    await old.close()


async def test_owner_killed_while_tasks_run(node: Node) -> None:
    """The next runtime finds the same processes, running, and hears each one's true exit code."""
    ids = [node.prepare(f"while [ ! -e go ]; do sleep 0.02; done; exit {40 + number}") for number in range(4)]
    owner, _ = node.own(ids)
    await until(lambda: all((node.directory(one) / "started.json").exists() for one in ids))
    before = [records.read(str(node.directory(one)), StartedRecord) for one in ids]
    kill_owner(owner)
    runtime = ProcessRuntime(node.folder)
    await runtime.open()
    for attempt_id, started in zip(ids, before, strict=True):
        seen = runtime.look(attempt_id)
        assert isinstance(seen, Running)
        assert seen.started == started
        await runtime.adopt(attempt_id)
        (node.directory(attempt_id) / "wd" / "go").touch()
    outcomes = await asyncio.gather(*map(runtime.wait, ids))
    assert [outcome.exit.exit_code for outcome in outcomes if isinstance(outcome, Ended)] == [40, 41, 42, 43]
    assert [node.runs(attempt_id) for attempt_id in ids] == [1] * 4
    await runtime.close()


async def test_owner_killed_at_random(node: Node) -> None:
    """However often the agent dies among short tasks, each runs exactly once and ends with its true code."""
    dice = random.Random(20261121)  # noqa: S311 - the same kills each time
    ids = [node.prepare(f"sleep 0.0{number % 5}; exit {number % 100}") for number in range(80)]
    for round_ in range(6):
        owner, _ = node.own(ids[: 20 * (round_ + 1)])
        await asyncio.sleep(dice.uniform(0.01, 0.15))
        kill_owner(owner)
    owner, _ = node.own(ids)
    assert await asyncio.to_thread(owner.wait, 60) == 0
    kill_owner(owner)
    runtime = ProcessRuntime(node.folder)
    outcomes = [await runtime.wait(attempt_id) for attempt_id in ids]
    await runtime.close()
    assert [outcome.exit.exit_code for outcome in outcomes if isinstance(outcome, Ended)] == [
        n % 100 for n in range(80)
    ]
    assert [node.runs(attempt_id) for attempt_id in ids] == [1] * 80


async def test_shims_killed_at_random(node: Node) -> None:
    """Killed shims make attempts lost or leave true codes, never a wrong one, and never leave a process."""
    dice = random.Random(1121)  # noqa: S311 - the same kills each time
    runtime = ProcessRuntime(node.folder, warm=4)
    await runtime.open()
    ids = [node.prepare(f"sleep 600 & sleep 0.0{number % 7}; exit {number}") for number in range(40)]
    gate = asyncio.Semaphore(4)

    async def one(attempt_id: str) -> Ended | Lost:
        async with gate:
            await runtime.launch(attempt_id)
            shim = records.read(str(node.directory(attempt_id)), ShimRecord)
            assert shim is not None
            if dice.random() < 0.5:
                await asyncio.sleep(dice.uniform(0, 0.06))
                kernel.send(shim.pid, shim.start_ticks, signal.SIGKILL)
            return await asyncio.wait_for(runtime.wait(attempt_id), 30)

    outcomes = await asyncio.gather(*map(one, ids))
    await runtime.close()
    for number, (attempt_id, outcome) in enumerate(zip(ids, outcomes, strict=True)):
        assert node.runs(attempt_id) <= 1
        assert node.survivors(attempt_id) == {}
        if isinstance(outcome, Ended):
            assert outcome.exit.exit_code == number
    assert {type(outcome) for outcome in outcomes} == {Ended, Lost}
