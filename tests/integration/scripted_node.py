"""A small node written against the node protocol alone: no journal, no shim, no boundary, nothing survives it.

It runs the commands of its assignments for real, so that what a test asks of it can be asked of the agent as well.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, unquote_to_bytes

import aiohttp
from aiohttp import web

from nodeagent.model.base import BatchModel
from nodeagent.model.enums import ExecutionResult
from nodeagent.model.protocol import (
    PREFIX,
    Assignment,
    AttemptKind,
    EndJobSession,
    FileServer,
    Heartbeat,
    HeartbeatAnswer,
    Messages,
    NodeMessage,
    Outcome,
    Poll,
    Register,
    Registered,
    RemoveFiles,
    Report,
    ReportResult,
    Reports,
    ReportsAnswer,
    ReturnReason,
    Statistics,
    StopAttempt,
    StopReason,
    Transition,
)
from nodeagent.model.times import format_time, http_date, utc_now
from nodeagent.rules.command_line import split
from nodeagent.rules.environment import NodeFacts, task_environment
from nodeagent.rules.failures import exit_code_failure, launch_failure, task_ended
from nodeagent.rules.layout import NodeLayout, TaskPaths, task_directory

TOKEN = "the token of the scripted node's files"

Answer = TypeVar("Answer", bound=BatchModel)


@dataclass
class Attempt:
    """One assignment on its way."""

    assignment: Assignment
    sent: int = 0
    started: datetime | None = None
    retries: int = 0
    process: asyncio.subprocess.Process | None = None
    stop_reason: StopReason | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    succeeded: bool = False


class ScriptedNode:
    """A node of a pool, alive while its context is entered."""

    def __init__(
        self,
        service_url: str,
        node_key: str,
        root: Path,
        *,
        pool_id: str,
        node_id: str,
        slots: int,
    ) -> None:
        self._url = service_url + PREFIX
        self._headers = {"Authorization": f"Bearer {node_key}"}
        self._layout = NodeLayout(root)
        self._pool_id = pool_id
        self._node_id = node_id
        self._slots = slots
        self._attempts: dict[str, Attempt] = {}
        self._cursor = 0
        self._files = NodeFileServer(root)
        self._tasks = asyncio.TaskGroup()
        self._loops: list[asyncio.Task[None]] = []
        self.messages: list[NodeMessage] = []
        """Everything that the service asked for, in order."""

    async def __aenter__(self) -> Self:
        """Serve files, register, and begin to take assignments."""
        for directory in self._layout.top_level():
            directory.mkdir(parents=True, exist_ok=True)
        self._session = aiohttp.ClientSession(headers=self._headers)
        file_server_url = await self._files.start()
        registered = await self._call("register", self._registration(file_server_url), Registered)
        self._account = registered
        await self._tasks.__aenter__()
        self._loops = [
            self._tasks.create_task(self._poll()),
            self._tasks.create_task(self._beat(registered.heartbeat_seconds)),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Die: leave the service alone, kill what runs."""
        for loop in self._loops:
            loop.cancel()
        for attempt in self._attempts.values():
            attempt.stop_reason = attempt.stop_reason or StopReason.NODE_REMOVED
            _kill(attempt)
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._files.stop()
            await self._session.close()

    def _registration(self, file_server_url: str) -> Register:
        return Register(
            node_id=self._node_id,
            epoch=1,
            pool_id=self._pool_id,
            instance_id="scripted",
            boot_id="boot",
            boot_time=utc_now(),
            slots=self._slots,
            cores=1,
            agent_version="scripted",
            hostname="localhost",
            ip_address="127.0.0.1",
            root_directory=str(self._layout.root),
            file_server=FileServer(url=file_server_url, token=TOKEN),
            cursor=0,
        )

    async def _call(self, name: str, body: BatchModel, answer: type[Answer]) -> Answer:
        async with self._session.post(f"{self._url}/{name}", data=body.to_json()) as response:
            text = await response.text()
            if response.status != 200:
                raise RuntimeError(f"{name} was refused with {response.status}: {text}")
            return answer.from_json(text)

    async def _beat(self, seconds: float) -> None:
        while True:
            beat = Heartbeat(node_id=self._node_id, epoch=1, cursor=self._cursor, live_attempts=tuple(self._attempts))
            await self._call("heartbeat", beat, HeartbeatAnswer)
            await asyncio.sleep(seconds)

    async def _poll(self) -> None:
        while True:
            poll = Poll(node_id=self._node_id, epoch=1, cursor=self._cursor, wait_seconds=10)
            for numbered in (await self._call("assignments", poll, Messages)).messages:
                self._cursor = numbered.number
                self.messages.append(numbered.message)
                self._take(numbered.message)

    def _take(self, message: NodeMessage) -> None:
        match message:
            case Assignment():
                attempt = self._attempts[message.attempt_id] = Attempt(message)
                self._tasks.create_task(self._execute(attempt))
            case StopAttempt():
                stopped = self._attempts.get(message.attempt_id)
                if stopped is not None:
                    stopped.stop_reason = stopped.stop_reason or message.reason
                    _kill(stopped)
            case EndJobSession() | RemoveFiles():
                pass

    async def _execute(self, attempt: Attempt) -> None:
        if not await self._may_start(attempt):
            reason = ReturnReason.STOPPED if attempt.stop_reason else ReturnReason.PREPARATION_FAILED
            await self._report(attempt, Transition.RETURNED, return_reason=reason)
        else:
            outcome = await self._run(attempt)
            limit = attempt.assignment.work.constraints.max_task_retry_count
            while self._retries_here(attempt, outcome) and attempt.retries < limit:
                attempt.retries += 1
                outcome = await self._run(attempt)
            attempt.succeeded = outcome.result is ExecutionResult.SUCCESS
            await self._report(attempt, Transition.COMPLETED, outcome=outcome)
        attempt.ended.set()
        del self._attempts[attempt.assignment.attempt_id]

    def _retries_here(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Tell whether the node itself tries again: of preparation tasks only, all others are the service's."""
        return (
            attempt.assignment.attempt_kind is AttemptKind.JOB_PREPARATION
            and outcome.result is ExecutionResult.FAILURE
            and attempt.stop_reason is None
        )

    async def _may_start(self, attempt: Attempt) -> bool:
        gate = attempt.assignment.preparation
        if gate is None or not gate.wait_for_success:
            return attempt.stop_reason is None
        if (preparation := self._attempts.get(gate.attempt_id)) is not None:
            await preparation.ended.wait()
            return preparation.succeeded and attempt.stop_reason is None
        return attempt.stop_reason is None

    async def _run(self, attempt: Attempt) -> Outcome:
        assignment = attempt.assignment
        paths = self._layout.task(assignment.job_id, assignment.task_id)
        paths.wd.mkdir(parents=True, exist_ok=True)
        attempt.started = utc_now()
        await self._report(attempt, Transition.RUNNING)
        with paths.stdout.open("wb") as stdout, paths.stderr.open("wb") as stderr:
            try:
                attempt.process = await asyncio.create_subprocess_exec(
                    *split(assignment.work.command_line),
                    cwd=paths.wd,
                    env=self._environment(assignment),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            except OSError as error:
                return _not_launched(assignment, paths, error)
            if attempt.stop_reason is not None:
                _kill(attempt)
            exit_code = await attempt.process.wait()
        return _outcome(attempt, exit_code, paths)

    def _environment(self, assignment: Assignment) -> Mapping[str, str]:
        facts = NodeFacts(
            account_name=self._account.account_name,
            account_url=self._account.account_url,
            pool_id=self._pool_id,
            node_id=self._node_id,
            layout=self._layout,
            user_name="nobody",
        )
        return task_environment(facts, assignment)

    async def _report(
        self,
        attempt: Attempt,
        transition: Transition,
        *,
        outcome: Outcome | None = None,
        return_reason: ReturnReason | None = None,
    ) -> ReportResult:
        assignment = attempt.assignment
        attempt.sent += 1
        report = Report(
            attempt_id=assignment.attempt_id,
            seq=attempt.sent,
            transition=transition,
            at=utc_now(),
            start_time=attempt.started,
            retry_count=attempt.retries,
            last_retry_time=attempt.started if attempt.retries else None,
            task_root_directory=task_directory(assignment.job_id, assignment.task_id),
            outcome=outcome,
            return_reason=return_reason,
        )
        call = Reports(node_id=self._node_id, epoch=1, reports=(report,))
        return (await self._call("reports", call, ReportsAnswer)).results[0]


def _kill(attempt: Attempt) -> None:
    if attempt.process is not None and attempt.process.returncode is None:
        # it may have ended a moment ago, without this loop having heard of it
        with suppress(ProcessLookupError):
            os.killpg(attempt.process.pid, signal.SIGKILL)


def _not_launched(assignment: Assignment, paths: TaskPaths, error: OSError) -> Outcome:
    program = split(assignment.work.command_line)[0]
    failure = launch_failure(error.errno or 0, path=program, cwd=str(paths.wd), user="nobody")
    return Outcome(result=ExecutionResult.FAILURE, end_time=utc_now(), failure_info=failure)


def _outcome(attempt: Attempt, exit_code: int, paths: TaskPaths) -> Outcome:
    failure = None
    if attempt.stop_reason is not None:
        failure = task_ended(attempt.stop_reason)
    elif exit_code != 0:
        failure = exit_code_failure(exit_code, paths.stderr.read_text()[-4096:])
    return Outcome(
        result=ExecutionResult.SUCCESS if failure is None else ExecutionResult.FAILURE,
        end_time=utc_now(),
        exit_code=exit_code,
        failure_info=failure,
        stop_reason=attempt.stop_reason,
        statistics=_statistics(attempt),
    )


def _statistics(attempt: Attempt) -> Statistics | None:
    """A try is as long as it was; all else that a real node measures is a number that a test can know."""
    if attempt.started is None:
        return None
    return Statistics(
        wall_clock_seconds=(utc_now() - attempt.started).total_seconds(),
        user_cpu_seconds=0.25,
        kernel_cpu_seconds=0.125,
        peak_memory_bytes=1 << 20,
        read_bytes=512,
        write_bytes=1 << 29,
    )


class NodeFileServer:
    """Serves the files below a node's root, as docs/node-protocol.md has it; trusts its paths, being a test's."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen on a free port of the loopback; return the URL."""
        app = web.Application()
        app.router.add_get("/v1/list", self._list)
        app.router.add_get("/v1/file", self._file, allow_head=True)
        app.router.add_delete("/v1/file", self._delete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _path(self, request: web.Request) -> Path:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPForbidden
        path = self._root / _asked_path(request)
        if not path.exists():
            raise web.HTTPNotFound
        return path

    async def _list(self, request: web.Request) -> web.Response:
        directory = self._path(request)
        paths = directory.rglob("*") if request.query["recursive"] == "true" else directory.iterdir()
        entries = [self._entry(path, str(path.relative_to(directory))) for path in paths]
        return web.json_response({"value": sorted(entries, key=lambda entry: str(entry["name"]))})

    def _entry(self, path: Path, name: str) -> dict[str, object]:
        status = path.stat()
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        encoded = {} if shown == name else {"encodedName": quote(os.fsencode(name), safe="/")}
        return encoded | {
            "name": shown,
            "isDirectory": path.is_dir(),
            "contentLength": status.st_size,
            "lastModified": format_time(datetime.fromtimestamp(status.st_mtime, UTC)),
            "fileMode": f"0o{status.st_mode:o}",
            "contentType": "application/octet-stream",
        }

    async def _file(self, request: web.Request) -> web.Response:
        path = self._path(request)
        status = path.stat()
        headers = {
            "Last-Modified": http_date(datetime.fromtimestamp(status.st_mtime, UTC)),
            "ocp-batch-file-mode": f"0o{status.st_mode:o}",
            "ocp-batch-file-isdirectory": str(path.is_dir()),
            "Content-Type": "application/octet-stream",
        }
        if path.is_dir():
            if request.method == "HEAD":
                return web.Response(headers=headers)
            raise web.HTTPConflict
        content = path.read_bytes()
        if (byte_range := request.headers.get("Range")) is not None:
            first, _, last = byte_range.removeprefix("bytes=").partition("-")
            if int(first) >= len(content):
                raise web.HTTPRequestRangeNotSatisfiable
            content = content[int(first) : int(last) + 1 if last else None]
        return web.Response(body=content, headers=headers)

    async def _delete(self, request: web.Request) -> web.Response:
        path = self._path(request)
        if path.is_dir():
            raise web.HTTPConflict
        path.unlink()
        return web.Response()


def _asked_path(request: web.Request) -> str:
    """Return the parameter `path`: percent-encoded bytes, which need not be UTF-8."""
    query = request.raw_path.partition("?")[2]
    values = dict(part.partition("=")[::2] for part in query.split("&"))
    return os.fsdecode(unquote_to_bytes(values["path"]))


@asynccontextmanager
async def scripted_node(
    service_url: str, node_key: str, root: Path, *, pool_id: str, node_id: str
) -> AsyncIterator[ScriptedNode]:
    """Run a node of four slots in a pool."""
    async with ScriptedNode(service_url, node_key, root, pool_id=pool_id, node_id=node_id, slots=4) as node:
        yield node
