"""The node's file server: the service reads and deletes files below the node root here (docs/node-protocol.md).

File work runs in worker threads; a download holds one chunk in memory, however large the file is.
"""

import asyncio
import errno
import hmac
import json
import mimetypes
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import parse_qsl, quote_from_bytes, urlsplit
from uuid import uuid4

from aiohttp import web

from nodeagent.agent import safe_paths, trees
from nodeagent.agent.errors import AddressInUseError
from nodeagent.agent.safe_paths import Entry, NotThereError, TooManyError
from nodeagent.model.protocol import FileServer as Address
from nodeagent.model.times import format_time, http_date
from nodeagent.rules.layout import NodeLayout

CHUNK_BYTES = 256 * 1024

_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))", re.ASCII)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class FileServer:
    """Serves the files of one node to whoever shows the token."""

    def __init__(self, layout: NodeLayout, host: str, port: int, advertise_host: str | None = None) -> None:
        """Listen on `host`; `advertise_host` is what the service calls it."""
        self._root = layout.root
        self._bin = layout.volatile / "bin"
        self._top = frozenset(path.name for path in layout.top_level())
        self._host = host
        self._port = port
        self._advertised = advertise_host or host
        self._token = token_urlsafe(32)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Address]:
        """Listen while the context is open; gives the URL and the token. Raises AddressInUseError."""
        application = web.Application(middlewares=[self._guard])
        application.router.add_get("/v1/list", self._list)
        application.router.add_get("/v1/file", self._get, allow_head=False)
        application.router.add_head("/v1/file", self._head)
        application.router.add_delete("/v1/file", self._delete)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            port = await _listen(runner, self._host, self._port)
            host = f"[{self._advertised}]" if ":" in self._advertised else self._advertised
            yield Address(url=f"http://{host}:{port}", token=self._token)
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode(errors="replace")
        if not hmac.compare_digest(shown, f"Bearer {self._token}".encode()):
            raise web.HTTPUnauthorized
        try:
            return await handler(request)
        except NotThereError as error:
            raise web.HTTPNotFound from error

    async def _list(self, request: web.Request) -> web.Response:
        path, recursive = _path(request), _flag(request, "recursive")
        try:
            body = await asyncio.to_thread(self._listing, path, recursive=recursive)
        except TooManyError as error:
            text = f"there are more than {safe_paths.MOST_ENTRIES} entries: list a directory below"
            raise web.HTTPRequestEntityTooLarge(safe_paths.MOST_ENTRIES, 0, text=text) from error
        return web.Response(body=body, content_type="application/json")

    def _listing(self, path: str, *, recursive: bool) -> bytes:
        """JSON of a listing: of tens of thousands of entries it takes its time, which is not the loop's."""
        entries = safe_paths.listing(self._root, path, recursive=recursive)
        return json.dumps({"value": [_shown(entry) for entry in entries]}).encode()

    async def _head(self, request: web.Request) -> web.Response:
        entry = await asyncio.to_thread(safe_paths.entry, self._root, _path(request))
        size = 0 if entry.is_directory else entry.found.st_size
        return web.Response(headers=_headers(_path(request), entry.found) | {"Content-Length": str(size)})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = _path(request)
        if (await asyncio.to_thread(safe_paths.entry, self._root, path)).is_directory:
            raise web.HTTPConflict(text="this is a directory")
        handle, found = await asyncio.to_thread(safe_paths.open_file, self._root, path)
        try:
            start, length = _slice(request.headers.get("Range"), found.st_size)
            response = web.StreamResponse(headers=_headers(path, found) | {"Content-Length": str(length)})
            await response.prepare(request)
            await _stream(response, handle, start, length)
            await response.write_eof()
        finally:
            os.close(handle)
        return response

    async def _delete(self, request: web.Request) -> web.Response:
        parts = safe_paths.components(_path(request))
        if not parts or parts[0] not in self._top or len(parts) == 1:
            raise web.HTTPConflict(text="the node's own directories stay")
        try:
            await asyncio.to_thread(self._remove, parts, recursive=_flag(request, "recursive"))
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise web.HTTPConflict(text="the directory is not empty") from error
            raise
        return web.Response()

    def _remove(self, parts: tuple[str, ...], *, recursive: bool) -> None:
        *above, name = parts
        with safe_paths.directory(self._root, "/".join(above)) as parent:
            try:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError as error:
                raise NotThereError(name) from error
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=parent)
            elif recursive:
                self._remove_tree(parent, name)
            else:
                os.rmdir(name, dir_fd=parent)

    def _remove_tree(self, parent: int, name: str) -> None:
        """Move it into a bin of its own, so that it is gone at once and whole, and empty that."""
        bin_ = self._bin.with_name(f"bin-{uuid4().hex}")
        bin_.mkdir(mode=0o700)
        handle = os.open(bin_, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.rename(name, name, src_dir_fd=parent, dst_dir_fd=handle)
            trees.empty_bin(handle)
        finally:
            os.close(handle)
        bin_.rmdir()


async def _listen(runner: web.AppRunner, host: str, port: int) -> int:
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise AddressInUseError(
                f"the file server cannot listen on {host}:{port}: {os.strerror(error.errno)}"
            ) from error
        raise
    return int(runner.addresses[0][1])


async def _stream(response: web.StreamResponse, handle: int, start: int, length: int) -> None:
    while length:
        chunk = await asyncio.to_thread(os.pread, handle, min(CHUNK_BYTES, length), start)
        if not chunk:  # truncated meanwhile: the connection ends short, which the reader notices
            raise ConnectionResetError("the file became shorter while it was read")
        await response.write(chunk)
        start += len(chunk)
        length -= len(chunk)


def _slice(header: str | None, size: int) -> tuple[int, int]:
    """Return start and length of what is asked for. Raises HTTPRequestRangeNotSatisfiable."""
    if header is None:
        return 0, size
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        raise web.HTTPRequestRangeNotSatisfiable
    first, last, suffix = match.groups()
    start = int(first) if suffix is None else max(0, size - int(suffix))
    end = min(int(last), size - 1) if last else size - 1
    if start > end:
        raise web.HTTPRequestRangeNotSatisfiable
    return start, end - start + 1


def _path(request: web.Request) -> str:
    """Return the path that is asked for: percent-encoded bytes, which need not be UTF-8."""
    query = urlsplit(request.raw_path).query
    return dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape")).get("path", "")


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


def _content_type(path: str, found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode):
        return ""
    return mimetypes.guess_type(Path(path).name)[0] or "application/octet-stream"


def _modified(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)


def _headers(path: str, found: os.stat_result) -> dict[str, str]:
    is_directory = stat.S_ISDIR(found.st_mode)
    return {
        "Content-Type": _content_type(path, found) or "application/octet-stream",
        "Last-Modified": http_date(_modified(found)),
        "ocp-batch-file-mode": f"0o{found.st_mode:o}",
        "ocp-batch-file-isdirectory": "true" if is_directory else "false",
        "X-Nodeagent-Total-Size": "0" if is_directory else str(found.st_size),
    }


def _shown(entry: Entry) -> dict[str, object]:
    found = entry.found
    shown: dict[str, object] = {"name": entry.name, "isDirectory": entry.is_directory}
    if not entry.name.isascii() and (raw := os.fsencode(entry.name)).decode(errors="replace") != entry.name:
        shown["name"] = raw.decode(errors="replace")
        shown["encodedName"] = quote_from_bytes(raw)
    if not entry.is_directory:
        shown["contentLength"] = found.st_size
        shown["contentType"] = _content_type(entry.name, found)
    return shown | {"lastModified": format_time(_modified(found)), "fileMode": f"0o{found.st_mode:o}"}
