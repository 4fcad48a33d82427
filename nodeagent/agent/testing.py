"""A service for tests of agents: real HTTP on loopback, scripted by the test, and it writes down everything.

    async with ScriptedService() as service:
        service.send(assignment)               # the agent gets it at its next poll
        outcome = await service.outcome("a1")   # its terminal report
        service.drop_answers("reports", 1)      # apply the next call, then break the connection

It keeps the rules of docs/node-protocol.md as the real service does: sequence numbers, first terminal state, epochs.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from aiohttp import web

from nodeagent.agent.settings import AgentSettings
from nodeagent.model.protocol import (
    PREFIX,
    TERMINAL_TRANSITIONS,
    ApplicationPackage,
    Assignment,
    AttemptKind,
    Heartbeat,
    HeartbeatAnswer,
    Messages,
    NodeCall,
    NodeMessage,
    NumberedMessage,
    Poll,
    PreparationGate,
    ProgressAnswer,
    ProgressCall,
    ProtocolError,
    Register,
    Registered,
    Report,
    ReportResult,
    Reports,
    ReportsAnswer,
    ReportStatus,
    Work,
    WorkConstraints,
)
from nodeagent.model.values import DEFAULT_USER_IDENTITY, EnvironmentSetting

if TYPE_CHECKING:
    from nodeagent.model.base import BatchModel

Call = TypeVar("Call", bound=NodeCall)

NODE_KEY = "node-key-of-a-test"
WAIT_SECONDS = 30.0


def task(  # noqa: PLR0913 - each is one independent property of an assignment
    attempt_id: str,
    command_line: str,
    *,
    kind: AttemptKind = AttemptKind.USER,
    job_id: str = "job",
    task_id: str | None = None,
    gate: str | None = None,
    retry_count: int = 0,
    environment: Mapping[str, str] | None = None,
    work: Mapping[str, object] | None = None,
    **constraints: object,
) -> Assignment:
    """An assignment as a service makes it. `gate` is the preparation attempt that it waits for.

    `work`: more of its `Work`, such as `resource_files`.
    """
    names = {AttemptKind.JOB_PREPARATION: "jobpreparation", AttemptKind.JOB_RELEASE: "jobrelease"}
    preparation = None
    if gate is not None:
        preparation = PreparationGate(attempt_id=gate, task_id="jobpreparation", wait_for_success=True)
    settings = (environment or {}).items()
    return Assignment(
        attempt_id=attempt_id,
        attempt_kind=kind,
        job_id=job_id,
        task_id=task_id or names.get(kind, f"task-{attempt_id}"),
        retry_count=retry_count,
        work=Work.model_validate(
            {
                "command_line": command_line,
                "environment_settings": tuple(EnvironmentSetting(name=name, value=value) for name, value in settings),
                "constraints": WorkConstraints.model_validate({"retention_time": timedelta(days=7)} | constraints),
                "user_identity": DEFAULT_USER_IDENTITY,
            }
            | dict(work or {})
        ),
        preparation=preparation,
    )


def agent_settings(folder: Path, service: str, **more: object) -> AgentSettings:
    """Settings of an agent that lives below `folder`."""
    facts: dict[str, object] = {
        "service": service,
        "node_key": NODE_KEY,
        "node": "node-1",
        "slots": 2,
        "state_dir": folder / "state",
        "root": folder / "root",
        "retry_seconds": 0.3,
        "call_seconds": 10,
        "grace_seconds": 1,
        "accounts": "none",  # a test's folder is closed to other users
    }
    return AgentSettings.model_validate(facts | more)


class ScriptedService:
    """One node's service. Everything public may be read by the test at any time."""

    def __init__(self, *, heartbeat_seconds: float = 0.2) -> None:
        self.registers: list[Register] = []
        self.heartbeats: list[Heartbeat] = []
        self.polls: list[Poll] = []
        self.reports: list[Report] = []
        """Reports that took effect, in the order in which they did."""
        self.received: list[Report] = []
        """Every report of every call, also repeated ones."""
        self.progress: list[ProgressCall] = []
        self.pool_packages: tuple[ApplicationPackage, ...] = ()
        """What the next registration is answered with."""
        self.packages: dict[str, bytes] = {}
        """Zip files by their digest."""
        self.unknown: set[str] = set()
        """Attempts that this service does not know (any more)."""
        self.paused = False
        """While true, polls are answered with nothing."""
        self._messages: list[NumberedMessage] = []
        self._last: dict[str, int] = {}
        self._terminal: dict[str, Report] = {}
        self._epoch = (0, "")
        self._registered = False
        self._numbers = 0
        self._dropped: Counter[str] = Counter()
        self._refusals: dict[str, list[web.Response]] = {}
        self._heartbeat_seconds = heartbeat_seconds
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    # Life.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where the agent reaches it; the same after `stop` and `start`."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Begin to listen."""
        application = web.Application(client_max_size=64 * 1024 * 1024)
        for name, handler in (
            ("register", self._register),
            ("assignments", self._assignments),
            ("reports", self._reports),
            ("heartbeat", self._heartbeat),
            ("progress", self._progress),
        ):
            application.router.add_post(f"{PREFIX}/{name}", self._answering(name, handler))
        application.router.add_get(f"{PREFIX}/packages/{{digest}}", self._package)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Go down: connections are broken, nothing is forgotten."""
        runner, self._runner = self._runner, None
        async with self._changed:
            self._changed.notify_all()
        if runner is not None:
            await runner.cleanup()

    # Script.

    def send(self, *messages: NodeMessage) -> None:
        """Queue messages for the node."""
        for message in messages:
            self._numbers += 1
            self._messages.append(NumberedMessage(number=self._numbers, message=message))
        self._wake()

    def forget_node(self) -> None:
        """Answer NodeNotRegistered until the next register."""
        self._registered = False

    def forget_reports(self, attempt_id: str) -> None:
        """Lose what was reported of an attempt, as a service that was restored from a backup would."""
        self._last.pop(attempt_id, None)
        self._terminal.pop(attempt_id, None)
        self.reports[:] = [report for report in self.reports if report.attempt_id != attempt_id]

    def drop_answers(self, name: str, times: int) -> None:
        """Let the next calls of this name take effect, but break the connection instead of answering."""
        self._dropped[name] += times

    def refuse(self, name: str, status: int, code: str, times: int = 1) -> None:
        """Answer the next calls of this name with an error, without effect."""
        body = ProtocolError(code=code, message="the test says so").to_json()
        self._refusals.setdefault(name, []).extend(
            web.Response(status=status, text=body, content_type="application/json") for _ in range(times)
        )

    # What happened.

    async def until(self, condition: Callable[[], bool], what: str = "a condition") -> None:
        """Wait until the condition holds; it is looked at after each call. Raises TimeoutError after 30 s."""
        try:
            async with asyncio.timeout(WAIT_SECONDS), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError as error:
            raise TimeoutError(f"waited {WAIT_SECONDS} s for {what}") from error

    async def registered(self, times: int = 1) -> Register:
        """Wait until the agent has registered so many times; the last of them."""
        await self.until(lambda: len(self.registers) >= times, "a registration")
        return self.registers[-1]

    async def terminal(self, attempt_id: str) -> Report:
        """Wait for the terminal report of an attempt."""
        await self.until(lambda: attempt_id in self._terminal, f"the end of {attempt_id}")
        return self._terminal[attempt_id]

    async def running(self, attempt_id: str, retry_count: int = 0) -> Report:
        """Wait until an attempt is reported as running with this retry count."""

        def found() -> list[Report]:
            return [
                report
                for report in self.reports_of(attempt_id)
                if report.transition == "running" and report.retry_count == retry_count
            ]

        await self.until(lambda: bool(found()), f"{attempt_id} to run")
        return found()[-1]

    def reports_of(self, attempt_id: str) -> list[Report]:
        """Return the reports of one attempt that took effect."""
        return [report for report in self.reports if report.attempt_id == attempt_id]

    # Calls.

    def _answering(
        self, name: str, handler: Callable[[bytes], "Awaitable[BatchModel]"]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") != f"Bearer {NODE_KEY}":
                return _error(403, "NodeKeyRefused")
            if self._refusals.get(name):
                return self._refusals[name].pop(0)
            try:
                result = await handler(await request.read())
            except _Refused as refused:
                return _error(refused.status, refused.code)
            finally:
                self._wake()
            if self._dropped[name]:
                self._dropped[name] -= 1
                if request.transport is not None:
                    request.transport.abort()
            return web.Response(text=result.to_json(), content_type="application/json")

        return answer

    async def _register(self, body: bytes) -> Registered:
        call = Register.from_json(body)
        if (call.epoch, call.instance_id) < self._epoch and call.instance_id != self._epoch[1]:
            raise _Refused(409, "Fenced")
        self._epoch = (call.epoch, call.instance_id)
        self._registered = True
        self.registers.append(call)
        if call.reimaged:  # what was meant for the former life would be done again
            self._messages.clear()
        return Registered(
            account_name="testaccount",
            account_url=f"{self.url}/",
            heartbeat_seconds=self._heartbeat_seconds,
            lease_seconds=60,
            unknown_attempts=tuple(name for name in call.live_attempts if name in self.unknown),
            pool_packages=self.pool_packages,
        )

    async def _assignments(self, body: bytes) -> Messages:
        call = self._known(Poll.from_json(body))
        self.polls.append(call)
        self._wake()

        try:
            async with asyncio.timeout(call.wait_seconds), self._changed:
                await self._changed.wait_for(lambda: bool(self._after(call.cursor)) or self._runner is None)
        except TimeoutError:
            return Messages()
        return Messages(messages=self._after(call.cursor))

    def _after(self, cursor: int) -> tuple[NumberedMessage, ...]:
        return () if self.paused else tuple(item for item in self._messages if item.number > cursor)

    async def _reports(self, body: bytes) -> ReportsAnswer:
        call = self._known(Reports.from_json(body))
        results = tuple(self._apply(report) for report in call.reports)
        # what a waiting poll brings too, so that every message of a busy agent comes twice
        return ReportsAnswer(results=results, messages=() if call.cursor is None else self._after(call.cursor))

    def _apply(self, report: Report) -> ReportResult:
        self.received.append(report)
        last = self._last.get(report.attempt_id, 0)
        if report.attempt_id in self.unknown:
            status = ReportStatus.UNKNOWN
        elif report.seq <= last:
            status = ReportStatus.ALREADY
        elif report.seq > last + 1:
            status = ReportStatus.GAP
        else:
            status = ReportStatus.APPLIED
            self._last[report.attempt_id] = report.seq
            self.reports.append(report)
            if report.transition in TERMINAL_TRANSITIONS:
                self._terminal.setdefault(report.attempt_id, report)
        expected = last + 1 if status is ReportStatus.GAP else None
        return ReportResult(attempt_id=report.attempt_id, seq=report.seq, status=status, expected=expected)

    async def _heartbeat(self, body: bytes) -> HeartbeatAnswer:
        call = self._known(Heartbeat.from_json(body))
        self.heartbeats.append(call)
        return HeartbeatAnswer(unknown_attempts=tuple(name for name in call.live_attempts if name in self.unknown))

    async def _progress(self, body: bytes) -> ProgressAnswer:
        self.progress.append(self._known(ProgressCall.from_json(body)))
        return ProgressAnswer()

    async def _package(self, request: web.Request) -> web.Response:
        content = self.packages.get(request.match_info["digest"])
        if request.headers.get("Authorization") != f"Bearer {NODE_KEY}" or content is None:
            return web.Response(status=404)
        return web.Response(body=content, content_type="application/zip")

    def _known(self, call: Call) -> Call:
        if call.epoch < self._epoch[0]:
            raise _Refused(409, "Fenced")
        if not self._registered:
            raise _Refused(409, "NodeNotRegistered")
        return call

    def _wake(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._waking = asyncio.ensure_future(notify())


class _Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


def _error(status: int, code: str) -> web.Response:
    text = ProtocolError(code=code, message="refused by the scripted service").to_json()
    return web.Response(status=status, text=text, content_type="application/json")
