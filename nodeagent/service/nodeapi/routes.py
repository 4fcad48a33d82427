"""The four calls of the node protocol (model/protocol.py, docs/node-protocol.md)."""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from nodeagent.model.enums import NodeState
from nodeagent.model.protocol import (
    PREFIX,
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
from nodeagent.service.app_keys import DATABASE, SETTINGS, SIGNALS, STOPPING
from nodeagent.service.lifecycle import nodes, pools
from nodeagent.service.lifecycle.nodes import NodeRefusedError
from nodeagent.service.lifecycle.reports import apply_report
from nodeagent.service.nodeapi.calls import guarded, json_answer, read_call
from nodeagent.service.signals import STOPPING_SIGNAL
from nodeagent.service.store import messages
from nodeagent.service.store.database import Database, Transaction
from nodeagent.service.store.nodes import NodeRow


def add_routes(app: web.Application) -> None:
    """Serve the node protocol; `app` must have DATABASE, SIGNALS, STOPPING, SETTINGS and NODE_KEY."""
    polls = _LongPolls(app)
    app.router.add_post(f"{PREFIX}/register", guarded(_register))
    app.router.add_post(f"{PREFIX}/assignments", guarded(polls.assignments))
    app.router.add_post(f"{PREFIX}/reports", guarded(_reports))
    app.router.add_post(f"{PREFIX}/heartbeat", guarded(_heartbeat))


async def _register(request: web.Request) -> web.Response:
    call = await read_call(request, Register)
    settings = request.app[SETTINGS]
    unknown = await request.app[DATABASE].write(lambda tx: nodes.register(tx, call, utc_now()))
    return json_answer(
        Registered(
            account_name=settings.account,
            account_url=f"{request.scheme}://{request.host}/",
            heartbeat_seconds=settings.heartbeat_seconds,
            lease_seconds=settings.lease_seconds,
            unknown_attempts=unknown,
        )
    )


async def _reports(request: web.Request) -> web.Response:
    call = await read_call(request, Reports)
    for report in call.reports:
        _require_outcome(report)

    def apply(tx: Transaction) -> list[ReportResult]:
        now = utc_now()
        node = nodes.require(tx, call)
        results = [apply_report(tx, node.num, report, now) for report in call.reports]
        if node.state is NodeState.LEAVING_POOL:
            pools.advance(tx, node.pool_id)
        return results

    results = await request.app[DATABASE].write(apply)
    return json_answer(ReportsAnswer(results=tuple(results)))


def _require_outcome(report: Report) -> None:
    if report.transition is Transition.COMPLETED and report.outcome is None:
        raise NodeRefusedError(
            400, "InvalidRequestBody", f"report {report.seq} of {report.attempt_id}: completed needs an outcome"
        )


async def _heartbeat(request: web.Request) -> web.Response:
    call = await read_call(request, Heartbeat)
    return json_answer(await request.app[DATABASE].write(lambda tx: nodes.heartbeat(tx, call, utc_now())))


class _LongPolls:
    """Polls that wait for messages; each is answered at once when there is one, or the service stops."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._node_nums: dict[str, int] = {}

    async def assignments(self, request: web.Request) -> web.Response:
        """Answer with the messages after the cursor; wait for some if there are none."""
        call = await read_call(request, Poll)
        ends = asyncio.get_running_loop().time() + call.wait_seconds
        found: list[tuple[int, str]] = []
        async for found in self._looks(call, ends):
            if found:
                break
        body = ",".join(f'{{"number":{number},"message":{text}}}' for number, text in found)
        return web.Response(text=f'{{"messages":[{body}]}}', content_type="application/json")

    async def _looks(self, call: Poll, ends: float) -> AsyncIterator[list[tuple[int, str]]]:
        database, signals = self._app[DATABASE], self._app[SIGNALS]
        num = self._node_nums.get(call.node_id)
        if num is None:
            num, found = await self._look(database, call)
            yield found
        with signals.subscribe(messages.node_signal(num), STOPPING_SIGNAL) as wake:
            while True:
                wake.clear()
                found_num, found = await self._look(database, call)
                yield found
                if found_num != num or self._app[STOPPING].is_set() or not await _woken(wake, ends):
                    return

    async def _look(self, database: Database, call: Poll) -> tuple[int, list[tuple[int, str]]]:
        def read(tx: Transaction) -> tuple[NodeRow, list[tuple[int, str]]]:
            node = nodes.require(tx, call)
            return node, messages.after(tx, node.num, call.cursor)

        node, found = await database.read(read)
        self._node_nums[call.node_id] = node.num
        return node.num, found


async def _woken(wake: asyncio.Event, ends: float) -> bool:
    try:
        async with asyncio.timeout_at(ends):
            await wake.wait()
    except TimeoutError:
        return False
    return True
