"""The zero runtime: launches nothing. It writes the records of a run that did nothing, and says so in them.

With it the cost of everything but running (agent, service, transfers) can be measured.
"""

import time
from pathlib import Path

from nodeagent.runtime import evidence
from nodeagent.runtime.base import Ended, LaunchError, LaunchUnknown, Lost, Running, Seen
from nodeagent.shim import records
from nodeagent.shim.records import ExitRecord, Spec, SweptRecord


class ZeroRuntime:
    """Every attempt ends with 0 the moment it is launched; exit.json names this runtime. See `Runtime`."""

    def __init__(self, state_dir: Path) -> None:
        """The attempts are in `state_dir/attempts`, as for the process runtime."""
        self.attempts = state_dir / "attempts"

    async def open(self) -> None:
        """Nothing is started."""
        self.attempts.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def close(self) -> None:
        """Nothing runs."""

    async def launch(self, attempt_id: str) -> None:
        """See Runtime.launch: writes the outcome."""
        directory = self._directory(attempt_id)
        if records.exists(directory, ExitRecord.FILE):
            raise LaunchUnknown(f"{attempt_id}: exit.json is there already: an attempt runs at most once")
        try:
            spec = records.read(directory, Spec)
        except records.RecordError as error:
            raise LaunchError(str(error)) from error
        if spec is None:
            raise LaunchError(f"{attempt_id}: there is no spec.json")
        stop = records.read(directory, records.StopRecord)
        now = time.time()
        durable = spec.durability == "power"
        if stop is not None:
            exited = ExitRecord(attempt_id, now, never_started=True, stop_reason=stop.reason, runtime="zero")
        else:
            exited = ExitRecord(attempt_id, now, exit_code=0, started_at=now, runtime="zero")
        records.write(directory, exited, durable=durable)
        if spec.sweep:
            records.write(directory, SweptRecord(attempt_id, 0, 0, "nothing ran"), durable=durable)

    async def wait(self, attempt_id: str) -> Ended | Lost:
        """See Runtime.wait; the outcome is always there."""
        return await self.resolve_lost(attempt_id)

    async def stop(self, attempt_id: str, reason: str, grace: float) -> None:
        """See Runtime.stop."""
        evidence.request_stop(self._directory(attempt_id), reason, grace)

    def look(self, attempt_id: str) -> Seen:
        """See Runtime.look."""
        return evidence.look(self._directory(attempt_id))

    async def resolve_lost(self, attempt_id: str) -> Ended | Lost:
        """See Runtime.resolve_lost; nothing has to be killed, so nothing blocks."""
        return evidence.settle(self._directory(attempt_id), attempt_id)

    async def adopt(self, attempt_id: str) -> None:
        """There is never anything to adopt: no shim holds an attempt."""
        if isinstance(self.look(attempt_id), Running):
            raise LaunchUnknown(f"{attempt_id} runs under a shim; the zero runtime watches none")

    def _directory(self, attempt_id: str) -> str:
        return f"{self.attempts}/{attempt_id}"
