"""Output files: after the command has ended, what a task's rules name is uploaded (spec/node.md §5).

An upload is a durable step: the second call for an execution goes on where the first was killed. All files are tried,
whatever becomes of one of them.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import structlog

from nodeagent.model.failure import FailureInfo
from nodeagent.rules.upload_failures import UploadProblem, upload_failure
from nodeagent.rules.uploads import blob_headers
from nodeagent.transfer.base import Meter, Tokens, TransferSettings
from nodeagent.transfer.blob_upload import FileUpload, Hit, UploadFailedError
from nodeagent.transfer.block_blob import BlobSession, Target
from nodeagent.transfer.file_walk import identity_of, open_regular, size_in
from nodeagent.transfer.run_as import RunAsError, UserThread
from nodeagent.transfer.upload_log import UploadLog
from nodeagent.transfer.upload_plan import (
    FileState,
    Ledger,
    Plan,
    PlannedFile,
    Uploads,
    make_plan,
    rules_to_follow,
)

log = structlog.get_logger(__name__)

MOST_UNREACHED = 16
"""After so many files in a row that did not reach a container, each tried as often as is allowed, no other is."""
CHANGED = "it changed while its upload was interrupted: what is in storage, if anything, is what it was before"


class OutputFiles:
    """Uploads the output files of all tasks of a node, over the same connections."""

    def __init__(self, settings: TransferSettings, tokens: Tokens, *, hit: Hit = lambda _: None) -> None:
        self._settings = settings
        self._hit = hit
        self.session = BlobSession(settings, tokens)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["OutputFiles"]:
        """Hold the connections open."""
        async with self.session.connected():
            yield self

    async def upload(self, uploads: Uploads, ledger: Ledger, meter: Meter) -> FailureInfo | None:
        """Upload what the rules name that apply after the exit code; return why that failed, if it did.

        Called again for the same execution it goes on where it was, and returns the same in the end.
        """
        if not rules_to_follow(uploads):
            return None
        try:
            async with UserThread(uploads.run_as) as user:
                return await _Execution(self.session, uploads, ledger, meter, user, self._hit).run()
        except RunAsError as error:
            log.warning("output files not uploaded", execution=uploads.execution_id, why=str(error))
            problem = UploadProblem(message=f"the files can't be opened as the task's user: {error}")
            return upload_failure([(str(uploads.wd), problem)], 1)


class _Execution:
    """The uploads of one execution."""

    def __init__(
        self, session: BlobSession, uploads: Uploads, ledger: Ledger, meter: Meter, user: UserThread, hit: Hit
    ) -> None:
        self._session = session
        self._uploads = uploads
        self._ledger = ledger
        self._meter = meter
        self._user = user
        self._hit = hit
        self._problems: dict[int, UploadProblem] = {}
        self._unreached: dict[str, int] = {}
        """How many uploads in a row did not reach a container."""
        self._last_unreached = UploadProblem(message="")

    async def run(self) -> FailureInfo | None:
        """Plan, unless that was done before, and upload what is not done."""
        files = await self._ledger.planned()
        plan = Plan()
        if anew := files is None:
            plan = await self._user.call(lambda: make_plan(self._uploads))
            files = tuple(plan.files)
            await self._ledger.plan(files)
            self._hit("after_upload_plan")
        self._expect(files)
        todo = [file for file in files if file.state in (FileState.PLANNED, FileState.BEGUN)]
        if anew or todo:
            await self._upload(files, todo, plan, anew=anew)
        await self._ledger.settled()
        failed = [(file.path, self._problems[file.number]) for file in files if file.number in self._problems]
        return upload_failure(failed, len(files))

    def _expect(self, files: Sequence[PlannedFile]) -> None:
        self._meter.expect(len(files), sum(_size(file) for file in files))
        for file in files:
            if file.state is FileState.FAILED:
                self._problems[file.number] = file.problem or UploadProblem(message="it failed")
                self._meter.finished()
            elif file.state is FileState.DONE:
                self._meter.moved(_size(file))
                self._meter.finished()

    async def _upload(
        self, files: Sequence[PlannedFile], todo: Sequence[PlannedFile], plan: Plan, *, anew: bool
    ) -> None:
        async with UploadLog(self._uploads.root, self._uploads.log_owner, anew=anew) as told:
            self._log = told
            if anew:
                await told.told(*plan.notes)
                await told.complained(*plan.complaints)
                for file in files:
                    if file.problem is not None:
                        await told.complained(f"{file.path}: {file.problem.text()}")
            else:
                await told.told(f"going on with {len(todo)} of {len(files)} files after an interruption")
            waiting = iter(todo)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._session.settings.transfers, len(todo))):
                    group.create_task(self._work(waiting))
            await told.told(f"{len(files) - len(self._problems)} of {len(files)} files uploaded")

    async def _work(self, waiting: Iterator[PlannedFile]) -> None:
        for file in waiting:
            await self._one(file)

    async def _one(self, file: PlannedFile) -> None:
        target = self._target(file)
        try:
            size, attempts = await self._sent(file, target)
        except UploadFailedError as error:
            self._problems[file.number] = error.problem
            self._ledger.finished(file.number, error.problem)
            self._meter.finished()
            await self._log.complained(f"{file.path} -> {target.shown}: {error.problem.text()}")
            return
        self._hit("after_upload_commit")
        self._ledger.finished(file.number, None)
        self._meter.finished()
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        await self._log.told(f"{file.path} -> {target.shown}: {size} bytes, {tries}")

    def _target(self, file: PlannedFile) -> Target:
        container = self._uploads.output_files[file.rule].destination.container
        headers = blob_headers(container.upload_headers or (), file.blob)
        return Target(container.container_url, file.blob, headers, container.identity_reference)

    async def _sent(self, file: PlannedFile, target: Target) -> tuple[int, int]:
        """Open and upload a file, return its size and the attempts that it took. Raises UploadFailedError."""
        try:
            handle, found = await self._user.open(lambda: open_regular(file.path), lambda opened: os.close(opened[0]))
        except OSError as error:
            text = f"it cannot be opened: {error.strerror or type(error).__name__}"
            raise UploadFailedError(UploadProblem(message=text)) from error
        try:
            identity = identity_of(found)
            resumed = file.state is FileState.BEGUN
            if resumed and identity != file.identity:
                raise UploadFailedError(UploadProblem(message=CHANGED))
            if not resumed:
                await self._ledger.begun(file.number, identity)
                self._hit("after_upload_begun")
            upload = FileUpload(self._session, target, handle, found.st_size, self._meter, self._hit)
            return found.st_size, await self._unless_unreachable(upload, target, resumed=resumed)
        finally:
            os.close(handle)

    async def _unless_unreachable(self, upload: FileUpload, target: Target, *, resumed: bool) -> int:
        """Upload, unless the storage has not been reached for long: thousands of files would wait for it in vain."""
        if self._unreached.get(target.container_url, 0) >= MOST_UNREACHED:
            text = f"not tried after {MOST_UNREACHED} others had failed: {self._last_unreached.message}"
            raise UploadFailedError(self._last_unreached.model_copy(update={"message": text, "attempts": 0}))
        try:
            attempts = await upload.run(resumed=resumed)
        except UploadFailedError as error:
            if error.problem.is_unreachable:
                self._unreached[target.container_url] = self._unreached.get(target.container_url, 0) + 1
                self._last_unreached = error.problem
            raise
        self._unreached[target.container_url] = 0
        return attempts


def _size(file: PlannedFile) -> int:
    return 0 if file.identity is None else size_in(file.identity)
