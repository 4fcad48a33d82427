"""The attempts that the service still counts on, by id: who is live, and who is waited for."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from nodeagent.agent.attempt_runner import AttemptRunner


class Attempts:
    """The runners of all attempts whose terminal report is not acknowledged yet."""

    def __init__(self) -> None:
        self._runners: dict[str, AttemptRunner] = {}

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
