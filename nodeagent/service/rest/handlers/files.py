"""Files of tasks and nodes, read from the agents' file servers (spec/rest.md §2.5, §3.11, §5.2).

A path or name here is text as `os.fsdecode` makes it: bytes that are not UTF-8 are surrogates, which never leave the
service as such. Where the node cannot be asked any more, the ends of a task's logs come from the store.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
import structlog
from aiohttp import web

from nodeagent.model.enums import TaskState
from nodeagent.service.errors import BatchError, refusal
from nodeagent.service.lifecycle.tasks import require as require_task
from nodeagent.service.rest.call import Call
from nodeagent.service.rest.dispatch import common_headers
from nodeagent.service.rest.handlers.find import find_node
from nodeagent.service.rest.kept_logs import KEPT_HEADER, kept_as, log_entry, log_headers, part_of
from nodeagent.service.rest.node_files import FileServerAddress
from nodeagent.service.rest.odata.request import filter_name_prefix
from nodeagent.service.rest.paging import decode_token, next_link
from nodeagent.service.rest.reply import Reply
from nodeagent.service.store import nodes, task_logs
from nodeagent.service.store.database import Transaction
from nodeagent.service.store.task_logs import LogRow
from nodeagent.service.store.tasks import TaskRow

_RANGE = re.compile(r"bytes=\d+-\d*", re.ASCII)
_PASSED_ON = ("Content-Type", "Last-Modified", "ocp-batch-file-mode", "ocp-creation-time")
_GONE = frozenset({"NodeNotReady", "TaskFilesCleanedup", "TaskFilesUnavailable"})
"""Refusals that say that files cannot be had, not that they do not exist."""
_CHUNK_BYTES = 256 * 1024
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FileBase:
    """The directory that paths of a request are relative to, and where it is served."""

    server: FileServerAddress | None
    """None for a node that has left the pool."""
    root: str
    """Relative to the node's root; empty for that itself."""
    task: TaskRow | None
    url_of: Callable[[str], str]

    @property
    def address(self) -> FileServerAddress:
        """Where to ask. Raises BatchError TaskFilesUnavailable."""
        if self.server is None:
            raise refusal("TaskFilesUnavailable", ("Reason", "The node that the task ran on has left the pool."))
        return self.server

    @property
    def completed(self) -> bool:
        """Whether these are the files of a task that has completed."""
        return self.task is not None and self.task.state is TaskState.COMPLETED

    def node_path(self, path: str) -> str:
        """Return a path of the request relative to the node's root."""
        return "/".join(part for part in (self.root, path) if part)


Locate = Callable[[Call], Awaitable[FileBase]]


async def task_base(call: Call) -> FileBase:
    """Find the directory of the task that the path names. Raises BatchError if there is none (yet, or any more)."""
    job_id, task_id = call.variables["job_id"], call.variables["task_id"]

    def find(tx: Transaction) -> FileBase:
        job, task = require_task(tx, job_id, task_id)
        if task.node is None or task.state is TaskState.ACTIVE:
            raise refusal("OperationInvalidForCurrentState", ("Reason", "The task has not been started."))
        node = nodes.by_num(tx, task.node.num)
        return FileBase(
            None if node is None else FileServerAddress(node.file_server.url, node.file_server.token),
            task.node.task_root_directory,
            task,
            lambda path: call.links.task_file(job.id, task.id, path),
        )

    return await call.database.read(find)


async def node_base(call: Call) -> FileBase:
    """Find the root directory of the node that the path names."""
    pool_id, node_id = call.variables["pool_id"], call.variables["node_id"]
    node = await call.database.read(lambda tx: find_node(tx, pool_id, node_id))
    return FileBase(
        FileServerAddress(node.file_server.url, node.file_server.token),
        "",
        None,
        lambda path: call.links.node_file(node.pool_id, node.id, path),
    )


async def _list(call: Call, locate: Locate, list_url: str) -> Reply:
    prefix, limit = filter_name_prefix(call.query), call.query.max_results
    after = decode_token("files", call.query, paths=True)
    recursive = call.query.flag("recursive")
    base = await locate(call)
    try:
        entries = await _entries(call, base, recursive=recursive)
    except BatchError as error:
        logs = await _kept_logs(call, base, error)
        if not logs:
            raise
        entries = [log_entry(log) for log in logs]
    wanted = [
        entry
        for entry in sorted(entries, key=lambda entry: str(entry["name"]))  # the order that the token is compared in
        if shown_name(entry["name"]).startswith(prefix) and (after is None or entry["name"] > after)
    ]
    body: dict[str, Any] = {
        "odata.metadata": call.links.metadata("files"),
        "value": [_entry_shape(base, entry) for entry in wanted[:limit]],
    }
    if len(wanted) > limit:
        body["odata.nextLink"] = next_link("files", list_url, call.query, wanted[limit - 1]["name"])
    return Reply(200, body)


async def _entries(call: Call, base: FileBase, *, recursive: bool) -> list[dict[str, Any]]:
    try:
        return await call.context.node_files.entries(base.address, base.root, recursive=recursive)
    except BatchError as error:
        if error.code == "FileNotFound" and base.completed:
            raise refusal("TaskFilesCleanedup") from error
        if error.code == "FileNotFound" and base.task is not None:
            raise refusal("OperationInvalidForCurrentState", ("Reason", "The task has no directory yet.")) from error
        raise


async def _kept_logs(call: Call, base: FileBase, error: BatchError) -> list[LogRow]:
    """Return the logs that stand in for files which cannot be had, for the reason that `error` tells."""
    task = base.task
    if task is None or error.code not in _GONE:
        return []
    return await call.database.read(lambda tx: task_logs.of_task(tx, task.num))


def shown_name(name: str) -> str:
    """Return a name as text: bytes that are no UTF-8 become U+FFFD, and only the entry's `url` opens the file."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _entry_shape(base: FileBase, entry: Mapping[str, Any]) -> dict[str, Any]:
    name = entry["name"]
    shape = {"name": shown_name(name), "url": base.url_of(name), "isDirectory": entry["isDirectory"]}
    if not entry["isDirectory"]:
        shape["properties"] = {
            "lastModified": entry["lastModified"],
            "contentLength": str(entry["contentLength"]),
            "contentType": entry["contentType"],
        }
        if "fileMode" in entry:
            shape["properties"]["fileMode"] = entry["fileMode"]
    return shape


async def _read(call: Call, locate: Locate) -> web.StreamResponse:
    path, byte_range = _path(call), _range(call)
    base = await locate(call)
    try:
        return await _stream(call, base, path, byte_range)
    except BatchError as error:
        return await _from_kept_log(call, base, path, byte_range, error)


async def _from_kept_log(
    call: Call, base: FileBase, path: str, byte_range: str | None, error: BatchError
) -> web.Response:
    """Answer with a log that the service keeps. Raises `error` where there is none of this path."""
    log = next((log for log in await _kept_logs(call, base, error) if log.name == path), None)
    if log is None:
        raise error
    headers = log_headers(log)
    _check_dates(call, headers)
    body = part_of(log.content, byte_range)
    return web.Response(body=body, headers=_headers(call, base, path, headers) | {KEPT_HEADER: kept_as(log)})


async def _stream(call: Call, base: FileBase, path: str, byte_range: str | None) -> web.StreamResponse:
    async with (
        _known_cleanup(call, base),
        call.context.node_files.open(base.address, base.node_path(path), byte_range) as upstream,
    ):
        _check_dates(call, upstream.headers)
        response = web.StreamResponse(headers=_headers(call, base, path, upstream.headers))
        response.content_length = int(upstream.headers["Content-Length"])
        await response.prepare(call.request)
        try:
            async for chunk in upstream.content.iter_chunked(_CHUNK_BYTES):
                await response.write(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            # the status has been sent: only a broken connection tells the client that bytes are missing
            _log.warning("file_stream_broken", request_id=call.request_id, error=type(error).__name__)
            if call.request.transport is not None:
                call.request.transport.abort()
            return response
        await response.write_eof()
        return response


async def _describe(call: Call, locate: Locate) -> web.StreamResponse:
    path = _path(call)
    base = await locate(call)
    try:
        async with _known_cleanup(call, base):
            found = await call.context.node_files.properties(base.address, base.node_path(path))
    except BatchError as error:
        return await _from_kept_log(call, base, path, None, error)
    _check_dates(call, found)
    headers = _headers(call, base, path, found)
    headers["Content-Length"] = found.get("Content-Length", "0")
    return web.Response(headers=headers)


async def _delete(call: Call, locate: Locate) -> Reply:
    path = _path(call)
    base = await locate(call)
    await call.context.node_files.delete(base.address, base.node_path(path), recursive=call.query.flag("recursive"))
    return Reply(200)


@asynccontextmanager
async def _known_cleanup(call: Call, base: FileBase) -> AsyncIterator[None]:
    """Tell a file that was never there from those of a completed task whose directory is gone by now."""
    try:
        yield
    except BatchError as error:
        if error.code != "FileNotFound" or not base.completed:
            raise
        try:
            await call.context.node_files.properties(base.address, base.root)
        except BatchError as gone:
            if gone.code == "FileNotFound":
                raise refusal("TaskFilesCleanedup") from gone
        raise


def _path(call: Call) -> str:
    """Some clients send a leading slash, all but one encode the others as `%2F`; the router has decoded it once."""
    path = call.variables["path"].strip("/")
    parts = path.split("/")
    if not path or "\x00" in path or any(part in ("", ".", "..") for part in parts):
        raise refusal("FileNotFound")
    return path


def _range(call: Call) -> str | None:
    text = call.request.headers.get("ocp-range")
    if not text:
        return None
    if _RANGE.fullmatch(text.strip()) is None:
        reason = "must have the form bytes=first-last or bytes=first-"
        message = "The value provided for one of the HTTP headers is not in the correct format."
        values = (("HeaderName", "ocp-range"), ("HeaderValue", text[:256]), ("Reason", reason))
        raise BatchError(400, "InvalidHeaderValue", message, values)
    return text.strip()


def _check_dates(call: Call, headers: Mapping[str, str]) -> None:
    call.condition.check(None, parsedate_to_datetime(headers["Last-Modified"]))


def _headers(call: Call, base: FileBase, path: str, upstream: Mapping[str, str]) -> dict[str, str]:
    headers = common_headers(call.request, call.request_id)
    headers |= {name: upstream[name] for name in _PASSED_ON if name in upstream}
    is_directory = upstream.get("ocp-batch-file-isdirectory", "False").lower() == "true"
    headers["ocp-batch-file-isdirectory"] = str(is_directory)
    headers["ocp-batch-file-url"] = quote(base.url_of(path), safe="")
    return headers


async def list_task_files(call: Call) -> Reply:
    """List the files of a task."""
    return await _list(call, task_base, f"{call.links.task(call.variables['job_id'], call.variables['task_id'])}/files")


async def read_task_file(call: Call) -> web.StreamResponse:
    """Stream a file of a task, or a range of it."""
    return await _read(call, task_base)


async def describe_task_file(call: Call) -> web.StreamResponse:
    """Give the headers of a file of a task."""
    return await _describe(call, task_base)


async def delete_task_file(call: Call) -> Reply:
    """Delete a file of a task."""
    return await _delete(call, task_base)


async def list_node_files(call: Call) -> Reply:
    """List the files of a node."""
    return await _list(
        call, node_base, f"{call.links.node(call.variables['pool_id'], call.variables['node_id'])}/files"
    )


async def read_node_file(call: Call) -> web.StreamResponse:
    """Stream a file of a node, or a range of it."""
    return await _read(call, node_base)


async def describe_node_file(call: Call) -> web.StreamResponse:
    """Give the headers of a file of a node."""
    return await _describe(call, node_base)


async def delete_node_file(call: Call) -> Reply:
    """Delete a file of a node."""
    return await _delete(call, node_base)
