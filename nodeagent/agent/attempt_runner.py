"""The one owner of an attempt: feeds `rules.attempt.step`, commits, and only then performs the effects.

State, journal and reports of a step go into one transaction. The runner's own state is ahead of the disk while a
commit is under way; writes are committed in the order of their asking, so no effect is ever performed before
everything that led to it is stored.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import structlog

from nodeagent.agent import failpoints, journal
from nodeagent.agent.accounts import Accounts, Actor
from nodeagent.agent.attempt_change import Change, change_of
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.database import Database
from nodeagent.agent.directories import Directories
from nodeagent.agent.disk_watch import FULL, FULL_SECONDS, DiskWatch
from nodeagent.agent.endings import event_of
from nodeagent.agent.job_sessions import JobSessions
from nodeagent.agent.launch_spec import launch_spec
from nodeagent.agent.limits import TaskLimits, evidence, limited
from nodeagent.agent.reporter import Reporter
from nodeagent.boundary.base import BoundaryError
from nodeagent.boundary.limits import LimitedBoundaries, counted
from nodeagent.model.protocol import Assignment, AttemptKind, StopReason, Sweep, Transition
from nodeagent.model.times import utc_now
from nodeagent.rules import attempt as rules
from nodeagent.rules import attempt_effects, attempt_events
from nodeagent.rules.accounts import AccountError
from nodeagent.rules.attempt import Attempt
from nodeagent.rules.command_line import CommandLineError
from nodeagent.rules.environment import EnvironmentLoopError, NodeFacts
from nodeagent.rules.failures import command_refused, directory_failure, not_handled
from nodeagent.rules.layout import TaskPaths
from nodeagent.runtime import base as runtime_base
from nodeagent.runtime.base import LaunchError, LaunchUnknown, Runtime, RuntimeFailure
from nodeagent.shim import records

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What all runners of a node share."""

    database: Database
    accounts: Accounts
    runtime: Runtime
    boundaries: LimitedBoundaries
    directories: Directories
    sessions: JobSessions
    reporter: Reporter
    attempts: Attempts
    tasks: asyncio.TaskGroup
    node: Callable[[], NodeFacts]
    disk: DiskWatch
    records: Path
    """Where the records of executions lie: `state_dir/attempts`."""
    grace_seconds: float
    durability: Literal["process", "power"]
    limits: TaskLimits = field(default_factory=TaskLimits)
    stderr_tail: bool = True
    """Whether a failure tells the last bytes of the task's stderr."""
    now: Callable[[], datetime] = utc_now


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
        self._paths = tools.directories.layout.task(assignment.job_id, assignment.task_id)
        self._unwanted = asyncio.Event()
        """Somebody wants the attempt to end."""
        self._driver: asyncio.Task[None] | None = None
        self._storing = False
        """The driver stores a step: what it stores is yet to be told, so it must not be cancelled."""
        self._spec_written = False
        self._contained: dict[str, str] | None = None
        self._actor: Actor | None = None
        if attempt.state in rules.OVER:
            self.over.set()
        if attempt.stop_reason is not None:
            self._unwanted.set()

    @property
    def paths(self) -> TaskPaths:
        """Where the present execution has its directory."""
        return self._paths

    def recorded_boundary(self) -> dict[str, str] | None:
        """The boundary of the present execution, if its spec has been written and is whole."""
        spec = self._spec()
        return None if spec is None else dict(spec.boundary)

    def apply(self, event: attempt_events.Event) -> Change:
        """Step in memory. Whoever calls stores the change and then calls `committed` with it."""
        at = self._tools.now()
        before = self.attempt
        stepped = rules.step(before, event, at)
        self.attempt = stepped[0]
        if self.attempt.stop_reason is not None:
            self._unwanted.set()
        return change_of(before, event, stepped, at)

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
                self._driver.cancel()  # it waits for something that does not matter any more
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
                    event = await self._perform(effect)
            effects = () if event is None else await self.feed(event)

    async def _perform(self, effect: attempt_effects.Effect) -> attempt_events.Event | None:  # noqa: PLR0911 - one line per kind of effect
        match effect:
            case attempt_effects.Launch():
                return await self._settled(self._launch())
            case attempt_effects.Look():
                return await self._settled(self._look())
            case attempt_effects.AwaitPreparation():
                return await self._await_preparation()
            case attempt_effects.SweepBoundary():
                return attempt_events.Swept(await self._sweep_once())
            case attempt_effects.Stop(reason):
                if self._spec_written:
                    await self._stop(reason)
                return None
            case attempt_effects.TransferIn():
                return attempt_events.PreProcessingFailed(not_handled("BlobDownloadMiscError", "resource files"))
            case attempt_effects.PullImage():
                return attempt_events.PreProcessingFailed(not_handled("ContainerMiscError", "container images"))
            case attempt_effects.TransferOut():
                return attempt_events.TransferredOut(not_handled("FileUploadMiscError", "output files"))
            case _:
                raise TypeError(f"{effect} is nothing that a runner performs")

    # Launch, and what becomes of it.

    async def _stop(self, reason: StopReason) -> None:
        """Who fills the disk has no grace. On a full one it is tried until the wish can be written down."""
        grace = 0.0 if reason is StopReason.DISK_PRESSURE else self._tools.grace_seconds
        while True:
            try:
                return await self._tools.runtime.stop(self.attempt.execution_id, reason, grace)
            except OSError as error:
                if error.errno not in FULL:
                    raise
            self._tools.disk.met_full()
            await asyncio.sleep(FULL_SECONDS)

    async def _launch(self) -> attempt_events.Event:
        if self.attempt.plan.kind is not AttemptKind.JOB_RELEASE:  # which may clean up
            await self._tools.disk.room(self._unwanted)
        refusal = await self._prepare()
        if refusal is not None:
            return refusal
        try:
            await self._tools.runtime.launch(self.attempt.execution_id)
        except LaunchUnknown:
            return await self._look(relaunch=False)
        except LaunchError as error:
            log.error("launch failed", attempt=self.attempt.execution_id, why=str(error))  # noqa: TRY400 - expected
            return attempt_events.Lost(f"the node could not launch it: {error}")
        failpoints.hit("after_launch")
        return await self._await_end()

    async def _prepare(self) -> attempt_events.Event | None:
        """Make directories and write the spec, or return why there is nothing to launch."""
        if self.attempt.stop_reason is None:
            try:
                await self._write_spec()
            except (CommandLineError, EnvironmentLoopError) as error:
                return attempt_events.PreProcessingFailed(command_refused(str(error)))
            except AccountError as error:
                return attempt_events.PreProcessingFailed(command_refused(str(error), ("Step", "user")))
            except BoundaryError as error:
                return attempt_events.Lost(f"the node could not contain it: {error}")
            except OSError as error:
                if error.errno in FULL:
                    self._tools.disk.met_full()
                return attempt_events.PreProcessingFailed(directory_failure(error.errno or 0, str(error.filename)))
        # a stop may have come while the spec was being written
        return None if self.attempt.stop_reason is None else self._never_launched()

    def _never_launched(self) -> attempt_events.Event:
        return attempt_events.Ended(at=self._tools.now(), stop_reason=self.attempt.stop_reason, sweep=Sweep())

    async def _write_spec(self) -> None:
        """Raises OSError, AccountError, CommandLineError, EnvironmentLoopError, BoundaryError."""
        tools, attempt = self._tools, self.attempt
        self._actor = actor = await tools.accounts.hold(self.assignment)
        node, paths = replace(tools.node(), user_name=actor.name), self._paths
        self._contained = await self._boundary()
        tools.boundaries.limit(self._contained, tools.limits.of_boundary(self.assignment.required_slots))
        spec = launch_spec(
            attempt,
            self.assignment,
            node,
            self._contained,
            user=actor.user,
            now=tools.now(),
            grace_seconds=tools.grace_seconds,
            durability=tools.durability,
            limits=tools.limits,
        )
        while not tools.directories.make_task(paths, actor.owner):
            number = await self._previous_number()
            with suppress(FileNotFoundError):  # removed while the database was asked
                tools.directories.move_aside(paths, number)
            failpoints.hit("after_move_aside")
        failpoints.hit("after_directories")
        directory = self._records()
        with suppress(FileExistsError):
            os.mkdir(directory, 0o700)  # noqa: PTH102 - on the path of every task
        records.write(directory, spec, durable=tools.durability == "power")
        self._spec_written = True
        failpoints.hit("after_spec")

    async def _boundary(self) -> dict[str, str]:
        name = self.attempt.execution_id
        if self.attempt.plan.kind is AttemptKind.JOB_PREPARATION:
            session = await self._tools.sessions.boundary(self.attempt.attempt_id)
            return self._tools.boundaries.create(name, session)
        return self._tools.boundaries.create(name)

    async def _previous_number(self) -> int | None:
        """Number of the latest execution of the task, before this one, that has made its directory."""
        job_id, task_id = self.assignment.job_id, self.assignment.task_id
        rows = await self._tools.database.write(lambda db: journal.executions_of_task(db, job_id, task_id))
        mine = self.number + self.attempt.execution
        for row in rows:
            made = (self._tools.records / rules.execution_id(row.attempt_id, row.execution)).exists()
            if row.number < mine and made:
                return row.number
        return None

    async def _await_end(self) -> attempt_events.Event:
        for effect in await self.feed(attempt_events.Launched()):
            await self._perform(effect)
        return await self._end(await self._tools.runtime.wait(self.attempt.execution_id))

    async def _end(self, seen: runtime_base.Ended | runtime_base.Lost) -> attempt_events.Event:
        failpoints.hit("after_exit_seen")
        while isinstance(seen, runtime_base.Lost) and seen.remaining:
            log.warning("processes will not die", attempt=self.attempt.execution_id, remaining=seen.remaining)
            seen = await self._tools.runtime.resolve_lost(self.attempt.execution_id)
        event = event_of(seen, self._paths, self._user_name(), stderr_tail=self._tools.stderr_tail)
        if isinstance(event, attempt_events.Ended):
            event = await self._tools.disk.judged(self, await self._with_evidence(event))
        clean = isinstance(event, attempt_events.Lost) or (event.sweep is not None and event.sweep.remaining == 0)
        if clean and not self.attempt.plan.node_bound:
            await self._remove_boundary()
        return event

    async def _with_evidence(self, event: attempt_events.Ended) -> attempt_events.Ended:
        """Add what the kernel counted, before its cgroup is taken away."""
        boundary = await self._boundary_made()
        if not limited(boundary):
            return event
        limits = self._tools.limits.of_boundary(self.assignment.required_slots)
        return replace(event, evidence=event.evidence + evidence(counted(boundary), limits))

    async def _look(self, *, relaunch: bool = True) -> attempt_events.Event:
        """Find out what became of the execution. Only what no shim ever took is launched, after a restart."""
        runtime, name = self._tools.runtime, self.attempt.execution_id
        if not records.exists(self._records(), records.Spec.FILE):
            return await self._launch()
        self._spec_written = True
        match runtime.look(name):
            case runtime_base.Running():
                await runtime.adopt(name)
                return await self._await_end()
            case runtime_base.NeverStarted() if relaunch:
                return await self._launch()
            case runtime_base.Ended() as seen:
                return await self._end(seen)
            case _:
                return await self._end(await runtime.resolve_lost(name))

    async def _settled(self, work: Coroutine[None, None, attempt_events.Event]) -> attempt_events.Event:
        """Records that cannot be trusted tell nothing: what runs is ended, and the attempt is lost, not the agent."""
        try:
            return await work
        except (RuntimeFailure, records.RecordError) as error:
            log.error("records damaged", attempt=self.attempt.execution_id, why=str(error))  # noqa: TRY400 - expected
            while (swept := await self._sweep_once()).remaining:
                pass
            return attempt_events.Lost(f"{error}; {swept.killed} processes killed, none remains")

    async def _sweep_once(self) -> Sweep:
        result = await self._tools.boundaries.sweep(await self._boundary_made())
        if result.remaining:
            log.warning("processes will not die", attempt=self.attempt.execution_id, remaining=result.remaining)
        else:
            await self._remove_boundary()
        return Sweep(killed=result.killed, remaining=result.remaining)

    async def _remove_boundary(self) -> None:
        try:
            self._tools.boundaries.remove(await self._boundary_made())
        except BoundaryError as error:
            log.warning("boundary not removed", attempt=self.attempt.execution_id, why=str(error))
        self._contained = None

    async def _boundary_made(self) -> dict[str, str]:
        """The boundary as it was recorded for the launch: another life may choose another kind."""
        if self._contained is None:
            spec = self._spec()
            self._contained = await self._boundary() if spec is None else dict(spec.boundary)
        return self._contained

    def _user_name(self) -> str:
        """Who the execution ran as; one that was adopted as its environment says."""
        if self._actor is not None:
            return self._actor.name
        spec = self._spec()
        return self._tools.node().user_name if spec is None else spec.env["AZ_BATCH_TASK_USER"]

    def _spec(self) -> records.Spec | None:
        """What was asked of the shim; None if it can no longer be read, which must not cost an end that is known."""
        try:
            return records.read(self._records(), records.Spec)
        except records.RecordError:
            return None

    def _records(self) -> str:
        return f"{self._tools.records}/{self.attempt.execution_id}"

    # The preparation that is waited for.

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
