"""A small client of the Batch REST API, for local mode and for the commands that look at a running service."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from yarl import URL

from nodeagent.local.signing import authorization
from nodeagent.model.job import JobCreate
from nodeagent.model.task import TaskCreate
from nodeagent.model.times import http_date, utc_now

API_VERSION = "2025-06-01"
EVENTS_PATH = "/nodeagent/v1/events"
EXPLAIN_PATH = "/nodeagent/v1/explain"

_JSON = "application/json; odata=minimalmetadata"
_TASKS_PER_REQUEST = 100
_ANSWER_SECONDS = 60.0
_UPLOAD_SECONDS = 600.0
"""What the service may take to look into a package that it has received."""
_APPLICATIONS_PATH = "/nodeagent/v1/applications"


class ServiceUnreachableError(ConnectionError):
    """Nobody answers at the service's address, or the connection broke."""


class CaFileError(ValueError):
    """The file with the certificates of authorities cannot be used."""


class ServiceError(Exception):
    """The service refused a request: HTTP status, Batch error code, its message and values."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code} (HTTP {status}): {message}")
        self.status = status
        self.code = code


class BatchClient:
    """The operations of the Batch REST API that local mode needs; use it as an async context manager.

    Every method raises `ServiceError` for a refusal and `ServiceUnreachableError` where nobody answers. Entities
    are plain dicts with the names of the wire. `ca_file` holds the certificates (PEM) of the authorities that an
    https endpoint may be signed by; without it those of the system. Entering raises CaFileError.
    """

    def __init__(self, endpoint: str, account: str, key: str, ca_file: Path | None = None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._account = account
        self._key = key
        self._ca_file = ca_file
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        path = self._ca_file if self.endpoint.startswith("https:") else None
        trust = True if path is None else await asyncio.to_thread(_trust, path)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust),
            timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=10),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def add_job(self, job: JobCreate) -> None:
        """Create a job."""
        await self._json("POST", "/jobs", job.to_wire())

    async def add_tasks(self, job_id: str, tasks: Sequence[TaskCreate]) -> None:
        """Add tasks, a hundred a request; a task that exists already is fine (the request was sent twice)."""
        for start in range(0, len(tasks), _TASKS_PER_REQUEST):
            body = {"value": [task.to_wire() for task in tasks[start : start + _TASKS_PER_REQUEST]]}
            answer = await self._json("POST", f"/jobs/{_segment(job_id)}/addtaskcollection", body)
            for result in answer["value"]:
                error = result.get("error")
                if error is not None and error["code"] != "TaskExists":
                    raise ServiceError(400, error["code"], f"task {result.get('taskId')}: {_text(error)}")

    async def get_job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return await self._json("GET", f"/jobs/{_segment(job_id)}")

    async def terminate_job(self, job_id: str, reason: str) -> None:
        """Begin to terminate a job; one that is terminating or completed already is fine."""
        try:
            await self._json("POST", f"/jobs/{_segment(job_id)}/terminate", {"terminateReason": reason})
        except ServiceError as error:
            if error.code not in ("JobBeingTerminated", "JobCompleted"):
                raise

    async def list_tasks(self, job_id: str) -> list[dict[str, Any]]:
        """Return all tasks of a job, ordered by id."""
        return await self._list(f"/jobs/{_segment(job_id)}/tasks")

    async def unfinished(self, job_id: str) -> int:
        """Return how many tasks of a job have not completed."""
        counts = await self._json("GET", f"/jobs/{_segment(job_id)}/taskcounts")
        return int(counts["taskCounts"]["active"]) + int(counts["taskCounts"]["running"])

    async def slots_in_use(self, job_id: str) -> int:
        """Return how many slots the tasks of a job hold now."""
        counts = await self._json("GET", f"/jobs/{_segment(job_id)}/taskcounts")
        return int(counts["taskSlotCounts"]["running"])

    async def special_tasks(self, job_id: str) -> list[dict[str, Any]]:
        """Return preparation and release of a job on each node; empty for a job without preparation task."""
        try:
            return await self._list(f"/jobs/{_segment(job_id)}/jobpreparationandreleasetaskstatus")
        except ServiceError as error:
            if error.code == "JobPreparationTaskNotSpecified":
                return []
            raise

    async def transfers(self, job_id: str) -> list[dict[str, Any]]:
        """Return what tasks of a job transfer now, with `taskId`, `nodeId`, `phase` and how far each is."""
        answer = await self._json("GET", f"/nodeagent/v1/jobs/{_segment(job_id)}/transfers")
        return list(answer["value"])

    async def applications(self) -> list[dict[str, Any]]:
        """Return all applications with their packages, `defaultVersion` among them."""
        return list((await self._json("GET", _APPLICATIONS_PATH))["value"])

    async def add_package(self, application_id: str, version: str, zip_file: BinaryIO) -> bool:
        """Send a zip file as a version of an application; return whether it was new. Ends only with the service."""
        size = zip_file.seek(0, os.SEEK_END)
        zip_file.seek(0)
        pending = self._request(
            "PUT",
            f"{self.endpoint}{_package_path(application_id, version)}?{urlencode({'api-version': API_VERSION})}",
            extra={"Content-Type": "application/zip", "Content-Length": str(size)},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_UPLOAD_SECONDS),
            content=zip_file,
        )
        async with pending as answer:
            await answer.read()
            return answer.status == 201

    async def remove_package(self, application_id: str, version: str) -> None:
        """Remove a version of an application."""
        await self._json("DELETE", _package_path(application_id, version))

    async def change_application(self, application_id: str, changes: Mapping[str, str]) -> None:
        """Change `displayName` and `defaultVersion` of an application."""
        await self._json("PATCH", f"{_APPLICATIONS_PATH}/{_segment(application_id)}", changes)

    async def list_nodes(self, pool_id: str) -> list[dict[str, Any]]:
        """Return the nodes of a pool."""
        return await self._list(f"/pools/{_segment(pool_id)}/nodes")

    async def get_node(self, pool_id: str, node_id: str) -> dict[str, Any]:
        """Return a node."""
        return await self._json("GET", _node_path(pool_id, node_id))

    async def disable_scheduling(self, pool_id: str, node_id: str, option: str) -> None:
        """Give a node no more tasks; `option` says what becomes of those that run (spec/node.md §14)."""
        body = {"nodeDisableSchedulingOption": option}
        await self._json("POST", f"{_node_path(pool_id, node_id)}/disablescheduling", body)

    async def enable_scheduling(self, pool_id: str, node_id: str) -> None:
        """Let a node take tasks again."""
        await self._json("POST", f"{_node_path(pool_id, node_id)}/enablescheduling")

    async def node_file_tail(self, pool_id: str, node_id: str, path: str, limit: int) -> bytes:
        """Return at most the last `limit` bytes of a file on a node; `path` is relative to the node's root."""
        base = f"{_node_path(pool_id, node_id)}/files/{quote(path, safe='')}"
        async with self._send("HEAD", base) as answer:
            size = int(answer.headers.get("Content-Length", "0"))
        if size == 0:
            return b""
        async with self._send("GET", base, headers={"ocp-range": f"bytes={max(0, size - limit)}-{size - 1}"}) as answer:
            return await answer.read()

    async def explain(self, *names: str) -> dict[str, Any]:
        """Return why something is in its state: `jobs`, a job, `tasks`, a task; or `pools`, a pool, `nodes`, a node."""
        return await self._json("GET", "/".join((EXPLAIN_PATH, *map(_segment, names))))

    async def events(self, *, after: int = 0, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Yield events with a number above `after`, in order; with `follow`, for ever."""
        query = {"after": str(after), "follow": "true" if follow else "false"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._send("GET", EVENTS_PATH, query=query, timeout=timeout) as answer:
            async for line in answer.content:
                if line.strip():
                    yield orjson.loads(line)

    async def _list(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        answer = await self._json("GET", path)
        while True:
            items += answer["value"]
            link = answer.get("odata.nextLink")
            if not link:
                return items
            answer = await self._read_json(self._request("GET", str(link)))

    async def _json(self, method: str, path: str, body: object | None = None) -> dict[str, Any]:
        return await self._read_json(self._send(method, path, body=body))

    async def _read_json(self, request: "_Request") -> dict[str, Any]:
        async with request as answer:
            data = await answer.read()
        parsed = orjson.loads(data) if data else {}
        return parsed if isinstance(parsed, dict) else {}

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> "_Request":
        parameters = urlencode({"api-version": API_VERSION, **(query or {})})
        return self._request(method, f"{self.endpoint}{path}?{parameters}", body, headers, timeout)

    def _request(
        self,
        method: str,
        url: str,
        body: object | None = None,
        extra: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
        content: BinaryIO | None = None,
    ) -> "_Request":
        if self._session is None:
            raise RuntimeError("use the client as an async context manager")
        data = content if body is None else orjson.dumps(body)
        headers = {"ocp-date": http_date(utc_now()), "Accept": "application/json", **(extra or {})}
        if isinstance(data, bytes):
            headers |= {"Content-Type": _JSON, "Content-Length": str(len(data))}
        elif data is None and method == "POST":  # which is sent with this length, so it must be signed
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": "0"}
        headers["Authorization"] = authorization(self._account, self._key, method, url, headers)
        options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        pending = self._session.request(method, URL(url, encoded=True), data=data, headers=headers, **options)
        return _Request(pending, self.endpoint)


def _trust(path: Path) -> ssl.SSLContext:
    """Return what trusts the authorities of a file, or of a directory that `c_rehash` made. Raises CaFileError."""
    try:
        directory = path.is_dir()
        return ssl.create_default_context(cafile=None if directory else path, capath=path if directory else None)
    except OSError as error:  # ssl.SSLError is one
        why = "it holds no certificate (PEM)" if isinstance(error, ssl.SSLError) else error.strerror
        raise CaFileError(f"{path} cannot be used: {why}") from error


class _Request:
    """One request under way: enters with a successful answer, or raises what it was refused with."""

    def __init__(self, pending: Any, endpoint: str) -> None:  # noqa: ANN401 - aiohttp's type is private
        self._pending = pending
        self._endpoint = endpoint

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            answer: aiohttp.ClientResponse = await self._pending.__aenter__()
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if answer.status < 300:
            return answer
        data = await answer.read()
        await self._pending.__aexit__(None, None, None)
        raise _refusal(answer.status, data)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pending.__aexit__(kind, error, trace)
        if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> ServiceUnreachableError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ServiceUnreachableError(f"{self._endpoint} does not answer: {reason or type(error).__name__}")


def _refusal(status: int, data: bytes) -> ServiceError:
    try:
        body = orjson.loads(data)
        return ServiceError(status, body["code"], _text(body))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ServiceError(status, "Unknown", data[:200].decode("utf-8", "replace"))


def _text(error: Mapping[str, Any]) -> str:
    """Return a Batch error's message, in one line and without the request's id, and its values."""
    first = str(error["message"]["value"]).split("\nRequestId", maxsplit=1)[0].strip()
    values = ", ".join(f"{item['key']}: {item['value']}" for item in error.get("values") or ())
    return f"{first} ({values})" if values else first


def _node_path(pool_id: str, node_id: str) -> str:
    return f"/pools/{_segment(pool_id)}/nodes/{_segment(node_id)}"


def _package_path(application_id: str, version: str) -> str:
    return f"{_APPLICATIONS_PATH}/{_segment(application_id)}/versions/{_segment(version)}"


def _segment(text: str) -> str:
    return quote(text, safe="")
