"""What an attempt moves before and after its command: packages and resource files in, output files out.

Both may be begun anew after a restart. Files that come are replaced one by one, each in one step; what has gone out is
remembered in the ledger, and is not sent again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from nodeagent.agent import failpoints
from nodeagent.agent.attempt_directories import AttemptDirectories
from nodeagent.agent.disk_watch import FULL
from nodeagent.agent.waiting import either
from nodeagent.model.protocol import AttemptKind, Outcome, StopReason, TransferPhase
from nodeagent.model.times import UNLIMITED
from nodeagent.rules import attempt_events
from nodeagent.rules.accounts import AccountError
from nodeagent.rules.attempt import State
from nodeagent.rules.failures import DISK_FULL, command_refused, directory_failure, failure_of
from nodeagent.transfer.base import Owner, Place, TransferFailedError
from nodeagent.transfer.run_as import RunAs
from nodeagent.transfer.upload_plan import Uploads

if TYPE_CHECKING:
    from nodeagent.agent.attempt_runner import AttemptRunner
    from nodeagent.agent.tools import Tools


ENDED_BY_LIMIT = -1
"""For uploads: not 0."""


class AttemptTransfers:
    """Of one attempt, whichever execution of it is the present one."""

    def __init__(self, tools: "Tools", runner: "AttemptRunner", directories: AttemptDirectories) -> None:
        self._tools = tools
        self._runner = runner
        self._directories = directories
        self._variables: Mapping[str, str] | None = None
        """Of the task's own packages, once they are installed."""

    async def bring_in(self) -> attempt_events.Event | None:
        """Bring packages and resource files. The wall clock of the task runs meanwhile (spec/node.md §9)."""
        if self._runner.attempt.state is not State.TRANSFERRING_IN:
            return None  # a stop came while the step before was stored
        try:
            async with asyncio.timeout(self._seconds_left()) as deadline:
                await self._bring_in()
        except TimeoutError:
            if not deadline.expired():
                raise
            return attempt_events.StopRequested(StopReason.WALL_CLOCK)
        except TransferFailedError as error:
            if error.failure.code == DISK_FULL:
                self._tools.disk.met_full()
            return attempt_events.PreProcessingFailed(error.failure)
        except AccountError as error:
            return attempt_events.PreProcessingFailed(command_refused(str(error), ("Step", "user")))
        except OSError as error:
            if error.errno in FULL:
                self._tools.disk.met_full()
            return attempt_events.PreProcessingFailed(directory_failure(error.errno or 0, str(error.filename)))
        failpoints.hit("after_transfer_in")
        return attempt_events.TransferredIn()

    async def _bring_in(self) -> None:
        """Raises TransferFailedError, AccountError, OSError."""
        tools, work = self._tools, self._runner.assignment.work
        if self._runner.assignment.attempt_kind is not AttemptKind.JOB_RELEASE:  # which may clean up
            await tools.disk.room(self._runner.unwanted)
        actor = await self._directories.make()
        if work.application_packages:
            await self.package_variables()
        if work.resource_files:
            owner = None if actor.owner is None else Owner(actor.owner.uid, actor.owner.gid)
            place = Place(self._directories.paths.wd, owner)
            with tools.transfers.progress.metered(self._runner.attempt.attempt_id, TransferPhase.DOWNLOADING) as meter:
                await tools.transfers.resource_files.bring(work.resource_files, place, meter)

    def _seconds_left(self) -> float | None:
        limit, began = self._runner.attempt.plan.max_wall_clock_time, self._runner.attempt.start_time
        if limit >= UNLIMITED or began is None:
            return None
        return (limit - (self._tools.now() - began)).total_seconds()

    async def package_variables(self) -> Mapping[str, str]:
        """Return the variables of the pool's packages and the task's own; the latter are installed if they are not.

        Raises TransferFailedError.
        """
        transfers = self._tools.transfers
        await either(transfers.pool_ready, self._runner.unwanted)
        wanted = self._runner.assignment.work.application_packages
        if wanted and self._variables is None:
            attempt_id = self._runner.attempt.attempt_id
            with transfers.progress.metered(attempt_id, TransferPhase.INSTALLING) as meter:
                self._variables = await transfers.packages.ensure(wanted, meter)
        return {**transfers.packages.pool_variables(), **(self._variables or {})}

    async def take_out(self) -> attempt_events.Event | None:
        """Upload output files, with the permissions of the user that the command had."""
        attempt = self._runner.attempt
        if attempt.state is not State.TRANSFERRING_OUT:
            return None  # a stop came while the step before was stored
        uploads = await self._uploads()
        if uploads is None:
            message = "The record of the launch cannot be read any more: whose files they are is not known"
            return attempt_events.TransferredOut(failure_of("FileUploadMiscError", ("Message", message)))
        transfers = self._tools.transfers
        with transfers.progress.metered(attempt.attempt_id, TransferPhase.UPLOADING) as meter:
            failure = await transfers.output_files.upload(uploads, transfers.ledgers.of(attempt.execution_id), meter)
        failpoints.hit("after_transfer_out")
        return attempt_events.TransferredOut(failure)

    @asynccontextmanager
    async def live_logs(self) -> AsyncIterator[None]:
        """Upload logs during the `with` block, if the settings ask for it and the task has output files."""
        live = self._tools.transfers.live_logs
        uploads = await self._uploads() if live is not None and self._runner.assignment.work.output_files else None
        if live is None or uploads is None:
            yield
            return
        following = asyncio.create_task(live.follow(uploads))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait((following,))

    async def _uploads(self) -> Uploads | None:
        """What there is to upload: environment and user as the command had them, by the record of its launch."""
        spec = self._directories.spec()
        if spec is None:
            return None
        try:
            owner = (await self._directories.hold()).owner
        except AccountError:  # a former life could, this one cannot: then the logs of the upload are the agent's
            owner = None
        outcome, paths = self._runner.attempt.outcome, self._directories.paths
        return Uploads(
            execution_id=self._runner.attempt.execution_id,
            output_files=self._runner.assignment.work.output_files,
            exit_code=0 if outcome is None else _exit_code(outcome),
            root=paths.root,
            wd=paths.wd,
            environment=spec.env,
            run_as=None if spec.user is None else RunAs(spec.user.uid, spec.user.gid, spec.user.groups),
            log_owner=None if owner is None else Owner(owner.uid, owner.gid),
        )


def _exit_code(outcome: Outcome) -> int:
    """What conditions of uploads go by: an exit code of 0 of a task that a limit ended is no success."""
    if outcome.exit_code is None or (outcome.exit_code == 0 and outcome.stop_reason is not None):
        return ENDED_BY_LIMIT
    return outcome.exit_code
