"""The calls of the node protocol (model/protocol.py, docs/node-protocol.md)."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from nodeagent.model.enums import NodeState
from nodeagent.model.protocol import (
    PREFIX,
    TERMINAL_TRANSITIONS,
    ApplicationPackage,
    Heartbeat,
    Poll,
    Register,
    Registered,
    Report,
    ReportResult,
    Reports,
    ReportsAnswer,
    Transition,
)
from nodeagent.model.times import utc_now
from nodeagent.service.app_keys import AUTO_STORAGE, DATABASE, SETTINGS, SIGNALS, STOPPING, TASK_TOKENS, TRANSFERS
from nodeagent.service.lifecycle import applications, nodes
from nodeagent.service.lifecycle.nodes import NodeRefusedError
from nodeagent.service.lifecycle.reports import apply_report
from nodeagent.service.nodeapi.calls import guarded, json_answer, read_call
from nodeagent.service.nodeapi.packages import send_package
from nodeagent.service.nodeapi.progress import take_progress
from nodeagent.service.signals import STOPPING_SIGNAL
from nodeagent.service.store import messages
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.nodes import NodeRow


def add_routes(app: web.Application) -> None:
    """Serve the node protocol; `app` must have DATABASE, SIGNALS, STOPPING, SETTINGS and NODE_KEY."""
    queues = _Queues(app)
    app.router.add_post(f"{PREFIX}/register", guarded(_register))
    app.router.add_post(f"{PREFIX}/assignments", guarded(queues.assignments))
    app.router.add_post(f"{PREFIX}/reports", guarded(queues.reports))
    app.router.add_post(f"{PREFIX}/heartbeat", guarded(_heartbeat))
    app.router.add_get(f"{PREFIX}/packages/{{sha256}}", guarded(send_package))
    app.router.add_post(f"{PREFIX}/progress", guarded(take_progress))


async def _register(request: web.Request) -> web.Response:
    call = await read_call(request, Register)
    settings = request.app[SETTINGS]
    request.app[TRANSFERS].forget_node(call.node_id)

    def register(tx: Transaction) -> tuple[tuple[str, ...], tuple[ApplicationPackage, ...]]:
        return nodes.register(tx, call, utc_now()), applications.of_pool(tx, call.pool_id)

    unknown, packages = await request.app[DATABASE].write(register)
    return json_answer(
        Registered(
            account_name=settings.account,
            account_url=f"{request.scheme}://{request.host}/",
            heartbeat_seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            unknown_attempts=unknown,
            pool_packages=packages,
        )
    )


def _require_outcome(report: Report) -> None:
    if report.transition is Transition.COMPLETED and report.outcome is None:
        raise NodeRefusedError(
            400, "InvalidRequestBody", f"report {report.seq} of {report.attempt_id}: completed needs an outcome"
        )


async def _heartbeat(request: web.Request) -> web.Response:
    call = await read_call(request, Heartbeat)
    return json_answer(await request.app[DATABASE].write(lambda tx: nodes.heartbeat(tx, call, utc_now())))


@dataclass
class _Queue:
    """One node's queue, as far as calls that are under way are concerned."""

    num: int | None = None
    handed: int = 0
    """Number of the last message that an answer to reports has brought since the present poll began."""
    handing: int = 0
    """Answers to reports that are being made: the poll leaves it to them to bring what these reports cause."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class _Queues:
    """The queues of messages. A poll waits for some; an answer to reports brings along what is there after them.

    A poll that is cut, or an answer that is lost, costs nothing: the next call names its cursor again. At worst a
    message comes twice, which agents expect.
    """

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._queues: defaultdict[str, _Queue] = defaultdict(_Queue)

    async def reports(self, request: web.Request) -> web.Response:
        """Apply reports in one transaction, and answer with the messages that wait then."""
        call = await read_call(request, Reports)
        for report in call.reports:
            _require_outcome(report)

        def apply(tx: Transaction) -> tuple[int, list[ReportResult]]:
            now = utc_now()
            node = nodes.require(tx, call)
            results = [apply_report(tx, node.num, report, now) for report in call.reports]
            nodes.advance(tx, node, now)
            return node.num, results

        database, cursor = self._app[DATABASE], call.cursor
        if cursor is None:
            _, results = await database.write(apply)
            self._forget_transfers(call.reports)
            return json_answer(ReportsAnswer(results=tuple(results)))
        with self._handing(call.node_id) as queue:
            num, results = await database.write(apply)
            self._forget_transfers(call.reports)
            found = await database.read(lambda tx: messages.after(tx, num, cursor))
            if found:
                queue.handed = found[-1][0]
        answer = ReportsAnswer(results=tuple(results)).to_json().replace('"messages":[]', self._numbered(found))
        return web.Response(text=answer, content_type="application/json")

    @contextmanager
    def _handing(self, node_id: str) -> Iterator[_Queue]:
        queue = self._queues[node_id]
        queue.handing += 1
        queue.settled.clear()
        try:
            yield queue
        finally:
            queue.handing -= 1
            if not queue.handing:
                queue.settled.set()

    async def assignments(self, request: web.Request) -> web.Response:
        """Answer with the messages after the cursor; wait for some if there are none."""
        call = await read_call(request, Poll)
        ends = asyncio.get_running_loop().time() + call.wait_seconds
        found: list[tuple[int, str]] = []
        async for found in self._looks(call, ends):
            if found:
                break
        return web.Response(text=f"{{{self._numbered(found)}}}", content_type="application/json")

    async def _looks(self, call: Poll, ends: float) -> AsyncIterator[list[tuple[int, str]]]:
        signals, queue = self._app[SIGNALS], self._queues[call.node_id]
        queue.handed = call.cursor
        num = queue.num
        if num is None:
            num, found = await self._look(call, queue)
            yield found
        with signals.subscribe(messages.node_signal(num), STOPPING_SIGNAL) as wake:
            while True:
                wake.clear()
                if queue.handing and not await _woken(queue.settled, ends):
                    return
                found_num, found = await self._look(call, queue)
                yield found
                if found_num != num or self._app[STOPPING].is_set() or not await _woken(wake, ends):
                    return

    async def _look(self, call: Poll, queue: _Queue) -> tuple[int, list[tuple[int, str]]]:
        def read(tx: Transaction) -> tuple[NodeRow, list[tuple[int, str]]]:
            node = nodes.require(tx, call)
            return node, messages.after(tx, node.num, max(call.cursor, queue.handed))

        node, found = await self._app[DATABASE].read(read)
        queue.num = node.num
        if node.state is NodeState.STARTING:
            await self._app[DATABASE].write(lambda tx: nodes.ready(tx, call, utc_now()))
        return node.num, found

    def _numbered(self, found: list[tuple[int, str]]) -> str:
        """Return the JSON member of messages that are stored as JSON; secrets come in on this way only."""
        tokens, storage = self._app[TASK_TOKENS], self._app.get(AUTO_STORAGE)
        found = [(number, tokens.resolved(text)) for number, text in found]
        if storage is not None:
            now = utc_now()
            found = [(number, storage.resolved(text, now)) for number, text in found]
        body = ",".join(f'{{"number":{number},"message":{text}}}' for number, text in found)
        return f'"messages":[{body}]'

    def _forget_transfers(self, reports: tuple[Report, ...]) -> None:
        """What has ended moves nothing any more; its node's last word of it may come late, or never."""
        ended = [report.attempt_id for report in reports if report.transition in TERMINAL_TRANSITIONS]
        if ended:
            self._app[TRANSFERS].forget(ended)


async def _woken(wake: asyncio.Event, ends: float) -> bool:
    try:
        async with asyncio.timeout_at(ends):
            await wake.wait()
    except TimeoutError:
        return False
    return True
