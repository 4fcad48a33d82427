"""The attempts that the service still counts on, by id: who is live, and who is waited for."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from nodeagent.agent.attempt_runner import AttemptRunner


class Attempts:
    """The runners of all attempts whose terminal report is not acknowledged yet."""

    def __init__(self) -> None:
        self._runners: dict[str, AttemptRunner] = {}
        self._leaving: dict[Path, set[asyncio.Task[None]]] = {}
        """What still writes into directories of attempts that are over: it is cancelled, and about to end."""

    def __iter__(self) -> Iterator["AttemptRunner"]:
        return iter(tuple(self._runners.values()))

    def __len__(self) -> int:
        return len(self._runners)

    def get(self, attempt_id: str) -> "AttemptRunner | None":
        """Return the runner of a live attempt."""
        return self._runners.get(attempt_id)

    def add(self, runner: "AttemptRunner") -> None:
        """Count an attempt as live."""
        self._runners[runner.attempt.attempt_id] = runner

    def retire(self, runner: "AttemptRunner") -> None:
        """Nothing of the attempt is owed to the service any more."""
        self._runners.pop(runner.attempt.attempt_id, None)
        runner.retired.set()

    def ids(self) -> tuple[str, ...]:
        """Return `liveAttempts` of the node protocol."""
        return tuple(self._runners)

    def of_job(self, job_id: str) -> list["AttemptRunner"]:
        """Return the live attempts of a job."""
        return [runner for runner in self._runners.values() if runner.assignment.job_id == job_id]

    async def until_retired(self, attempt_ids: Iterable[str]) -> None:
        """Wait until none of the attempts is live."""
        waits: list[asyncio.Event] = [
            runner.retired for attempt_id in attempt_ids if (runner := self._runners.get(attempt_id)) is not None
        ]
        for retired in waits:
            await retired.wait()

    def is_leaving(self, directory: "Path", work: "asyncio.Task[None]") -> None:
        """Note that cancelled work of an attempt may write into its directory until it has ended."""
        self._leaving.setdefault(directory, set()).add(work)
        work.add_done_callback(lambda done: self._left(directory, done))

    def _left(self, directory: "Path", work: "asyncio.Task[None]") -> None:
        self._leaving[directory].discard(work)
        if not self._leaving[directory]:
            del self._leaving[directory]

    async def until_left(self, directory: "Path") -> None:
        """Wait until no earlier attempt writes into a directory that another one is to have."""
        while working := self._leaving.get(directory):
            await asyncio.wait(tuple(working))
