"""The one owner of an attempt: feeds `rules.attempt.step`, commits, and only then performs the effects.

State, journal and reports of a step go into one transaction. The runner's own state is ahead of the disk while a
commit is under way; writes are committed in the order of their asking, so no effect is ever performed before
everything that led to it is stored.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from nodeagent.agent import failpoints, journal
from nodeagent.agent.attempt_change import Change, change_of
from nodeagent.agent.attempt_directories import AttemptDirectories
from nodeagent.agent.attempt_transfers import AttemptTransfers
from nodeagent.agent.execution import Execution
from nodeagent.agent.kept_logs import kept_logs
from nodeagent.agent.tools import Tools
from nodeagent.model.protocol import Assignment, AttemptKind, KeptLog, Transition
from nodeagent.rules import attempt as rules
from nodeagent.rules import attempt_effects, attempt_events
from nodeagent.rules.attempt import Attempt, plan_of
from nodeagent.rules.failures import not_handled
from nodeagent.rules.layout import TaskPaths

_LOGS_KEPT = (AttemptKind.USER, AttemptKind.JOB_MANAGER)


class AttemptRunner:
    """Owns one attempt from its acceptance to the acknowledgement of its terminal report."""

    def __init__(self, tools: Tools, attempt: Attempt, assignment: Assignment, number: int = 0) -> None:
        self.attempt = attempt
        self.assignment = assignment
        self.number = number
        """Of the first execution, among all executions of the task on this node; 0 until the attempt is stored."""
        self.over = asyncio.Event()
        """The terminal report is in the outbox."""
        self.retired = asyncio.Event()
        """The terminal report is acknowledged."""
        self._tools = tools
        self.unwanted = asyncio.Event()
        """Somebody wants the attempt to end."""
        self._driver: asyncio.Task[None] | None = None
        self._storing = False
        """The driver stores a step: what it stores is yet to be told, so it must not be cancelled."""
        if attempt.state in rules.OVER:
            self.over.set()
        if attempt.stop_reason is not None:
            self.unwanted.set()
        self._directories = AttemptDirectories(tools, self)
        self._transfers = AttemptTransfers(tools, self, self._directories)
        self._execution = Execution(tools, self, self._directories, self._transfers)

    @property
    def paths(self) -> TaskPaths:
        """Where the present execution has its directory."""
        return self._directories.paths

    def recorded_boundary(self) -> dict[str, str] | None:
        """The boundary of the present execution, if its spec has been written and is whole."""
        spec = self._directories.spec()
        return None if spec is None else dict(spec.boundary)

    def apply(self, event: attempt_events.Event) -> Change:
        """Step in memory. Whoever calls stores the change and then calls `committed` with it."""
        at = self._tools.now()
        before = self.attempt
        stepped = rules.step(before, event, at)
        self.attempt = stepped[0]
        if self.attempt.stop_reason is not None:
            self.unwanted.set()
        return change_of(before, event, stepped, at, self._logs)

    def _logs(self) -> tuple[KeptLog, ...]:
        """What the end of a user's task tells of its logs, after the last of its processes has gone."""
        if self.assignment.attempt_kind not in _LOGS_KEPT:
            return ()
        return kept_logs(self.paths, self._tools.kept_log_bytes)

    def change_retention(self, retention_time: timedelta) -> None:
        """Keep the files for another time; whoever calls stores it."""
        self.assignment = journal.with_retention(self.assignment, retention_time)
        plan = replace(self.attempt.plan, retention_time=plan_of(self.assignment).retention_time)
        self.attempt = replace(self.attempt, plan=plan)

    def committed(self, change: Change) -> None:
        """Do what follows at once from a stored change: tell the reporter, wake who waits."""
        if change.silenced:
            self._tools.reporter.drop(change.after.attempt_id)
        if change.after.state in rules.OVER and not self.over.is_set():
            self.over.set()
            self._tools.accounts.release(self.assignment)
        self._tools.reporter.add(change.rows)
        if change.after.acknowledged:
            self._tools.attempts.retire(self)

    def pursue(self, effects: Iterable[attempt_effects.Effect]) -> None:
        """Perform the effects of an event that came from outside, or of a restart, beside whatever goes on."""
        if self.attempt.state in rules.OVER:
            if self._driver is not None and not self._storing:
                driver, self._driver = self._driver, None  # a second time would cut short how it cleans up
                if driver.cancel():  # it waits for something that does not matter any more
                    self._tools.attempts.is_leaving(self.paths.root, driver)
            return
        todo = tuple(effect for effect in effects if not isinstance(effect, attempt_effects.Send))
        if not todo:
            return
        task = self._tools.tasks.create_task(self._drive(todo))
        if not isinstance(todo[0], attempt_effects.Stop):
            self._driver = task

    async def feed(self, event: attempt_events.Event) -> tuple[attempt_effects.Effect, ...]:
        """Step, store, and return what is to be done."""
        change = self.apply(event)
        if rules.must_commit(change.before, change.after):
            self._storing = True
            try:
                await self._tools.database.write(change.save)
            finally:
                self._storing = False
            if change.rows:
                failpoints.hit("after_outbox_commit")
        self.committed(change)
        return change.effects

    async def _drive(self, effects: tuple[attempt_effects.Effect, ...]) -> None:
        while effects:
            event: attempt_events.Event | None = None
            for effect in effects:
                if not isinstance(effect, attempt_effects.Send):
                    event = await self.perform(effect)
            effects = () if event is None else await self.feed(event)

    async def perform(self, effect: attempt_effects.Effect) -> attempt_events.Event | None:  # noqa: PLR0911 - one for each kind of effect
        """Do what an effect asks for; return what came of it, if that is an event."""
        match effect:
            case attempt_effects.Launch():
                return await self._execution.settled(self._execution.launch())
            case attempt_effects.Look():
                return await self._execution.settled(self._execution.look())
            case attempt_effects.AwaitPreparation():
                return await self._await_preparation()
            case attempt_effects.SweepBoundary():
                return attempt_events.Swept(await self._execution.sweep())
            case attempt_effects.Stop(reason):
                await self._execution.stop(reason)
                return None
            case attempt_effects.TransferIn():
                return await self._transfers.bring_in()
            case attempt_effects.PullImage():
                return attempt_events.PreProcessingFailed(not_handled("ContainerMiscError", "container images"))
            case attempt_effects.TransferOut():
                return await self._transfers.take_out()
            case _:
                raise TypeError(f"{effect} is nothing that a runner performs")

    async def _await_preparation(self) -> attempt_events.Event:
        gate = self.assignment.preparation
        if gate is None:
            return attempt_events.PreparationSucceeded()
        runner = self._tools.attempts.get(gate.attempt_id)
        if runner is not None:
            await runner.over.wait()
            return _gate(runner.attempt)
        row = await self._tools.database.write(lambda db: journal.attempt(db, gate.attempt_id))
        return _gate(None if row is None else row.attempt)


def _gate(preparation: Attempt | None) -> attempt_events.Event:
    if preparation is None:
        return attempt_events.PreparationUnknown("the preparation attempt that it waits for is not known on this node")
    if preparation.succeeded:
        return attempt_events.PreparationSucceeded()
    if preparation.terminal is Transition.COMPLETED:
        return attempt_events.PreparationFailed("the job preparation task failed on this node")
    return attempt_events.PreparationUnknown("the outcome of the job preparation task is not known")
