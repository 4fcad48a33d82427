"""The outbox's way to the service: batches, per attempt in order, resent until acknowledged (docs/node-protocol.md).

Reports come here after they were committed. The reports of an attempt are kept until its terminal one is
acknowledged, so that a gap at the service can be filled.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from nodeagent.agent import failpoints
from nodeagent.agent.journal import OutboxRow
from nodeagent.agent.membership import Membership
from nodeagent.agent.service_client import TooLarge
from nodeagent.model.protocol import NumberedMessage, ReportResult, ReportsAnswer, ReportStatus

log = structlog.get_logger(__name__)

BATCH = 500
BATCH_BYTES = 512 * 1024
"""Reports of failed tasks carry the last words of theirs; a request stays well below any service's limit."""
LINGER_SECONDS = 0.05
"""How long a report that an attempt runs may wait for company: that of a short task goes together with its end."""


class Reporter:
    """Sends what is in the outbox. One request at a time: what arrives meanwhile goes with the next."""

    def __init__(
        self,
        head: Callable[[], str],
        acknowledged: Callable[[Sequence[str]], None],
        disowned: Callable[[Sequence[str]], None],
        take: Callable[[Sequence[NumberedMessage]], Awaitable[None]],
    ) -> None:
        """`head` is what each body begins with: node id, epoch and cursor as JSON members, without braces.

        `take` gets the messages that an answer brings along.
        """
        self._head = head
        self._take = take
        self._acknowledged = acknowledged
        self._disowned = disowned
        self._streams: dict[str, list[OutboxRow]] = {}
        self._queue: deque[OutboxRow] = deque()
        self._waiting = asyncio.Event()
        self._lingering: asyncio.TimerHandle | None = None
        self._batch = BATCH

    def add(self, rows: Iterable[OutboxRow]) -> None:
        """Send these reports; they are in the outbox."""
        for row in rows:
            self._streams.setdefault(row.attempt_id, []).append(row)
            self._queue.append(row)
            if row.terminal:
                self._waiting.set()
            elif not self._waiting.is_set() and self._lingering is None:
                self._lingering = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._linger_no_more)

    def _linger_no_more(self) -> None:
        self._lingering = None
        self._waiting.set()

    def drop(self, attempt_id: str) -> None:
        """Send nothing more of this attempt."""
        if self._streams.pop(attempt_id, None) is not None:
            self._queue = deque(row for row in self._queue if row.attempt_id != attempt_id)

    async def run(self, membership: Membership) -> None:
        """Send for ever."""
        while True:
            await self._waiting.wait()
            batch = self._next_batch()
            if not self._queue:
                self._waiting.clear()
                if self._lingering is not None:
                    self._lingering.cancel()
                    self._lingering = None
            if batch:
                await self._send(membership, batch)

    def _next_batch(self) -> list[OutboxRow]:
        batch: list[OutboxRow] = []
        size = 0
        while self._queue and len(batch) < self._batch:
            size += len(self._queue[0].report)
            if batch and size > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _send(self, membership: Membership, batch: Sequence[OutboxRow]) -> None:
        reports = ",".join(row.report for row in batch)
        failpoints.hit("before_post")
        try:
            answer = await membership.insist(
                "reports", lambda: f'{{{self._head()},"reports":[{reports}]}}', ReportsAnswer
            )
        except TooLarge:
            if len(batch) == 1:
                raise
            self._batch = max(1, len(batch) // 2)
            self._again(batch)
            return
        failpoints.hit("after_post_before_ack")
        self._settle(batch, answer.results)
        await self._take(answer.messages)

    def _settle(self, batch: Sequence[OutboxRow], results: Sequence[ReportResult]) -> None:
        sent = {(row.attempt_id, row.seq): row for row in batch}
        done: list[str] = []
        unknown: dict[str, None] = {}
        gaps: dict[str, int] = {}
        for result in results:
            row = sent.pop((result.attempt_id, result.seq), None)
            if row is None or row.attempt_id not in self._streams:
                continue
            if result.status is ReportStatus.UNKNOWN:
                unknown[row.attempt_id] = None
            elif result.status is ReportStatus.GAP:
                gaps.setdefault(row.attempt_id, result.expected or 1)
            elif row.terminal:
                done.append(row.attempt_id)
                del self._streams[row.attempt_id]
        self._again(tuple(sent.values()))  # an answer that says nothing about them acknowledges nothing
        for attempt_id, expected in gaps.items():
            self._fill(attempt_id, expected)
        if done:
            self._acknowledged(done)
        if unknown:
            self._disowned(tuple(unknown))

    def _fill(self, attempt_id: str, expected: int) -> None:
        log.warning("the service misses reports", attempt=attempt_id, expected=expected)
        self._queue = deque(row for row in self._queue if row.attempt_id != attempt_id)
        self._again([row for row in self._streams.get(attempt_id, ()) if row.seq >= expected])

    def _again(self, rows: Sequence[OutboxRow]) -> None:
        rows = [row for row in rows if row.attempt_id in self._streams]
        self._queue.extendleft(reversed(rows))
        if rows:
            self._waiting.set()
