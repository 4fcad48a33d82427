"""How far the transfers of the node's attempts are, told to the service while they go on (docs/node-protocol.md).

It is for people who wait, and is never stored: a call that fails is not repeated. Transfers that are over before a
first call costs nothing at all.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

from nodeagent.agent.errors import RefusedError
from nodeagent.agent.service_client import NotRegistered, TooLarge, Unavailable
from nodeagent.model.protocol import ProgressAnswer, ProgressCall, TransferPhase, TransferProgress
from nodeagent.transfer.base import Meter

log = structlog.get_logger(__name__)

SECONDS = 1.0
"""From a change to the call that tells it, and between two calls."""

Call = Callable[[str, str, type[ProgressAnswer]], Awaitable[ProgressAnswer]]
"""`ServiceClient.call`."""


class Progress:
    """Has the meters of all transfers that are under way."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._meters: dict[str, Meter] = {}
        self._changed = asyncio.Event()

    @contextmanager
    def metered(self, attempt_id: str, phase: TransferPhase) -> Iterator[Meter]:
        """Tell of an attempt's transfer for the `with` block, in the place of its phase before."""
        meter = Meter(attempt_id, phase, self._changed.set)
        before = self._meters.get(attempt_id)
        self._meters[attempt_id] = meter
        try:
            yield meter
        finally:
            if before is None:
                del self._meters[attempt_id]
            else:
                self._meters[attempt_id] = before
            self._changed.set()

    def now(self) -> tuple[TransferProgress, ...]:
        """Return how far everything is."""
        return tuple(meter.progress() for meter in self._meters.values())

    async def run(self, call: Call, node_id: str, epoch: int) -> None:
        """Tell the service for ever, at most once in so many seconds, and once when nothing is under way any more."""
        told = False
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._seconds)
            self._changed.clear()
            transfers = self.now()
            if transfers or told:
                told = bool(transfers)
                await _tell(call, ProgressCall(node_id=node_id, epoch=epoch, transfers=transfers))


async def _tell(call: Call, progress: ProgressCall) -> None:
    try:
        await call("progress", progress.to_json(), ProgressAnswer)
    except (Unavailable, NotRegistered, TooLarge, RefusedError) as error:
        # also an older service, that does not know the call
        log.debug("progress not told", why=str(error))
