"""RemoveFiles: the directories and records of attempts go, but never before the service has their end (I5).

A directory is first moved into the bin, in one step and before anything that was assigned later can begin, and then
deleted by a worker thread. The note of the wish is deleted last: after a restart it is simply carried out again.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

import structlog

from nodeagent.agent import failpoints, journal, trees
from nodeagent.agent.attempts import Attempts
from nodeagent.agent.database import Database
from nodeagent.agent.directories import Directories, directory_of
from nodeagent.agent.journal import Execution, Removal
from nodeagent.rules.attempt import execution_id
from nodeagent.rules.layout import job_directory

log = structlog.get_logger(__name__)


class Removals:
    """Carries out what `journal.removals` holds."""

    def __init__(
        self,
        database: Database,
        attempts: Attempts,
        directories: Directories,
        records: Path,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._database = database
        self._attempts = attempts
        self._directories = directories
        self._records = records
        self._tasks = tasks
        self._bin = directories.layout.volatile / "bin"
        self._records_bin = records.with_name("bin")
        """Records may lie on another file system than tasks."""
        self._emptying = asyncio.Lock()

    def begin(self, removal: Removal) -> None:
        """Carry out a removal, beside whatever goes on."""
        self._tasks.create_task(self.carry_out(removal))

    async def carry_out(self, removal: Removal) -> None:
        """Wait until nothing of the attempts is owed, then remove them."""
        await self._attempts.until_retired(removal.attempt_ids)
        executions, others = await self._database.write(lambda db: journal.executions_to_remove(db, removal))
        self._move(removal, executions, others)
        failpoints.hit("after_bin")
        await self.empty_bin()
        await self._database.write(lambda db: journal.removal_done(db, removal))
        log.info("files removed", job=removal.job_id, attempts=len(removal.attempt_ids))

    async def empty_bin(self) -> None:
        """Delete what is in the bin. What cannot be deleted stays there until the next try, and is logged."""
        async with self._emptying:
            try:
                await asyncio.to_thread(self._empty)
            except OSError as error:
                log.warning("files not deleted", path=str(error.filename), why=error.strerror)

    def _empty(self) -> None:
        for each in (self._bin, self._records_bin):
            each.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                trees.empty_bin(handle)
            finally:
                os.close(handle)

    def _move(self, removal: Removal, executions: Sequence[Execution], others: Sequence[Execution]) -> None:
        """Move into the bin: the task directories of these executions, and their records."""
        if removal.whole_job and not others:
            directory = self._directories.layout.root / job_directory(removal.job_id)
            _discard(directory, self._bin)
            self._directories.forget(directory)
            _remove_if_empty(directory.parent)
        else:
            for execution in executions:
                _discard(self._directory(execution, others), self._bin)
        for execution in executions:
            _discard(self._records_of(execution), self._records_bin)

    def _directory(self, execution: Execution, others: Iterable[Execution]) -> Path | None:
        paths = self._directories.layout.task(execution.job_id, execution.task_id)
        siblings = {
            other.number: other
            for other in (*others, execution)
            if other.task_id == execution.task_id and other.number >= execution.number
        }
        newer = (number for number in siblings if number > execution.number)
        return directory_of(paths, execution.number, newer, lambda number: self._records_of(siblings[number]).exists())

    def _records_of(self, execution: Execution) -> Path:
        return self._records / execution_id(execution.attempt_id, execution.execution)


def _discard(path: Path | None, bin_: Path) -> None:
    if path is None:
        return
    bin_.mkdir(mode=0o700, exist_ok=True)
    try:
        path.rename(bin_ / uuid4().hex)
    except FileNotFoundError:
        return


def _remove_if_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        return
