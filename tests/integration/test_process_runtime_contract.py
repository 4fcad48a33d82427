"""One contract for the three runtimes: what the agent may rely on, whoever runs the attempts."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nodeagent.boundary.process_group import ProcessGroup
from nodeagent.runtime.base import Ended, LaunchError, LaunchUnknown, Lost, NeverStarted, Running, Runtime
from nodeagent.runtime.fake import FakeRuntime, World
from nodeagent.runtime.process import ProcessRuntime
from nodeagent.runtime.zero import ZeroRuntime
from nodeagent.shim import records
from nodeagent.shim.records import Spec


class Bench:
    """A runtime of one kind, how to make an attempt that ends with 0, and its successor after an agent's death."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.world = World()
        self.runtime = self.successor()

    def successor(self) -> Runtime:
        """Another runtime over the same attempts."""
        if self.kind == "process":
            return ProcessRuntime(self.folder)
        if self.kind == "zero":
            return ZeroRuntime(self.folder)
        return FakeRuntime(self.world)

    def prepare(self) -> str:
        """An attempt that is ready to be launched; its id."""
        attempt_id = uuid.uuid4().hex
        work = self.folder / "attempts" / attempt_id / "wd"
        work.mkdir(parents=True)
        boundary = ProcessGroup("contract").create(attempt_id)
        names = (str(work), str(work.parent / "stdout.txt"), str(work.parent / "stderr.txt"))
        records.write(str(work.parent), Spec(attempt_id, ("/bin/true",), {}, *names, boundary))
        return attempt_id

    async def finish(self, attempt_id: str) -> None:
        """Let it end with 0, where that is the test's to say."""
        if self.kind == "fake":
            await self.world.exit(attempt_id, 0)


@pytest.fixture(params=["process", "zero", "fake"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Each runtime in turn."""
    bench = Bench(request.param, tmp_path)
    await bench.runtime.open()
    yield bench
    await bench.runtime.close()


async def test_launch_wait_and_look_agree(bench: Bench) -> None:
    """An attempt is never started, then ended with its code, for whoever asks and however often."""
    attempt_id = bench.prepare()
    assert isinstance(bench.runtime.look(attempt_id), NeverStarted)
    await bench.runtime.launch(attempt_id)
    await bench.finish(attempt_id)
    outcome = await asyncio.wait_for(bench.runtime.wait(attempt_id), 10)
    assert isinstance(outcome, Ended)
    assert (outcome.exit.exit_code, outcome.exit.never_started, outcome.exit.runtime) == (0, False, bench.kind)
    assert outcome.swept is not None
    assert outcome.swept.remaining == 0
    assert await bench.runtime.wait(attempt_id) == outcome
    assert await bench.runtime.resolve_lost(attempt_id) == outcome
    assert bench.runtime.look(attempt_id) == outcome


async def test_launched_once(bench: Bench) -> None:
    """A second launch is no error that says "did not run": the agent has to look."""
    attempt_id = bench.prepare()
    await bench.runtime.launch(attempt_id)
    with pytest.raises(LaunchUnknown):
        await bench.runtime.launch(attempt_id)
    await bench.finish(attempt_id)
    await bench.runtime.wait(attempt_id)
    with pytest.raises(LaunchUnknown):
        await bench.runtime.launch(attempt_id)


async def test_refused_launch_ran_nothing(bench: Bench) -> None:
    """A launch that cannot be is a LaunchError, and the attempt stays never started."""
    bench.world.refuse("no-spec", "there is no spec.json")
    with pytest.raises(LaunchError, match=r"spec\.json"):
        await bench.runtime.launch("no-spec")
    assert isinstance(bench.runtime.look("no-spec"), NeverStarted)


async def test_stop_first_means_never(bench: Bench) -> None:
    """A stop that comes before the launch keeps the command from running; the first reason stands."""
    attempt_id = bench.prepare()
    await bench.runtime.stop(attempt_id, "job_terminate", 5)
    await bench.runtime.stop(attempt_id, "user_terminate", 1)
    await bench.runtime.launch(attempt_id)
    outcome = await asyncio.wait_for(bench.runtime.wait(attempt_id), 10)
    assert isinstance(outcome, Ended)
    assert (outcome.exit.never_started, outcome.exit.stop_reason) == (True, "job_terminate")


async def test_given_up_is_given_up(bench: Bench) -> None:
    """An attempt that was settled without having been taken is never launched later, not by a successor either."""
    attempt_id = bench.prepare()
    outcome = await bench.runtime.resolve_lost(attempt_id)
    assert isinstance(outcome, Ended)
    assert outcome.exit.never_started
    for runtime in (bench.runtime, bench.successor()):
        with pytest.raises(LaunchUnknown):
            await runtime.launch(attempt_id)
        assert await runtime.wait(attempt_id) == outcome
        await runtime.close()


async def test_successor_sees_the_same(bench: Bench) -> None:
    """What ended under one agent has ended, in the same way, for the next."""
    attempt_id = bench.prepare()
    await bench.runtime.launch(attempt_id)
    await bench.finish(attempt_id)
    outcome = await bench.runtime.wait(attempt_id)
    await bench.runtime.close()
    successor = bench.successor()
    await successor.open()
    assert successor.look(attempt_id) == outcome
    assert await successor.wait(attempt_id) == outcome
    await successor.close()


async def test_fake_is_scripted_while_it_goes() -> None:
    """A test of the agent decides outcomes, losses and restarts, and sees what the agent asked for."""
    world = World()
    runtime: Runtime = FakeRuntime(world)
    seen = asyncio.create_task(world.launched("a"))
    await runtime.launch("a")
    await runtime.launch("b")
    await seen
    assert world.launches == ["a", "b"]
    assert isinstance(runtime.look("a"), Running)
    waiter = asyncio.create_task(runtime.wait("a"))
    await runtime.stop("a", "user_terminate", 3)
    assert (await world.stopped("a")).grace_seconds == 3
    await world.exit("a", signal=15)
    outcome = await waiter
    assert isinstance(outcome, Ended)
    assert (outcome.exit.signal, outcome.exit.exit_code, outcome.exit.stop_reason) == (15, None, "user_terminate")
    await world.kill_shim("b")
    assert isinstance(await FakeRuntime(world).wait("b"), Lost)
    assert world.swept == ["b"]
    with pytest.raises(AssertionError, match="b does not run"):
        await world.exit("b", 0)
