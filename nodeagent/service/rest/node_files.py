"""Asks an agent's file server for what its node holds: the service's side of the contract in docs/node-protocol.md."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from nodeagent.service.errors import BatchError, refusal

_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=5, sock_read=30)
"""A file may be large, so there is no limit on the whole; each step has one."""


@dataclass(frozen=True, slots=True)
class FileServerAddress:
    """Where an agent serves its node's files, and the bearer token it asks for."""

    url: str
    token: str


class NodeFiles:
    """Client of all agents' file servers; one connection pool, closed by `close`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def entries(self, server: FileServerAddress, directory: str, *, recursive: bool) -> list[dict[str, Any]]:
        """Return what a directory holds, sorted by name; the empty path is the node's root.

        A name that is not UTF-8 has surrogates in `name`, as all paths here may have.

        Raises BatchError `FileNotFound`, `NodeNotReady`.
        """
        options = {"path": directory or ".", "recursive": "true" if recursive else "false"}
        async with self._ask("GET", server, "/v1/list", options) as answer:
            listing = await answer.json()
        return [_named(entry) for entry in listing["value"]]

    @asynccontextmanager
    async def open(
        self, server: FileServerAddress, path: str, byte_range: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a file for streaming; `byte_range` is `bytes=a-b` or `bytes=a-`.

        Raises BatchError `FileNotFound`, `InvalidRange`, `OperationInvalidForCurrentState` (a directory),
        `NodeNotReady`.
        """
        headers = {"Range": byte_range} if byte_range else {}
        async with self._ask("GET", server, "/v1/file", {"path": path}, headers) as answer:
            yield answer

    async def properties(self, server: FileServerAddress, path: str) -> Mapping[str, str]:
        """Return the headers that describe a file or directory. Raises BatchError `FileNotFound`, `NodeNotReady`."""
        async with self._ask("HEAD", server, "/v1/file", {"path": path}) as answer:
            return answer.headers

    async def delete(self, server: FileServerAddress, path: str, *, recursive: bool) -> None:
        """Delete a file or directory.

        Raises BatchError `FileNotFound`, `OperationInvalidForCurrentState` (a directory that is not empty),
        `NodeNotReady`.
        """
        options = {"path": path, "recursive": "true" if recursive else "false"}
        async with self._ask("DELETE", server, "/v1/file", options):
            return

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        server: FileServerAddress,
        resource: str,
        options: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False)
        # without this header aiohttp's client would offer compression, and the length would not be the file's
        sent = {"Authorization": f"Bearer {server.token}", "Accept-Encoding": "identity"} | dict(headers or {})
        try:
            async with self._session.request(
                method, _url(server, resource, options), headers=sent, allow_redirects=False
            ) as answer:
                if not 200 <= answer.status < 300:
                    raise _refused(answer.status)
                yield answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise refusal("NodeNotReady", ("Reason", "The node does not answer.")) from error


def _url(server: FileServerAddress, resource: str, options: Mapping[str, str]) -> URL:
    """Return the URL of a request, its values as percent-encoded bytes."""
    query = "&".join(f"{name}={quote(value, safe='/', errors='surrogateescape')}" for name, value in options.items())
    return URL(f"{server.url.rstrip('/')}{resource}?{query}", encoded=True)


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry under its true name; the agent tells one that is no text percent-encoded."""
    encoded = entry.get("encodedName")
    return entry if encoded is None else entry | {"name": unquote(encoded, errors="surrogateescape")}


def _refused(status: int) -> BatchError:
    match status:
        case 404:
            return refusal("FileNotFound")
        case 416:
            text = "The range specified is invalid for the current size of the resource."
            return BatchError(416, "InvalidRange", text)
        case 409:
            return refusal("OperationInvalidForCurrentState", ("Reason", "The path is a directory."))
        case _:
            return refusal("NodeNotReady", ("Reason", f"The node's file server answered with status {status}."))
