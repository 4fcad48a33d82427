"""The command of an attempt's present execution: its spec, launch, wait, end, and the sweep of what it left.

At most once per execution is anything launched. After a restart the records of the shim tell what became of it.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from nodeagent.agent import failpoints
from nodeagent.agent.attempt_directories import AttemptDirectories
from nodeagent.agent.disk_watch import FULL, FULL_SECONDS
from nodeagent.agent.endings import event_of
from nodeagent.agent.launch_spec import launch_spec
from nodeagent.agent.limits import evidence, limited
from nodeagent.boundary.base import BoundaryError
from nodeagent.boundary.limits import counted
from nodeagent.model.protocol import AttemptKind, StopReason, Sweep
from nodeagent.rules import attempt_events
from nodeagent.rules.accounts import AccountError
from nodeagent.rules.command_line import CommandLineError
from nodeagent.rules.environment import EnvironmentLoopError
from nodeagent.rules.failures import command_refused, directory_failure
from nodeagent.runtime import base as runtime_base
from nodeagent.runtime.base import LaunchError, LaunchUnknown, RuntimeFailure
from nodeagent.shim import records
from nodeagent.transfer.base import TransferFailedError

if TYPE_CHECKING:
    from nodeagent.agent.attempt_runner import AttemptRunner
    from nodeagent.agent.attempt_transfers import AttemptTransfers
    from nodeagent.agent.tools import Tools

log = structlog.get_logger(__name__)


class Execution:
    """Of one attempt; an attempt that is retried here has several, one after another."""

    def __init__(
        self, tools: "Tools", runner: "AttemptRunner", directories: AttemptDirectories, transfers: "AttemptTransfers"
    ) -> None:
        self._tools = tools
        self._runner = runner
        self._directories = directories
        self._transfers = transfers
        self._spec_of = ""
        """The execution whose spec is written, as far as this life knows."""
        self._contained: dict[str, str] | None = None

    async def launch(self) -> attempt_events.Event:
        """Launch it and wait for its end."""
        tools, runner = self._tools, self._runner
        if runner.attempt.plan.kind is not AttemptKind.JOB_RELEASE:  # which may clean up
            await tools.disk.room(runner.unwanted)
        refusal = await self._prepare()
        if refusal is not None:
            return refusal
        try:
            await tools.runtime.launch(runner.attempt.execution_id)
        except LaunchUnknown:
            return await self.look(relaunch=False)
        except LaunchError as error:
            log.error("launch failed", attempt=runner.attempt.execution_id, why=str(error))  # noqa: TRY400 - expected
            return attempt_events.Lost(f"the node could not launch it: {error}")
        failpoints.hit("after_launch")
        return await self._await_end()

    async def look(self, *, relaunch: bool = True) -> attempt_events.Event:
        """Find out what became of the execution. Only what no shim ever took is launched, after a restart."""
        runtime, name = self._tools.runtime, self._runner.attempt.execution_id
        if not records.exists(self._directories.records, records.Spec.FILE):
            return await self.launch()
        self._spec_of = self._name
        match runtime.look(name):
            case runtime_base.Running():
                await runtime.adopt(name)
                return await self._await_end()
            case runtime_base.NeverStarted() if relaunch:
                return await self.launch()
            case runtime_base.Ended() as seen:
                return await self._end(seen)
            case _:
                return await self._end(await runtime.resolve_lost(name))

    async def stop(self, reason: StopReason) -> None:
        """End what may run. On a full disk it is tried until the wish can be written down.

        Who fills the disk has no grace.
        """
        if self._spec_of != self._name:
            return
        grace = 0.0 if reason is StopReason.DISK_PRESSURE else self._tools.grace_seconds
        while True:
            try:
                await self._tools.runtime.stop(self._name, reason, grace)
            except OSError as error:
                if error.errno not in FULL:
                    raise
            else:
                return
            self._tools.disk.met_full()
            await asyncio.sleep(FULL_SECONDS)

    async def sweep(self) -> Sweep:
        """Kill what is left of it."""
        result = await self._tools.boundaries.sweep(await self._boundary_made())
        if result.remaining:
            log.warning("processes will not die", attempt=self._name, remaining=result.remaining)
        else:
            await self._remove_boundary()
        return Sweep(killed=result.killed, remaining=result.remaining)

    async def settled(self, work: Coroutine[None, None, attempt_events.Event]) -> attempt_events.Event:
        """Records that cannot be trusted tell nothing: what runs is ended, and the attempt is lost, not the agent."""
        try:
            return await work
        except (RuntimeFailure, records.RecordError) as error:
            log.error("records of the attempt cannot be used", attempt=self._name, why=str(error))  # noqa: TRY400 - expected
            while (swept := await self.sweep()).remaining:
                pass
            return attempt_events.Lost(f"{error}; {swept.killed} processes killed, none remains")

    @property
    def _name(self) -> str:
        return self._runner.attempt.execution_id

    # Before the launch.

    async def _prepare(self) -> attempt_events.Event | None:
        """Make directories and write the spec, or return why there is nothing to launch."""
        runner = self._runner
        if runner.attempt.stop_reason is None:
            try:
                await self._write_spec()
            except (CommandLineError, EnvironmentLoopError) as error:
                return attempt_events.PreProcessingFailed(command_refused(str(error)))
            except AccountError as error:
                return attempt_events.PreProcessingFailed(command_refused(str(error), ("Step", "user")))
            except TransferFailedError as error:  # a package that was here, and has gone since
                return attempt_events.PreProcessingFailed(error.failure)
            except BoundaryError as error:
                return attempt_events.Lost(f"the node could not contain it: {error}")
            except OSError as error:
                if error.errno in FULL:
                    self._tools.disk.met_full()
                return attempt_events.PreProcessingFailed(directory_failure(error.errno or 0, str(error.filename)))
        # a stop may have come while the spec was being written
        return None if runner.attempt.stop_reason is None else self._never_launched()

    def _never_launched(self) -> attempt_events.Event:
        return attempt_events.Ended(at=self._tools.now(), stop_reason=self._runner.attempt.stop_reason, sweep=Sweep())

    async def _write_spec(self) -> None:
        """Raises OSError, AccountError, TransferFailedError, CommandLineError, EnvironmentLoopError, BoundaryError."""
        tools, runner = self._tools, self._runner
        actor = await self._directories.hold()
        self._contained = await self._boundary()
        tools.boundaries.limit(self._contained, tools.limits.of_boundary(runner.assignment.required_slots))
        spec = launch_spec(
            runner.attempt,
            runner.assignment,
            replace(tools.node(), user_name=actor.name),
            self._contained,
            user=actor.user,
            now=tools.now(),
            grace_seconds=tools.grace_seconds,
            durability=tools.durability,
            limits=tools.limits,
            packages=await self._transfers.package_variables(),
        )
        await self._directories.make()
        records.write(self._directories.records, spec, durable=tools.durability == "power")
        self._spec_of = self._name
        failpoints.hit("after_spec")

    async def _boundary(self) -> dict[str, str]:
        if self._runner.attempt.plan.kind is AttemptKind.JOB_PREPARATION:
            session = await self._tools.sessions.boundary(self._runner.attempt.attempt_id)
            return self._tools.boundaries.create(self._name, session)
        return self._tools.boundaries.create(self._name)

    # The end.

    async def _await_end(self) -> attempt_events.Event:
        for effect in await self._runner.feed(attempt_events.Launched()):
            await self._runner.perform(effect)
        async with self._transfers.live_logs():
            seen = await self._tools.runtime.wait(self._name)
        return await self._end(seen)

    async def _end(self, seen: runtime_base.Ended | runtime_base.Lost) -> attempt_events.Event:
        failpoints.hit("after_exit_seen")
        while isinstance(seen, runtime_base.Lost) and seen.remaining:
            log.warning("processes will not die", attempt=self._name, remaining=seen.remaining)
            seen = await self._tools.runtime.resolve_lost(self._name)
        directories = self._directories
        event = event_of(seen, directories.paths, directories.user_name, stderr_tail=self._tools.stderr_tail)
        if isinstance(event, attempt_events.Ended):
            event = await self._tools.disk.judged(self._runner, await self._with_evidence(event))
        clean = isinstance(event, attempt_events.Lost) or (event.sweep is not None and event.sweep.remaining == 0)
        if clean and not self._runner.attempt.plan.node_bound:
            await self._remove_boundary()
        return event

    async def _with_evidence(self, event: attempt_events.Ended) -> attempt_events.Ended:
        """Add what the kernel counted, before its cgroup is taken away."""
        boundary = await self._boundary_made()
        if not limited(boundary):
            return event
        limits = self._tools.limits.of_boundary(self._runner.assignment.required_slots)
        return replace(event, evidence=event.evidence + evidence(counted(boundary), limits))

    async def _remove_boundary(self) -> None:
        try:
            self._tools.boundaries.remove(await self._boundary_made())
        except BoundaryError as error:
            log.warning("boundary not removed", attempt=self._name, why=str(error))
        self._contained = None

    async def _boundary_made(self) -> dict[str, str]:
        """The boundary as it was recorded for the launch: another life may choose another kind."""
        if self._contained is None:
            spec = self._directories.spec()
            self._contained = await self._boundary() if spec is None else dict(spec.boundary)
        return self._contained
