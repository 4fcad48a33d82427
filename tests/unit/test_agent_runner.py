"""The one owner of an attempt does not lose what it is storing, whatever comes from outside meanwhile."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from nodeagent.agent.attempt_runner import AttemptRunner
from nodeagent.agent.directories import Directories
from nodeagent.agent.endings import event_of
from nodeagent.agent.journal import OutboxRow
from nodeagent.agent.testing import task
from nodeagent.model.protocol import StopReason
from nodeagent.model.times import utc_now
from nodeagent.rules.attempt import new_attempt
from nodeagent.rules.attempt_events import Accepted, Launched, StopRequested
from nodeagent.rules.layout import NodeLayout
from nodeagent.runtime.base import Ended
from nodeagent.shim.records import ExecError, ExitRecord, SweptRecord

if TYPE_CHECKING:
    from nodeagent.agent.tools import Tools

NOWHERE = NodeLayout(Path("/nonexistent")).task("j", "t")


class SlowDatabase:
    """A database whose commits end when the test says so."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.committed = asyncio.Event()

    async def write(self, _: Callable[..., object]) -> None:
        """Wait for the commit."""
        self.asked.set()
        await self.committed.wait()


class Told:
    """The reporter: what it was given."""

    def __init__(self) -> None:
        self.rows: list[OutboxRow] = []

    def add(self, rows: Iterable[OutboxRow]) -> None:
        """Take reports."""
        self.rows += rows


async def test_a_stop_that_comes_while_the_end_is_stored_does_not_swallow_the_report() -> None:
    """The terminal report reaches the reporter although a stop was stored at the same moment."""
    database, told = SlowDatabase(), Told()
    ended = Ended(ExitRecord("a1", 2.0, exit_code=0, started_at=1.0), SweptRecord("a1", 0, 0, "test"))
    runtime = SimpleNamespace(wait=lambda _: asyncio.sleep(0, ended))
    async with asyncio.TaskGroup() as tasks:
        tools: Any = SimpleNamespace(
            database=database,
            reporter=told,
            accounts=SimpleNamespace(release=lambda _: None),
            runtime=runtime,
            tasks=tasks,
            now=utc_now,
            kept_log_bytes=1000,
            directories=Directories(NodeLayout(Path("/nonexistent"))),
        )
        runner = AttemptRunner(cast("Tools", tools), new_attempt(task("a1", "true")), task("a1", "true"))
        runner.apply(Accepted())
        runner.apply(Launched())
        end = event_of(ended, NOWHERE, "user")
        storing = tasks.create_task(runner.feed(end))  # as its own driver does after the wait
        runner._driver = cast("asyncio.Task[None]", storing)
        await database.asked.wait()
        stop = runner.apply(StopRequested(StopReason.JOB_TERMINATE))
        runner.committed(stop)
        runner.pursue(stop.effects)
        database.committed.set()
        await asyncio.wait((storing,))
    assert not storing.cancelled()
    assert [row.terminal for row in told.rows if row.terminal] == [True]


def test_a_working_directory_that_is_gone_is_no_missing_program() -> None:
    """ENOENT of another step than the execution is told as a failed launch, with the step."""
    error = ExecError(errno=2, strerror="No such file", step="chdir", path="/r/wd", cwd="/r/wd", user=None, hint="")
    record = ExitRecord("a1", 2.0, exec_error=error)
    event = event_of(Ended(record, SweptRecord("a1", 0, 0, "test")), NOWHERE, "user")
    failure = getattr(event, "failure", None)
    assert failure is not None
    assert failure.code == "CommandLaunchFailed"
    assert ("Step", "chdir") in [(item.name, item.value) for item in failure.details]
