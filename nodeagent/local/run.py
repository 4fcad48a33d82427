"""One job, from its file to its end, on a stack of its own: what `nodeagent run` does."""

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from nodeagent.local.client import BatchClient, ServiceError, ServiceUnreachableError
from nodeagent.local.errors import FolderUsedError
from nodeagent.local.job_file import JobFile
from nodeagent.local.outcome import Execution, RunOutcome, execution_of_task, executions_of_special
from nodeagent.local.progress import News, Phase, Progress
from nodeagent.local.stack import Stack
from nodeagent.local.stuck import stuck_tasks

log = structlog.get_logger(__name__)

TAIL_BYTES = 4096
_LOOK_SECONDS = 0.5
"""How often states are looked at that no event tells: of the job, its preparation and its release."""
_FILE_SECONDS = 10.0
_NAMED = 5
"""So many tasks are named in a sentence."""

Tell = Callable[[News], None]


class JobRun:
    """Runs one job on a started stack; `progress` is kept up to date for whoever shows it."""

    def __init__(self, stack: Stack, job_file: JobFile, tell: Tell) -> None:
        manager = job_file.job.job_manager_task
        tasks = len(job_file.tasks) + (manager is not None)
        self.progress = Progress(job_file.job.id, tasks, stack.plan.nodes * stack.plan.slots)
        self._stack = stack
        self._file = job_file
        self._tell = tell
        self._problem: str | None = None
        self._interrupted = asyncio.Event()
        self._grows = manager is not None
        """A job manager may add tasks, so the service alone knows when all have ended."""
        self._looked_for_stuck = -1
        """How many tasks had ended when stuck ones were looked for last."""

    @property
    def _client(self) -> BatchClient:
        return self._stack.client

    def interrupt(self) -> bool:
        """End the job early: terminate it and let its release run. False if it has not been submitted yet."""
        self._interrupted.set()
        return self.progress.phase is not Phase.STARTING

    async def run(self) -> RunOutcome:
        """Submit, wait, terminate, let the release run, and return what became of it all.

        Raises ServiceError, ServiceUnreachableError, FolderUsedError.
        """
        begun = asyncio.get_running_loop().time()
        self.progress.phase = Phase.RUNNING
        await self._submit()
        await self._until_ended_or_interrupted()
        self.progress.transfers = ()
        self.progress.phase = Phase.RELEASING
        await self._terminate()
        self.progress.phase = Phase.DONE
        return await self._outcome(asyncio.get_running_loop().time() - begun)

    async def _submit(self) -> None:
        try:
            await self._client.add_job(self._file.job)
        except ServiceError as error:
            if error.code != "JobExists":
                raise
            folder = self._stack.plan.state_dir
            raise FolderUsedError(f"{folder} holds a run of job '{self._file.job.id}' already: name another") from error
        await self._client.add_tasks(self._file.job.id, self._file.tasks)
        self._tell(News(f"job {self._file.job.id}: {self.progress.tasks} tasks on {self.progress.slots} slots"))

    async def _until_ended_or_interrupted(self) -> None:
        """Return when every task has ended, none can go on, or somebody interrupts."""
        waits = [
            asyncio.create_task(self._follow_events()),
            asyncio.create_task(self._watch_job()),
            asyncio.create_task(self._interrupted.wait()),
            asyncio.create_task(self._stack.until_broken()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for wait in done:
            wait.result()

    async def _follow_events(self) -> None:
        """Read the event stream until every task has completed, of a job that does not grow."""
        if self.progress.all_ended() and not self._grows:
            return
        async for event in self._client.events(follow=True):
            news = self.progress.hear(event)
            if news is not None:
                self._tell(news)
            if self.progress.all_ended() and not self._grows:
                return
        raise ServiceUnreachableError("the event stream ended")

    async def _watch_job(self) -> None:
        """Look at what has no events; return when the job ends by itself, or nothing is left that could run."""
        while True:
            await self._look()
            await self._look_at_transfers()
            job = await self._client.get_job(self._file.job.id)
            if job["state"] in ("disabling", "disabled"):
                self._problem = "the end of a task disabled the job, so its other tasks cannot run"
            if job["state"] not in ("active", "enabling"):
                return
            if self._grows and not await self._look_for_more():
                return
            if self._no_node_left():
                self._problem = "the job preparation task failed on every node, so its tasks cannot run"
                return
            if stuck := await self._stuck():
                self._problem = f"{_counted(stuck)} can never run: what they wait for failed, or is not there"
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look_at_transfers(self) -> None:
        listed = await self._client.transfers(self._file.job.id)
        for news in self.progress.transfer(listed, asyncio.get_running_loop().time()):
            self._tell(news)

    async def _look_for_more(self) -> bool:
        """Take in the tasks that a job manager has added; tell whether any is left."""
        unfinished = await self._client.unfinished(self._file.job.id)
        self.progress.tasks = max(self.progress.tasks, self.progress.done + unfinished)
        return unfinished > 0

    async def _stuck(self) -> list[str]:
        """Return the tasks that are left if none of them can ever run; only looked for when nothing runs."""
        idle = not self.progress.running and not self.progress.all_ended()
        if not (self._file.job.uses_task_dependencies and idle) or self._looked_for_stuck == self.progress.done:
            return []
        self._looked_for_stuck = self.progress.done
        return stuck_tasks(await self._client.list_tasks(self._file.job.id))

    def _no_node_left(self) -> bool:
        preparation = self._file.job.job_preparation_task
        if preparation is None or not preparation.wait_for_success:
            return False
        failed = [node for node, state in self.progress.preparation.items() if state == "failure"]
        return len(failed) == self._stack.plan.nodes and not self.progress.all_ended()

    async def _look(self) -> list[dict[str, Any]]:
        statuses = await self._client.special_tasks(self._file.job.id)
        for news in self.progress.look(statuses):
            self._tell(news)
        return statuses

    async def _terminate(self) -> None:
        """Terminate the job and wait until its release tasks have ended everywhere."""
        reason = "UserTerminate" if self._interrupted.is_set() else "AllTasksCompleted"
        await self._client.terminate_job(self._file.job.id, reason)
        pause = 0.02
        while (await self._client.get_job(self._file.job.id))["state"] != "completed":
            await self._look()
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LOOK_SECONDS)
        await self._look()

    async def _outcome(self, elapsed: float) -> RunOutcome:
        job = await self._client.get_job(self._file.job.id)
        plan, folders = self._stack.plan, self._stack.folders
        roots = {node_id: str(folders.node(node_id).root) for node_id in plan.node_ids}
        statuses = await self._client.special_tasks(self._file.job.id)
        preparation, release = self._file.job.job_preparation_task, self._file.job.job_release_task
        rows = {
            "tasks": [execution_of_task(task, roots) for task in await self._client.list_tasks(self._file.job.id)],
            "preparation": executions_of_special(
                statuses, "jobPreparationTaskExecutionInfo", preparation.id if preparation else "", roots
            ),
            "release": executions_of_special(
                statuses, "jobReleaseTaskExecutionInfo", release.id if release else "", roots
            ),
        }
        told = {
            kind: tuple([await self._with_output(row, of_release=kind == "release") for row in found])
            for kind, found in rows.items()
        }
        return RunOutcome(
            job_id=self._file.job.id,
            job_state=job["state"],
            interrupted=self._interrupted.is_set(),
            problem=self._problem,
            elapsed_seconds=round(elapsed, 3),
            state_dir=str(plan.state_dir),
            kept=not plan.ephemeral,
            nodes=roots,
            **told,
        )

    async def _with_output(self, row: Execution, *, of_release: bool) -> Execution:
        """Return the row with the last lines of what a failure wrote to stderr, and a release to stdout."""
        tails: dict[str, str | None] = {}
        if row.failed:
            tails["stderr_tail"] = await self._tail(row, "stderr.txt")
        if of_release:
            tails["stdout_tail"] = await self._tail(row, "stdout.txt")
        return row.model_copy(update=tails) if tails else row

    async def _tail(self, row: Execution, name: str) -> str | None:
        if row.directory is None or row.node_id is None:
            return None
        root = self._stack.folders.node(row.node_id).root
        path = f"{row.directory.removeprefix(f'{root}/')}/{name}"
        try:
            async with asyncio.timeout(_FILE_SECONDS):
                data = await self._client.node_file_tail(self._stack.plan.pool_id, row.node_id, path, TAIL_BYTES)
        except (ServiceError, ServiceUnreachableError, TimeoutError) as error:
            log.warning("file cannot be read", path=path, node=row.node_id, why=str(error))
            return None
        return data.decode("utf-8", "replace").rstrip("\n") or None


def _counted(tasks: list[str]) -> str:
    named = ", ".join(tasks[:_NAMED])
    return f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} ({named}{', ...' if len(tasks) > _NAMED else ''})"
