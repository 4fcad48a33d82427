"""The account and the directories of an attempt's present execution, made before files come or a command is launched.

The record directory `attempts/<execution>` is made last. From then on what `<task>` holds belongs to this execution: a
later step, or a later life of the agent, uses it as it is. What is found there before belongs to an earlier one.
"""

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from nodeagent.agent import failpoints, journal
from nodeagent.agent.accounts import Actor
from nodeagent.rules import attempt as rules
from nodeagent.shim.records import RecordError, Spec, read

if TYPE_CHECKING:
    from nodeagent.agent.attempt_runner import AttemptRunner
    from nodeagent.agent.tools import Tools
    from nodeagent.rules.layout import TaskPaths


class AttemptDirectories:
    """Of one attempt, whichever execution of it is the present one."""

    def __init__(self, tools: "Tools", runner: "AttemptRunner") -> None:
        self._tools = tools
        self._runner = runner
        self.paths: TaskPaths = tools.directories.layout.task(runner.assignment.job_id, runner.assignment.task_id)
        """Where the present execution has its directory."""
        self._actor: Actor | None = None
        self._made = ""
        """The execution whose directories this life has made, or found made."""

    @property
    def records(self) -> str:
        """The record directory of the present execution."""
        return f"{self._tools.records}/{self._runner.attempt.execution_id}"

    @property
    def user_name(self) -> str:
        """Who the execution runs as; one that was adopted as its environment says."""
        if self._actor is not None:
            return self._actor.name
        spec = self.spec()
        return self._tools.node().user_name if spec is None else spec.env["AZ_BATCH_TASK_USER"]

    def spec(self) -> Spec | None:
        """What was asked of the shim; None if it can no longer be read, which must not cost an end that is known."""
        try:
            return read(self.records, Spec)
        except RecordError:
            return None

    async def hold(self) -> Actor:
        """Hold the account that the attempt runs as. Raises AccountError.

        That is not given up half-way: a uid that is stored while the attempt ends would never be given back.
        """
        if self._actor is not None:
            return self._actor
        accounts, assignment = self._tools.accounts, self._runner.assignment
        if not accounts.kept_apart:  # nothing is stored then
            self._actor = await accounts.hold(assignment)
            return self._actor
        holding = asyncio.ensure_future(accounts.hold(assignment))
        try:
            self._actor = await asyncio.shield(holding)
        except asyncio.CancelledError:
            await asyncio.wait((holding,))
            if self._runner.over.is_set():
                accounts.release(assignment)
            raise
        return self._actor

    async def make(self) -> Actor:
        """Hold the account and make the directories, unless that is done; return who the execution runs as.

        Raises OSError, AccountError.
        """
        actor = await self.hold()
        execution = self._runner.attempt.execution_id
        if self._made == execution:
            return actor
        await self._tools.attempts.until_left(self.paths.root)
        while not self._tools.directories.make_task(self.paths, actor.owner):
            if self._is_marked():
                break
            number = await self._previous_number()
            with suppress(FileNotFoundError):  # removed while the database was asked
                self._tools.directories.move_aside(self.paths, number)
            failpoints.hit("after_move_aside")
        failpoints.hit("after_directories")
        with suppress(FileExistsError):
            os.mkdir(self.records, 0o700)  # noqa: PTH102 - on the path of every task
        self._made = execution
        return actor

    def _is_marked(self) -> bool:
        """An earlier step, or an earlier life, has got as far as the record directory."""
        return os.path.isdir(self.records)  # noqa: PTH112 - as below

    async def _previous_number(self) -> int | None:
        """Number of the latest execution of the task, before this one, that has made its directory."""
        job_id, task_id = self._runner.assignment.job_id, self._runner.assignment.task_id
        rows = await self._tools.database.write(lambda db: journal.executions_of_task(db, job_id, task_id))
        mine = self._runner.number + self._runner.attempt.execution
        for row in rows:
            made = (self._tools.records / rules.execution_id(row.attempt_id, row.execution)).exists()
            if row.number < mine and made:
                return row.number
        return None
